"""The scores of several members, seeds of one system or different systems, as one score.

Every member's scores are brought to one scale by its own scores of normal training clips that were
held out (:func:`asdproto.scoring.backends.held_out_scores`), and averaged. No test clip has a say.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from asdproto.scoring.rows import rows_by

# A copy of a training clip is at distance 0, and its logarithm would outweigh all other members.
FLOOR = 1e-3


def zero_and_unit(reference: np.ndarray) -> tuple[float, float]:
    """Where a detector's scores begin, and their unit: see :func:`log_normalized`.

    Args:
      reference: Floating, shape ``[m]``, finite, at least one.

    Raises:
      ValueError: The median is the zero itself.
    """
    zero = min(float(reference.min()), 0.0)
    unit = float(np.median(reference)) - zero
    if not unit > 0.0:
        raise ValueError(
            f"the median of {reference.size} held-out scores is {np.median(reference)}, the "
            "smallest that a score can be, so there is no unit to measure in; remove copies of "
            "training clips, or combine other members"
        )
    return zero, unit


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
    scores, reference = np.asarray(scores, np.float64), np.asarray(reference, np.float64)
    if not reference.size or not (np.isfinite(scores).all() and np.isfinite(reference).all()):
        raise ValueError(
            f"found {reference.size} reference scores, or scores that are not finite; expected "
            "finite scores, and some of held-out training clips"
        )
    zero, unit = zero_and_unit(reference)
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
    shares = np.asarray([1.0] * len(scores) if weights is None else weights, np.float64)
    if not len(scores) or not len(scores) == len(references) == len(shares):
        raise ValueError(
            f"found scores of {len(scores)} members, references of {len(references)} and "
            f"{len(shares)} weights, expected as many of each, at least one"
        )
    if not np.isfinite(shares).all() or shares.min() < 0.0 or not shares.sum() > 0.0:
        raise ValueError(f"weights are {shares.tolist()}, expected none negative, and one above 0")
    rows, known = rows_by(sections), rows_by(reference_sections)
    unknown = [key for key in rows if key not in known]
    if unknown:
        raise ValueError(
            f"section {unknown[0]!r} has no held-out training clips to measure its scores by; "
            f"known sections: {', '.join(map(str, known))}"
        )
    normalized = np.empty((len(scores), len(sections)))
    for row, *values in zip(normalized, scores, references, strict=True):
        own, reference = map(np.asarray, values)
        if len(own) != len(sections) or len(reference) != len(reference_sections):
            raise ValueError(
                f"a member has {len(own)} scores of {len(sections)} clips and {len(reference)} "
                f"reference scores of {len(reference_sections)}, expected one per clip"
            )
        for key, chosen in rows.items():
            row[chosen] = log_normalized(own[chosen], reference[known[key]])
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
            "0; give weights, or leave a detector out"
        )
    return (1.0 / spreads) / (1.0 / spreads).sum()
