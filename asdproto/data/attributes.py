"""The attribute files of DCASE Task 2 and the attribute strings of its file names.

An attribute string is a row of key and value pairs joined by ``_``: ``car_A1_spd_34V_mic_1``.
"""

import itertools
import os
import re
from dataclasses import dataclass

from asdproto.errors import DataError, is_control, quoted
from asdproto.files import read_csv

# Stands for the attributes where a year conceals them.
CONCEALED = "noAttribute"
# Key of a file name -> what the attribute files write for it.
LONG_KEYS = {"spd": "speed"}


def attribute_pairs(attributes: str) -> tuple[tuple[str, str], ...]:
    """Split an attribute string into its pairs.

    Args:
      attributes: As in :class:`Clip`.

    Returns:
      ``(key, value)`` pairs in order; an odd last word is a key with the value ``""``.
    """
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

    @property
    def attributes(self) -> str:
        """The pairs joined as a file name joins them."""
        return "_".join(word for pair in self.pairs for word in pair if word)


def read_attributes(csv_path: str | os.PathLike) -> list[AttributeRow]:
    """Read an official attribute file, ``file_name,d1p,d1v[,d2p,d2v...]``, rows of any length.

    Columns other than ``file_name`` and the numbered pairs are passed over.

    Args:
      csv_path: The file.

    Returns:
      Its rows in order.

    Raises:
      DataError: The file cannot be read, its header lacks ``file_name``, or a cell holds control
        characters.
    """
    if not os.path.isfile(csv_path):  # opening a pipe would wait for a writer
        found = "a folder, pipe, device or link to nothing"
        raise DataError(csv_path, found, "a csv", "Remove it, or put the file there.")
    lines = read_csv(csv_path)
    header = lines[0][1] if lines else []
    if "file_name" not in header:
        found = f"the header {quoted(','.join(header))}"
        remedy = "Add the header line, or remove the file: it is optional."
        raise DataError(csv_path, found, "file_name,d1p,d1v,...", remedy)
    name_column = header.index("file_name")
    pair_columns = []
    for column, title in enumerate(header):
        match = re.fullmatch(r"d(\d+)p", title)
        if match and f"d{match[1]}v" in header:
            pair_columns.append((column, header.index(f"d{match[1]}v")))
    rows: list[AttributeRow] = []
    for number, cells in lines[1:]:
        cells += [""] * (len(header) - len(cells))
        odd = next((text for text in cells if any(map(is_control, text))), None)
        if odd is not None:
            place, expected = f"{csv_path}: line {number}", "text without control characters"
            remedy = "Correct it; a quotation mark may be missing before it."
            raise DataError(place, quoted(odd), expected, remedy)
        # A row shorter than the header puts a trailing column's text where a pair would stand.
        pairs = tuple(
            (cells[key], cells[value])
            for key, value in pair_columns
            if cells[key].lower() not in ("", CONCEALED.lower()) and "/" not in cells[key]
        )
        rows.append(AttributeRow(number, cells[name_column].replace("\\", "/"), pairs))
    return rows


def disagreement(row: AttributeRow, attributes: str) -> tuple[str, bool]:
    """Say how a row contradicts a name's attributes.

    The files list only the attributes that vary within a section, so those the row is silent
    about are no contradiction.

    Args:
      row: The row.
      attributes: The attribute string of the clip's name.

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
