"""The official csv files of DCASE 2022 Task 2: scores, decisions, ground truth, ``result.csv``.

They are headerless, every line is ended by a line feed alone:

* ``anomaly_score_<machine>_section_<nn>_test.csv``: ``file,score``;
* ``decision_result_<machine>_section_<nn>_test.csv``: ``file,0|1``, 1 for anomaly;
* ``ground_truth_<machine>_section_<nn>_test.csv`` below ``ground_truth_data`` (1 for anomaly) and
  ``ground_truth_domain`` (1 for target).

A run writes them from its ``scores.csv`` and never reads them back; they are read where another
system wrote them.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asdproto.data.dcase import Clip, name_fault, parse_name, same_text
from asdproto.errors import DataError, plain_cell, some, spreadsheet_cell
from asdproto.files import csv_text, read_csv, write_atomically
from asdproto.scoring.metrics import (
    AUC_METRICS,
    DECISION_METRICS,
    SectionScores,
    clip_files,
    harmonic_mean,
)
from asdproto.scoring.rows import rows_by

_NUMBER = re.compile(r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|inf|nan)", re.IGNORECASE)
_SCORE_FILE = re.compile(
    r"anomaly_score_(?P<machine>.+)_(?:section|id)_(?P<section>.+?)(?P<split>_test|_train)?\.csv"
)
_SCORE_NAME = "anomaly_score_<machine type>_section_<nn>_test.csv"
_TRUTH_FILE = re.compile(r"ground_truth_(?P<machine>.+)_section_(?P<section>.+?)(?:_test)?\.csv")
_TITLES = {
    "source_auc": "AUC (source)",
    "target_auc": "AUC (target)",
    "pauc": "pAUC",
    "precision_source": "precision (source)",
    "precision_target": "precision (target)",
    "recall_source": "recall (source)",
    "recall_target": "recall (target)",
    "f1_source": "F1 score (source)",
    "f1_target": "F1 score (target)",
}
_MEANS = "arithmetic mean", "harmonic mean"

# (machine type, section) -> file -> (is an anomaly, domain)
_Truths = dict[tuple[str, str], dict[str, tuple[bool, str]]]


class IncompleteScoresWarning(UserWarning):
    """Sections or files that are in no figure: nobody scored them, or their name says nothing."""


def write_official(folder: Path, clips: Sequence[Any]) -> None:
    """Writes score and decision files of rows of ``scores.csv``; older ones are removed.

    Scores are written with all their digits. Nothing of the ground truth is written.

    Raises:
      DataError: A machine type or section that cannot be part of a file name.
    """
    sections = rows_by([(clip.machine_type, clip.section) for clip in clips])
    for name in {name for key in sections for name in key}:
        if expected := name_fault(name):
            found, remedy = f"the machine type or section {name!r}", "Rename it in the csv."
            raise DataError(folder, found, expected, remedy)
    for prefix in ("anomaly_score", "decision_result"):
        for path in folder.glob(f"{prefix}_*.csv"):
            path.unlink()
    for (machine, section), rows in sorted(sections.items()):
        members = [clips[row] for row in rows]
        names = [spreadsheet_cell(name) for name in clip_files(members)]
        for prefix, values in (
            ("anomaly_score", [clip.score for clip in members]),
            ("decision_result", [clip.decision for clip in members]),
        ):
            path = folder / f"{prefix}_{machine}_section_{section}_test.csv"
            write_atomically(path, csv_text(zip(names, values, strict=True)).encode())


def read_official(
    folder: str | os.PathLike,
    *,
    ground_truth: str | os.PathLike | None = None,
    clips: Sequence[Clip] | None = None,
) -> list[SectionScores]:
    """Reads every score file (and the decisions beside it) of a test set, with the ground truth.

    What each clip is comes from the first of these that is given: the official ground truth files,
    a list of clips, or the clips' own file names, which say it in the development sets. A section
    that the first two cover must be scored in full. Names count as one whichever way Unicode
    composes their letters.

    Args:
      folder: Folder with ``anomaly_score_*.csv`` and, optionally, ``decision_result_*.csv``. The
        suffix ``_test`` of the names may be missing; ``_train`` files are passed over.
      ground_truth: Folder with ``ground_truth_data`` and ``ground_truth_domain``.
      clips: Clips of the collection.

    Returns:
      Tables sorted by (machine type, section).

    Raises:
      DataError: No score file; a name of another form; two files of one section; a row that is not
        ``file,number``; a clip twice, without ground truth or without a score; decisions of other
        clips. The message names file and line.

    Warns:
      IncompleteScoresWarning: Sections of the ground truth without a score file, and csv files
        whose names are nearly but not quite those of score files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise DataError(folder, found, "a folder of anomaly_score_*.csv", "Check the path.")
    paths = _score_files(folder)
    if not paths:
        remedy = "Give the folder that holds the scores of one system."
        raise DataError(folder, "no score file of a test set", _SCORE_NAME, remedy)
    truths, source = None, ""
    if ground_truth is not None:
        truths, source = _official_truths(Path(ground_truth)), str(ground_truth)
    elif clips is not None:
        truths, source = _truths_of_clips(clips), "the list of clips"
    tables = [_read_section(paths[key], *key, truths, source) for key in sorted(paths)]
    unscored = sorted(set(truths or ()) - set(paths))
    if unscored:
        names = ", ".join(f"{machine} section {section}" for machine, section in unscored)
        warnings.warn(
            f"{folder} has no scores for {len(unscored)} sections of the ground truth, which are "
            f"therefore in no figure: {names}",
            IncompleteScoresWarning,
            stacklevel=2,
        )
    return tables


