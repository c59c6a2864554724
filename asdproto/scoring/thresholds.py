"""Decision thresholds from the scores of training clips, and the decisions."""

from __future__ import annotations

import warnings

import numpy as np


class ThresholdWarning(UserWarning):
    """A gamma distribution does not describe the training scores; their quantile is used."""


def gamma_threshold(scores: np.ndarray, *, quantile: float = 0.9) -> float:
    """Decision threshold: a quantile of the gamma distribution fitted to training scores.

    The official evaluator fits one distribution per machine type to the scores of its training
    clips, all normal, and calls a clip an anomaly where its score exceeds the 90th percentile; no
    test clip has a say.

    A fit can fail: scores without spread, too few of them, or a likelihood that climbs to a
    degenerate corner. The fit is then replaced by the quantile of the scores themselves, and a
    warning says so.

    Args:
      scores: Floating, shape ``[n]``, finite, of any sign; at least one.
      quantile: In (0, 1).

    Returns:
      The threshold; see :func:`decide`.

    Raises:
      ValueError: No scores, scores that are not finite, or a quantile outside (0, 1).

    Warns:
      ThresholdWarning: The quantile of the scores is used instead of a gamma distribution.
    """
    from scipy import stats

    scores = np.asarray(scores, np.float64).ravel()
    if not scores.size or not np.all(np.isfinite(scores)):
        raise ValueError(
            f"scores holds {scores.size} values, {int(np.sum(~np.isfinite(scores)))} of them not "
            "finite; expected finite anomaly scores of training clips"
        )
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"quantile is {quantile}, expected a number between 0 and 1")
    empirical = float(np.quantile(scores, quantile))
    if np.ptp(scores) <= 1e-12 * max(1.0, float(np.abs(scores).max())):
        reason = "they are all the same"
    else:
        # A fit knows no unit: scores of 1e-6 would stop its search before it began.
        center, scale = scores.min(), np.ptp(scores)
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                parameters = stats.gamma.fit((scores - center) / scale)
                threshold = float(center + scale * stats.gamma.ppf(quantile, *parameters))
        except (RuntimeError, ValueError, FloatingPointError, stats.FitError) as error:
            reason = f"the fit failed ({error})"
        else:
            reason = _implausible(scores, threshold, quantile)
            if not reason:
                return threshold
    warnings.warn(
        f"no gamma distribution describes the {scores.size} training scores: {reason}; their "
        f"own {quantile:.0%} quantile, {empirical:.6g}, is the threshold",
        ThresholdWarning,
        stacklevel=2,
    )
    return empirical


def decide(scores: np.ndarray, threshold: float | np.ndarray) -> np.ndarray:
    """Decision per clip: 1 (anomaly) where the score exceeds the threshold, else 0.

    Args:
      scores: Floating, shape ``[n]``.
      threshold: Scalar, or shape ``[n]`` where thresholds differ between clips.

    Returns:
      int64, shape ``[n]``.
    """
    return (np.asarray(scores, np.float64) > threshold).astype(np.int64)


def _implausible(scores: np.ndarray, threshold: float, quantile: float) -> str:
    """Says why a fitted threshold cannot be the scores' quantile, or ''."""
    if not np.isfinite(threshold):
        return f"the fitted threshold is {threshold}"
    above = float(np.mean(scores > threshold))
    # A share a few times too large or too small, by more than one clip, is no loose fit: the search
    # ended in a corner of the likelihood.
    expected, clip = 1.0 - quantile, 1.0 / scores.size
    if not expected / 4.0 - clip <= above <= 3.0 * expected + clip:
        return f"{above:.1%} of them exceed the fitted {quantile:.0%} quantile {threshold:.6g}"
    return ""
