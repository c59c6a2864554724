"""The loop of everything that trains: epochs, checkpoints, metrics, progress, stopping.

One run is a sweep of one: states have a leading axis of runs on the host and in checkpoints, and on
the devices where there are several. A run alone is resumed bit for bit at any step, on any number
of devices; several side by side at any epoch.
"""

import contextlib
import dataclasses
import datetime
import functools
import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from asdproto import signals
from asdproto.data.dataset import Dataset
from asdproto.files import append, write_atomically
from asdproto.training.checkpoint import Checkpoints
from asdproto.training.devices import Devices
from asdproto.training.epoch import Loop, Programs, default_loop
from asdproto.training.host import fits_on, gather_crops
from asdproto.training.profile import StepTrace
from asdproto.training.stage import Hyper
from asdproto.training.state import TrainState, clip_index
from asdproto.training.task import Task

_ASK_EVERY = 50  # steps


class DivergedError(RuntimeError):
    """The loss is no longer a number."""


class CollapseWarning(UserWarning):
    """The loss reached zero: there is nothing left to learn from."""


@dataclasses.dataclass
class StageRun:
    """How a stage runs, apart from what it computes.

    Attributes:
      name: ``"pretrain"``, ``"finetune"`` or any other name for files and logs.
      checkpoints: Where states are kept; ``None`` keeps none.
      metrics: jsonl file to append one line an epoch to; ``None`` for none.
      save_seconds: Time between checkpoints; 0 saves after every epoch.
      console: Where progress goes; ``None`` for silence.
      loop: ``"scan"`` or ``"dispatch"``; what suits the backend when ``None``.
      resident: Whether features live on the devices; decided by their memory when ``None``.
      profile: Steps to record beside the metrics, after those that compile; 0 for none.
    """

    name: str
    checkpoints: Checkpoints | None = None
    metrics: Path | None = None
    save_seconds: float = 60.0
    console: Console | None = None
    loop: Loop | None = None
    resident: bool | None = None
    profile: int = 0


def train(
    task: Task,
    data: Dataset | Sequence[Dataset],
    devices: Devices,
    states: Sequence[TrainState],
    keys: Sequence[jax.Array],
    hypers: Sequence[Hyper],
    run: StageRun,
) -> list[TrainState]:
    """Trains one run or several to their end, from their latest checkpoint where there is one.

    Args:
      task: Static description of a run. One run shares its batches among the devices; several are
        dealt out to them, each to one, and trained as one program.
      data: The data set of all runs; or one for each, of the same numbers and shape.
      devices: Where to train; several runs take one process.
      states: State to start each run from; ignored when a checkpoint exists.
      keys: Random key of each run.
      hypers: Hyper-parameters of each run.
      run: How it goes; a checkpoint holds all runs.

    Returns:
      The final states, as NumPy arrays, in order.

    Raises:
      DivergedError: The loss of a run became nan or infinite; earlier checkpoints stay.
      CheckpointError: A checkpoint was written by another configuration.
      ValueError: The lists differ in length, there are several runs and processes, or the task is
        another data set's.
    """
    runs = len(states)
    datasets = [data] if isinstance(data, Dataset) else list(data)
    if not runs == len(keys) == len(hypers) or len(datasets) not in (1, runs):
        raise ValueError(
            f"found {runs} states, {len(keys)} keys, {len(hypers)} sets of hyper-parameters and "
            f"{len(datasets)} data sets; expected one of each per run"
        )
    if runs > 1 and jax.process_count() > 1:
        raise ValueError("a sweep runs in one process; give each process its own part of the runs")
    for one in datasets:
        task.check(one)
    state = _stack(devices.to_host(list(states)))
    if run.checkpoints is not None and run.checkpoints.latest() is not None:
        state = run.checkpoints.restore(state)
    step = int(np.max(state.step))
    if run.metrics is not None and devices.is_main:
        truncate_metrics(run.metrics, run.name, step)
    if step < task.stage.total_epochs * task.steps_per_epoch:
        state = _train(task, datasets, devices, state, keys, hypers, run, step)
    return [jax.tree.map(lambda x, i=i: x[i], state) for i in range(runs)]


