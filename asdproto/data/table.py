"""Any collection of recordings, described by one small csv.

::

    file,machine_type,section,domain,split,state,attributes
    pump3/mon/0001.wav,pump,00,source,train,normal,speed_1400
    pump3/tue/0042.wav,pump,00,target,test,anomaly,speed_2000

``file`` is relative to the csv's folder. ``section`` is 00, and ``domain``, ``state`` and
``attributes`` are empty, where the column or the cell is missing.
"""

import difflib
import os
import posixpath
from collections.abc import Iterable, Iterator
from pathlib import Path

from asdproto.data.dcase import AUDIO_SUFFIXES, Clip, name_fault, path_fault, same_text
from asdproto.errors import DataError, quoted, spreadsheet_cell
from asdproto.files import csv_text, read_csv, write_output

COLUMNS = ("file", "machine_type", "section", "domain", "split", "state", "attributes")
REQUIRED = ("file", "machine_type", "split")
TABLE_NAME = "clips.csv"
_VALUES = {
    "domain": ("source", "target", ""),
    "split": ("train", "test"),
    "state": ("normal", "anomaly", ""),
}


def read_table(csv_path: str | os.PathLike) -> tuple[list[Clip], list[DataError]]:
    """Read a csv of clips as far as it can be read.

    Args:
      csv_path: The file; its first row names the columns. Unknown columns are passed over.

    Returns:
      The clips of the rows without fault, in order, and a problem for each fault, which names row
      and column.

    Raises:
      DataError: The file cannot be read at all, lacks a column, or holds no clip.
    """
    header, rows = _header_and_rows(csv_path)
    clips: list[Clip] = []
    problems: list[DataError] = []
    first_row: dict[str, int] = {}
    for number, cells in rows:
        place = f"{csv_path}: row {number}"
        if cells == header:
            found = "the header a second time"
            problems.append(DataError(place, found, "a clip", "Remove the row."))
            continue
        if len(cells) > len(header):
            found, expected = f"{len(cells)} cells", f"{len(header)}, as the header has"
            remedy = "Put quotation marks around a value that holds a comma."
            problems.append(DataError(place, found, expected, remedy))
            continue
        row = dict(zip(header, cells, strict=False))
        values = {column: same_text(row.get(column, "")) for column in COLUMNS}
        values["file"] = row["file"].replace("\\", "/")
        # Spreadsheets turn 00 into 0.
        section = values["section"] or "00"
        values["section"] = section.zfill(2) if section.isdecimal() else section
        faults = [
            DataError(f"{place}, column {column}", quoted(values[column]), expected, remedy)
            for column, expected, remedy in _faults(values)
        ]
        # Two ways to write one path, as in a//b and a/./b, are one clip.
        values["file"] = posixpath.normpath(values["file"])
        file = same_text(values["file"])
        if not faults and file in first_row:
            found = f"{quoted(file)} a second time"
            expected = f"each file once; it stands in row {first_row[file]} already"
            remedy = "Remove one of the rows."
            faults = [DataError(f"{place}, column file", found, expected, remedy)]
        problems += faults
        if not faults:
            first_row[file] = number
            clips.append(Clip(*values.values()))
    return clips, problems


def _faults(values: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Column, what is expected there and what to do, for every fault of a row."""
    file = values["file"]
    if not file.lower().endswith(AUDIO_SUFFIXES):
        yield "file", "a .wav or .flac file", "Name the recording."
    elif file.startswith("/") or file[1:2] == ":" or ".." in file.split("/"):
        expected = "a path relative to the csv's folder, without '..'"
        yield "file", expected, "Put the csv at the top of the collection."
    for column in ("machine_type", "section"):
        if expected := name_fault(values[column]):
            yield column, expected, "Fill it in, or correct it."
    for column, allowed in _VALUES.items():
        if values[column] not in allowed:
            choices = ", ".join(value or "nothing" for value in allowed)
            yield column, f"one of {choices}", "Correct it."
    for column in ("file", "attributes"):
        if expected := path_fault(values[column]):
            yield column, expected, "Correct it; a quotation mark may be missing before it."


def _header_and_rows(
    csv_path: str | os.PathLike,
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and the rows that are not empty with their line numbers."""
    lines = read_csv(csv_path)
    if not lines:
        expected = f"the header {','.join(COLUMNS)} and a row for each clip"
        raise DataError(csv_path, "no rows", expected, "Fill it.")
    header = lines[0][1]
    missing = [column for column in REQUIRED if column not in header]
    twice = [column for column in COLUMNS if header.count(column) > 1]
    misspelt = {
        title: near[0]
        for title in header
        if title not in COLUMNS
        and (near := difflib.get_close_matches(title.lower(), COLUMNS, n=1, cutoff=0.7))
        and near[0] not in header
    }
    if missing or misspelt or twice:
        hints = [f"{quoted(wrong)} should read '{right}'." for wrong, right in misspelt.items()]
        hints += [f"Keep one column {column}." for column in twice]
        if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
            hints = ["Separate the columns by commas."]
        found = f"the columns {quoted(','.join(header), 200)}"
        expected = f"the columns {','.join(COLUMNS)}, of which {', '.join(REQUIRED)} are required"
        remedy = " ".join(hints) or f"Add {', '.join(missing)}."
        raise DataError(f"{csv_path}: row {lines[0][0]}", found, expected, remedy)
    if not lines[1:]:
        raise DataError(csv_path, "a header and no clip", "a row for each clip", "Add them.")
    return header, lines[1:]


def write_table(path: str | os.PathLike, clips: Iterable[Clip]) -> None:
    """Describe a collection by a csv that :func:`read_table` reads, safe in spreadsheets.

    Args:
      path: The file; it belongs at the collection's root. An earlier table is replaced.
      clips: The clips.
    """
    rows = ([spreadsheet_cell(cell) for cell in clip.fields()] for clip in clips)
    write_output(Path(path), csv_text([COLUMNS, *rows]))
