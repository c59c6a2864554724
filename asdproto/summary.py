"""What a clip sounds like, in four short vectors: how it is, and how it changes.

A mean spectrum cannot hear rhythm, and one frequency scale suits one kind of fault only. These four
need no training:

==============  ==========================================================================
``quiet``       inverted mel bands: the level that a quarter of the frames stay below
``steady``      bins of the spectrum: median over frames
``change``      bins of the spectrum: mean absolute difference from one frame to the next
``modulation``  groups of mel bands: how strongly they go up and down, by how fast they do
==============  ==========================================================================

All are in decibels. ``quiet`` and ``steady`` are levels, which a recording's gain moves; whoever
compares clips takes each clip's mean off first.
"""

import itertools
from typing import NamedTuple

import numpy as np

# Of modulations: frames of a stretch (4 s), mel bands in a group, and where bands of modulation
# frequencies begin, in bins of a stretch's transform; slower ones are a stretch's trend.
STRETCH, GROUP = 128, 8
EDGES = (2, 3, 4, 5, 7, 9, 12, 16, 22, 30, 42, 65)
# dB^2 that is added to the power of modulations: what no ear and no fault needs.
_STILL = 1e-3


class Part(NamedTuple):
    """One of the vectors of a summary.

    Attributes:
      name: Its name in the table above.
      columns: Where it stands in a summary.
      tops: float64, shape ``[columns]``: highest frequency that each number depends on, hertz.
    """

    name: str
    columns: slice
    tops: np.ndarray


def summary_parts(
    sample_rate: int, n_fft: int, mel: np.ndarray, inverted: np.ndarray
) -> tuple[Part, ...]:
    """The vectors that :func:`summarize` joins.

    Args:
      sample_rate: Hertz.
      n_fft: Samples of a frame.
      mel: float32, shape ``[bands, n_fft // 2 + 1]``, mel filters in order of rising frequency.
      inverted: Likewise, inverted mel filters.

    Returns:
      The parts, in order.
    """
    bins = np.arange(n_fft // 2 + 1) * (sample_rate / n_fft)
    groups = _tops(mel, bins).reshape(-1, GROUP).max(axis=1)
    parts, first = [], 0
    for name, tops in (
        ("quiet", _tops(inverted, bins)),
        ("steady", bins),
        ("change", bins),
        ("modulation", np.tile(groups, len(EDGES) - 1)),
    ):
        parts.append(Part(name, slice(first, first + len(tops)), tops))
        first += len(tops)
    return tuple(parts)


def summarize(power: np.ndarray, mel: np.ndarray, inverted: np.ndarray, floor: float) -> np.ndarray:
    """The vectors of a clip, one after the other.

    Args:
      power: float32, shape ``[frames, bins]``: power spectrogram.
      mel: Mel filters, shape ``[bands, bins]``.
      inverted: Inverted mel filters, likewise.
      floor: Smallest power before the logarithm.

    Returns:
      float32, shape ``[columns]``, dB.
    """
    spectrum = _decibels(power, floor)
    change = (
        np.abs(np.diff(spectrum, axis=0)).mean(axis=0) if len(spectrum) > 1 else 0 * spectrum[0]
    )
    bands = _decibels(power @ mel.T, floor)
    return np.concatenate(
        [
            np.quantile(_decibels(power @ inverted.T, floor), 0.25, axis=0),
            np.median(spectrum, axis=0),
            change,
            modulations(bands.reshape(len(bands), -1, GROUP).mean(axis=2)).reshape(-1),
        ]
    ).astype(np.float32)


def modulations(levels: np.ndarray) -> np.ndarray:
    """Power spectrum of levels over time, averaged over stretches and over bands of frequencies.

    Args:
      levels: Floating, shape ``[frames, groups]``, dB.

    Returns:
      Floating, shape ``[bands, groups]``, dB; a shorter clip is padded with
      its mean.
    """
    frames = len(levels)
    count = -(-max(frames - STRETCH, 0) // (STRETCH // 2)) + 1
    starts = np.round(np.linspace(0, max(frames - STRETCH, 0), count)).astype(int)
    total = np.zeros((STRETCH // 2 + 1, levels.shape[1]))
    for start in starts:
        stretch = levels[start : start + STRETCH]
        window = np.hanning(len(stretch) + 1)[:-1, None]
        spectrum = np.fft.rfft((stretch - stretch.mean(axis=0)) * window, n=STRETCH, axis=0)
        total += np.square(np.abs(spectrum)) / max(np.square(window).sum(), 1.0) / count
    bands = [total[low:high].mean(axis=0) for low, high in itertools.pairwise(EDGES)]
    return 10 * np.log10(np.stack(bands) + _STILL)


def _decibels(power: np.ndarray, floor: float) -> np.ndarray:
    return 10 * np.log10(np.maximum(power, np.float32(floor)))


def _tops(filters: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Highest frequency that each filter passes."""
    return np.array([bins[np.flatnonzero(row)[-1]] for row in filters])
