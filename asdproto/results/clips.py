"""The most anomalous clips of a system, to look at and to listen to."""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asdproto.errors import DataError
from asdproto.features import FeatureSettings, filterbank
from asdproto.results.run_folder import Run
from asdproto.results.system_folder import ScoredClip, System

SAMPLE_RATE = 16000
MOST_COLUMNS = 400
MOST_SHOWN = 10
# Seconds of a clip that are played: from the middle.
_EXCERPT = 4.0
# Every excerpt is brought to this loudness, as some machines would not be heard otherwise.
_RMS, _PEAK = 0.08, 0.95


@dataclass(frozen=True, slots=True, eq=False)
class Spectrogram:
    """A clip's features, coarse enough for a page.

    Attributes:
      values: float32, shape ``[columns, mels]``.
      seconds: Length of the clip.
      centers: float64, shape ``[mels]``: center frequency of every band, hertz, rising.
    """

    values: np.ndarray
    seconds: float
    centers: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class ShownClip:
    """One clip as the report shows it.

    Attributes:
      clip: What the system says of it.
      rank: From 1 within the machine type, by falling score.
      threshold: Decision threshold of its machine type, or None.
      spectrogram: Its features, or None where there is no feature store.
      excerpt: Begin and end of what is played, seconds, or None.
      audio: A mono flac file at :data:`SAMPLE_RATE`, or None where the recording is gone.
    """

    clip: ScoredClip
    rank: int
    threshold: float | None
    spectrogram: Spectrogram | None
    excerpt: tuple[float, float] | None
    audio: bytes | None


def most_anomalous(clips: Sequence[ScoredClip], count: int) -> list[tuple[int, ScoredClip]]:
    """The clips with the highest scores, machine types in turn: their scores do not compare.

    Args:
      clips: Scored clips.
      count: How many at most.

    Returns:
      (rank within the machine type from 1, clip), by machine type and rank.
    """
    ranks: Counter[str] = Counter()
    ranked = []
    for clip in sorted(clips, key=lambda clip: (-clip.score, clip.file)):
        ranks[clip.machine_type] += 1
        ranked.append((ranks[clip.machine_type], clip))
    chosen = sorted(ranked, key=lambda item: (item[0], item[1].machine_type))[:count]
    return sorted(chosen, key=lambda item: (item[1].machine_type, item[0]))


def shown_clips(run: Run, system: System) -> list[ShownClip]:
    """Pictures and sound of a system's most anomalous clips, :data:`MOST_SHOWN` at most.

    Args:
      run: The run.
      system: One of its systems.

    Returns:
      :class:`ShownClip` for each; what cannot be read is noted in the run.
    """
    rows = {clip.path: row for row, clip in enumerate(run.store.clips)} if run.store else {}
    shown = [
        show_clip(
            clip,
            rank,
            threshold=system.thresholds.get(clip.machine_type),
            spectrogram=_stored_spectrogram(run, rows[clip.path]) if clip.path in rows else None,
            recording=_recording(run, clip),
        )
        for rank, clip in most_anomalous(system.clips, MOST_SHOWN)
    ]
    lost = [one.clip.file for one in shown if one.audio is None]
    if lost:
        run.notes.append(
            f"The recordings of {len(lost)} of {len(shown)} clips cannot be read, so they are not "
            f"played; the first is {lost[0]}."
        )
    return shown


def show_clip(
    clip: ScoredClip,
    rank: int,
    *,
    threshold: float | None,
    spectrogram: Spectrogram | None,
    recording: Path | None,
) -> ShownClip:
    """A clip with an excerpt of its recording, where there is one that can be read.

    The other arguments are those of :class:`ShownClip`.
    """
    excerpt, audio = None, None
    if recording is not None:
        with contextlib.suppress(DataError, OSError, RuntimeError):
            excerpt, audio = _excerpt(recording)
    return ShownClip(clip, rank, threshold, spectrogram, excerpt, audio)


def spectrogram_of(values: np.ndarray, settings: FeatureSettings) -> Spectrogram:
    """Features coarse enough for a page.

    Args:
      values: Floating, shape ``[frames, mels]``; what follows the bands, such as samples, is left
        out.
      settings: Their settings.

    Returns:
      At most :data:`MOST_COLUMNS` columns, each the mean of neighboring frames.
    """
    bank = filterbank(settings)
    values = np.asarray(values[:, : settings.n_mels], np.float32)
    starts = np.arange(0, len(values), -(-len(values) // MOST_COLUMNS))
    columns = np.add.reduceat(values, starts, axis=0)
    counts = np.diff(starts, append=len(values))
    frequencies = np.linspace(0.0, settings.sample_rate / 2, bank.shape[1])
    return Spectrogram(
        columns / counts[:, None],
        len(values) * settings.hop_length / settings.sample_rate,
        bank @ frequencies / bank.sum(axis=1),
    )


def _stored_spectrogram(run: Run, row: int) -> Spectrogram | None:
    assert run.store is not None
    try:
        settings = FeatureSettings(**run.store.settings)
        return spectrogram_of(run.store.read(row), settings)
    except (TypeError, ValueError):  # features that somebody else computed
        return None


def _recording(run: Run, clip: ScoredClip) -> Path | None:
    parts = Path(clip.path).parts
    if not parts or ".." in parts or Path(clip.path).is_absolute():
        return None
    paths = (folder / clip.path for folder in run.recordings)
    return next((path for path in paths if path.is_file()), None)


def _excerpt(path: Path) -> tuple[tuple[float, float], bytes]:
    import soundfile

    with soundfile.SoundFile(os.fsencode(path)) as file:  # names need not be UTF-8
        rate = file.samplerate
        length = min(_EXCERPT, len(file) / rate)
        middle = len(file) / rate / 2
        start = min(max(middle - length / 2, 0.0), len(file) / rate - length)
        file.seek(round(start * rate))
        audio = file.read(round(length * rate), dtype="float32", always_2d=True)[:, 0]
    if not audio.size or not np.isfinite(audio).all():
        raise DataError(path, "no finite samples", "a recording", "Replace the file.")
    if rate != SAMPLE_RATE:
        import librosa

        audio = librosa.resample(audio, orig_sr=rate, target_sr=SAMPLE_RATE)
    loudness, peak = float(np.sqrt(np.mean(np.square(audio)))), float(np.abs(audio).max())
    if peak > 0:
        audio = audio * min(_RMS / max(loudness, 1e-9), _PEAK / peak)
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return (start, start + length), buffer.getvalue()
