"""The loop of both stages: epochs, checkpoints, metrics, progress; resumable at any step."""

import contextlib
import dataclasses
import json
import math
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from asdproto.data.dataset import TrainingData
from asdproto.training.checkpoint import Checkpoints
from asdproto.training.devices import Devices, stack_runs
from asdproto.training.epoch import Loop, Programs, default_loop, run_epoch
from asdproto.training.host import fits_on, host_epoch
from asdproto.training.stage import Hyper
from asdproto.training.state import Task, TrainState, make_table

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
      about: json-serializable description saved with each checkpoint.
      metrics: jsonl file to append one line an epoch to; ``None`` for none.
      save_seconds: Time between checkpoints; 0 saves after every epoch.
      console: Where progress goes; ``None`` for silence.
      loop: ``"scan"`` or ``"dispatch"``; what suits the backend when ``None``.
      unroll: Steps per turn of a scanned loop.
    """

    name: str
    checkpoints: Checkpoints | None = None
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    metrics: Path | None = None
    save_seconds: float = 60.0
    console: Console | None = None
    loop: Loop | None = None
    unroll: int = 1


def train_stage(
    task: Task,
    data: TrainingData,
    devices: Devices,
    state: TrainState,
    key: jax.Array,
    run: StageRun,
) -> TrainState:
    """Trains a stage to its end, from its latest checkpoint where there is one.

    Args:
      task: Static description.
      data: The training clips.
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
    final = task.stage.total_epochs * task.steps
    state = devices.to_host(state)
    if run.checkpoints is not None and run.checkpoints.latest() is not None:
        state = run.checkpoints.restore(state)
    step = int(state.step)
    if run.metrics is not None and devices.is_main:
        forget_after(run.metrics, run.name, step)
    if step >= final:
        return state

    resident = data.resident
    if resident is None:
        resident = fits_on(devices, data.clips.nbytes)
    table, largest = make_table(
        data.labels, data.clips.usable_frames, data.mean, data.deviation, data.num_classes
    )
    if largest != task.largest_class:
        raise ValueError(f"largest_class={task.largest_class}, but the labels give {largest}")
    loop = run.loop or (default_loop() if resident else "dispatch")
    made: dict[Loop, Programs] = {}
    table, hyper, key, state = devices.replicate((table, task.stage.hyper(), key, state))
    features = devices.replicate(data.clips.load()) if resident else None

    meter = Meter(run.name, task.stage.total_epochs, step // task.steps, run.console)
    saved = time.monotonic()
    with meter.running():
        while step < final:
            epoch, done = divmod(step, task.steps)
            # An epoch that another loop left in the middle is finished step by step.
            kind: Loop = "dispatch" if done else loop
            programs = made.setdefault(kind, Programs(task, devices, kind, run.unroll))
            started = time.monotonic()
            if features is not None:
                states = programs.resident_epoch(state, features, table, key, hyper, done)
            else:
                states = host_epoch(programs, data.clips, state, table, key, hyper, done)
            for state in states:
                step += task.steps if programs.loop == "scan" else 1
                if step % task.steps and _is_due(run, devices, saved, step):
                    _save(run, devices, state, step, epoch)
                    saved = time.monotonic()
            loss = float(devices.to_host(state.loss_sum)) / task.steps
            seconds = time.monotonic() - started
            if not math.isfinite(loss):
                raise _diverged(run, epoch, loss)
            figures = _figures(task, run, epoch, step, done, loss, seconds)
            # The line first: a resumed run drops lines beyond its checkpoint, and misses none.
            if run.metrics is not None and devices.is_main:
                with open(run.metrics, "a") as file:
                    file.write(json.dumps(figures) + "\n")
            if (run.checkpoints is not None and step == final) or _is_due(run, devices, saved):
                _save(run, devices, state, step, epoch)
                saved = time.monotonic()
            meter.epoch(
                epoch + 1,
                f"loss {loss:.4f}  rate {figures['learning_rate']:g}  "
                f"{figures['clips_per_second']:.0f} clips/s",
            )
    if loss < 1e-4:
        warnings.warn(
            f"{run.name}: the loss reached {loss:.1e}: the {task.num_classes} attribute classes "
            "are told apart perfectly and nothing is left to learn from. With few classes, add "
            "other machine types' normal clips, or trust the validation of your own faults",
            CollapseWarning,
            stacklevel=2,
        )
    if run.checkpoints is not None:
        run.checkpoints.wait()
    return devices.to_host(state)


def _figures(
    task: Task, run: StageRun, epoch: int, step: int, done: int, loss: float, seconds: float
) -> dict[str, Any]:
    return {
        "stage": run.name,
        "epoch": epoch + 1,
        "step": step,
        "loss": loss,
        "learning_rate": float(task.stage.learning_rate(jnp.int32(epoch))),
        "seconds": round(seconds, 4),
        "clips_per_second": round((task.steps - done) * task.stage.batch / seconds, 1),
    }


def _is_due(run: StageRun, devices: Devices, saved: float, step: int | None = None) -> bool:
    """Whether it is time for a checkpoint; ``step`` is given in the middle of an epoch.

    All processes must save together, and their clocks differ: process 0's decides. Asking it holds
    the devices up, so that inside an epoch it is asked now and then only.
    """
    if run.checkpoints is None:
        return False
    if run.save_seconds <= 0:
        return True
    if step is not None and devices.has_peers and step % _ASK_EVERY:
        return False
    return devices.agree(time.monotonic() - saved > run.save_seconds)


def _save(run: StageRun, devices: Devices, state: TrainState, step: int, epoch: int) -> None:
    assert run.checkpoints is not None
    on_host = devices.to_host(state)
    # The loss is one step behind: an update can break a state whose loss was still sound.
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(on_host)):
        raise _diverged(run, epoch, float("nan"))
    run.checkpoints.save(step, on_host, {"stage": run.name, "step": step, **run.about})


