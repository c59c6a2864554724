"""The scores of several members, seeds of one system or different systems, as one score.

Every member's scores are brought to one scale by its own scores of normal training clips that were
held out (:func:`asdproto.scoring.backends.held_out_scores`). No test clip has a say.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from asdproto.scoring.rows import rows_by

# A copy of a training clip is at distance 0, and its logarithm would outweigh all other members.
FLOOR = 1e-3
# Share of held-out normal clips below the score that parts are measured by.
LIMIT = 0.95
# Weight of a part that was learned, chosen with the labels of development sets.
LEARNED = 0.3


def zero_and_unit(reference: np.ndarray) -> tuple[float, float]:
    """Where a detector's scores begin, and their unit; see :func:`log_normalized`."""
    zero = min(float(reference.min()), 0.0)
    for unit in (float(np.median(reference)) - zero, float(reference.mean()) - zero):
        if unit > 0.0:
            return zero, unit
    return zero, 1.0


def log_normalized(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    r"""Scores in logarithmic units of the median held-out score.

    .. math:: \log \max\left(\frac{s - z}{\mathrm{median}(r) - z}, 10^{-3}\right)

    over the reference scores r, with z their smallest where one of them is negative, and else 0.
    Where copies of clips make the median the zero itself, their mean stands for it, and 1 where all
    are copies.

    The zero of distances and errors is their own. Log-likelihoods and log-odds have none; where
    they are negative they are measured from the most normal clip that was held out. The map never
    reverses the order of two scores, and multiplying all scores by a positive number changes
    nothing.

    Args:
      scores: Floating, shape ``[n]``; anomaly scores of one section.
      reference: Floating, shape ``[m]``; the same detector's scores of normal training clips of the
        section that it was not fitted on.

    Returns:
      float64, shape ``[n]``; 0 for a clip like the median held-out one, higher is more anomalous.

    Raises:
      ValueError: No reference, or scores that are not finite.
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
    parts: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
) -> np.ndarray:
    r"""One score per clip: the mean of members of one kind, the largest of different kinds.

    Members of one part, such as seeds, are to find the same: their log-normalized scores are
    averaged. Parts that hear different things, such as a network and a spectrum, are not: a fault
    that one of them hears would be halved by the other. Of several parts, each is measured by the
    scores of normal clips that were held out,

    .. math:: s = \max_p \exp(w_p (\bar s_p - q_{0.95}(\bar r_p)))

    with :math:`\bar s_p` and :math:`\bar r_p` the means of the part's members, of the clip and of
    held-out clips of its section: 1 is where one in twenty normal clips is beyond.

    Args:
      scores: Scores of the same ``n`` clips by every member.
      references: Scores of the same ``m`` held-out training clips by every member.
      sections: Section key per clip, length ``n``.
      reference_sections: Section key per held-out training clip, length ``m``.
      parts: Which part each member belongs to; one for all when ``None``.
      weights: Of each member's part among several, :math:`w_p`; 1 when ``None``.

    Returns:
      float64, shape ``[n]``; of either sign for one part, positive for several.

    Raises:
      ValueError: Lengths differ, a section has no held-out clips, or as :func:`log_normalized`.
    """
    parts = [0] * len(scores) if parts is None else parts
    weights = [1.0] * len(scores) if weights is None else weights
    if not len(scores) or not len(scores) == len(references) == len(parts):
        raise ValueError(
            f"found scores of {len(scores)} members, references of {len(references)} and "
            f"{len(parts)} parts, expected as many of each, at least one"
        )
    lengths = {(len(own), len(other)) for own, other in zip(scores, references, strict=True)}
    if lengths != {(len(sections), len(reference_sections))}:
        raise ValueError(
            f"found (scores, reference scores) of {sorted(lengths)} clips, expected "
            f"{(len(sections), len(reference_sections))}: one per section key"
        )
    rows, known = rows_by(sections), rows_by(reference_sections)
    unknown = [key for key in rows if key not in known]
    if unknown:
        raise ValueError(
            f"section {unknown[0]!r} has no held-out training clips to measure its scores by; "
            f"known sections: {', '.join(map(str, known))}"
        )
    members = list(rows_by(parts).values())
    combined = np.empty((len(members), len(sections)))
    for row, chosen in zip(combined, members, strict=True):
        for key, clips in rows.items():
            logs = []
            for member in chosen:
                held_out = np.asarray(references[member])[known[key]]
                both = np.concatenate([np.asarray(scores[member])[clips], held_out])
                logs.append(log_normalized(both, held_out))
            new, normal = np.split(np.mean(logs, axis=0), [len(clips)])
            if len(members) > 1:
                new = weights[chosen[0]] * (new - np.quantile(normal, LIMIT))
            row[clips] = new
    return combined[0] if len(members) == 1 else np.exp(combined.max(axis=0))