def _stack(trees: Sequence[Any]) -> Any:
    """NumPy trees of equal shapes, side by side along a new leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _train(
    task: Task,
    datasets: Sequence[Dataset],
    devices: Devices,
    state: TrainState,
    keys: Sequence[jax.Array],
    hypers: Sequence[Hyper],
    run: StageRun,
    step: int,
) -> TrainState:
    """The epochs that are left; the state is stacked and on the host, before and after."""
    runs, per_epoch, epochs = len(keys), task.steps_per_epoch, task.stage.total_epochs
    resident = run.resident
    if resident is None:
        resident = runs > 1 or fits_on(devices, datasets[0].train.nbytes)
    gather = None if resident else functools.partial(gather_crops, datasets[0].train)
    loop = run.loop or default_loop()
    programs = Programs(task, devices, runs, own_data=len(datasets) > 1)
    indices = [
        clip_index(one, resident=resident, standardization=task.standardization) for one in datasets
    ]
    index = devices.replicate(indices[0]) if len(indices) == 1 else programs.put(_stack(indices))
    # Plain numbers: pmap over processes takes a typed key through the host at each call.
    numbers = [jax.random.key_data(key) for key in keys]
    key, hyper = programs.put(_stack(jax.device_get(list(zip(numbers, hypers, strict=True)))))
    state = programs.put(state)

    meter = Meter(
        run.name if runs == 1 else f"{run.name} x {runs}", epochs, step // per_epoch, run.console
    )
    # Signals wait for the end of a step where it can be saved.
    signaled = (
        contextlib.nullcontext(lambda: False) if run.checkpoints is None else signals.deferred()
    )
    traced = 0 if run.metrics is None or not devices.is_main else run.profile
    trace = StepTrace((run.metrics or Path()).parent / "profile" / run.name, traced)
    with meter.running(), signaled as asked_to_stop, contextlib.closing(trace):
        keeper = _Keeper(run, devices, programs, asked_to_stop)
        while step < epochs * per_epoch:
            epoch, done = divmod(step, per_epoch)
            started = time.monotonic()
            # Nothing but crops that the host gathers, and checkpoints, may cross while steps run.
            with jax.transfer_guard("disallow"):
                walk = programs.train_epoch(
                    state, index, key, hyper, loop=loop, done=done, gather=gather
                )
                for state, steps in walk:
                    step += steps
                    trace.step(state, steps)
                    if step % per_epoch:
                        keeper.look(state, step, epoch, inside=True)
            losses = programs.get(state.loss_sum) / per_epoch
            seconds = time.monotonic() - started
            if not np.isfinite(losses).all():
                raise keeper.diverged(epoch, losses)
            rate = float(task.stage.learning_rate(epoch))
            clips = runs * (per_epoch - done) * task.stage.batch / seconds
            # The line first: a resumed run drops lines beyond its checkpoint, and misses none.
            if run.metrics is not None and devices.is_main:
                line = {
                    "stage": run.name,
                    "epoch": epoch + 1,
                    "step": step,
                    "loss": float(losses.mean()),
                    **({"losses": losses.tolist()} if runs > 1 else {}),
                    "learning_rate": rate,
                    "seconds": round(seconds, 4),
                    "clips_per_second": round(clips, 1),
                }
                append(run.metrics, json.dumps(line) + "\n")
            keeper.look(state, step, epoch, last=epoch + 1 == epochs)
            meter.epoch(epoch + 1, f"loss {losses.mean():.4f}  rate {rate:g}  {clips:.0f} clips/s")
    if losses.min() < 1e-4:
        warnings.warn(
            f"{run.name}: the loss reached {losses.min():.1e}: the {task.num_classes} attribute "
            "classes are told apart perfectly and nothing is left to learn from. With few classes, "
            "add other machine types' normal clips, or trust the validation of your own faults",
            CollapseWarning,
            stacklevel=4,
        )
    if run.checkpoints is not None:
        run.checkpoints.wait()
    return programs.get(state)


@dataclasses.dataclass
class _Keeper:
    """Says when a state is saved and when training stops; all processes must say the same."""

    run: StageRun
    devices: Devices
    programs: Programs
    asked_to_stop: Callable[[], bool]
    saved: float = dataclasses.field(default_factory=time.monotonic)

    def look(
        self, state: TrainState, step: int, epoch: int, *, inside: bool = False, last: bool = False
    ) -> None:
        """Saves where it is time to, and ends training where it was asked to stop.

        Clocks of processes differ, and one alone may get a signal. To agree holds the devices up,
        so that ``inside`` an epoch they do so now and then only.
        """
        run, always = self.run, self.run.save_seconds <= 0
        if run.checkpoints is None:
            return
        if inside and self.devices.has_peers and step % _ASK_EVERY and not always:
            return
        due = time.monotonic() - self.saved > run.save_seconds
        due, stop = self.devices.agree(due, self.asked_to_stop())
        if due or stop or always or last:
            arrays = self.programs.get(state)
            # The loss is one step behind: an update can break a state whose loss was still sound.
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(arrays)):
                raise self.diverged(epoch, np.array([math.nan]))
            run.checkpoints.save(step, arrays)
            self.saved = time.monotonic()
        if stop:
            run.checkpoints.wait()
            signals.stop(f"step {step} of {run.name} is saved")

    def diverged(self, epoch: int, losses: np.ndarray) -> DivergedError:
        """The error of losses, one a run, that are no numbers."""
        run = self.run
        broken = np.flatnonzero(~np.isfinite(losses)).tolist()
        which = f"of runs {broken} of {len(losses)} " if len(losses) > 1 else ""
        where = "no checkpoint had been written yet"
        if run.checkpoints is not None and (step := run.checkpoints.latest()) is not None:
            where = f"the checkpoint of step {step} in {run.checkpoints.folder} is good"
        return DivergedError(
            f"{run.name}: the loss {which}became {losses[broken[0]]} in epoch {epoch + 1}; {where}."
            " Lower the learning rate or raise the temperature, and start again from there"
        )


def truncate_metrics(path: Path, stage: str, step: int) -> None:
    """Drops the stage's lines beyond a step, which a resumed run writes again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
            if entry.get("stage") != stage or entry.get("step", 0) <= step:
                kept.append(line)
        except (ValueError, AttributeError, TypeError, RecursionError):
            continue  # cut short by a kill, or damaged
    write_atomically(path, "".join(line + "\n" for line in kept).encode())


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
        columns = BarColumn(), MofNCompleteColumn(), TextColumn("epochs"), TimeRemainingColumn()
        self._bar = Progress(
            TextColumn("{task.description}"),
            *columns,
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
