"""Rows of arrays: by key; products and nearest rows that do not depend on the other rows."""

from collections.abc import Hashable, Iterator, Sequence
from typing import TypeVar

import numpy as np

Key = TypeVar("Key", bound=Hashable)
# References of which all distances are taken; of more, the near ones are found by a matrix product.
_FEW = 256
_BLOCK = 2**22  # products at a time


def rows_by(keys: Sequence[Key]) -> dict[Key, np.ndarray]:
    """Rows of every key, ascending, keys in order of first occurrence."""
    rows: dict[Key, list[int]] = {}
    for index, key in enumerate(keys):
        rows.setdefault(key, []).append(index)
    return {key: np.array(indices) for key, indices in rows.items()}


def rowwise_product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``left @ right`` as one vector-matrix product per row of ``left``, looped over inside numpy.

    One matrix product would let the number of rows choose the order of summation, and a clip
    scored alone would differ in its last bits from the same clip in a batch.
    """
    return np.matmul(left[:, None, :], right)[:, 0, :]


def nearest_rows(
    points: np.ndarray, references: np.ndarray, count: int, *, skip: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Mean distance to the nearest references after leaving the ``skip`` nearest out.

    Args:
      points: float64, shape ``[n, dim]``.
      references: float64, shape ``[r, dim]``.
      count: References averaged over; all where there are fewer.
      skip: Nearest references left out; at least one stays.

    Returns:
      Means, float64 ``[n]``, and the row of the nearest reference, none left out, int64 ``[n]``.
    """
    # Differences are taken before squaring, so near ones keep their digits.
    from scipy.spatial.distance import cdist

    skip = min(skip, len(references) - 1)
    last = skip + min(count, len(references) - skip)
    if len(references) <= _FEW:
        all_distances = cdist(points, references)
        means = np.sort(all_distances, axis=1)[:, skip:last].mean(axis=1)
        return means, all_distances.argmin(axis=1)
    means, nearest = np.empty(len(points)), np.empty(len(points), np.int64)
    for row, rows in enumerate(_candidates(points, references, last)):
        distances = cdist(points[row : row + 1], references[rows])[0]
        nearest[row] = rows[distances.argmin()]
        means[row] = np.sort(distances)[skip:last].mean()
    return means, nearest


def _candidates(points: np.ndarray, references: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """For each point, rows of the references that may be among its ``count`` nearest, ascending.

    Squared distances by one matrix product in float32 are quick and inexact; what they may be off
    by is added to them, so that the nearest are among those chosen whatever the product's order of
    summation.
    """
    center = references.mean(axis=0)
    references = references - center
    lengths = np.square(references).sum(axis=1, keepdims=True)
    # A product of n terms is off by n halves of the last bit at most; and what goes in is rounded.
    precision = (references.shape[1] + 8) * float(np.finfo(np.float32).eps)
    # -2 x r, |r|^2 and |x|^2 with its error are summed by one product.
    factors = np.concatenate([-2.0 * references, lengths, np.ones_like(lengths)], axis=1)
    factors = _narrow(factors).T
    step = max(1, _BLOCK // len(references))
    for first in range(0, len(points), step):
        block = points[first : first + step] - center
        squares = np.square(block).sum(axis=1, keepdims=True)
        errors = precision * (squares + lengths.max())
        block = np.concatenate([block, np.ones_like(squares), squares + errors], axis=1)
        with np.errstate(over="ignore", invalid="ignore"):
            upper = _narrow(block) @ factors
            bounds = upper.min(axis=1, keepdims=True)
            if count > 1:
                bounds = np.partition(upper, count - 1)[:, count - 1 : count]
            far = upper > bounds + _narrow(2.0 * errors)
        for row in far:  # what is too large for float32 is not far
            yield np.flatnonzero(~row)


def _narrow(values: np.ndarray) -> np.ndarray:
    """Values in float32; infinite where they are too large."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
