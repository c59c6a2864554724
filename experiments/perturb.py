"""Faults of known kind, made without hearing a real one: perturbed copies of normal recordings.

Settings that no label may decide are compared on such copies: a detector that tells kept-out
normal clips from perturbed copies of themselves hears changes of that kind. A copy differs from its
clip in one way; how, and how strongly, is drawn from a seed and the clip's name, so a copy is the
same in every run. How strong a fault will be is not known beforehand, and what hears a faint one
best need not be best for a plain one: both are made. Faint ones are a few dB of a band, a few
percent of pitch.

From top to bottom: what is done to a recording, a collection's copies as a feature store, which
clips are kept out of training, and figures of scores of them.
"""

import dataclasses
import multiprocessing
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from scipy import signal

from asdproto.data.dcase import Clip
from asdproto.data.store import FeatureStore, open_store, write_store
from asdproto.data.table import load_collection
from asdproto.features import FeatureSettings, log_mel, read_audio
from asdproto.scoring import metrics

Perturbation = Callable[[np.ndarray, int, np.random.Generator, float], np.ndarray]
# What the functions below multiply their changes by.
STRENGTHS = {"faint": 1.0, "plain": 2.5}


def band(audio: np.ndarray, rate: int, rng: np.random.Generator, strength: float) -> np.ndarray:
    """A band of half an octave raised by 3 to 9 dB, as a resonance does."""
    spectrum = np.fft.rfft(audio)
    octaves = np.log2(np.maximum(np.fft.rfftfreq(len(audio), 1 / rate), 1.0))
    center = rng.uniform(np.log2(300), np.log2(0.45 * rate))
    gain = strength * rng.uniform(3, 9) * np.exp(-0.5 * np.square((octaves - center) / 0.25))
    return np.fft.irfft(spectrum * 10 ** (gain / 20), len(audio))


