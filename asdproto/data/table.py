"""Any collection of recordings, described by one small csv.

::

    file,machine_type,section,domain,split,state,attributes
    pump3/mon/0001.wav,pump,00,source,train,normal,speed_1400
    pump3/tue/0042.wav,pump,00,target,test,anomaly,speed_2000

``file`` is relative to the csv's folder. ``section`` is 00, and ``domain``, ``state`` and
``attributes`` are empty, where the column or the cell is missing.
"""

import csv
import dataclasses
import difflib
import io
import os
from collections.abc import Iterable
from pathlib import Path

from asdproto.data.dcase import AUDIO_SUFFIXES, Clip, scan
from asdproto.data.store import MANIFEST
from asdproto.errors import DataError
from asdproto.files import write_atomically

COLUMNS = ("file", "machine_type", "section", "domain", "split", "state", "attributes")
REQUIRED = ("file", "machine_type", "split")
TABLE_NAME = "clips.csv"
_VALUES = {
    "domain": ("source", "target", ""),
    "split": ("train", "test"),
    "state": ("normal", "anomaly", ""),
}


class TableError(DataError):
    """A csv of clips is not as it must be; the message names row and column."""


def survey_table(csv_path: str | os.PathLike) -> tuple[list[Clip], list[DataError]]:
    """Read a csv of clips as far as it can be read.

    Args:
      csv_path: The file; its first row names the columns.

    Returns:
      The clips of the rows without fault, in order, and one error for each fault.

    Raises:
      TableError: The file cannot be read at all, or lacks a column.
    """
    header, rows = _read_cells(csv_path)
    clips: list[Clip] = []
    errors: list[DataError] = []
    first_row: dict[str, int] = {}
    for number, cells in rows:
        if len(cells) > len(header):
            errors.append(
                TableError(
                    f"{csv_path}: row {number}",
                    f"{len(cells)} cells",
                    f"{len(header)}, as the header has",
                    "Put quotation marks around a value that holds a comma.",
                )
            )
            continue
        row = dict(zip(header, cells, strict=False))
        values = {column: row.get(column, "") for column in COLUMNS}
        values["file"] = values["file"].replace("\\", "/").removeprefix("./")
        # Spreadsheets turn 00 into 0.
        section = values["section"] or "00"
        values["section"] = section.zfill(2) if section.isdigit() else section
        faults = [
            TableError(f"{csv_path}: row {number}, column {column}", found, expected, remedy)
            for column, found, expected, remedy in _faults(values)
        ]
        file = values["file"]
        if not faults and file in first_row:
            faults.append(
                TableError(
                    f"{csv_path}: row {number}, column file",
                    f"{file!r} a second time",
                    f"each file once; it stands in row {first_row[file]} already",
                    "Remove one of the rows.",
                )
            )
        errors += faults
        if not faults:
            first_row[file] = number
            clips.append(Clip(path=file, **{c: values[c] for c in COLUMNS if c != "file"}))
    return clips, errors


def _faults(values: dict[str, str]) -> Iterable[tuple[str, str, str, str]]:
    file = values["file"]
    if not file.lower().endswith(AUDIO_SUFFIXES):
        yield "file", repr(file), "a .wav or .flac file", "Name the recording."
    elif file.startswith("/") or file[1:2] == ":" or ".." in file.split("/"):
        yield (
            "file",
            repr(file),
            "a path relative to the csv's folder, without '..'",
            "Put the csv at the top of the collection.",
        )
    for column in ("machine_type", "section"):
        if not values[column] or "/" in values[column]:
            yield column, repr(values[column]), "a short name without '/'", "Fill it in."
    for column, allowed in _VALUES.items():
        if values[column] not in allowed:
            choices = ", ".join(value or "nothing" for value in allowed)
            yield column, repr(values[column]), f"one of {choices}", "Correct it."


def _read_cells(csv_path: str | os.PathLike) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and the rows that are not empty with their line numbers."""
    try:
        with open(csv_path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except OSError as error:
        raise TableError(
            csv_path, error.strerror or str(error), "a csv of clips", "Check the path."
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(
            csv_path, str(error), "a csv in UTF-8", "Save it again as csv in UTF-8."
        ) from None
    lines = [(number, cells) for number, cells in lines if any(cells)]
    if not lines:
        raise TableError(
            csv_path,
            "no rows",
            f"the header {','.join(COLUMNS)} and a row for each clip",
            "Fill it.",
        )
    header = lines[0][1]
    missing = [column for column in REQUIRED if column not in header]
    misspelt = {
        title: near[0]
        for title in header
        if title not in COLUMNS
        and (near := difflib.get_close_matches(title.lower(), COLUMNS, n=1, cutoff=0.7))
        and near[0] not in header
    }
    if missing or misspelt:
        hints = [f"'{wrong}' should read '{right}'." for wrong, right in misspelt.items()]
        if ";" in header[0]:
            hints.append("Separate the columns by commas.")
        raise TableError(
            f"{csv_path}: row {lines[0][0]}",
            f"the columns {','.join(header)}",
            f"the columns {','.join(COLUMNS)}, of which {', '.join(REQUIRED)} are required",
            " ".join(hints) or f"Add {', '.join(missing)}.",
        )
    return header, lines[1:]


def read_table(csv_path: str | os.PathLike) -> list[Clip]:
    """Read a csv of clips.

    Args:
      csv_path: The file. Columns that it has besides the known ones are passed over.

    Returns:
      The clips, in the order of the rows.

    Raises:
      TableError: Something is wrong; names the first fault's row and column, and counts the
        others.
    """
    clips, errors = survey_table(csv_path)
    if errors:
        first = errors[0]
        more = f" {len(errors) - 1} more faults follow." if len(errors) > 1 else ""
        raise TableError(first.file, first.found, first.expected, first.remedy + more)
    if not clips:
        raise TableError(csv_path, "no clips", "a row for each clip", "Add them.")
    return clips


def write_table(path: str | os.PathLike, clips: Iterable[Clip]) -> None:
    """Describe a collection by a csv that :func:`read_table` reads.

    Args:
      path: The file; it belongs at the collection's root. Replaced as a whole if it exists.
      clips: The clips.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(dataclasses.astuple(clip) for clip in clips)
    write_atomically(Path(path), text.getvalue().encode())


def load_collection(path: str | os.PathLike) -> tuple[Path, list[Clip]]:
    """Read a collection, however it is described.

    Args:
      path: A csv of clips, a folder that holds ``clips.csv``, or a folder laid out as DCASE
        Task 2 lays out its data.

    Returns:
      The root that the clips' paths are relative to, and the clips.

    Raises:
      DataError: As :func:`read_table` or :func:`asdproto.data.dcase.scan`.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        raise DataError(
            path, "a feature store", "recordings", "Pass the folder that it was extracted from."
        )
    table = path / TABLE_NAME if path.is_dir() else path
    if table.is_file():
        return table.parent, read_table(table)
    return path, scan(path)
