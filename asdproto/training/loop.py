"""The loop of both stages: epochs, checkpoints, metrics, progress; resumable at any step."""

import contextlib
import dataclasses
import datetime
import functools
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from asdproto import signals
from asdproto.data.dataset import Dataset
from asdproto.files import append, write_atomically
from asdproto.training.checkpoint import Checkpoints
from asdproto.training.devices import Devices, stack_runs
from asdproto.training.epoch import Loop, Programs, compile_sweep, default_loop
from asdproto.training.host import fits_on, gather_crops
from asdproto.training.stage import Hyper
from asdproto.training.state import TrainState, clip_index
from asdproto.training.task import Task

_ASK_EVERY = 50  # steps

# State on the devices and steps of the epoch already done -> states, each with the steps it took.
Epoch = Callable[[TrainState, int], Iterator[tuple[TrainState, int]]]


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
      metadata: json-serializable description saved with each checkpoint.
      metrics: jsonl file to append one line an epoch to; ``None`` for none.
      save_seconds: Time between checkpoints; 0 saves after every epoch.
      console: Where progress goes; ``None`` for silence.
      loop: ``"scan"`` or ``"dispatch"``; what suits the backend when ``None``.
      resident: Whether features live on the devices; decided by their memory when ``None``.
    """

    name: str
    checkpoints: Checkpoints | None = None
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    metrics: Path | None = None
    save_seconds: float = 60.0
    console: Console | None = None
    loop: Loop | None = None
    resident: bool | None = None


def train_stage(
    task: Task,
    data: Dataset,
    devices: Devices,
    state: TrainState,
    key: jax.Array,
    run: StageRun,
) -> TrainState:
    """Trains a stage to its end, from its latest checkpoint where there is one.

    Args:
      task: Static description.
      data: The data set.
      devices: Where to train.
      state: State to start from; ignored when a checkpoint exists.
      key: Random key of the stage.
      run: How it runs.

    Returns:
      The final state, as NumPy arrays.

    Raises:
      DivergedError: The loss became nan or infinite; earlier checkpoints stay.
      CheckpointError: A checkpoint was written by another configuration.
    """

    def start() -> Epoch:
        resident = fits_on(devices, data.train.nbytes) if run.resident is None else run.resident
        loop = (run.loop or default_loop()) if resident else "dispatch"
        gather = None if resident else functools.partial(gather_crops, data.train)
        programs = Programs(task, devices)
        index = clip_index(data, resident=resident, standardization=task.standardization)
        # Plain numbers: pmap over processes takes a typed key through the host at each call.
        inputs = devices.replicate((index, jax.random.key_data(key), task.stage.hyper()))

        def epoch(state: TrainState, done: int) -> Iterator[tuple[TrainState, int]]:
            # An epoch that another loop left in the middle is finished step by step.
            if loop == "scan" and not done:
                yield programs.epoch(state, *inputs), task.steps_per_epoch
                return
            for after in programs.dispatch(state, *inputs, done=done, gather=gather):
                yield after, 1

        return epoch

    state = devices.to_host(state)
    return _train(task, devices, state, run, start, devices.replicate, devices.to_host)


def train_sweep(
    task: Task,
    data: Dataset,
    devices: Devices,
    states: list[TrainState],
    keys: list[jax.Array],
    hypers: list[Hyper],
    run: StageRun,
) -> list[TrainState]:
    """Trains several runs of a stage to their end, as one program.

    Args:
      task: Static description of one run.
      data: The data set, shared; its training clips are resident on every device.
      devices: Where the runs go; one process.
      states: State to start each run from.
      keys: Random key of each run's stage.
      hypers: Hyper-parameters of each run.
      run: How it goes; a checkpoint holds all runs.

    Returns:
      The final states, as NumPy arrays, in order.

    Raises:
      DivergedError: The loss of some runs became nan or infinite; the message names them. The
        others are not lost: an earlier checkpoint holds them.
      ValueError: The lists differ in length, or there are several processes.
    """
    runs = len(states)
    if not runs or len(keys) != runs or len(hypers) != runs:
        raise ValueError(
            f"found {runs} states, {len(keys)} keys and {len(hypers)} sets of hyper-parameters; "
            "expected one of each per run"
        )
    if jax.process_count() > 1:
        raise ValueError("a sweep runs in one process; give each process its own part of the runs")
    # Devices take equal shares; the last runs are repeated to fill them and dropped at the end.
    share = -(-runs // devices.count)
    filled = [min(i, runs - 1) for i in range(share * devices.count)]

    def deal(tree: Any) -> Any:
        if devices.count > 1:
            shape = (devices.count, share)
            tree = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), tree)
        return devices.shard(tree)

    def gather(tree: Any) -> Any:
        if devices.count == 1:
            return jax.device_get(tree)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.device_get(tree))

    def start() -> Epoch:
        program = compile_sweep(task, devices)
        index = clip_index(data, resident=True, standardization=task.standardization)
        index = devices.replicate(index)
        dealt = deal(
            (jnp.stack([keys[i] for i in filled]), stack_runs([hypers[i] for i in filled]))
        )

        def epoch(state: TrainState, done: int) -> Iterator[tuple[TrainState, int]]:
            del done  # a sweep is saved between epochs only
            yield program(state, index, *dealt), task.steps_per_epoch

        return epoch

    stacked = jax.device_get(stack_runs([states[i] for i in filled]))
    final = _train(task, devices, stacked, run, start, deal, gather, runs)
    return [jax.tree.map(lambda x, i=i: x[i], final) for i in range(runs)]


def _train(
    task: Task,
    devices: Devices,
    state: TrainState,
    run: StageRun,
    start: Callable[[], Epoch],
    place: Callable[[TrainState], TrainState],
    fetch: Callable[[Any], Any],
    runs: int = 1,
) -> TrainState:
    """Trains one run or several to their end; state on the host in and out.

    ``start`` compiles and loads what an epoch needs, ``place`` puts a state on the devices,
    ``fetch`` brings it back; of several runs, every leaf has a leading axis.
    """
    final = task.stage.total_epochs * task.steps_per_epoch
    if run.checkpoints is not None and run.checkpoints.latest() is not None:
        state = run.checkpoints.restore(state)
    step = int(np.max(state.step))
    if run.metrics is not None and devices.is_main:
        truncate_metrics(run.metrics, run.name, step)
    if step >= final:
        return state
    train_epoch, state = start(), place(state)
    title = run.name if runs == 1 else f"{run.name} x {runs}"
    meter = Meter(title, task.stage.total_epochs, step // task.steps_per_epoch, run.console)
    saved = time.monotonic()
    with meter.running(), _asked_to_stop(run) as asked:
        while step < final:
            epoch, done = divmod(step, task.steps_per_epoch)
            started = time.monotonic()
            # Nothing but crops that the host gathers, and checkpoints, may cross while steps run.
            with jax.transfer_guard("disallow"):
                for after, steps in train_epoch(state, done):
                    state, step = after, step + steps
                    if step % task.steps_per_epoch:
                        due, stop = _due(run, devices, saved, asked(), step)
                        if due:
                            _save(run, fetch(state), step, epoch)
                            saved = time.monotonic()
                        if stop:
                            _stop(run, step)
            losses = np.atleast_1d(fetch(state.loss_sum))[:runs] / task.steps_per_epoch
            seconds = time.monotonic() - started
            if not np.isfinite(losses).all():
                raise _diverged(run, epoch, losses)
            figures = _figures(task, run, epoch, step, done, losses, seconds)
            # The line first: a resumed run drops lines beyond its checkpoint, and misses none.
            if run.metrics is not None and devices.is_main:
                append(run.metrics, json.dumps(figures) + "\n")
            due, stop = _due(run, devices, saved, asked())
            if due or (run.checkpoints is not None and step == final):
                _save(run, fetch(state), step, epoch)
                saved = time.monotonic()
            if stop:
                _stop(run, step)
            meter.epoch(
                epoch + 1,
                f"loss {figures['loss']:.4f}  rate {figures['learning_rate']:g}  "
                f"{figures['clips_per_second']:.0f} clips/s",
            )
    if losses.min() < 1e-4:
        warnings.warn(
            f"{run.name}: the loss reached {losses.min():.1e}: the {task.num_classes} attribute "
            "classes are told apart perfectly and nothing is left to learn from. With few classes, "
            "add other machine types' normal clips, or trust the validation of your own faults",
            CollapseWarning,
            stacklevel=3,
        )
    if run.checkpoints is not None:
        run.checkpoints.wait()
    return fetch(state)


def _figures(
    task: Task,
    run: StageRun,
    epoch: int,
    step: int,
    done: int,
    losses: np.ndarray,
    seconds: float,
) -> dict[str, Any]:
    """A line of metrics: of an epoch, or of the part of it that this process trained."""
    clips = len(losses) * (task.steps_per_epoch - done) * task.stage.batch
    several = {"losses": [float(loss) for loss in losses]} if len(losses) > 1 else {}
    return {
        "stage": run.name,
        "epoch": epoch + 1,
        "step": step,
        "loss": float(losses.mean()),
        **several,
        "learning_rate": float(task.stage.learning_rate(epoch)),
        "seconds": round(seconds, 4),
        "clips_per_second": round(clips / seconds, 1),
    }


def _asked_to_stop(run: StageRun) -> contextlib.AbstractContextManager[Callable[[], bool]]:
    """Signals wait for the end of a step where it can be saved."""
    return contextlib.nullcontext(lambda: False) if run.checkpoints is None else signals.deferred()


def _due(
    run: StageRun, devices: Devices, saved: float, asked: bool, step: int | None = None
) -> tuple[bool, bool]:
    """Whether it is time for a checkpoint, and whether it is the last one before a stop.

    All processes must save together, and their clocks differ, and one alone may get a signal. To
    agree holds the devices up, so that inside an epoch, where ``step`` is given, they do so now and
    then only.
    """
    if run.checkpoints is None:
        return False, False
    always = run.save_seconds <= 0
    if step is not None and devices.has_peers and step % _ASK_EVERY and not always:
        return False, False
    due, stop = devices.agree(time.monotonic() - saved > run.save_seconds, asked)
    return due or stop or always, stop


def _save(run: StageRun, state: TrainState, step: int, epoch: int) -> None:
    """Saves a state that is on the host."""
    assert run.checkpoints is not None
    # The loss is one step behind: an update can break a state whose loss was still sound.
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state)):
        raise _diverged(run, epoch, np.array([math.nan]))
    run.checkpoints.save(step, state, {"stage": run.name, "step": step, **run.metadata})


def _stop(run: StageRun, step: int) -> None:
    """Ends training once what was saved is on disk."""
    assert run.checkpoints is not None
    run.checkpoints.wait()
    signals.stop(f"step {step} of {run.name} is saved")


def _diverged(run: StageRun, epoch: int, losses: np.ndarray) -> DivergedError:
    broken = np.flatnonzero(~np.isfinite(losses)).tolist()
    which = f"of runs {broken} of {len(losses)} " if len(losses) > 1 else ""
    kept = run.checkpoints.latest() if run.checkpoints is not None else None
    where = (
        f"the checkpoint of step {kept} in {run.checkpoints.folder} is good"
        if kept is not None and run.checkpoints is not None
        else "no checkpoint had been written yet"
    )
    return DivergedError(
        f"{run.name}: the loss {which}became {losses[broken[0]]} in epoch {epoch + 1}; {where}. "
        "Lower the learning rate or raise the temperature, and start again from there"
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
        self._first, self._warm = first, 0.0  # when the first epoch, which compiles, was done
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
            # A log is read later: ten lines a stage, one every half minute of silence, and once the
            # time that is left, which a bar shows all along.
            now, since = time.monotonic(), done - self._first
            if since == 1:
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

    @contextlib.contextmanager
    def running(self) -> Iterator["Meter"]:
        """Shows the bar while inside."""
        if self._bar is None:
            yield self
        else:
            with self._bar:
                yield self
