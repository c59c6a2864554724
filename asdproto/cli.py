"""The command line: ``python -m asdproto validate | features | train | score | ...``.

Every command imports what it needs when it runs, so that help is instant and a machine without an
audio library can still evaluate and report.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence

from asdproto import __version__, commands, signals
from asdproto.arguments import Parser
from asdproto.commands import data, results, runs, score, train
from asdproto.errors import printable

_RESUMABLE = ("download", "features", "train")
_CODES = (
    "Exit codes: 0 done, 1 problems found or an error, 2 wrong usage, 130 interrupted, 143 ended."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: Arguments without the program's name; those of the process by default.

    Returns:
      The exit code.

    Raises:
      SystemExit: Wrong usage (2), or help was asked for (0).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parsers = command_parsers()
    first = [index for index, word in enumerate(words) if not word.startswith("-")]
    split = first[0] + 1 if first else len(words)

    def command() -> int:
        options = _parser(parsers).parse_args(words[:split])
        arguments = parsers[options.command].parse_args(words[split:])
        return arguments.run(arguments)

    return run(words[split - 1] if words else "", command, "--traceback" in words[:split])


def run(name: str, command: Callable[[], int], show_traceback: bool = False) -> int:
    """Runs a command so that whatever goes wrong ends in one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal cannot show ends nothing
            stream.reconfigure(errors="backslashreplace")
    # Nothing here draws on a screen, whatever a notebook has said for itself, or runs what librosa
    # compiles, which would take seconds.
    os.environ["MPLBACKEND"] = "agg"
    os.environ.setdefault("NUMBA_DISABLE_JIT", "1")
    try:
        with signals.handled(), _warnings_shown():
            code = command()
            sys.stdout.flush()
            return code
    except KeyboardInterrupt as stop:
        again = "continues" if name in _RESUMABLE else "starts again"
        text = f"{signals.kept(stop)}{name} is not finished; the same command {again}"
        print(f"\ninterrupted: {text}", file=sys.stderr)
        return signals.code(stop)
    except BrokenPipeError:
        # Whoever read our output has seen enough; the interpreter must not try to flush the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if show_traceback:
            traceback.print_exc()
        lines = [printable(line) for line in commands.message(error).splitlines()]
        print("error: " + "\n".join(lines), file=sys.stderr)
        return 1


@contextlib.contextmanager
def _warnings_shown() -> Iterator[None]:
    """Each warning once and on one line, without the place in the code."""
    shown: set[str] = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            print(f"note: {printable(str(message))}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = show
        yield


def command_parsers() -> dict[str, Parser]:
    """Every command's parser, by name."""
    parsers: dict[str, Parser] = {}
    for module in (data, train, score, runs, results):
        module.add(parsers)
    return parsers


def _parser(parsers: dict[str, Parser]) -> Parser:
    """What stands before the command's own options."""
    listed = "\n".join(f"  {name:10} {parser.summary}" for name, parser in parsers.items())
    parser = Parser(
        prog=commands.program(),
        description="Anomalous sound detection with prototypes: from recordings of normal\n"
        "machines to scores and decisions.",
        epilog=f"commands:\n{listed}\n\n{_CODES}",
    )
    parser.add_argument("--version", action="version", version=f"asdproto {__version__}")
    parser.add_argument(
        "--traceback", action="store_true", help="show where in the code an error arose"
    )
    parser.add_argument("command", choices=parsers, metavar="COMMAND", help="what to do")
    return parser
