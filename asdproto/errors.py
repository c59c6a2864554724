"""The errors that people see, and the words and escapes that make a text fit to be shown."""

import html
import os
import re
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
        return type(self)(file, self.found, self.expected, self.remedy)


def describe(file: str, found: str, expected: str, remedy: str) -> str:
    """The sentence for people."""
    return printable(f"{file}: found {found}; expected {expected}. {remedy}")


def printable(text: str) -> str:
    r"""A text for a terminal: what moves the cursor, or is not seen, is written as ``\x0a``."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def spreadsheet_cell(text: str) -> str:
    r"""A text for a csv, of which no spreadsheet makes a formula.

    An apostrophe stands before ``=``, ``+``, ``-``, ``@`` and a tab, as spreadsheets themselves
    mark a text; :func:`plain_cell` takes it off again, so every text in UTF-8 survives a round
    trip. A byte that is not UTF-8 is written as ``\udcff``.
    """
    text = text.encode("utf-8", "backslashreplace").decode()
    return f"'{text}" if re.match(r"'*[=+\-@\t\r]", text) else text


def plain_cell(text: str) -> str:
    """The text that :func:`spreadsheet_cell` was given."""
    return text[1:] if re.match(r"'+[=+\-@\t\r]", text) else text


def html_text(text: str) -> str:
    """A text for a page: no markup, and nothing that is not seen."""
    return html.escape(printable(text))


def is_control(char: str) -> bool:
    """Whether a character is a control character, a line break, or a byte that is not UTF-8."""
    return unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")


def counted(number: int, name: str) -> str:
    """``"1 clip"``, ``"2,000 clips"``."""
    return f"{number:,} {name}" if number == 1 else f"{number:,} {name}s"


def some(names: Sequence[str]) -> str:
    """The first three of some names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def quoted(text: str, most: int = 60) -> str:
    """A text in quotation marks, cut where it is long."""
    return repr(text) if len(text) <= most else f"{text[:most]!r}... ({len(text)} characters)"
