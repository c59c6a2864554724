"""The command line: ``python -m asdproto validate | features | train | score | ...``.

Every command imports what it needs when it runs, so that help is instant and a machine without an
audio library can still evaluate and report. Exit codes: 0 done, 1 problems found or an error, 2
wrong usage, 130 interrupted, 143 ended by SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asdproto import __version__, commands, signals
from asdproto.arguments import Parser
from asdproto.commands import data, results, runs, score, train

_RESUMABLE = ("download", "features", "train")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: Arguments without the program's name; those of the process by default.

    Returns:
      The exit code.

    Raises:
      SystemExit: Wrong usage (2), or help was asked for (0).
    """
    arguments = _parser().parse_args(argv)
    _shown.clear()
    try:
        with signals.handled(), warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = _show_warning
            code = arguments.run(arguments)
            sys.stdout.flush()
            return code
    except KeyboardInterrupt as stop:
        later = "; the same command continues" if arguments.command in _RESUMABLE else ""
        text = f"{arguments.command} is not finished{later}"
        print(f"\ninterrupted: {signals.kept(stop)}{text}", file=sys.stderr)
        return signals.code(stop)
    except BrokenPipeError:
        # Whoever read our output has seen enough; the interpreter must not try to flush the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ImportError, FloatingPointError, RuntimeError) as error:
        if arguments.traceback:
            traceback.print_exc()
        print(f"error: {commands.message(error)}", file=sys.stderr)
        return 1


_shown: set[str] = set()


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """What a warning says, without the place in the code that interests nobody here."""
    if str(message) not in _shown:
        _shown.add(str(message))
        print(f"note: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    called = Path(sys.argv[0]).name
    parser = Parser(
        prog="python -m asdproto" if called == "__main__.py" else "asdproto",
        description="Anomalous sound detection with prototypes: from recordings of normal machines "
        "to scores and decisions.",
        epilog="Exit codes: 0 done, 1 problems found or an error, 2 wrong usage, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"asdproto {__version__}")
    parser.add_argument(
        "--traceback", action="store_true", help="show where in the code an error arose"
    )
    subparsers = parser.add_subparsers(
        title="commands", dest="command", required=True, metavar="COMMAND"
    )
    for add in (
        data.add_download,
        data.add_validate,
        data.add_features,
        train.add,
        score.add,
        runs.add_rescore,
        runs.add_fuse,
        runs.add_export,
        results.add_evaluate,
        results.add_report,
        results.add_summarize,
    ):
        add(subparsers)
    return parser