def _score_files(folder: Path) -> dict[tuple[str, str], Path]:
    """Score files by (machine type, section); a decision file must stand beside one of them."""
    paths: dict[tuple[str, str], Path] = {}
    unknown = []
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() == ".csv"):
        if not path.name.startswith("anomaly_score_"):
            unknown.append(path.name)
            continue
        match = _SCORE_FILE.fullmatch(path.name)
        if match is None:
            found = f"the name {path.name!r}"
            raise DataError(path, found, _SCORE_NAME, "Rename the file or move it.")
        if match["split"] == "_train":
            continue
        key = same_text(match["machine"]), same_text(match["section"])
        if key in paths:
            found = f"scores of {key[0]} section {key[1]} here and in {paths[key].name}"
            raise DataError(path, found, "one file per section", "Remove one of the two.")
        paths[key] = path
    decided = {_decision_file(path).name for path in paths.values()}
    orphans = [name for name in unknown if name.startswith("decision_result_")]
    for name in sorted(set(orphans) - decided):
        if "_train." not in name:
            remedy = "Give both files the same machine type and section in their names."
            raise DataError(folder / name, "decisions", "a score file of the same section", remedy)
    meant = [name for name in unknown if re.search("score_|section", name, re.IGNORECASE)]
    strange = sorted(set(meant) - set(orphans))
    if strange:
        warnings.warn(
            f"{folder}: in no figure is {some(strange)}; a score file is called {_SCORE_NAME}",
            IncompleteScoresWarning,
            stacklevel=3,
        )
    return paths


def _read_section(
    path: Path, machine: str, section: str, truths: _Truths | None, source: str
) -> SectionScores:
    rows = _read_pairs(path, "anomaly score")
    scores = [_as_score(where, cell) for where, cell in rows.values()]
    if truths is None:
        known = {name: _truth_of_name(where, section, name) for name, (where, _) in rows.items()}
    else:
        known = truths.get((machine, section), {})
    for name, (where, _) in rows.items():
        if name not in known:
            found = f"{name} of {machine} section {section}, whose state {source} does not say"
            expected = "normal or anomaly for every scored clip"
            raise DataError(where, found, expected, "Give the ground truth of this test set.")
    _require_all(path, known, rows, what="score")
    decisions = None
    decision_path = _decision_file(path)
    if decision_path.exists():
        verdicts = _read_flags(decision_path, "the decision 0 (normal) or 1 (anomaly)")
        _require_all(decision_path, rows, verdicts, what="decision")
        _require_all(path, verdicts, rows, what="score")
        decisions = np.array([verdicts[name] for name in rows])
    anomaly, domains = map(np.array, zip(*(known[name] for name in rows), strict=True))
    return SectionScores(
        machine, section, tuple(rows), np.array(scores), anomaly, domains, decisions
    )


def _read_pairs(path: Path, value: str) -> dict[str, tuple[str, str]]:
    """File -> (where its line is, cell) of a headerless two-column csv."""
    rows: dict[str, tuple[str, str]] = {}
    for line, cells in read_csv(path, escaped=False):
        where = f"{path}, line {line}"
        if len(cells) != 2 or not cells[0]:
            found = f"{len(cells)} columns in {','.join(cells)[:80]!r}"
            raise DataError(where, found, f"two: file name and {value}", "Correct the line.")
        name = same_text(plain_cell(cells[0]))
        if name in rows:
            found = f"{name} for the second time (first on {rows[name][0].rpartition(', ')[2]})"
            raise DataError(where, found, "every clip once", "Remove one of the two lines.")
        rows[name] = where, cells[1]
    if not rows:
        raise DataError(path, "no rows", f"lines of 'file,{value}'", "Score again, or remove it.")
    return rows


def _read_flags(path: Path, expected: str) -> dict[str, bool]:
    """File -> whether its cell is 1; any other than 0 is refused."""
    flags = {}
    for name, (where, cell) in _read_pairs(path, expected).items():
        if cell not in ("0", "1"):
            raise DataError(where, repr(cell), expected, "Correct the line.")
        flags[name] = cell == "1"
    return flags


def _decision_file(score_file: Path) -> Path:
    name = score_file.name.replace("anomaly_score_", "decision_result_", 1)
    return score_file.with_name(name)


