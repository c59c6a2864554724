"""Progress on the screen: a bar in a terminal, a line now and then in a log."""

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Meter:
    """Reports steps and epochs of one stage.

    Args:
      title: What runs.
      total: Epochs.
      first: Epochs already done.
      console: Where to; ``None`` for silence.
    """

    def __init__(self, title: str, total: int, first: int, console: Console | None):
        self._title, self._total, self._console = title, total, console
        self._bar: Progress | None = None
        self._spoken = time.monotonic()
        if console is not None and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("epochs"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=console,
            )
            self._task = self._bar.add_task(title, total=total, completed=first, figures="")

    def epoch(self, done: int, figures: str) -> None:
        """Says that ``done`` epochs are done, with a few words of figures."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, figures=figures)
        elif self._console is not None:
            # A log is read later: ten lines a stage, and one every half minute of silence.
            tenth = max(1, self._total // 10)
            if done % tenth == 0 or done == self._total or time.monotonic() - self._spoken > 30:
                self._console.print(
                    f"{self._title}: epoch {done}/{self._total}  {figures}", highlight=False
                )
                self._spoken = time.monotonic()

    @contextlib.contextmanager
    def running(self) -> Iterator["Meter"]:
        """Shows the bar while inside."""
        if self._bar is None:
            yield self
        else:
            with self._bar:
                yield self
