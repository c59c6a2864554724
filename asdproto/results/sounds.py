"""What is seen and heard of recordings: their levels, the nearest normal one, excerpts, times."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import io
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asdproto.errors import DataError
from asdproto.features import FeatureSettings, file_features, filterbank, read_audio
from asdproto.results.run_folder import Run, ScoredClip

SAMPLE_RATE = 16000  # of excerpts
EXCERPT = 4.0  # seconds
_RMS, _PEAK = 0.08, 0.95  # loudness of excerpts: some machines would not be heard otherwise
_MOST_COMPARED = 300  # normal recordings of a section, among which the nearest is looked for
_BANDS = 80  # of the spectra that are compared, evenly spaced in frequency
_WHEN = re.compile(
    r"(?<!\d)(20\d\d)[-_.]?(0[1-9]|1[0-2])[-_.]?(0[1-9]|[12]\d|3[01])"
    r"(?:[T_. /-]*([01]\d|2[0-3])[-_.:h]?([0-5]\d)(?:[-_.:m]?([0-5]\d))?)?(?!\d)"
)


@dataclass(frozen=True, slots=True, eq=False)
class Sound:
    """What is seen and heard of a recording.

    Attributes:
      file: Its name.
      levels: float32, shape ``[frames, bands]``: dB, at even frequencies from 0 to ``top``.
      seconds: Its length.
      top: Highest frequency, kHz.
      recording: The file, or None where it is not at hand.
    """

    file: str
    levels: np.ndarray
    seconds: float
    top: float
    recording: Path | None

    @property
    def spectrum(self) -> np.ndarray:
        """Mean power of each band, in dB, float64 ``[bands]``."""
        return 10.0 * np.log10(np.mean(10.0 ** (self.levels.astype(np.float64) / 10.0), axis=0))


class Sounds:
    """Recordings of a run, from its feature store, or from their files where it lacks them."""

    def __init__(self, run: Run, *, from_files: bool = False):
        """Takes the files of clips for paths as they are, if ``from_files``."""
        self.run, self.from_files = run, from_files
        stored = _stored_settings(run)
        self.clips = [] if run.store is None or stored is None else run.store.clips
        # A store of summaries has no pictures: they are made of the recordings.
        self.summary = stored if stored is not None and stored.summary else None
        self.settings = dataclasses.replace(stored or FeatureSettings(), summary=False)
        self.rows = {clip.path: row for row, clip in enumerate(self.clips)}
        self._spectra: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}

    def recording(self, file: str) -> Path | None:
        """The file of a clip, None where it is not at hand."""
        if self.from_files:
            return Path(file) if Path(file).is_file() else None
        return self._collected(file)

    def sound(self, file: str) -> Sound | None:
        """What is known of a recording, None where there is nothing to show."""
        if file in self.rows and not self.from_files:
            return self._stored(self.rows[file])
        return self._read(file, self.recording(file))

    def _read(self, file: str, recording: Path | None) -> Sound | None:
        if recording is None:
            return None
        try:
            return self._sound(file, file_features(recording, self.settings)[0], recording)
        except DataError:
            return None

    def _collected(self, file: str) -> Path | None:
        """A file of the run's collection, never one outside of it."""
        if not file or ".." in Path(file).parts or Path(file).is_absolute():
            return None
        paths = (folder / file for folder in self.run.recordings)
        return next((path for path in paths if path.is_file()), None)

    def _stored(self, row: int) -> Sound | None:
        assert self.run.store is not None
        file = self.clips[row].path
        if self.summary is not None:
            return self._read(file, self._collected(file))
        return self._sound(file, self.run.store.read(row), self._collected(file))

    def _spectrum(self, row: int) -> np.ndarray:
        """Mean spectrum of a stored clip, dB; of a summary its median over frames."""
        assert self.run.store is not None
        features = self.run.store.read(row)
        if self.summary is not None:
            return _steady(features, self.summary)
        return self._sound("", features, None).spectrum

    def _sound(self, file: str, features: np.ndarray, recording: Path | None) -> Sound:
        seconds = len(features) * self.settings.hop_length / self.settings.sample_rate
        levels = _even_levels(features, self.settings)
        return Sound(file, levels, seconds, self.settings.top / 1000.0, recording)

    def nearest_normal(self, sound: Sound, section: tuple[str, str]) -> Sound | None:
        """The normal training recording of a section whose mean spectrum is most alike."""
        if section not in self._spectra:
            own = [
                row
                for row, clip in enumerate(self.clips)
                if (clip.machine_type, clip.section) == section
                and clip.split == "train"
                and clip.state != "anomaly"
            ]
            own = own[:: max(1, -(-len(own) // _MOST_COMPARED))]
            spectra = np.array([self._spectrum(row) for row in own])
            self._spectra[section] = np.array(own), spectra
        rows, spectra_of_rows = self._spectra[section]
        if not len(rows):
            return None
        spectrum = sound.spectrum
        if self.summary is not None and sound.recording is not None:
            spectrum = _steady(file_features(sound.recording, self.summary)[0], self.summary)
        with np.errstate(invalid="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # frequencies that one of them lacks
            distances = np.nanmean(np.square(spectra_of_rows - spectrum), axis=1)
        return self._stored(rows[int(np.argmin(distances))])


def _stored_settings(run: Run) -> FeatureSettings | None:
    """Of the features in its store; None without one, or where somebody else computed them."""
    try:
        return None if run.store is None else FeatureSettings(**run.store.settings)
    except (TypeError, ValueError):
        return None


def _steady(features: np.ndarray, settings: FeatureSettings) -> np.ndarray:
    """Median spectrum in a summary, from its own level, dB, float64 ``[bins]``."""
    columns = next(part.columns for part in settings.parts() if part.name == "steady")
    levels = np.asarray(features[0, columns], np.float64)
    return levels - np.nanmean(levels)


def _even_levels(features: np.ndarray, settings: FeatureSettings) -> np.ndarray:
    """Levels of mel bands, of either scale, at frequencies evenly spaced, as people read them."""
    bank = filterbank(settings)
    bins = np.linspace(0.0, settings.sample_rate / 2, bank.shape[1])
    centers = bank @ bins / bank.sum(axis=1)
    wanted = (np.arange(_BANDS) + 0.5) * settings.top / _BANDS
    # Filters have unit area, so that their levels are densities, which may be interpolated.
    weights = np.stack([np.interp(wanted, centers, one) for one in np.eye(len(centers))])
    levels = np.asarray(features[:, : settings.n_mels], np.float32) * (2.0 / settings.power)
    return levels @ weights.astype(np.float32)


def difference_in_words(sound: Sound, normal: Sound) -> str:
    """Where a recording's mean spectrum differs most from another's, ``"+8 dB at 2 to 3 kHz"``.

    Returns:
      At most two bands, each around a largest difference and as wide as half of it; a sentence
      where nothing differs by 2 dB.
    """
    difference = sound.spectrum - normal.spectrum
    width, left = sound.top / len(difference), np.ones(len(difference), bool)
    parts: list[str] = []
    while left.any() and len(parts) < 2:
        peak = int(np.argmax(np.abs(difference) * left))
        louder = difference * np.sign(difference[peak])
        if louder[peak] < 2.0:
            break
        begin, end = _around(peak, left & (louder >= louder[peak] / 2))
        mean = float(difference[begin:end].mean())
        sign = "+" if mean > 0 else "−"
        parts.append(f"{sign}{abs(mean):.0f} dB at {begin * width:.2g} to {end * width:.2g} kHz")
        left[slice(*_around(peak, louder > 0))] = False
    alike = "mean spectra within 2 dB of each other: the difference is in time, or small"
    return ", ".join(parts) or alike


def _around(position: int, mask: np.ndarray) -> tuple[int, int]:
    """Begin and end of the run of True values that holds a position."""
    outside = np.flatnonzero(~mask)
    place = int(np.searchsorted(outside, position))
    begin = outside[place - 1] + 1 if place > 0 else 0
    return int(begin), int(outside[place]) if place < len(outside) else len(mask)


def excerpts(sound: Sound, normal: Sound | None) -> list[tuple[float, bytes] | None]:
    """What is played of a recording and of the normal one beside it.

    Of the recording, the seconds that differ most from the normal one's spectrum are taken; both
    are made louder alike, so that a difference in level stays one.

    Returns:
      For each of the two its begin in seconds and a mono flac file at :data:`SAMPLE_RATE`; None
      where there is no recording that can be read.
    """
    import soundfile

    pieces: list[tuple[float, np.ndarray] | None] = []
    for one, other in ((sound, normal), (normal, None)):
        piece = None
        if one is not None and one.recording is not None:
            with contextlib.suppress(DataError, OSError):
                audio, _ = read_audio(one.recording, SAMPLE_RATE)
                samples = round(EXCERPT * SAMPLE_RATE)
                begin = round(_most_different(one, other) * SAMPLE_RATE)
                begin = max(0, min(begin, len(audio) - samples))
                piece = begin / SAMPLE_RATE, audio[begin : begin + samples]
        pieces.append(piece)
    heard = [piece[1] for piece in pieces if piece is not None]
    loudest = max((np.sqrt(np.mean(np.square(audio))) for audio in heard), default=0.0)
    peak = max((np.abs(audio).max() for audio in heard), default=0.0)
    gain = float(min(_RMS / max(loudest, 1e-9), _PEAK / max(peak, 1e-9)))

    def flac(audio: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        soundfile.write(buffer, audio * gain, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        return buffer.getvalue()

    return [piece and (piece[0], flac(piece[1])) for piece in pieces]


def _most_different(sound: Sound, other: Sound | None) -> float:
    """Begin of the excerpt, seconds: where it differs most from another, or from itself least."""
    reference = (other or sound).spectrum
    distances = np.abs(sound.levels - reference).mean(axis=1)
    frames = max(1, round(EXCERPT / sound.seconds * len(distances)))
    if frames >= len(distances):
        return 0.0
    sums = np.convolve(distances if other is not None else -distances, np.ones(frames), "valid")
    return float(np.argmax(sums) / len(distances) * sound.seconds)


def times_of(clips: Sequence[ScoredClip], sounds: Sounds) -> tuple[list[Any], str]:
    """When recordings were made, as their names say it, or else the times of their files.

    File times count where no clip is labeled (a downloaded collection has the time of its
    download), and where they spread over an hour or more.

    Returns:
      A datetime each and ``"file names"`` or ``"file times"``; an empty list where nothing says it.
    """
    named = []
    for clip in clips:
        match = _WHEN.search(clip.file)
        try:
            named.append(match and datetime.datetime(*(int(x or 0) for x in match.groups())))  # type: ignore[arg-type]
        except ValueError:  # 31 February
            named.append(None)
    if all(named) and len(set(named)) > 1:
        return named, "file names"
    if any(clip.state for clip in clips):
        return [], ""
    files = [sounds.recording(clip.file) for clip in clips]
    stamps = [os.stat(file).st_mtime for file in files if file is not None]
    if len(stamps) < len(clips) or not stamps or max(stamps) - min(stamps) < 3600:
        return [], ""
    return [datetime.datetime.fromtimestamp(stamp) for stamp in stamps], "file times"