def shift(audio: np.ndarray, rate: int, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Everything 1 to 4 % faster or slower, pitch included, as another speed does."""
    del rate
    factor = 1 + strength * rng.choice([-1, 1]) * rng.uniform(0.01, 0.04)
    # Cut, or continued by its own beginning.
    changed = np.resize(signal.resample(audio, round(len(audio) / factor)), len(audio))
    # A slower copy ends below the highest frequency, and that alone would give it away: the top
    # tenth of the spectrum stays the clip's own.
    spectrum, own = np.fft.rfft(changed), np.fft.rfft(audio)
    top = round(0.9 * len(own))
    spectrum[top:] = own[top:]
    return np.fft.irfft(spectrum, len(audio))


def modulation(
    audio: np.ndarray, rate: int, rng: np.random.Generator, strength: float
) -> np.ndarray:
    """Loudness that swings 1 to 20 times a second, by 30 to 80 %, as an imbalance makes it."""
    time = np.arange(len(audio)) / rate
    swing = np.sin(2 * np.pi * (10 ** rng.uniform(0, 1.3) * time + rng.uniform()))
    depth = 1 - (1 - rng.uniform(0.3, 0.8)) ** strength
    return audio * (1 + depth * swing)


def tones(audio: np.ndarray, rate: int, rng: np.random.Generator, strength: float) -> np.ndarray:
    """A tone with two harmonics, 12 to 24 dB below the clip, as a whistling bearing."""
    time = np.arange(len(audio)) / rate
    pitch = 10 ** rng.uniform(np.log10(300), np.log10(rate / 7))
    added = sum(np.sin(2 * np.pi * (k * pitch * time + rng.uniform())) / k for k in (1, 2, 3))
    return audio + strength**2 * _rms(audio) * 10 ** (-rng.uniform(12, 24) / 20) * added


def clicks(audio: np.ndarray, rate: int, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Two to ten short knocks a second, as a loose part."""
    train = np.zeros(len(audio))
    count = max(1, round(rng.uniform(2, 10) * len(audio) / rate))
    train[rng.integers(0, len(audio), count)] = rng.uniform(0.5, 1.0, count)
    ring = rng.standard_normal(rate // 100) * np.exp(-np.arange(rate // 100) / (rate / 500))
    height = strength * _rms(audio) * rng.uniform(1.0, 3.0)
    return audio + height * np.convolve(train, ring)[: len(audio)]


def stretch(audio: np.ndarray, rate: int, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Tempo 8 to 20 % faster or slower at the same pitch."""
    import librosa

    del rate
    factor = 1 + strength * rng.choice([-1, 1]) * rng.uniform(0.08, 0.2)
    return np.resize(librosa.effects.time_stretch(audio, rate=factor), len(audio))


def level(audio: np.ndarray, rate: int, rng: np.random.Generator, strength: float) -> np.ndarray:
    """All of it 3 to 6 dB louder or softer."""
    del rate
    return audio * 10 ** (strength * rng.choice([-1, 1]) * rng.uniform(3, 6) / 20)


PERTURBATIONS: dict[str, Perturbation] = {
    function.__name__: function
    for function in (band, shift, modulation, tones, clicks, stretch, level)
}
# Those that are a fault: a microphone's gain is none.
NAMES = tuple(name for name in PERTURBATIONS if name != "level")
# Strength and perturbation of every copy that is made of a clip.
COPIES = (*((strength, name) for strength in STRENGTHS for name in NAMES), ("faint", "level"))
FIGURES = ("source", "target", "pauc")
COLUMNS = ("mean", *FIGURES, *STRENGTHS, *NAMES, "level")


def perturb(
    name: str, audio: np.ndarray, rate: int, clip: str, *, strength: float = 1.0, seed: int = 0
) -> np.ndarray:
    """A perturbed copy.

    Args:
      name: One of :data:`PERTURBATIONS`.
      audio: Floating, shape ``[samples]``.
      rate: Hertz.
      clip: Name of the clip; with the seed it decides what is drawn.
      strength: In (0, 4]; how strong the change is, see :data:`STRENGTHS`.
      seed: Of all copies.

    Returns:
      float32, same shape; scaled down where it would exceed full scale.
    """
    rng = np.random.default_rng([seed, zlib.crc32(f"{name} {clip}".encode())])
    changed = PERTURBATIONS[name](audio.astype(np.float64), rate, rng, strength)
    return (changed / max(1.0, float(np.abs(changed).max()))).astype(np.float32)


def _rms(audio: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(audio))))


def perturbed_store(collection: Path, folder: Path, settings: FeatureSettings) -> FeatureStore:
    """Features of a collection's training clips (split ``train``) and their copies (``test``).

    Each clip is followed by its copies, in the order of :data:`COPIES`.
    """
    if folder.exists():
        return open_store(folder, expect=settings)
    root, clips = load_collection(collection)
    clips = [clip for clip in clips if clip.split == "train"]
    jobs = [(root, clip.path, settings) for clip in clips]
    features, copies = [], []
    # Forking a process that runs threads, as jax does, may hang it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=context) as pool:
        for clip, arrays in zip(clips, pool.map(_features, jobs, chunksize=8), strict=True):
            features += arrays
            copies.append(clip)
            for copy in COPIES:
                path = "/".join((*copy, clip.path))
                copies.append(dataclasses.replace(clip, path=path, split="test", state="anomaly"))
    return write_store(folder, features, copies, settings=settings)


def _features(job: tuple[Path, str, FeatureSettings]) -> list[np.ndarray]:
    """Features of a clip, then of its copies."""
    root, path, settings = job
    rate = settings.sample_rate
    audio, _ = read_audio(root / path, rate)
    copies = [perturb(name, audio, rate, path, strength=STRENGTHS[s]) for s, name in COPIES]
    return [log_mel(one, settings).astype(np.float16) for one in (audio, *copies)]


def fold_of(
    clips: Sequence[Clip], folds: int, machines: Sequence[str] | None, by: str = "clips"
) -> np.ndarray:
    """Fold of every clip, int64 ``[clips]``; each section and domain is dealt out evenly.

    Args:
      clips: Normal training clips.
      folds: How many.
      machines: Machine types that are kept out in turn, those of the others stay for training: -1.
        All when ``None``.
      by: ``"clips"``: clips are dealt out one by one. ``"conditions"``: all that share their
        attributes together; those of a section and domain with one condition stay for training.
    """
    rng = np.random.default_rng(0)
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, clip in enumerate(clips):
        if machines is None or clip.machine_type in machines:
            groups.setdefault((clip.machine_type, clip.section, clip.domain), []).append(index)
    fold = np.full(len(clips), -1)
    for rows in groups.values():
        if by == "clips":
            fold[rng.permutation(rows)] = np.arange(len(rows)) % folds
            continue
        conditions, own = np.unique([clips[row].attributes for row in rows], return_inverse=True)
        if len(conditions) > 1:
            fold[rows] = (rng.permutation(len(conditions)) % folds)[own]
    return fold


def keep_out(
    store: FeatureStore, fold: int, folds: int, machines: Sequence[str] | None, by: str = "clips"
) -> tuple[FeatureStore, np.ndarray]:
    """The store of one fold, and each test clip's place in :data:`COPIES` (-1: it is kept out)."""
    normal = [index for index, clip in enumerate(store.clips) if clip.split == "train"]
    number = fold_of([store.clips[index] for index in normal], folds, machines, by)
    rows = [index for index, own in zip(normal, number, strict=True) if own != fold]
    clips, kinds = [store.clips[index] for index in rows], []
    for index, own in zip(normal, number, strict=True):
        if own == fold:
            clip, *copies = store.clips[index : index + 1 + len(COPIES)]
            rows += range(index, index + 1 + len(COPIES))
            clips += [dataclasses.replace(clip, split="test"), *copies]
            kinds += [-1, *range(len(COPIES))]
    part = dataclasses.replace(
        store,
        features=np.asarray(store.features[rows]),
        frames=store.frames[rows],
        clips=clips,
        stamps=[store.stamps[row] for row in rows],
        notes=[store.notes[row] for row in rows],
        checksums=[store.checksums[row] for row in rows],
    )
    return part, np.array(kinds)


def evaluate(scores: np.ndarray, clips: Sequence[Clip], kinds: np.ndarray) -> dict[str, float]:
    """Figures of :data:`COLUMNS`, in [0, 1], means over sections.

    Args:
      scores: float64, shape ``[clips]``.
      clips: Kept-out clips and their copies.
      kinds: int64, shape ``[clips]``, as :func:`keep_out` gives them.
    """
    figures: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for kind, (strength, name) in enumerate(COPIES):
        rows = np.flatnonzero((kinds == -1) | (kinds == kind))
        for section in metrics.group_scores([clips[int(row)] for row in rows], scores[rows]):
            of_section = metrics.section_metrics(section)
            for figure, key in zip(FIGURES, metrics.AUC_METRICS, strict=True):
                if not np.isfinite(of_section[key]):
                    continue
                columns = (name,) if name == "level" else ("mean", figure, strength, name)
                for column in columns:
                    figures[column].append(of_section[key])
    return {column: float(np.mean(values)) for column, values in figures.items() if values}
