"""Work spread over processes, and the bar that shows how far it is."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from asdproto.errors import DataError

_log = logging.getLogger(__name__)
Piece = TypeVar("Piece")
Result = TypeVar("Result")


def run(
    function: Callable[[Piece], Result],
    pieces: Sequence[Piece],
    workers: int,
    *,
    initialize: Callable[[], object] | None = None,
) -> Generator[Result, None, None]:
    """Apply a function to pieces of work, in this process or in several.

    After an interrupt the pieces that were handed over are finished, about two for each process.

    Args:
      function: Importable by name; does one piece of work with one thread.
      pieces: What it is applied to; must pickle.
      workers: Processes; with 1, the work is done in this one.
      initialize: Called first in every new process; must pickle.

    Yields:
      Results, in the order in which they are done.

    Raises:
      DataError: A process died.
    """
    workers = min(workers, len(pieces))
    if workers <= 1:
        with threadpool_limits(limits=1):  # results do not depend on the number of cores
            yield from map(function, pieces)
        return
    # A fork of a process that holds a started accelerator backend may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (initialize,))
    try:
        waiting: set[Future] = {pool.submit(function, piece) for piece in pieces}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        found = "a worker process that ended abruptly"
        remedy = (
            "Run this again, with fewer workers if memory was short: what is done is kept. A "
            "script of your own must do its work under if __name__ == '__main__'."
        )
        raise DataError("workers", found, "workers that live", remedy) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(initialize: Callable[[], object] | None) -> None:
    """Make a fresh process a worker: deaf to interrupts, gone when its parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initialize is not None:
        initialize()
    # Raises the size from which glibc gives memory back: without, this takes 1.5 times as long.
    np.empty(2**24, np.uint8)
    threadpool_limits(limits=1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def count_workers(jobs: int, *, worth: int) -> int:
    """Processes for some jobs: one for each core that this process may use.

    Args:
      jobs: How many there are.
      worth: Fewer jobs than that are done sooner than a pool is started.
    """
    if jobs < worth:
        return 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Bar:
    """A progress bar on the standard error stream, or nothing.

    Args:
      show: Whether there is one.
      title: What is going on.
      total: Steps of the whole.
      done: Steps that were done before.
    """

    def __init__(self, show: bool, title: str, total: int, done: int = 0):
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("clips"),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not show,
        )
        self._task = self._bar.add_task(title, total=total, completed=done)
        if done:
            self.say(f"{done} of {total} clips are done already.")

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, steps: int = 1) -> None:
        """Some steps more are done."""
        self._bar.advance(self._task, steps)

    def say(self, text: str) -> None:
        """One line above the bar, or into the log where there is none."""
        if self._bar.disable:
            _log.info("%s", text)
        else:
            self._bar.console.print(text, highlight=False, markup=False)
