"""The commands of the command line, by topic: their options, and what they do.

Each module imports what its commands need when they run.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from asdproto.arguments import Parser
from asdproto.errors import printable

__all__ = ["add_command", "add_options", "message", "program", "say"]


def program() -> str:
    """How this program was called."""
    return "python -m asdproto" if Path(sys.argv[0]).name == "__main__.py" else "asdproto"


def add_command(
    parsers: dict[str, Parser], name: str, run: Any, summary: str, description: str, **options: Any
) -> Parser:
    """Adds a command that calls ``run`` with its arguments, and returns its parser."""
    parser = Parser(prog=f"{program()} {name}", description=description, **options)
    parser.summary = summary
    parser.set_defaults(run=run)
    parsers[name] = parser
    return parser


def add_options(parser: Any, *options: tuple[Any, ...]) -> None:
    """Adds options that take values.

    Args:
      parser: A parser or a group of options.
      options: Name; type, or a tuple of choices; name of the value, or None; help; and the default
        where it is not None, which the help then tells.
    """
    for name, kind, metavar, text, *default in options:
        more: dict[str, Any] = {"choices": kind} if isinstance(kind, tuple) else {"type": kind}
        if default:
            more["default"], text = default[0], f"{text} (default: {default[0]})"
        parser.add_argument(name, metavar=metavar, help=text, **more)


def say(text: str) -> None:
    """Prints lines for people; names in them move no cursor."""
    print("\n".join(map(printable, text.split("\n"))))


def message(error: Exception) -> str:
    """What an error says to somebody who does not know the code."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        library = error.name.partition(".")[0]
        remedy = "pip install 'asdproto[train]'"
        text = f"this command needs {library}, which is not installed: {remedy}"
    elif isinstance(error, MemoryError):
        text = "not enough memory; use fewer --seeds, a smaller --preset or shorter recordings"
    elif isinstance(error, shutil.Error):  # of a folder's copy: (from, to, why) of each file
        text = str(error.args[0][0][2])
    elif isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    elif isinstance(error, ValueError | OSError | FloatingPointError | RuntimeError):
        text = str(error) or type(error).__name__
    else:
        text = (
            f"this program has a fault ({type(error).__name__}: {error}); python -m asdproto "
            "--traceback COMMAND ... shows where"
        )
    return text