def _diverged(run: StageRun, epoch: int, loss: float) -> DivergedError:
    kept = run.checkpoints.latest() if run.checkpoints is not None else None
    where = (
        f"the checkpoint of step {kept} in {run.checkpoints.folder} is good"
        if kept is not None and run.checkpoints is not None
        else "no checkpoint had been written yet"
    )
    return DivergedError(
        f"{run.name}: the loss became {loss} in epoch {epoch + 1}; {where}. Lower the learning "
        "rate or raise the temperature, and start again from there"
    )


def forget_after(path: Path, stage: str, step: int) -> None:
    """Drops the stage's lines beyond a step, which a resumed run writes again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut short by a kill
        if entry.get("stage") != stage or entry.get("step", 0) <= step:
            kept.append(line)
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(line + "\n" for line in kept))
    os.replace(partial, path)


def compile_sweep(task: Task, devices: Devices, unroll: int = 1) -> Any:
    """Compiled epoch of several runs.

    Args:
      task: Static description of one run; laid out for one device.
      devices: Where the runs go.
      unroll: Steps per turn of the loop.

    Returns:
      ``(states, features, table, keys, hypers) -> (states, losses)``. On one device, states, keys,
      hypers and losses have a leading axis of runs; on several, two: devices and runs on each.
    """
    if task.num_devices != 1:
        raise ValueError(
            f"a sweep's runs take one device each, found num_devices={task.num_devices}"
        )

    def one(state, features, table, key, hyper):
        return run_epoch(task, state, features, table, key, hyper, unroll=unroll)

    in_axes = (0, None, None, 0, 0)
    return devices.compile_runs(jax.vmap(one, in_axes=in_axes), in_axes=in_axes)


def train_sweep(
    task: Task,
    data: TrainingData,
    devices: Devices,
    states: list[TrainState],
    keys: list[jax.Array],
    hypers: list[Hyper],
    run: StageRun,
) -> list[TrainState]:
    """Trains several runs of a stage to their end.

    Args:
      task: Static description of one run.
      data: The training clips, shared; resident on every device.
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
    stacked = stack_runs([states[i] for i in filled])
    if run.checkpoints is not None and run.checkpoints.latest() is not None:
        stacked = run.checkpoints.restore(stacked)
    all_keys = jnp.stack([keys[i] for i in filled])
    all_hypers = stack_runs([hypers[i] for i in filled])
    step = int(np.asarray(stacked.step)[0])
    final = task.stage.total_epochs * task.steps
    if run.metrics is not None:
        forget_after(run.metrics, run.name, step)

    def deal(tree: Any) -> Any:
        if devices.count == 1:
            return jax.device_put(tree, devices.local[0])
        shape = (devices.count, share)
        return devices.shard(jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), tree))

    def gather(tree: Any) -> Any:
        skip = 1 if devices.count == 1 else 2
        return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *np.shape(x)[skip:]), tree)

    table, _ = make_table(
        data.labels, data.clips.usable_frames, data.mean, data.deviation, data.num_classes
    )
    program = compile_sweep(task, devices, run.unroll)
    table, features = devices.replicate((table, data.clips.load()))
    sharded = deal(stacked)
    dealt_keys, dealt_hypers = deal(all_keys), deal(all_hypers)
    meter = Meter(f"{run.name} x {runs}", task.stage.total_epochs, step // task.steps, run.console)
    saved = time.monotonic()
    with meter.running():
        while step < final:
            started = time.monotonic()
            sharded, losses = program(sharded, features, table, dealt_keys, dealt_hypers)
            mean_losses = gather(losses).mean(axis=1)[:runs]
            step += task.steps
            seconds = time.monotonic() - started
            broken = [i for i, loss in enumerate(mean_losses) if not math.isfinite(loss)]
            if broken:
                raise DivergedError(
                    f"{run.name}: the loss of runs {broken} of {runs} became nan or infinite in "
                    f"epoch {step // task.steps}. Leave them out, or lower their learning rate"
                )
            if run.metrics is not None:
                line = {
                    "stage": run.name,
                    "epoch": step // task.steps,
                    "step": step,
                    "loss": float(mean_losses.mean()),
                    "losses": [float(loss) for loss in mean_losses],
                    "seconds": round(seconds, 4),
                    "clips_per_second": round(runs * task.steps * task.stage.batch / seconds, 1),
                }
                with open(run.metrics, "a") as file:
                    file.write(json.dumps(line) + "\n")
            if run.checkpoints is not None and (
                step == final or time.monotonic() - saved > run.save_seconds
            ):
                about = {"stage": run.name, "step": step, **run.about}
                run.checkpoints.save(step, gather(sharded), about)
                saved = time.monotonic()
            meter.epoch(step // task.steps, f"loss {mean_losses.mean():.4f}")
    if run.checkpoints is not None:
        run.checkpoints.wait()
    whole = gather(sharded)
    return [jax.tree.map(lambda x, i=i: x[i], whole) for i in range(runs)]


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
