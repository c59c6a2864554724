"""Where in time the scores of clips come from: ``windows.npz`` beside a system's score files.

It holds ``files``, ``clips``, ``starts``, ``seconds`` and ``scores``: see :func:`write_windows`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from asdproto.errors import DataError
from asdproto.files import read_arrays, write_arrays

WINDOWS = "windows.npz"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Anomaly scores along one clip.

    Attributes:
      starts: float64, shape ``[w]``: begin of each window, seconds.
      seconds: float64, shape ``[w]``: its length.
      scores: float64, shape ``[w]``, on the scale of the clip's own score.
    """

    starts: np.ndarray
    seconds: np.ndarray
    scores: np.ndarray


def write_windows(
    folder: str | os.PathLike,
    files: Sequence[str],
    clips: np.ndarray,
    starts: np.ndarray,
    seconds: np.ndarray | float,
    scores: np.ndarray,
) -> Path:
    """Writes ``windows.npz``.

    Args:
      folder: Made where it does not exist.
      files: Paths of the clips relative to the collection's root, length ``n``.
      clips: Integer, shape ``[w]``: row of ``files`` that each window belongs to.
      starts: Floating, shape ``[w]``: begin of each window in its clip, seconds.
      seconds: Floating, shape ``[w]`` or a scalar: length of each window.
      scores: Floating, shape ``[w]``: of each window against its clip's section, on the scale of
        the clip's own score.

    Returns:
      The file written.

    Raises:
      ValueError: Lengths differ, or a clip has no file.
    """
    rows = np.asarray(clips, np.int64)
    if rows.size and not 0 <= rows.min() <= rows.max() < len(files):
        raise ValueError(
            f"clips has rows outside 0 to {len(files) - 1}, expected one of each window"
        )
    arrays = {"files": np.asarray(files, np.str_), "clips": rows}
    for name, values in (("starts", starts), ("seconds", seconds), ("scores", scores)):
        arrays[name] = np.broadcast_to(np.asarray(values, np.float64), rows.shape)
    path = Path(folder) / WINDOWS
    path.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(path, arrays)
    return path


def read_windows(folder: str | os.PathLike) -> dict[str, Windows]:
    """Reads ``windows.npz``.

    Args:
      folder: Folder of one system's scores.

    Returns:
      Windows by file, in order of time; empty where there is no such file.

    Raises:
      DataError: The file is damaged, or its arrays do not belong together.
    """
    path, names = Path(folder) / WINDOWS, ("clips", "starts", "seconds", "scores")
    if not path.exists():
        return {}
    arrays = read_arrays(path, ("files", *names), remedy="Score again.")
    count = len(arrays["files"])
    clips, *values = (arrays[name] for name in names)
    if (
        clips.ndim != 1
        or clips.dtype.kind not in "iu"
        or (clips.size and not 0 <= clips.min() <= clips.max() < count)
        or any(value.shape != clips.shape or value.dtype.kind not in "fiu" for value in values)
    ):
        raise DataError(path, "arrays that do not fit", "one row a window", "Score again.")
    order = np.lexsort((values[0], clips))
    bounds = np.searchsorted(clips[order], np.arange(count + 1))
    return {
        str(name): Windows(*(np.asarray(value[order[first:last]], np.float64) for value in values))
        for name, first, last in zip(arrays["files"], bounds, bounds[1:], strict=False)
    }
