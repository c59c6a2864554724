"""The loop of both stages: epochs, checkpoints, metrics, progress; resumable at any step."""

import dataclasses
import json
import math
import os
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from asdproto.training.checkpoint import Checkpoints
from asdproto.training.epoch import Loop, Programs, default_loop
from asdproto.training.parallel import Devices
from asdproto.training.progress import Meter
from asdproto.training.source import ClipArrays, fits_on, host_epoch
from asdproto.training.state import Task, TrainState, make_table

_ASK_EVERY = 50  # steps


class DivergedError(RuntimeError):
    """The loss is no longer a number."""


class CollapseWarning(UserWarning):
    """The loss reached zero: there is nothing left to learn from."""


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The training clips of a run.

    Attributes:
      clips: Their features on the host.
      labels: int32, shape ``[clips]``, attribute classes.
      num_classes: Attribute classes.
      mean: float64, shape ``[mels]``.
      deviation: float64, shape ``[mels]``.
      resident: Whether features live on the devices; decided by their memory when ``None``.
    """

    clips: ClipArrays
    labels: np.ndarray
    num_classes: int
    mean: np.ndarray
    deviation: np.ndarray
    resident: bool | None = None


@dataclasses.dataclass
class StageRun:
    """How a stage runs, apart from what it computes.

    Attributes:
      name: ``"pretrain"``, ``"finetune"`` or any other name for files and logs.
      checkpoints: Where states are kept; ``None`` keeps none.
      about: json-serialisable description saved with each checkpoint.
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
