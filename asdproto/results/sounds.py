"""What is seen and heard of recordings: their levels, the nearest normal one, excerpts, times."""

from __future__ import annotations

import contextlib
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

from asdproto.audio import read_audio
from asdproto.errors import DataError
from asdproto.features import FeatureSettings, file_features, power_spectra
from asdproto.results.run_folder import Run, ScoredClip

SAMPLE_RATE = 16000  # of excerpts
EXCERPT = 4.0  # seconds
_RMS, _PEAK = 0.08, 0.95  # loudness of excerpts: some machines would not be heard otherwise
_MOST_COMPARED = 300  # normal recordings of a section, among which the nearest is looked for
_BANDS = 64  # of the spectra that are shown, evenly spaced in frequency
_WHEN = re.compile(
    r"(?<!\d)(20\d\d)[-_.]?(0[1-9]|1[0-2])[-_.]?(0[1-9]|[12]\d|3[01])"
    r"(?:[T_. /-]*([01]\d|2[0-3])[-_.:h]?([0-5]\d)(?:[-_.:m]?([0-5]\d))?)?(?!\d)"
)


@dataclass(frozen=True, slots=True, eq=False)
class Sound:
    """What is seen and heard of a recording.

    Attributes:
      file: Its name.
      recording: The file.
      levels: float32, shape ``[frames, bands]``: dB, of even bands from 0 to ``top``.
      seconds: Its length.
      top: Highest frequency, kHz.
    """

    file: str
    recording: Path
    levels: np.ndarray
    seconds: float
    top: float

    @property
    def spectrum(self) -> np.ndarray:
        """Mean power of each band, in dB, float64 ``[bands]``."""
        return 10.0 * np.log10(np.mean(10.0 ** (self.levels.astype(np.float64) / 10.0), axis=0))


class Sounds:
    """Recordings of a run, and the nearest normal ones by the features in its store."""

    def __init__(self, run: Run, *, from_files: bool = False):
        """Takes the files of clips for paths as they are, if ``from_files``."""
        self.run, self.from_files = run, from_files
        self.settings: FeatureSettings | None = None
        if run.store is not None:
            with contextlib.suppress(TypeError, ValueError):  # somebody else computed the features
                self.settings = FeatureSettings(**run.store.settings)
        self.rate = SAMPLE_RATE if self.settings is None else self.settings.sample_rate
        self._normal: dict[tuple[str, str], tuple[list[str], np.ndarray]] = {}

    def recording(self, file: str) -> Path | None:
        """The file of a clip, None where it is not at hand."""
        if self.from_files:
            return Path(file) if Path(file).is_file() else None
        return self._collected(file)

    def _collected(self, file: str) -> Path | None:
        """A file of the run's collection, never one outside of it."""
        if not file or ".." in Path(file).parts or Path(file).is_absolute():
            return None
        paths = (folder / file for folder in self.run.recordings)
        return next((path for path in paths if path.is_file()), None)

    def sound(self, file: str) -> Sound | None:
        """What is known of a recording, None where there is nothing to show."""
        return self._read(file, self.recording(file))

    def _read(self, file: str, recording: Path | None) -> Sound | None:
        if recording is None:
            return None
        settings = FeatureSettings(sample_rate=self.rate)
        try:
            audio, info = read_audio(recording, settings.sample_rate)
        except DataError:
            return None
        powers = [
            block[:, 1:].reshape(len(block), _BANDS, -1).mean(axis=2)
            for block in power_spectra(audio, settings)
        ]
        levels = 10 * np.log10(np.maximum(np.concatenate(powers), np.float32(settings.floor)))
        return Sound(file, recording, levels, info.seconds, settings.top / 1000.0)

    def nearest_normal(self, sound: Sound, section: tuple[str, str]) -> Sound | None:
        """The normal training recording of a section whose mean spectrum is most alike."""
        if self.run.store is None or self.settings is None:
            return None
        if section not in self._normal:
            own = [
                row
                for row, clip in enumerate(self.run.store.clips)
                if (clip.machine_type, clip.section) == section
                and clip.split == "train"
                and clip.state != "anomaly"
            ]
            own = own[:: max(1, -(-len(own) // _MOST_COMPARED))]
            files = [self.run.store.clips[row].path for row in own]
            spectra = [_mean_spectrum(self.run.store.read(row), self.settings) for row in own]
            self._normal[section] = files, np.array(spectra)
        files, known = self._normal[section]
        if not files:
            return None
        try:
            features, _ = file_features(sound.recording, self.settings)
        except DataError:
            return None
        with np.errstate(invalid="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # frequencies that one of them lacks
            squares = np.square(known - _mean_spectrum(features, self.settings))
            nearest = files[int(np.argmin(np.nanmean(squares, axis=1)))]
        return self._read(nearest, self._collected(nearest))


def _mean_spectrum(features: np.ndarray, settings: FeatureSettings) -> np.ndarray:
    """Mean over frames, dB, float64 ``[bands]``; of a summary the median, from its own level."""
    if not settings.summary:
        return features[:, : settings.n_mels].mean(axis=0, dtype=np.float64)
    columns = next(part.columns for part in settings.parts() if part.name == "steady")
    levels = features[0, columns].astype(np.float64)
    return levels - np.nanmean(levels)


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
      for the normal one where there is none.
    """
    import soundfile

    pairs = [(sound, normal)] if normal is None else [(sound, normal), (normal, None)]
    pieces: list[tuple[float, np.ndarray]] = []
    for one, other in pairs:
        audio, _ = read_audio(one.recording, SAMPLE_RATE)
        samples = round(EXCERPT * SAMPLE_RATE)
        begin = round(_most_different(one, other) * SAMPLE_RATE)
        begin = max(0, min(begin, len(audio) - samples))
        pieces.append((begin / SAMPLE_RATE, audio[begin : begin + samples]))
    loudest = max(np.sqrt(np.mean(np.square(audio))) for _, audio in pieces)
    peak = max(np.abs(audio).max() for _, audio in pieces)
    gain = float(min(_RMS / max(loudest, 1e-9), _PEAK / max(peak, 1e-9)))

    def flac(audio: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        soundfile.write(buffer, audio * gain, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        return buffer.getvalue()

    played = [(begin, flac(audio)) for begin, audio in pieces]
    return [*played, None][:2]


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
