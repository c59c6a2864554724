"""Decision thresholds from the scores of held-out training clips, and the decisions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FEW = 10  # clips below which a threshold is a guess


class ThresholdWarning(UserWarning):
    """A decision threshold rests on little."""


class Limit(NamedTuple):
    """A decision threshold and what it rests on.

    Attributes:
      threshold: Scores above it are anomalies.
      above: Share of the held-out normal clips above it.
      clips: How many of them there are.
      caution: What to know before trusting it; ``""`` where there is nothing.
    """

    threshold: float
    above: float
    clips: int
    caution: str


def limit(scores: np.ndarray, *, quantile: float = 0.9) -> Limit:
    """The threshold of :func:`gamma_threshold`, with what it rests on."""
    threshold = gamma_threshold(scores, quantile=quantile)
    clips, share = len(scores), 1.0 - quantile
    caution = ""
    if clips == 1:
        caution = "it rests on one recording, which does not show how normal recordings differ"
    elif clips < FEW:
        caution = f"it rests on {clips} clips only"
    elif share * clips < 1.0 - 1e-9:
        caution = f"{clips} clips cannot set a share of {share:.2g}; about {1 / clips:.2g} is least"
    return Limit(threshold, float(np.mean(np.asarray(scores) > threshold)), clips, caution)


def gamma_threshold(scores: np.ndarray, *, quantile: float = 0.9) -> float:
    """Decision threshold: a quantile of the gamma distribution fitted to training scores.

    The official evaluator fits one distribution per machine type to the scores of its training
    clips, all normal, and calls a clip an anomaly where its score exceeds the 90th percentile; no
    test clip has a say.

    A fit can fail: scores without spread, too few of them, or a likelihood that climbs to a
    degenerate corner, where the share of scores above the threshold is less than a quarter or more
    than three times what was asked for. The quantile of the scores themselves is then taken.

    Args:
      scores: Floating, shape ``[n]``, finite, of any sign; at least one.
      quantile: In (0, 1).

    Returns:
      The threshold; see :func:`decide`.

    Raises:
      ValueError: No scores, scores that are not finite, or a quantile outside (0, 1).
    """
    from scipy import stats

    scores = np.asarray(scores, np.float64).ravel()
    if not scores.size or not np.all(np.isfinite(scores)):
        raise ValueError(
            f"found {scores.size} scores, {int(np.sum(~np.isfinite(scores)))} of them not finite; "
            "expected finite anomaly scores of training clips"
        )
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"quantile is {quantile}, expected a number between 0 and 1")
    empirical = float(np.quantile(scores, quantile))
    # A fit knows no unit: scores of 1e-6 would stop its search before it began.
    center, scale = scores.min(), np.ptp(scores)
    if scale <= 1e-12 * max(1.0, float(np.abs(scores).max())):
        return empirical
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            parameters = stats.gamma.fit((scores - center) / scale)
            threshold = float(center + scale * stats.gamma.ppf(quantile, *parameters))
    except (RuntimeError, ValueError, FloatingPointError, stats.FitError):
        return empirical
    # A share a few times too large or too small, by more than one clip, is no loose fit.
    above, expected, clip = float(np.mean(scores > threshold)), 1.0 - quantile, 1.0 / scores.size
    plausible = expected / 4.0 - clip <= above <= 3.0 * expected + clip
    return threshold if np.isfinite(threshold) and plausible else empirical


def decide(scores: np.ndarray, threshold: float | np.ndarray) -> np.ndarray:
    """1 (anomaly) where a clip's score exceeds the threshold, or its own one, else 0; int64."""
    return (np.asarray(scores, np.float64) > threshold).astype(np.int64)


def percentiles(
    scores: Sequence[float] | np.ndarray,
    machines: Sequence[str],
    held_out: Sequence[float] | np.ndarray,
    held_out_machines: Sequence[str],
) -> np.ndarray:
    """Share of held-out normal scores below each score, among those of its machine type.

    Args:
      scores: Floating, shape ``[n]``, with the machine type of each.
      machines: Length ``n``.
      held_out: Floating, shape ``[m]``: held-out scores of training clips, likewise.
      held_out_machines: Length ``m``.

    Returns:
      float64, shape ``[n]``, in percent, [0, 100]; nan where its machine type has none.
    """
    result = np.full(len(scores), np.nan)
    of_clips, of_held_out = np.asarray(machines), np.asarray(held_out_machines)
    for machine in np.unique(of_clips):
        normal = np.sort(np.asarray(held_out, np.float64)[of_held_out == machine])
        if normal.size:
            chosen = of_clips == machine
            below = np.searchsorted(normal, np.asarray(scores, np.float64)[chosen], side="left")
            result[chosen] = 100.0 * below / normal.size
    return result
