"""Rows of arrays: by key, and products that do not depend on the other rows."""

from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np

Key = TypeVar("Key", bound=Hashable)


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