def _require_all(path: Path, expected: Iterable[str], present: Iterable[str], *, what: str) -> None:
    expected = set(expected)
    missing = sorted(expected.difference(present))
    if missing:
        found = f"no {what} for {len(missing)} of {len(expected)} clips, the first {missing[0]}"
        remedy = "Add them, or the figures would hold for another test set."
        raise DataError(path, found, f"a {what} for every clip of the section", remedy)


def _truth_of_name(where: str, section: str, name: str) -> tuple[bool, str]:
    try:
        parsed = parse_name(name)
    except DataError as error:
        found = f"{name}, {error.found}"
        raise DataError(where, found, error.expected, error.remedy) from None
    if not parsed.state:
        found = f"{name}, whose name does not say whether it is normal"
        remedy = "Give the ground truth: a folder of official files, or the collection's csv."
        raise DataError(where, found, "'normal' or 'anomaly' in the name", remedy)
    if parsed.section != section:
        found, remedy = f"{name} of section {parsed.section}", "Move it to the file of its section."
        raise DataError(where, found, f"clips of section {section}", remedy)
    return parsed.state == "anomaly", parsed.domain


def _truths_of_clips(clips: Sequence[Clip]) -> _Truths:
    tested = [clip for clip in clips if clip.split == "test"]
    truths = {}
    for (machine, section), rows in rows_by([(c.machine_type, c.section) for c in tested]).items():
        members = [tested[row] for row in rows]
        known = {
            same_text(name): (clip.state == "anomaly", clip.domain)
            for name, clip in zip(clip_files(members), members, strict=True)
            if clip.state
        }
        if known:
            truths[same_text(machine), same_text(section)] = known
    return truths


def _official_truths(folder: Path) -> _Truths:
    if folder.name in ("ground_truth_data", "ground_truth_domain"):
        folder = folder.parent
    states = _truth_column(folder / "ground_truth_data", "0 (normal) or 1 (anomaly)")
    domains = _truth_column(folder / "ground_truth_domain", "0 (source) or 1 (target)")
    truths: _Truths = {}
    for key, anomalies in states.items():
        targets = domains.get(key, {})
        _require_all(folder / "ground_truth_domain", anomalies, targets, what="domain")
        truths[key] = {
            name: (is_anomaly, "target" if targets[name] else "source")
            for name, is_anomaly in anomalies.items()
        }
    return truths


def _truth_column(folder: Path, expected: str) -> dict[tuple[str, str], dict[str, bool]]:
    column = {
        (same_text(match["machine"]), same_text(match["section"])): _read_flags(path, expected)
        for path in sorted(folder.glob("ground_truth_*.csv"))
        if (match := _TRUTH_FILE.fullmatch(path.name))
    }
    if not column:
        name = "ground_truth_<machine type>_section_<nn>_test.csv"
        remedy = "Give the folder above ground_truth_data and ground_truth_domain."
        raise DataError(folder, "no ground truth file", name, remedy)
    return column


def write_result_csv(path: str | os.PathLike, figures: Mapping[str, Any]) -> None:
    """Writes the figures of :func:`asdproto.scoring.metrics.evaluate` in the official layout."""
    names: tuple[str, ...] = AUC_METRICS
    if DECISION_METRICS[0] in figures:
        names += DECISION_METRICS
    titles = [_TITLES[name] for name in names]
    rows: list[list[Any]] = []
    everything: list[list[float]] = []
    for machine, of_machine in figures["machines"].items():
        sections = {
            section: [values[name] for name in names]
            for section, values in of_machine["sections"].items()
        }
        everything += sections.values()
        rows += [[spreadsheet_cell(machine)], ["section", *titles]]
        rows += [[spreadsheet_cell(section), *values] for section, values in sections.items()]
        rows += [*_mean_rows(list(sections.values())), []]
    over = " over all machine types, sections, and domains"
    rows += [["", *titles], *_mean_rows(everything, over)]
    write_atomically(Path(path), csv_text(rows).encode())


def _as_score(where: str, cell: str) -> float:
    """A csv cell as a number, of ASCII digits alone, unlike Python's."""
    if _NUMBER.fullmatch(cell) is None:
        expected = "a number; the official files have no header line"
        raise DataError(where, repr(cell), expected, "Correct or remove the line.")
    value = float(cell)
    if not math.isfinite(value):
        remedy = "Look for a diverged model or an empty clip, and score again."
        raise DataError(where, f"the score {cell}", "a finite number", remedy)
    return value


def _mean_rows(figures: list[list[float]], over: str = "") -> list[list[Any]]:
    """Arithmetic and harmonic means of each column."""
    columns = [
        [value for value in column if not math.isnan(value)]
        for column in zip(*figures, strict=True)
    ]
    arithmetic = [float(np.mean(column)) if column else math.nan for column in columns]
    return [
        [_MEANS[0] + over, *arithmetic],
        [_MEANS[1] + over, *map(harmonic_mean, columns)],
    ]
