"""The errors that people see; each says what was found, what was expected and what to do."""

import os
import unicodedata
from collections.abc import Sequence


class DataError(ValueError):
    """Something in a collection is not as it must be.

    Attributes:
      file: The file, folder or field at fault.
      found: What is there.
      expected: What should be there.
      remedy: What to do about it.
    """

    def __init__(self, file: str | os.PathLike, found: str, expected: str, remedy: str):
        self.file, self.found, self.expected, self.remedy = str(file), found, expected, remedy
        super().__init__(describe(self.file, found, expected, remedy))

    def at(self, file: str | os.PathLike) -> "DataError":
        """The same error of a file under another name."""
        return DataError(file, self.found, self.expected, self.remedy)

    def __reduce__(self):  # crosses process borders with its four fields
        return type(self), (self.file, self.found, self.expected, self.remedy)


class StoreError(DataError):
    """A feature store is missing, damaged, or not the one that is asked for."""


def describe(file: str, found: str, expected: str, remedy: str) -> str:
    """The sentence for people: on one line whatever the file's name, and fit for any terminal."""
    text = f"{printable(file)}: found {found}; expected {expected}. {remedy}"
    return text.encode("utf-8", "backslashreplace").decode()


def printable(name: str) -> str:
    r"""A file's name with what moves a terminal's cursor, or is not seen, written as ``\x0a``."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in name
    )


def is_control(char: str) -> bool:
    """Whether a character is a control character, a line break, or a byte that is not UTF-8."""
    return unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")


def counted(number: int, name: str) -> str:
    """``"1 clip"``, ``"2 clips"``."""
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def some(names: Sequence[str]) -> str:
    """The first three of some names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def quoted(text: str, most: int = 60) -> str:
    """A text in quotation marks, cut where it is long."""
    return repr(text) if len(text) <= most else f"{text[:most]!r}... ({len(text)} characters)"
