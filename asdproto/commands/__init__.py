"""The commands of the command line, by topic: their options, and what they do.

Each module imports what its commands need when they run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any


def add_command(
    subparsers: Any, name: str, run: Any, help_: str, description: str, **options: Any
) -> Any:
    """Adds a command that calls ``run`` with its arguments, and returns its parser."""
    parser = subparsers.add_parser(name, help=help_, description=description, **options)
    parser.set_defaults(run=run)
    return parser


def add_options(parser: Any, *options: tuple[str, Callable[[str], Any], str, str]) -> None:
    """Adds options that take one value: name, kind of value, its name in the help, and the help."""
    for name, kind, metavar, text in options:
        parser.add_argument(name, type=kind, metavar=metavar, help=text)


def given(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The options among ``names`` that were given, by name."""
    values = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def message(error: Exception) -> str:
    """What an error says to somebody who does not know the code."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        library = error.name.partition(".")[0]
        package = {"sklearn": "scikit-learn"}.get(library, library)
        return f"this command needs {library}, which is not installed: pip install {package}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def count(number: int, noun: str) -> str:
    """A number and its noun: ``"1 clip"``, ``"2 clips"``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
