"""The files of a scored test set: anomaly scores, decisions and ground truth.

The csv files follow DCASE 2022 Task 2, headerless, every line ended by a line feed alone:

* ``anomaly_score_<machine>_section_<nn>_test.csv``: ``file,score``;
* ``decision_result_<machine>_section_<nn>_test.csv``: ``file,0|1``, 1 for anomaly;
* ``ground_truth_<machine>_section_<nn>_test.csv`` below ``ground_truth_data`` (1 for anomaly) and
  ``ground_truth_domain`` (1 for target).

:mod:`asdproto.results.result_files` has the files of the figures made from them.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from asdproto.data.dcase import Clip, parse_name
from asdproto.errors import DataError
from asdproto.results.result_files import as_number, read_rows, write_text
from asdproto.scoring.metrics import SectionScores, clip_files

_SCORE_FILE = re.compile(
    r"anomaly_score_(?P<machine>.+)_(?:section|id)_(?P<section>.+?)(?P<split>_test|_train)?\.csv"
)
_NOT_FINITE_REMEDY = "Look for a diverged model or an empty clip, and score again."
# (machine type, section, file) -> (is an anomaly, domain)
_Truth = Callable[[str, str, str], tuple[bool, str]]


class IncompleteScoresWarning(UserWarning):
    """The ground truth knows sections that nobody scored."""


def read_scores(
    folder: str | os.PathLike,
    *,
    ground_truth: str | os.PathLike | None = None,
    clips: Sequence[Clip] | None = None,
) -> list[SectionScores]:
    """Reads every anomaly score (and decision) file of a folder, with the ground truth.

    What each clip is comes from the first of these that is given: the official ground truth files,
    a list of clips, or the clips' own file names, which say it in the development sets.

    Args:
      folder: Folder with ``anomaly_score_*.csv`` and, optionally, ``decision_result_*.csv``. The
        suffix ``_test`` of the names may be missing; ``_train`` files are passed over.
      ground_truth: Folder with ``ground_truth_data`` and ``ground_truth_domain``, for evaluation
        sets. A section it covers must be scored in full.
      clips: Clips of the collection, for names that follow no grammar. A section it covers must be
        scored in full.

    Returns:
      Tables sorted by (machine type, section).

    Raises:
      DataError: No score file, a row that is not ``file,number``, a clip scored twice, a clip
        without ground truth or without a score. The message names file and line.

    Warns:
      IncompleteScoresWarning: Sections of the ground truth that have no score file.
    """
    folder = Path(folder)
    found = _score_files(folder)
    expected: dict[tuple[str, str], set[str]] | None = None
    truth: _Truth = _truth_of_name
    if ground_truth is not None:
        truth, expected = _official_truth(Path(ground_truth))
    elif clips is not None:
        truth, expected = _truth_of_clips(clips)
    tables = []
    for (machine, section), path in sorted(found.items()):
        rows = _read_pairs(path, "anomaly score")
        scores = np.array([_as_score(path, line, cell) for line, _, cell in rows], np.float64)
        files = tuple(name for _, name, _ in rows)
        facts = []
        for line, name, _ in rows:
            try:
                facts.append(truth(machine, section, name))
            except DataError as error:
                raise DataError(
                    f"{path}, line {line}", error.found, error.expected, error.remedy
                ) from None
        if expected is not None:
            _require_all(path, expected.get((machine, section), set()), files)
        tables.append(
            SectionScores(
                machine_type=machine,
                section=section,
                files=files,
                scores=scores,
                anomaly=np.array([anomaly for anomaly, _ in facts]),
                domains=np.array([domain for _, domain in facts]),
                decisions=_read_decisions(path, files),
            )
        )
    unscored = sorted(set(expected or ()) - set(found))
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
    scores = np.asarray(scores, np.float64)
    verdicts = None if decisions is None else np.asarray(decisions).astype(bool)
    for name, values in (("scores", scores), ("decisions", verdicts)):
        if values is not None and values.shape != (len(clips),):
            raise ValueError(
                f"{name} has shape {values.shape}, expected ({len(clips)},): one per clip"
            )
    rows: dict[tuple[str, str], list[int]] = {}
    for index, clip in enumerate(clips):
        if not math.isfinite(scores[index]):
            raise DataError(
                clip.path, f"the score {scores[index]}", "a finite number", _NOT_FINITE_REMEDY
            )
        rows.setdefault((clip.machine_type, clip.section), []).append(index)
    written = []
    for (machine, section), indices in sorted(rows.items()):
        files = clip_files([clips[index] for index in indices])
        columns = {"anomaly_score": [repr(float(scores[index])) for index in indices]}
        if verdicts is not None:
            columns["decision_result"] = [str(int(verdicts[index])) for index in indices]
        for prefix, column in columns.items():
            path = Path(folder) / f"{prefix}_{_file_part(machine)}_section_{_file_part(section)}"
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(zip(files, column, strict=True))
            written.append(write_text(f"{path}_test.csv", text.getvalue()))
        if verdicts is None:
            _decision_file(written[-1]).unlink(missing_ok=True)
    return written


def _score_files(folder: Path) -> dict[tuple[str, str], Path]:
    if not folder.is_dir():
        raise DataError(
            folder,
            "a file" if folder.exists() else "nothing",
            "a folder of anomaly_score_*.csv",
            "Check the path.",
        )
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.glob("anomaly_score_*.csv")):
        match = _SCORE_FILE.fullmatch(path.name)
        if match is None:
            raise DataError(
                path,
                f"the name {path.name!r}",
                "anomaly_score_<machine type>_section_<nn>_test.csv",
                "Rename the file or move it elsewhere.",
            )
        if match["split"] == "_train":
            continue
        key = match["machine"], match["section"]
        if key in found:
            raise DataError(
                path,
                f"scores of {key[0]} section {key[1]} here and in {found[key].name}",
                "one file per section",
                "Remove one of the two.",
            )
        found[key] = path
    if not found:
        raise DataError(
            folder,
            "no score file of a test set",
            "anomaly_score_<machine type>_section_<nn>_test.csv",
            "Give the folder that holds the scores of one system.",
        )
    return found


def _read_pairs(path: Path, value: str) -> list[tuple[int, str, str]]:
    """(line number, file, value) of a headerless two-column csv in which no file is named twice."""
    rows: list[tuple[int, str, str]] = []
    seen: dict[str, int] = {}
    for line, cells in read_rows(path):
        where = f"{path}, line {line}"
        if len(cells) != 2 or not cells[0].strip():
            raise DataError(
                where,
                f"{len(cells)} columns in {','.join(cells)!r}",
                f"two: file name and {value}",
                "Correct the line, or score again.",
            )
        name = cells[0].strip()
        if name in seen:
            raise DataError(
                where,
                f"{name} for the second time (first on line {seen[name]})",
                "every clip once",
                "Remove one of the two lines, or score again.",
            )
        seen[name] = line
        rows.append((line, name, cells[1].strip()))
    if not rows:
        raise DataError(
            path, "no rows", f"lines of 'file,{value}'", "Score the section again, or remove it."
        )
    return rows


def _read_decisions(score_file: Path, files: tuple[str, ...]) -> np.ndarray | None:
    path = _decision_file(score_file)
    if not path.exists():
        return None
    verdicts = {}
    for line, name, cell in _read_pairs(path, "decision"):
        verdicts[name] = _as_flag(path, line, cell, "the decision 0 (normal) or 1 (anomaly)")
    _require_all(path, set(files), tuple(verdicts), what="decision")
    extra = sorted(set(verdicts) - set(files))
    if extra:
        raise DataError(
            path,
            f"decisions of {len(extra)} clips without a score, the first of {extra[0]}",
            f"the clips of {score_file.name}",
            "Score and decide again together.",
        )
    return np.array([verdicts[name] for name in files])


def _decision_file(score_file: Path) -> Path:
    name = score_file.name.replace("anomaly_score_", "decision_result_", 1)
    return score_file.with_name(name)


def _require_all(
    path: Path, expected: set[str], found: tuple[str, ...], *, what: str = "score"
) -> None:
    missing = sorted(expected - set(found))
    if missing:
        raise DataError(
            path,
            f"no {what} for {len(missing)} of {len(expected)} clips, the first {missing[0]}",
            f"a {what} for every clip of the section",
            "Score them, or the figures would hold for another test set.",
        )


def _truth_of_name(machine: str, section: str, name: str) -> tuple[bool, str]:
    parsed = parse_name(name)
    if not parsed.state:
        raise DataError(
            name,
            f"{name}, whose name does not say whether it is normal",
            "'normal' or 'anomaly' in the name",
            "Give the ground truth: a folder of official files, or the collection's csv.",
        )
    if parsed.section != section:
        raise DataError(
            name,
            f"{name} of section {parsed.section}",
            f"clips of section {section}",
            "Move the line to the file of its section.",
        )
    return parsed.state == "anomaly", parsed.domain


def _truth_of_clips(
    clips: Sequence[Clip],
) -> tuple[_Truth, dict[tuple[str, str], set[str]]]:
    rows: dict[tuple[str, str], list[Clip]] = {}
    for clip in clips:
        if clip.split == "test":
            rows.setdefault((clip.machine_type, clip.section), []).append(clip)
    facts = {
        (*key, name): (clip.state == "anomaly", clip.domain)
        for key, members in rows.items()
        for name, clip in zip(clip_files(members), members, strict=True)
        if clip.state
    }
    return _look_up(facts, "the list of clips"), _names_by_section(facts)


def _official_truth(folder: Path) -> tuple[_Truth, dict[tuple[str, str], set[str]]]:
    if folder.name in ("ground_truth_data", "ground_truth_domain"):
        folder = folder.parent
    states = _ground_truth_column(folder / "ground_truth_data", "0 (normal) or 1 (anomaly)")
    domains = _ground_truth_column(folder / "ground_truth_domain", "0 (source) or 1 (target)")
    lacking = sorted(states.keys() - domains.keys())
    if lacking:
        raise DataError(
            folder / "ground_truth_domain",
            f"no domain for {len(lacking)} clips, the first {' '.join(lacking[0])}",
            "a domain for every clip of ground_truth_data",
            "Fetch the official ground truth again.",
        )
    facts = {key: (states[key], "target" if domains[key] else "source") for key in states}
    return _look_up(facts, str(folder)), _names_by_section(facts)


def _ground_truth_column(folder: Path, expected: str) -> dict[tuple[str, str, str], bool]:
    column: dict[tuple[str, str, str], bool] = {}
    pattern = re.compile(r"ground_truth_(.+)_section_(.+?)(?:_test)?\.csv")
    for path in sorted(folder.glob("ground_truth_*.csv")):
        match = pattern.fullmatch(path.name)
        if match is None:
            continue
        for line, name, cell in _read_pairs(path, "0 or 1"):
            column[match[1], match[2], name] = _as_flag(path, line, cell, expected)
    if not column:
        raise DataError(
            folder,
            "no ground truth file",
            "ground_truth_<machine type>_section_<nn>_test.csv",
            "Give the folder above ground_truth_data and ground_truth_domain.",
        )
    return column


def _look_up(facts: Mapping[tuple[str, str, str], tuple[bool, str]], source: str) -> _Truth:
    def truth(machine: str, section: str, name: str) -> tuple[bool, str]:
        try:
            return facts[machine, section, name]
        except KeyError:
            raise DataError(
                name,
                f"{name} of {machine} section {section}, whose state {source} does not say",
                "normal or anomaly for every scored clip",
                "Give the ground truth of this test set.",
            ) from None

    return truth


def _names_by_section(
    facts: Iterable[tuple[str, str, str]],
) -> dict[tuple[str, str], set[str]]:
    sections: dict[tuple[str, str], set[str]] = {}
    for machine, section, name in facts:
        sections.setdefault((machine, section), set()).add(name)
    return sections


def _as_score(path: Path, line: int, cell: str) -> float:
    value = as_number(path, line, cell, "a number; the official files have no header line")
    if not math.isfinite(value):
        raise DataError(
            f"{path}, line {line}",
            f"the score {cell}",
            "a finite number",
            _NOT_FINITE_REMEDY,
        )
    return value


def _as_flag(path: Path, line: int, cell: str, expected: str) -> bool:
    if cell not in ("0", "1"):
        raise DataError(f"{path}, line {line}", repr(cell), expected, "Correct the line.")
    return cell == "1"


def _file_part(name: str) -> str:
    if not name or "/" in name or os.sep in name or name.startswith("."):
        raise DataError(
            name,
            f"the machine type or section {name!r}",
            "a name that can be part of a file name",
            "Rename it in the collection's csv.",
        )
    return name
