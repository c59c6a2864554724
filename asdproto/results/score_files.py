"""The files of scored clips: anomaly scores, decisions and ground truth.

The csv files follow DCASE 2022 Task 2, headerless, every line ended by a line feed alone:

* ``anomaly_score_<machine>_section_<nn>_test.csv``: ``file,score``;
* ``decision_result_<machine>_section_<nn>_test.csv``: ``file,0|1``, 1 for anomaly;
* ``ground_truth_<machine>_section_<nn>_test.csv`` below ``ground_truth_data`` (1 for anomaly) and
  ``ground_truth_domain`` (1 for target).

"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from asdproto.data.dcase import Clip
from asdproto.errors import DataError
from asdproto.files import read_csv
from asdproto.results.official import as_number
from asdproto.scoring.backends import rows_by
from asdproto.scoring.metrics import SectionScores, clip_files

# (machine type, section) -> file -> (is an anomaly, domain)
_Facts = dict[tuple[str, str], dict[str, tuple[bool, str]]]
_SCORE_FILE = re.compile(
    r"anomaly_score_(?P<machine>.+)_(?:section|id)_(?P<section>.+?)(?P<split>_test|_train)?\.csv"
)
_NAME = "anomaly_score_<machine type>_section_<nn>_test.csv"
_NOT_FINITE_REMEDY = "Look for a diverged model or an empty clip, and score again."


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ScoreFile:
    """One section's score file and its decisions, without ground truth.

    Attributes:
      path: The score file.
      machine_type: From its name.
      section: From its name.
      files: The clips, as the file names them, length ``n``.
      lines: Line number of each clip.
      scores: float64, shape ``[n]``, finite.
      decisions: bool, shape ``[n]``, or None where there is no decision file.
    """

    path: Path
    machine_type: str
    section: str
    files: tuple[str, ...]
    lines: tuple[int, ...]
    scores: np.ndarray
    decisions: np.ndarray | None

    def with_truth(self, truths: Iterable[tuple[bool, str]]) -> SectionScores:
        """The section's table, given of each clip whether it is an anomaly, and its domain."""
        anomaly, domains = map(np.array, zip(*truths, strict=True))
        key = self.machine_type, self.section
        return SectionScores(*key, self.files, self.scores, anomaly, domains, self.decisions)


def read_score_files(folder: str | os.PathLike) -> list[ScoreFile]:
    """Reads every score file of a test set, with the decisions beside it.

    Args:
      folder: Folder with ``anomaly_score_*.csv`` and, optionally, ``decision_result_*.csv``. The
        suffix ``_test`` of the names may be missing; ``_train`` files are passed over.

    Returns:
      Sorted by (machine type, section); empty where the folder has none.

    Raises:
      DataError: A name of another form, two files of one section, a row that is not
        ``file,number``, a clip scored twice, or decisions of other clips.
    """
    files: dict[tuple[str, str], ScoreFile] = {}
    for path in sorted(Path(folder).glob("anomaly_score_*.csv")):
        match = _SCORE_FILE.fullmatch(path.name)
        if match is None:
            raise DataError(path, f"the name {path.name!r}", _NAME, "Rename the file or move it.")
        if match["split"] == "_train":
            continue
        key = match["machine"], match["section"]
        if key in files:
            found = f"scores of {key[0]} section {key[1]} here and in {files[key].path.name}"
            raise DataError(path, found, "one file per section", "Remove one of the two.")
        rows = _read_pairs(path, "anomaly score")
        names, lines = tuple(rows), tuple(line for line, _ in rows.values())
        scores = np.array([_as_score(path, *row) for row in rows.values()], np.float64)
        files[key] = ScoreFile(path, *key, names, lines, scores, _read_decisions(path, names))
    return [files[key] for key in sorted(files)]


def clips_by_file(clips: Iterable[Clip]) -> dict[tuple[str, str], dict[str, Clip]]:
    """The test clips among others, by (machine type, section) and by their name in score files."""
    tested = [clip for clip in clips if clip.split == "test"]
    sections = {}
    for key, rows in rows_by([(clip.machine_type, clip.section) for clip in tested]).items():
        members = [tested[row] for row in rows]
        sections[key] = dict(zip(clip_files(members), members, strict=True))
    return sections


def _read_pairs(path: Path, value: str) -> dict[str, tuple[int, str]]:
    """File -> (line number, cell) of a headerless two-column csv."""
    rows: dict[str, tuple[int, str]] = {}
    for line, cells in read_csv(path, escaped=False):
        where = f"{path}, line {line}"
        if len(cells) != 2 or not cells[0]:
            found = f"{len(cells)} columns in {','.join(cells)[:80]!r}"
            raise DataError(where, found, f"two: file name and {value}", "Correct the line.")
        name, cell = cells
        if name in rows:
            found = f"{name} for the second time (first on line {rows[name][0]})"
            raise DataError(where, found, "every clip once", "Remove one of the two lines.")
        rows[name] = line, cell
    if not rows:
        raise DataError(path, "no rows", f"lines of 'file,{value}'", "Score again, or remove it.")
    return rows


def _read_flags(path: Path, value: str, expected: str) -> dict[str, bool]:
    """File -> whether its cell is 1; any other than 0 is refused."""
    flags = {}
    for name, (line, cell) in _read_pairs(path, value).items():
        if cell not in ("0", "1"):
            raise DataError(f"{path}, line {line}", repr(cell), expected, "Correct the line.")
        flags[name] = cell == "1"
    return flags


def _read_decisions(score_file: Path, files: tuple[str, ...]) -> np.ndarray | None:
    path = _decision_file(score_file)
    if not path.exists():
        return None
    verdicts = _read_flags(path, "decision", "the decision 0 (normal) or 1 (anomaly)")
    _require_all(path, files, verdicts, what="decision")
    extra = sorted(set(verdicts) - set(files))
    if extra:
        found = f"decisions of {len(extra)} clips without a score, the first of {extra[0]}"
        remedy = "Score and decide again together."
        raise DataError(path, found, f"the clips of {score_file.name}", remedy)
    return np.array([verdicts[name] for name in files])


def _decision_file(score_file: Path) -> Path:
    name = score_file.name.replace("anomaly_score_", "decision_result_", 1)
    return score_file.with_name(name)


def _require_all(path: Path, expected: Iterable[str], given: Iterable[str], *, what: str) -> None:
    expected = set(expected)
    missing = sorted(expected.difference(given))
    if missing:
        found = f"no {what} for {len(missing)} of {len(expected)} clips, the first {missing[0]}"
        remedy = "Score them, or the figures would hold for another test set."
        raise DataError(path, found, f"a {what} for every clip of the section", remedy)


def _as_score(path: Path, line: int, cell: str) -> float:
    value = as_number(f"{path}, line {line}", cell, "a number")
    if not math.isfinite(value):
        where = f"{path}, line {line}"
        raise DataError(where, f"the score {cell}", "a finite number", _NOT_FINITE_REMEDY)
    return value
