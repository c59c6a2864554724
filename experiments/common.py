"""What the experiment modules share: how they run as commands."""

import contextlib
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from asdproto import signals
from asdproto.commands import message
from asdproto.errors import DataError
from asdproto.systems.run import check_same_run, features_of

__all__ = ["check_same_run", "features_of", "processor", "run_main"]


@contextlib.contextmanager
def plain_errors(resumes: bool = True) -> Iterator[None]:
    """Turns expected errors into one message and an exit code, and Ctrl-C into a short goodbye."""
    from asdproto.config import ConfigError
    from asdproto.training.checkpoint import CheckpointError
    from asdproto.training.loop import DivergedError

    try:
        yield
    except (DataError, ConfigError, CheckpointError, DivergedError, OSError) as error:
        print(f"error: {message(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt as stop:
        after = "continues from the last checkpoint" if resumes else "trains from the start"
        print(f"interrupted: {signals.kept(stop)}the same command {after}", file=sys.stderr)
        raise SystemExit(signals.code(stop)) from None


def run_main(main: Callable[[list[str] | None], Any], *, resumes: bool = True) -> None:
    """Runs an experiment module as a command; ``resumes`` says whether it keeps checkpoints."""
    with plain_errors(resumes), signals.handled():
        # One line a warning: the place in our code means nothing to the person who reads it.
        warnings.showwarning = _one_line
        main(None)


def _one_line(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"{category.__name__}: {message}", file=sys.stderr)


def processor() -> str:
    """Name of the CPU, as far as the system tells."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as stream:
        for line in stream:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
