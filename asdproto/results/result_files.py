"""Files of figures: ``result.csv`` in the official layout, json, and how files are written.

Every file is written under a temporary name and moved into place, so none is ever found half done.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asdproto.errors import DataError
from asdproto.files import csv_text, read_csv, read_json, write_atomically
from asdproto.scoring.metrics import AUC_METRICS, DECISION_METRICS, harmonic_mean

_COLUMNS = {
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
_ARITHMETIC, _HARMONIC = "arithmetic mean", "harmonic mean"
_AGAIN = "Repeat the command that made it, without this file."
_OVER_ALL = " over all machine types, sections, and domains"


def write_result_csv(path: str | os.PathLike, results: Mapping[str, Any]) -> Path:
    """Writes the figures of :func:`asdproto.scoring.metrics.evaluate` in the official layout.

    Args:
      path: File to write.
      results: As returned by ``evaluate``.

    Returns:
      The path.
    """
    names: tuple[str, ...] = AUC_METRICS
    if DECISION_METRICS[0] in results:
        names += DECISION_METRICS
    titles = [_COLUMNS[name] for name in names]
    rows: list[list[Any]] = []
    everything: list[list[float]] = []
    for machine, machine_figures in results["machines"].items():
        sections = machine_figures["sections"]
        figures = [[values[name] for name in names] for values in sections.values()]
        everything += figures
        rows += [[machine], ["section", *titles]]
        rows += [[section, *values] for section, values in zip(sections, figures, strict=True)]
        rows += [*_mean_rows(figures), []]
    rows += [["", *titles], *_mean_rows(everything, _OVER_ALL)]
    return write_rows(path, rows)


def read_result_csv(path: str | os.PathLike) -> dict[str, dict[str, dict[str, float]]]:
    """Reads the machine type blocks of a ``result.csv``, ours or another system's.

    Column titles are compared without regard to case and spaces; columns and rows that this
    project does not know, such as means over all machine types, are passed over.

    Args:
      path: The file.

    Returns:
      ``{machine: {row: {metric: figure}}}``; the rows are sections, ``"arithmetic mean"`` and
      ``"harmonic mean"``, the metrics those of :func:`asdproto.scoring.metrics.section_metrics`.

    Raises:
      DataError: The file has no such block, or a figure is not a number.
    """
    known = {_bare(title): name for name, title in _COLUMNS.items()}
    result: dict[str, dict[str, dict[str, float]]] = {}
    rows = read_csv(path, escaped=False)
    for index, (line, row) in enumerate(rows):
        if _bare(row[0]) != "section":
            continue
        if index == 0 or len(rows[index - 1][1]) != 1:
            expected = "a line with nothing but the machine type's name"
            remedy = "Add the name, or write the file again."
            found = "a header without a machine type above it"
            raise DataError(f"{path}, line {line}", found, expected, remedy)
        columns = [known.get(_bare(title)) for title in row]
        block = result.setdefault(rows[index - 1][1][0], {})
        for line, cells in rows[index + 1 :]:
            if len(cells) < len(row) or _bare(cells[0]) == "section":
                break
            block[cells[0]] = {
                name: as_number(path, line, cell)
                for name, cell in zip(columns, cells, strict=False)
                if name is not None
            }
            if cells[0] == _HARMONIC:
                break
    if not result:
        expected = "a line 'section,AUC (source),AUC (target),pAUC' below a machine type's name"
        remedy = "Check that this is a result.csv of DCASE 2022 Task 2."
        raise DataError(path, "no block of a machine type", expected, remedy)
    return result


def largest_difference(
    results: Mapping[str, Any], reference: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> tuple[float, str]:
    """Compares evaluated figures with a ``result.csv``.

    Args:
      results: As returned by :func:`asdproto.scoring.metrics.evaluate`.
      reference: As returned by :func:`read_result_csv`.

    Returns:
      The largest absolute difference over all sections and metrics that either has, and where it
      is; infinity where one of the two lacks a figure.
    """
    figures = {machine: values["sections"] for machine, values in results["machines"].items()}
    differences = [(0.0, "")]
    for machine in sorted({*figures, *reference}):
        pair = figures.get(machine, {}), reference.get(machine, {})
        for section in sorted({*pair[0], *pair[1]} - {_ARITHMETIC, _HARMONIC}):
            for name in AUC_METRICS:
                ours, theirs = (side.get(section, {}).get(name, math.inf) for side in pair)
                difference = abs(ours - theirs)
                if math.isnan(difference):  # an undefined figure equals another, nothing else
                    difference = 0.0 if math.isnan(ours) and math.isnan(theirs) else math.inf
                differences.append((difference, f"{machine} section {section} {name}"))
    return max(differences, key=lambda pair: pair[0])


def write_results(path: str | os.PathLike, results: Mapping[str, Any]) -> Path:
    """Writes figures as json; an undefined figure (nan) becomes ``null``.

    Args:
      path: File to write.
      results: Nested dictionaries and lists of numbers and strings.

    Returns:
      The path.
    """
    text = json.dumps(_map_leaves(results, _nan_to_none), indent=2, allow_nan=False)
    return write_text(path, text + "\n")


def read_results(path: str | os.PathLike) -> dict[str, Any]:
    """Reads what :func:`write_results` wrote; ``null`` becomes nan.

    Args:
      path: File to read.

    Returns:
      The nested dictionaries.

    Raises:
      DataError: As :func:`asdproto.files.read_json`.
    """
    results = read_json(path, remedy=_AGAIN)
    return _map_leaves(results, lambda leaf: math.nan if leaf is None else leaf)


def read_run_results(path: str | os.PathLike) -> dict[str, Any]:
    """Reads the ``results.json`` of a run.

    Args:
      path: File to read.

    Returns:
      Its contents; ``"systems"`` holds figures by name, among them the three metrics and their
      mean.

    Raises:
      DataError: It is missing, damaged, or of something else.
    """
    results = read_results(path)
    systems = results.get("systems")
    known = isinstance(systems, dict) and all(
        isinstance(figures, dict)
        and all(isinstance(figures.get(name), float | int) for name in ("overall", *AUC_METRICS))
        and isinstance(figures.get("machines", {}), dict)
        for figures in systems.values()
    )
    if not known or not isinstance(results.get("seeds", []), list):
        expected = '{"seeds": [...], "systems": {name: figures}}'
        raise DataError(path, "no figures by system", expected, _AGAIN)
    return results


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Writes a text file so that it is there whole or not at all.

    Args:
      path: File to write; its folder is made where it does not exist.
      text: Written as UTF-8, line ends as they are.

    Returns:
      The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())
    return path


def write_rows(path: str | os.PathLike, rows: Iterable[Iterable[Any]]) -> Path:
    """Writes a csv as :func:`write_text` does, every line ended by a line feed alone.

    Args:
      path: File to write; its folder is made where it does not exist.
      rows: Cells of each row.

    Returns:
      The path.
    """
    return write_text(path, csv_text(rows))


def as_number(path: str | os.PathLike, line: int, cell: str, expected: str = "a number") -> float:
    """A csv cell as a float.

    Args:
      path: The file, for the message.
      line: The line, for the message.
      cell: The text.
      expected: What should be there, for the message.

    Returns:
      The number; nan and infinities are numbers.

    Raises:
      DataError: The cell is no number.
    """
    try:
        return float(cell)
    except ValueError:
        where, remedy = f"{path}, line {line}", "Correct or remove the line."
        raise DataError(where, repr(cell), expected, remedy) from None


def _mean_rows(figures: list[list[float]], over: str = "") -> list[list[Any]]:
    """Arithmetic and harmonic means of each column."""
    columns = list(zip(*figures, strict=True))
    return [
        [_ARITHMETIC + over, *map(_arithmetic_mean, columns)],
        [_HARMONIC + over, *map(harmonic_mean, columns)],
    ]


def _arithmetic_mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


def _bare(title: str) -> str:
    return re.sub(r"\s", "", title).lower()


def _nan_to_none(leaf: Any) -> Any:
    return None if isinstance(leaf, float) and math.isnan(leaf) else leaf


def _map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _map_leaves(item, function) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_leaves(item, function) for item in value]
    return function(value)
