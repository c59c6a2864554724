"""The scores of several members, seeds of one system or different systems, as one score.

Every member's scores are brought to one scale by its own scores of normal training clips that were
held out (:func:`asdproto.scoring.backends.held_out_scores`), and averaged. No test clip has a say.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from asdproto.scoring.backends import rows_by

# A copy of a training clip is at distance 0, and its logarithm would outweigh all other members.
FLOOR = 1e-3


def log_normalized(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    r"""Scores in logarithmic units of the median held-out score.

    .. math:: \log \max\left(\frac{s - z}{\mathrm{median}(r) - z}, 10^{-3}\right)

    over the reference scores r, with z their smallest where one of them is negative, and else 0.

    The zero of distances and errors is their own. Log-likelihoods and log-odds have none; where
    they are negative they are measured from the most normal clip that was held out, and what is
    more normal still counts as a thousandth of the median. The map never reverses the order of two
    scores, and multiplying all scores by a positive number changes nothing.

    Args:
      scores: Floating, shape ``[n]``; anomaly scores of one section.
      reference: Floating, shape ``[m]``; the same detector's scores of normal training clips of the
        section that it was not fitted on.

    Returns:
      float64, shape ``[n]``; 0 for a clip like the median held-out one, higher is more anomalous.

    Raises:
      ValueError: No reference, scores that are not finite, or a median that is the zero itself.
    """
    scores, reference = _finite(scores, "scores"), _finite(reference, "reference")
    if not reference.size:
        raise ValueError("reference is empty, expected scores of held-out training clips")
    zero = min(reference.min(), 0.0)
    unit = np.median(reference) - zero
    if not unit > 0.0:
        raise ValueError(
            f"the median of {reference.size} held-out scores is {np.median(reference)}, the "
            "smallest that a score can be, so there is no unit to measure in; remove copies of "
            "training clips, or combine other members"
        )
    return np.log(np.maximum((scores - zero) / unit, FLOOR))


def combine(
    scores: Sequence[np.ndarray],
    references: Sequence[np.ndarray],
    sections: Sequence[Hashable],
    reference_sections: Sequence[Hashable],
    *,
    weights: Sequence[float] | None = None,
) -> np.ndarray:
    """One score per clip: the weighted mean of the members' log-normalized scores.

    Args:
      scores: Scores of the same ``n`` clips by every member.
      references: Scores of the same ``m`` held-out training clips by every member.
      sections: Section key per clip, length ``n``.
      reference_sections: Section key per held-out training clip, length ``m``.
      weights: A weight per member, none negative, chosen on normal clips alone, as
        :func:`balancing_weights` does; equal when ``None``.

    Returns:
      float64, shape ``[n]``; of either sign.

    Raises:
      ValueError: Lengths differ, a weight is negative or all are 0, a section has no held-out
        clips, or as :func:`log_normalized`.
    """
    weights = [1.0] * len(scores) if weights is None else weights
    if not len(scores) or not len(scores) == len(references) == len(weights):
        raise ValueError(
            f"found scores of {len(scores)} members, references of {len(references)} and "
            f"{len(weights)} weights, expected as many of each, at least one"
        )
    shares = np.asarray(weights, np.float64)
    if not np.isfinite(shares).all() or shares.min() < 0.0 or not shares.sum() > 0.0:
        raise ValueError(f"weights are {list(weights)}, expected none negative, and one above 0")
    normalized = [
        _by_section(own, reference, sections, reference_sections)
        for own, reference in zip(scores, references, strict=True)
    ]
    return np.average(normalized, axis=0, weights=shares)


def balancing_weights(normalized: Sequence[np.ndarray]) -> np.ndarray:
    """Weights that make the members' scores of normal clips spread alike.

    A member whose scores are the squares of another's has twice the logarithm, and would count
    twice; weighted by the inverse interquartile range of its log-normalized held-out scores it
    counts the same.

    Args:
      normalized: Log-normalized scores of held-out training clips by every member, as
        :func:`combine` gives them.

    Returns:
      float64, one weight per member, of sum 1.

    Raises:
      ValueError: A member's held-out scores do not vary.
    """
    spreads = np.array([np.subtract(*np.quantile(own, (0.75, 0.25))) for own in normalized])
    if not spreads.size or not spreads.min() > 0.0:
        raise ValueError(
            f"interquartile ranges of held-out scores are {spreads.tolist()}, expected all above "
            "0; give --weights, or leave a run out"
        )
    return (1.0 / spreads) / (1.0 / spreads).sum()


def _by_section(
    scores: np.ndarray,
    reference: np.ndarray,
    sections: Sequence[Hashable],
    reference_sections: Sequence[Hashable],
) -> np.ndarray:
    scores, reference = _finite(scores, "scores"), _finite(reference, "reference")
    if len(scores) != len(sections) or len(reference) != len(reference_sections):
        raise ValueError(
            f"a member has {len(scores)} scores of {len(sections)} clips and {len(reference)} "
            f"reference scores of {len(reference_sections)}, expected one per clip"
        )
    known = rows_by(reference_sections)
    normalized = np.empty(len(scores))
    for key, rows in rows_by(sections).items():
        if key not in known:
            raise ValueError(
                f"section {key!r} has no held-out training clips to measure its scores by; known "
                f"sections: {', '.join(map(str, known))}"
            )
        normalized[rows] = log_normalized(scores[rows], reference[known[key]])
    return normalized


def _finite(scores: np.ndarray, name: str) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or not np.isfinite(scores).all():
        raise ValueError(
            f"{name} has shape {scores.shape} and {int(np.sum(~np.isfinite(scores)))} values that "
            "are not finite, expected finite scores of shape [n]"
        )
    return scores
