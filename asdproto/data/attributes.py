"""The attribute files of DCASE Task 2 and the attribute strings of its file names.

An attribute string is a row of key and value pairs joined by ``_``: ``car_A1_spd_34V_mic_1``.
"""

import dataclasses
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from asdproto.data.dcase import CONCEALED, SPLIT_FOLDERS, Clip, same_text
from asdproto.data.problems import Notice
from asdproto.errors import DataError, is_control, quoted
from asdproto.files import read_csv

# Key of a file name -> what the attribute files write for it.
LONG_KEYS = {"spd": "speed"}


def attribute_pairs(attributes: str) -> tuple[tuple[str, str], ...]:
    """``(key, value)`` pairs of an attribute string; an odd last word has the value ``""``."""
    words = attributes.split("_") if attributes else []
    return tuple(itertools.zip_longest(words[::2], words[1::2], fillvalue=""))


@dataclass(frozen=True, slots=True)
class AttributeRow:
    """One row of an attribute file.

    Attributes:
      line: Line number in the attribute file, from 1.
      file: The clip's file as written, with forward slashes.
      pairs: ``(key, value)`` pairs.
    """

    line: int
    file: str
    pairs: tuple[tuple[str, str], ...]


def read_attributes(csv_path: str | os.PathLike) -> list[AttributeRow]:
    """Read an official attribute file, ``file_name,d1p,d1v[,d2p,d2v...]``, rows of any length.

    Columns other than ``file_name`` and the numbered pairs are passed over.

    Raises:
      DataError: The file cannot be read, its header lacks ``file_name``, or a cell holds control
        characters.
    """
    lines = read_csv(csv_path)
    header = lines[0][1] if lines else []
    if "file_name" not in header:
        found = f"the header {quoted(','.join(header))}"
        remedy = "Add the header line, or remove the file: it is optional."
        raise DataError(csv_path, found, "file_name,d1p,d1v,...", remedy)
    name_column = header.index("file_name")
    pair_columns = [
        (column, header.index(f"d{match[1]}v"))
        for column, title in enumerate(header)
        if (match := re.fullmatch(r"d(\d+)p", title)) and f"d{match[1]}v" in header
    ]
    rows: list[AttributeRow] = []
    for number, cells in lines[1:]:
        cells += [""] * (len(header) - len(cells))
        odd = next((text for text in cells if any(map(is_control, text))), None)
        if odd is not None:
            remedy = "Correct it; a quotation mark may be missing before it."
            expected = "text without control characters"
            raise DataError(f"{csv_path}: line {number}", quoted(odd), expected, remedy)
        # A row shorter than the header puts a trailing column's text where a pair would stand.
        pairs = tuple(
            (same_text(cells[key]), same_text(cells[value]))
            for key, value in pair_columns
            if cells[key].lower() not in ("", CONCEALED) and "/" not in cells[key]
        )
        rows.append(AttributeRow(number, same_text(cells[name_column].replace("\\", "/")), pairs))
    return rows


def disagreement(row: AttributeRow, attributes: str) -> tuple[str, bool]:
    """Say how a row contradicts the attribute string of a clip's name.

    The files list only the attributes that vary within a section, so those the row is silent
    about are no contradiction.

    Returns:
      What differs, ``""`` if nothing does; and whether the values agree at least. In the official
      files of valve section 05 the only value of a row always stands under the first key.
    """
    named = {LONG_KEYS.get(key, key): value for key, value in attribute_pairs(attributes)}
    wrong = []
    for key, value in row.pairs:
        in_name = named.get(LONG_KEYS.get(key, key))
        if in_name != value:
            wrong.append(f"{key} is {value!r} here and {in_name!r} in the name")
    agree = sorted(value for _, value in row.pairs) == sorted(named.values())
    return ", ".join(wrong), agree


def _machine_folder(path: str) -> str:
    """Folder that holds a clip's split folder, relative to the root; ``"."`` for the root."""
    parent = PurePosixPath(path).parent
    return (parent.parent if parent.name.lower() in SPLIT_FOLDERS else parent).as_posix()


def fill_attributes(
    root: Path, files: Iterable[str], clips: Sequence[Clip]
) -> tuple[list[Clip], list[DataError]]:
    """Take attributes from a collection's attribute files for the clips whose names carry none.

    Args:
      root: The collection's root.
      files: The attribute files below it, relative to it. Where the root is one split's folder,
        those beside it are read too.
      clips: The clips.

    Returns:
      The clips with their attributes, and the rows that name no clip, name one twice, or
      contradict its name, which is what counts.
    """
    named: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, clip in enumerate(clips):
        named[_machine_folder(clip.path), same_text(clip.name)].append(index)
    folders = {folder for folder, _ in named}
    places = [(PurePosixPath(file).parent.as_posix(), root / file, file) for file in files]
    own_split = root.resolve().name.lower()
    if own_split in SPLIT_FOLDERS:
        above = sorted(root.resolve().parent.glob("attributes*.csv"))
        places += [(".", file, f"../{file.name}") for file in above]
    clips, problems = list(clips), []
    for folder, file, name in places:
        if folder not in folders:
            continue
        try:
            rows = read_attributes(file)
        except DataError as error:
            problems.append(error.at(name + error.file.removeprefix(str(file))))
            continue
        first_line: dict[str, int] = {}
        for row in rows:
            row_split = PurePosixPath(row.file).parent.name.lower()
            if name.startswith("..") and row_split != own_split:
                continue  # the file is of all splits, the root of one
            line = f"{name}: line {row.line}"
            if row.file in first_line:
                expected = f"each file once; line {first_line[row.file]} has it already"
                found, remedy = f"{row.file!r} a second time", "Remove one of the lines."
                problems.append(Notice(line, found, expected, remedy))
            first_line.setdefault(row.file, row.line)
            split, _ = SPLIT_FOLDERS.get(row_split, ("", ""))
            meant = [
                index
                for index in named.get((folder, row.file.rpartition("/")[2]), [])
                if split in ("", clips[index].split)
            ]
            if not meant:
                found = f"the file {row.file!r}, which is not there"
                remedy = "Add the recording, or remove the line."
                problems.append(DataError(line, found, "a recording of this machine type", remedy))
            for index in meant:
                if clips[index].attributes:
                    problems += _contradictions(row, line, clips[index].attributes)
                else:
                    text = "_".join(word for pair in row.pairs for word in pair if word)
                    clips[index] = dataclasses.replace(clips[index], attributes=text)
    return clips, problems


def _contradictions(row: AttributeRow, line: str, attributes: str) -> Iterator[DataError]:
    text, only_keys = disagreement(row, attributes)
    if text:
        expected = f"the attributes in the name, {attributes!r}"
        remedy = "The name is what counts; correct the line or remove it."
        problem = Notice if only_keys else DataError
        yield problem(line, text, expected, remedy)
