"""What the experiment modules share: how they run as commands, and how they write json."""

import contextlib
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from asdproto import files, signals
from asdproto.arguments import Parser
from asdproto.commands import message
from asdproto.config import ConfigError
from asdproto.errors import DataError

NO_LABELS = (
    "--data: the test clips carry no labels; expected normal and anomalous ones, or there is "
    "nothing to compare"
)


def run_main(main: Callable[[list[str] | None], Any]) -> None:
    """Runs an experiment module as a command.

    Expected errors become one message and an exit code, and Ctrl-C a short goodbye.
    """
    # Both load jax, which processes that only read a module go without.
    from asdproto.training.checkpoint import CheckpointError
    from asdproto.training.loop import DivergedError

    try:
        with signals.handled():
            # One line a warning: the place in our code means nothing to the person who reads it.
            warnings.showwarning = _one_line
            main(None)
    except (DataError, ConfigError, CheckpointError, DivergedError, OSError) as error:
        print(f"error: {message(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt as stop:
        text = f"{signals.kept(stop)}the same command continues from the last checkpoint"
        print(f"interrupted: {text}", file=sys.stderr)
        raise SystemExit(signals.code(stop)) from None


def _one_line(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"{category.__name__}: {message}", file=sys.stderr)


def make_parser(name: str, description: str | None) -> Parser:
    """The command line of an experiment on a data set."""
    parser = Parser(prog=f"python -m experiments.{name}", description=description)
    parser.add_argument("--data", type=Path, required=True, help="collection, or feature store")
    parser.add_argument("--workdir", type=Path, required=True, help="folder for all results")
    return parser


def write_json(path: Path, value: Any) -> None:
    """Writes a value as json; makes the folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, value)


def write_text(path: Path, text: str) -> None:
    """Writes a text; makes the folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, text.encode())


@contextlib.contextmanager
def panels(path: Path, names: Sequence[str], count: int, width: float) -> Iterator[tuple[Any, Any]]:
    """A figure and its panels side by side, with a row for each name; saved as the block ends."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (width, 0.35 * len(names) + 1.6)
    figure, axes = pyplot.subplots(
        1, count, figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    yield figure, axes[0]
    for axis in axes[0]:
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].invert_yaxis()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def processor() -> str:
    """Name of the CPU, as far as the system tells."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as stream:
        for line in stream:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
