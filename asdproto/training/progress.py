"""What a stage tells while it runs: a bar or lines, metrics, a trace of a few steps."""

import contextlib
import datetime
import json
import time
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from asdproto.files import write_atomically


class Meter:
    """Reports the epochs of one stage: a bar on a terminal, now and then a line elsewhere.

    Args:
      title: What runs.
      total: Epochs.
      first: Epochs already done.
      console: Where to; ``None`` for silence.
    """

    def __init__(self, title: str, total: int, first: int, console: Console | None):
        self._console = console or Console(quiet=True)
        self._title, self._total, self._first = title, total, first
        self._spoken = self._warm = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, completed=first, figures="")

    def running(self) -> contextlib.AbstractContextManager[Any]:
        """Shows the bar while inside."""
        return self._bar

    def epoch(self, done: int, figures: str) -> None:
        """Says that ``done`` epochs are done, with a few words of figures."""
        self._bar.update(self._task, completed=done, figures=figures)
        if self._console.is_terminal:
            return
        # A log is read later: ten lines a stage, one every half minute of silence, and once the
        # time that is left, which a bar shows all along.
        now, since = time.monotonic(), done - self._first
        if since == 1:  # it compiled
            self._warm = now
        elif since == 3:
            left = (now - self._warm) / 2 * (self._total - done)
            figures += f"  about {datetime.timedelta(seconds=round(left))} left"
        tenth = max(1, self._total // 10)
        if since == 3 or done % tenth == 0 or done == self._total or now - self._spoken > 30:
            self._console.print(
                f"{self._title}: epoch {done}/{self._total}  {figures}", highlight=False
            )
            self._spoken = now


class StepTrace:
    """Records the steps that come after those that compile.

    Args:
      folder: Where the trace goes, in the profiler's own layout.
      steps: How many at least; an epoch that is one call is recorded as a whole. 0 for none.
    """

    def __init__(self, folder: Path, steps: int):
        self._folder, self._left, self._running = folder, steps, False

    def step(self, state: Any, steps: int) -> None:
        """To be called with the state after every call, and the steps that it took."""
        if self._left <= 0:
            return
        jax.block_until_ready(state)
        if not self._running:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._running = True
            return
        self._left -= steps
        if self._left <= 0:
            self.close()

    def close(self) -> None:
        """Writes the trace, if one is being recorded."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()


def truncate_metrics(path: Path, stage: str, step: int) -> None:
    """Drops the stage's lines beyond a step, which a resumed run writes again."""
    if not path.exists():
        return
    lines = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
            if entry.get("stage") != stage or entry.get("step", 0) <= step:
                lines.append(line)
        except (ValueError, AttributeError, TypeError, RecursionError):
            continue  # cut short by a kill, or damaged
    write_atomically(path, "".join(line + "\n" for line in lines).encode())
