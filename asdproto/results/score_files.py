"""The files of scored clips: anomaly scores, decisions and ground truth.

The csv files follow DCASE 2022 Task 2, headerless, every line ended by a line feed alone:

* ``anomaly_score_<machine>_section_<nn>_test.csv``: ``file,score``;
* ``decision_result_<machine>_section_<nn>_test.csv``: ``file,0|1``, 1 for anomaly;
* ``ground_truth_<machine>_section_<nn>_test.csv`` below ``ground_truth_data`` (1 for anomaly) and
  ``ground_truth_domain`` (1 for target).

The figures made from them are in :mod:`asdproto.results.result_files`, scores along a clip in
:mod:`asdproto.results.windows`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from asdproto.data.dcase import Clip, parse_name
from asdproto.errors import DataError
from asdproto.files import read_csv
from asdproto.results.result_files import as_number, write_rows
from asdproto.scoring.backends import rows_by
from asdproto.scoring.metrics import SectionScores, clip_files

# (machine type, section) -> file -> (is an anomaly, domain)
_Facts = dict[tuple[str, str], dict[str, tuple[bool, str]]]
_SCORE_FILE = re.compile(
    r"anomaly_score_(?P<machine>.+)_(?:section|id)_(?P<section>.+?)(?P<split>_test|_train)?\.csv"
)
_NAME = "anomaly_score_<machine type>_section_<nn>_test.csv"
_NOT_FINITE_REMEDY = "Look for a diverged model or an empty clip, and score again."


class IncompleteScoresWarning(UserWarning):
    """The ground truth knows sections that nobody scored."""


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


def read_scores(
    folder: str | os.PathLike,
    *,
    ground_truth: str | os.PathLike | None = None,
    clips: Sequence[Clip] | None = None,
) -> list[SectionScores]:
    """Reads every score (and decision) file of a test set, with the ground truth.

    What each clip is comes from the first of these that is given: the official ground truth files,
    a list of clips, or the clips' own file names, which say it in the development sets.

    Args:
      folder: As for :func:`read_score_files`.
      ground_truth: Folder with ``ground_truth_data`` and ``ground_truth_domain``, for evaluation
        sets. A section it covers must be scored in full.
      clips: Clips of the collection, for names that follow no grammar. A section it covers must be
        scored in full.

    Returns:
      Tables sorted by (machine type, section).

    Raises:
      DataError: As :func:`read_score_files`; no score file; or a clip without ground truth or
        without a score. The message names file and line.

    Warns:
      IncompleteScoresWarning: Sections of the ground truth that have no score file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise DataError(folder, found, "a folder of anomaly_score_*.csv", "Check the path.")
    scored = read_score_files(folder)
    if not scored:
        remedy = "Give the folder that holds the scores of one system."
        raise DataError(folder, "no score file of a test set", _NAME, remedy)
    facts, source = None, ""
    if ground_truth is not None:
        facts, source = _official_truth(Path(ground_truth)), str(ground_truth)
    elif clips is not None:
        facts, source = _truth_of_clips(clips), "the list of clips"
    tables = [_with_truth(one, facts, source) for one in scored]
    unscored = sorted(set(facts or ()) - {(one.machine_type, one.section) for one in scored})
    if unscored:
        names = ", ".join(f"{machine} section {section}" for machine, section in unscored)
        warnings.warn(
            f"{folder} has no scores for {len(unscored)} sections of the ground truth, which are "
            f"therefore in no figure: {names}",
            IncompleteScoresWarning,
            stacklevel=2,
        )
    return tables


def write_scores(
    folder: str | os.PathLike,
    clips: Sequence[Clip],
    scores: np.ndarray,
    decisions: np.ndarray | None = None,
) -> list[Path]:
    """Writes the official anomaly score files and, where decisions are given, decision files.

    Scores are written with all their digits: reading them back gives the same float64. Nothing of
    the ground truth is written, so clips of an evaluation set are welcome. Without decisions, those
    that an earlier call left for the same section are removed: they belong to other scores.

    Args:
      folder: Made where it does not exist.
      clips: Scored clips, length ``n``.
      scores: Floating, shape ``[n]``, finite.
      decisions: 0 (normal) or 1 (anomaly), shape ``[n]``, or None.

    Returns:
      The files written, two or one per section.

    Raises:
      DataError: A machine type or section that cannot be part of a file name, or a score that is
        not finite.
      ValueError: Lengths differ.
    """
    columns = {"anomaly_score": np.asarray(scores, np.float64)}
    if decisions is not None:
        columns["decision_result"] = np.asarray(decisions).astype(bool).astype(int)
    for name, values in columns.items():
        if values.shape != (len(clips),):
            raise ValueError(
                f"{name} has shape {values.shape}, expected ({len(clips)},): one per clip"
            )
    for clip, value in zip(clips, columns["anomaly_score"], strict=True):
        if not math.isfinite(value):
            raise DataError(clip.path, f"the score {value}", "a finite number", _NOT_FINITE_REMEDY)
    sections = rows_by([(clip.machine_type, clip.section) for clip in clips])
    written = []
    for (machine, section), rows in sorted(sections.items()):
        files = clip_files([clips[row] for row in rows])
        for prefix, values in columns.items():
            name = f"{prefix}_{_file_part(machine)}_section_{_file_part(section)}_test.csv"
            pairs = zip(files, values[rows].tolist(), strict=True)
            written.append(write_rows(Path(folder) / name, pairs))
        if decisions is None:
            _decision_file(written[-1]).unlink(missing_ok=True)
    return written


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


