"""Any collection of recordings, described by one small csv.

::

    file,machine_type,section,domain,split,state,attributes
    pump3/mon/0001.wav,pump,00,source,train,normal,speed_1400
    pump3/tue/0042.wav,pump,00,target,test,anomaly,speed_2000

``file`` is relative to the csv's folder. ``section`` is 00, and ``domain``, ``state`` and
``attributes`` are empty, where the column or the cell is missing.
"""

import contextlib
import dataclasses
import difflib
import os
import posixpath
from collections.abc import Callable, Iterable
from pathlib import Path

from asdproto.data.dcase import (
    AUDIO_SUFFIXES,
    Clip,
    audio_files,
    name_fault,
    parse_name,
    path_fault,
    scan,
    survey,
)
from asdproto.data.store import MANIFEST
from asdproto.errors import DataError, quoted, spreadsheet_cell
from asdproto.files import csv_text, read_csv, write_atomically

COLUMNS = ("file", "machine_type", "section", "domain", "split", "state", "attributes")
REQUIRED = ("file", "machine_type", "split")
TABLE_NAME = "clips.csv"
# Names of folders that say what is in them, not of which machine.
_NORMAL = ("normal", "train", "training")
# Words in a name that keep a recording from being taken for a normal one.
_FAULTY = ("abnormal", "anomal", "broken", "damage", "defect", "fault", "test")
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
    header, rows = _header_and_rows(csv_path)
    clips: list[Clip] = []
    errors: list[DataError] = []
    first_row: dict[str, int] = {}
    for number, cells in rows:
        place = f"{csv_path}: row {number}"
        if cells == header:
            found = "the header a second time"
            errors.append(TableError(place, found, "a clip", "Remove the row."))
            continue
        if len(cells) > len(header):
            found, expected = f"{len(cells)} cells", f"{len(header)}, as the header has"
            remedy = "Put quotation marks around a value that holds a comma."
            errors.append(TableError(place, found, expected, remedy))
            continue
        row = dict(zip(header, cells, strict=False))
        values = {column: row.get(column, "") for column in COLUMNS}
        values["file"] = values["file"].replace("\\", "/")
        # Spreadsheets turn 00 into 0.
        section = values["section"] or "00"
        values["section"] = section.zfill(2) if section.isdecimal() else section
        faults = [
            TableError(f"{place}, column {column}", quoted(values[column]), expected, remedy)
            for column, expected, remedy in _faults(values)
        ]
        # Two ways to write one path, as in a//b and a/./b, are one clip.
        file = values["file"] = posixpath.normpath(values["file"])
        if not faults and file in first_row:
            found = f"{quoted(file)} a second time"
            expected = f"each file once; it stands in row {first_row[file]} already"
            remedy = "Remove one of the rows."
            faults = [TableError(f"{place}, column file", found, expected, remedy)]
        errors += faults
        if not faults:
            first_row[file] = number
            clips.append(Clip(*values.values()))
    return clips, errors


def _faults(values: dict[str, str]) -> Iterable[tuple[str, str, str]]:
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
    lines = read_csv(csv_path, error=TableError)
    if not lines:
        expected = f"the header {','.join(COLUMNS)} and a row for each clip"
        raise TableError(csv_path, "no rows", expected, "Fill it.")
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
        raise TableError(f"{csv_path}: row {lines[0][0]}", found, expected, remedy)
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
    """Describe a collection by a csv that :func:`read_table` reads, safe in spreadsheets.

    Args:
      path: The file; it belongs at the collection's root. Replaced as a whole if it exists.
      clips: The clips.
    """
    rows = ([spreadsheet_cell(cell) for cell in dataclasses.astuple(clip)] for clip in clips)
    write_atomically(Path(path), csv_text([COLUMNS, *rows]).encode())


def survey_collection(path: str | os.PathLike) -> tuple[Path, list[Clip], list[DataError]]:
    """Read a collection, however it is described, as far as it can be read.

    Args:
      path: As for :func:`load_collection`.

    Returns:
      The root that the clips' paths are relative to, the clips without fault, the supplemental
      ones of DCASE 2025 too, and the faults.

    Raises:
      DataError: Nothing can be read.
    """
    path = Path(path)
    table = _table_of(path)
    if table is not None:
        return (table.parent, *survey_table(table))
    errors: list[DataError] = []
    if clips := plain_clips(path, errors.append):
        return path, clips, errors
    return (path, *survey(path, supplemental=True))


def load_collection(path: str | os.PathLike) -> tuple[Path, list[Clip]]:
    """Read a collection, however it is described.

    Args:
      path: A csv of clips, a folder that holds ``clips.csv``, a folder laid out as DCASE Task 2
        lays out its data, or a folder of normal recordings; see :func:`plain_clips`.

    Returns:
      The root that the clips' paths are relative to, and the clips.

    Raises:
      DataError: As :func:`read_table` or :func:`asdproto.data.dcase.scan`.
    """
    path = Path(path)
    table = _table_of(path)
    if table is not None:
        return table.parent, read_table(table)
    return path, plain_clips(path) or scan(path)


def plain_clips(
    root: str | os.PathLike, unreadable: Callable[[DataError], object] | None = None
) -> list[Clip]:
    """A folder of recordings whose names say nothing, as normal training clips of one machine.

    Args:
      root: The folder.
      unreadable: As for :func:`asdproto.data.dcase.visible`.

    Returns:
      Its clips, with the folder's name as machine type (that of the folder above ``normal`` or
      ``train``); empty where recordings lie in folders of their own, or where a name follows the
      grammar of a DCASE set or speaks of faults.

    Raises:
      DataError: ``root`` is not a folder, or a folder in it cannot be read.
    """
    root = Path(root)
    names = audio_files(root, unreadable)
    folder = root.resolve()
    machine_type = (folder.parent if folder.name.lower() in _NORMAL else folder).name
    if name_fault(machine_type) or any(path_fault(name) or "/" in name for name in names):
        return []
    for name in names:
        if any(word in name.lower() for word in _FAULTY):
            return []
        with contextlib.suppress(DataError):
            parse_name(name)
            return []
    return [Clip(name, machine_type, "00", "", "train", "normal", "") for name in names]


def _table_of(path: Path) -> Path | None:
    """The csv that describes a collection, if one does."""
    if os.path.isfile(path / MANIFEST):  # which is False where a folder cannot be entered
        remedy = "Pass the folder that it was extracted from."
        raise DataError(path, "a feature store", "recordings", remedy)
    table = path / TABLE_NAME if os.path.isdir(path) else path
    if os.path.isfile(table):
        return table
    if os.path.lexists(table):
        found = "a folder, pipe, device or link to nothing"
        raise DataError(table, found, "a csv of clips", "Remove it, or put the file there.")
    return None