def _with_truth(scored: ScoreFile, facts: _Facts | None, source: str) -> SectionScores:
    key = scored.machine_type, scored.section
    lines = [f"{scored.path}, line {line}" for line in scored.lines]
    if facts is None:
        named = zip(lines, scored.files, strict=True)
        known = {name: _truth_of_name(where, scored.section, name) for where, name in named}
    else:
        known = facts.get(key, {})
    for where, name in zip(lines, scored.files, strict=True):
        if name not in known:
            found = f"{name} of {key[0]} section {key[1]}, whose state {source} does not say"
            remedy = "Give the ground truth of this test set."
            raise DataError(where, found, "normal or anomaly for every scored clip", remedy)
    _require_all(scored.path, known, scored.files, what="score")
    return scored.with_truth(known[name] for name in scored.files)


def _truth_of_name(where: str, section: str, name: str) -> tuple[bool, str]:
    try:
        parsed = parse_name(name)
    except DataError as error:
        raise DataError(where, error.found, error.expected, error.remedy) from None
    if not parsed.state:
        found = f"{name}, whose name does not say whether it is normal"
        remedy = "Give the ground truth: a folder of official files, or the collection's csv."
        raise DataError(where, found, "'normal' or 'anomaly' in the name", remedy)
    if parsed.section != section:
        found, remedy = f"{name} of section {parsed.section}", "Move it to the file of its section."
        raise DataError(where, found, f"clips of section {section}", remedy)
    return parsed.state == "anomaly", parsed.domain


def _truth_of_clips(clips: Sequence[Clip]) -> _Facts:
    return {
        key: {
            name: (clip.state == "anomaly", clip.domain)
            for name, clip in named.items()
            if clip.state
        }
        for key, named in clips_by_file(clips).items()
        if any(clip.state for clip in named.values())
    }


def _official_truth(folder: Path) -> _Facts:
    if folder.name in ("ground_truth_data", "ground_truth_domain"):
        folder = folder.parent
    states = _ground_truth_column(folder / "ground_truth_data", "0 (normal) or 1 (anomaly)")
    domains = _ground_truth_column(folder / "ground_truth_domain", "0 (source) or 1 (target)")
    facts: _Facts = {}
    for (machine, section), flags in states.items():
        targets = domains.get((machine, section), {})
        lacking = sorted(flags.keys() - targets.keys())
        if lacking:
            clips = f"{len(lacking)} clips of {machine} section {section}, the first {lacking[0]}"
            expected = "a domain for every clip of ground_truth_data"
            remedy = "Fetch the official ground truth again."
            raise DataError(
                folder / "ground_truth_domain", f"no domain for {clips}", expected, remedy
            )
        facts[machine, section] = {
            name: (anomaly, "target" if targets[name] else "source")
            for name, anomaly in flags.items()
        }
    return facts


def _ground_truth_column(folder: Path, expected: str) -> dict[tuple[str, str], dict[str, bool]]:
    pattern = re.compile(r"ground_truth_(.+)_section_(.+?)(?:_test)?\.csv")
    column = {
        (match[1], match[2]): _read_flags(path, "0 or 1", expected)
        for path in sorted(folder.glob("ground_truth_*.csv"))
        if (match := pattern.fullmatch(path.name))
    }
    if not column:
        name = "ground_truth_<machine type>_section_<nn>_test.csv"
        remedy = "Give the folder above ground_truth_data and ground_truth_domain."
        raise DataError(folder, "no ground truth file", name, remedy)
    return column


def _as_score(path: Path, line: int, cell: str) -> float:
    value = as_number(path, line, cell, "a number; the official files have no header line")
    if not math.isfinite(value):
        where = f"{path}, line {line}"
        raise DataError(where, f"the score {cell}", "a finite number", _NOT_FINITE_REMEDY)
    return value


def _file_part(name: str) -> str:
    if not name or "/" in name or os.sep in name or name.startswith("."):
        found = f"the machine type or section {name!r}"
        remedy = "Rename it in the collection's csv."
        raise DataError(name, found, "a name that can be part of a file name", remedy)
    return name
