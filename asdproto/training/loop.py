"""The loop of everything that trains: epochs, checkpoints, metrics, progress, stopping.

One run is a sweep of one: states have a leading axis of runs on the host and in checkpoints, and on
the devices where there are several. A run alone is resumed bit for bit at any step, on any number
of devices; several side by side at any epoch.
"""

import contextlib
import dataclasses
import functools
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from asdproto import signals
from asdproto.data.dataset import Dataset
from asdproto.files import append
from asdproto.training.checkpoint import Checkpoints
from asdproto.training.devices import Devices, Loop, RunOptions, default_loop
from asdproto.training.host import fits_on, gather_crops
from asdproto.training.progress import Meter, StepTrace, truncate_metrics
from asdproto.training.stage import Hyper
from asdproto.training.state import ClipIndex, TrainState, clip_index
from asdproto.training.step import (
    add_chunk,
    empty_sums,
    finish_prototypes,
    plan_epoch,
    run_epoch,
    take_batch,
    train_step,
)
from asdproto.training.task import Task

_ASK_EVERY = 50  # steps


class DivergedError(RuntimeError):
    """The loss is no longer a number."""


class CollapseWarning(UserWarning):
    """The loss reached zero: there is nothing left to learn from."""


def train(
    task: Task,
    data: Dataset | Sequence[Dataset],
    options: RunOptions,
    states: Sequence[TrainState],
    keys: Sequence[jax.Array],
    hypers: Sequence[Hyper],
    *,
    name: str,
    settings: Mapping[str, Any] | None = None,
) -> list[TrainState]:
    """Trains one run or several to their end, from their latest checkpoint where there is one.

    Args:
      task: Static description of a run. One run shares its batches among the devices; several are
        dealt out to them, each to one, and trained as one program.
      data: The data set of all runs; or one for each, of the same numbers and shape.
      options: How it goes; several runs take one process.
      states: State to start each run from; ignored when a checkpoint exists.
      keys: Random key of each run.
      hypers: Hyper-parameters of each run.
      name: ``"pretrain"``, ``"finetune"`` or any other: of checkpoints, each of which holds all
        runs, and in metrics and logs.
      settings: What led here besides the task, such as seeds and the stage before, fit for json; a
        checkpoint of other settings is refused.

    Returns:
      The final states, as NumPy arrays, in order.

    Raises:
      DivergedError: The loss of a run became nan or infinite; earlier checkpoints stay.
      CheckpointError: A checkpoint was written with other settings, seeds or data.
      ValueError: The lists differ in length, there are several runs and processes, or the task is
        another data set's.
    """
    runs, devices = len(states), options.devices
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
    # Plain numbers: pmap over processes takes a typed key through the host at each call.
    numbers = [jax.random.key_data(key) for key in keys]
    inputs = stack_runs(jax.device_get(list(zip(numbers, hypers, strict=True))))
    identity = {**(settings or {}), **task.identity(datasets, *inputs)}
    state = stack_runs(devices.to_host(list(states)))
    with contextlib.ExitStack() as stack:
        checkpoints, metrics, asked_to_stop = None, None, lambda: False
        if options.workdir is not None:
            # Signals wait for the end of a step where it can be saved, and for saves under way.
            asked_to_stop = stack.enter_context(signals.deferred())
            checkpoints = Checkpoints(options.workdir / "checkpoints" / name)
            stack.enter_context(contextlib.closing(checkpoints))
            if checkpoints.latest() is not None:
                state = checkpoints.restore(state, identity=identity)
            if devices.is_main:
                metrics = options.workdir / "metrics.jsonl"
                truncate_metrics(metrics, name, int(np.max(state.step)))
        if np.max(state.step) < task.stage.total_epochs * task.steps_per_epoch:
            programs = Programs(task, devices, runs, own_data=len(datasets) > 1)
            keeper = _Keeper(name, options, programs, checkpoints, identity, asked_to_stop)
            state = _train(task, datasets, options, state, inputs, keeper, metrics)
    return [jax.tree.map(lambda x, i=i: x[i], state) for i in range(runs)]


def stack_runs(trees: Sequence[Any]) -> Any:
    """NumPy trees of equal shapes, side by side along a new leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


class Programs:
    """A task's compiled programs, for one run or for several side by side.

    One run shares its batches among all devices. Several runs have an axis on every leaf of their
    state and are dealt out to the devices, equal shares to each, the last run repeated to fill
    them; they know whole epochs only.

    Args:
      task: Static description; of several runs, laid out for one device.
      devices: Where the programs run.
      runs: How many runs.
      own_data: Whether each of several runs has training clips of its own.

    Attributes:
      epoch: ``(state, index, key, hyper) -> state`` after it; donates state.
      plan: ``(step, index, key, hyper) -> EpochPlan``, the same on all devices.
      empty_sums: ``(step) -> ClassSums`` per device.
      chunk: ``(state, index, plan, sums, crops) -> sums``; donates sums. ``crops`` are the host's,
        or ``None``.
      finish: ``(state, sums) -> state`` with the epoch's prototypes; donates state.
      step: ``(state, index, plan, hyper, crops) -> state``; donates state.
    """

    def __init__(self, task: Task, devices: Devices, runs: int = 1, *, own_data: bool = False):
        count = devices.count if runs == 1 else 1
        if task.num_devices != count:
            raise ValueError(
                f"the task is laid out for {task.num_devices} devices, but a run uses {count}"
            )
        self.task, self.devices, self.runs = task, devices, runs
        whole = functools.partial(run_epoch, task)
        if runs > 1:
            in_axes = (0, 0 if own_data else None, 0, 0)
            self.epoch = devices.compile_runs(jax.vmap(whole, in_axes=in_axes), in_axes=in_axes)
            return

        def plan(step, index, key, hyper, *, axis_name):
            return plan_epoch(task, step, index, key, hyper)

        def empty(step, *, axis_name):
            return empty_sums(task)

        def chunk(state, index, plan, sums, crops, *, axis_name):
            batch = take_batch(task, index, plan.chunks, sums.chunk, axis_name, crops)
            return add_chunk(task, state, batch, plan.membership, sums)

        def step(state, index, plan, hyper, crops, *, axis_name):
            turn = state.step % task.steps_per_epoch
            batch = take_batch(task, index, plan.steps, turn, axis_name, crops)
            return train_step(task, state, batch, plan.key, hyper, axis_name)[0]

        same, own = None, 0  # on all devices; one part each
        self.epoch = devices.compile(whole, in_axes=(same,) * 4, donate=(0,))
        self.plan = devices.compile(plan, in_axes=(same,) * 4)
        self.empty_sums = devices.compile(empty, in_axes=(same,), out_axes=own)
        self.chunk = devices.compile(
            chunk, in_axes=(same, same, same, own, own), out_axes=own, donate=(3,)
        )
        self.finish = devices.compile(finish_prototypes, in_axes=(same, own), donate=(0,))
        self.step = devices.compile(step, in_axes=(same, same, same, same, own), donate=(0,))

    def put(self, tree: Any) -> Any:
        """NumPy arrays with a leading axis of runs, on the devices."""
        if self.runs == 1:
            return self.devices.replicate(jax.tree.map(lambda x: x[0], tree))
        count = self.devices.count
        share = -(-self.runs // count)
        shape = (share,) if count == 1 else (count, share)
        filled = np.minimum(np.arange(count * share), self.runs - 1).reshape(shape)
        return self.devices.shard(jax.tree.map(lambda x: x[filled], tree))

    def get(self, tree: Any) -> Any:
        """NumPy arrays with a leading axis of runs, from the devices."""
        if self.runs == 1:
            return jax.tree.map(lambda x: x[None], self.devices.to_host(tree))
        axes = 1 if self.devices.count == 1 else 2
        return jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[axes:])[: self.runs], jax.device_get(tree)
        )

    def train_epoch(
        self,
        state: TrainState,
        index: ClipIndex,
        key: jax.Array,
        hyper: Hyper,
        *,
        loop: Loop,
        done: int = 0,
        gather: Callable[..., Iterable[Any]] | None = None,
    ) -> Iterator[tuple[TrainState, int]]:
        """Runs the rest of the epoch that ``state`` stands in; all arguments are on the devices.

        Args:
          state: State at any step; donated.
          index: The training clips.
          key: Random key of the stage.
          hyper: Traced hyper-parameters.
          loop: An epoch that is partly done, and crops of the host, are dispatched in any case.
          done: Steps of the epoch already done.
          gather: ``(devices, batches, first)`` -> crops of the batches from the first on, as
            :func:`asdproto.training.host.gather_crops` makes them; ``None`` takes them from the
            resident features, and nothing crosses between host and device.

        Yields:
          The state, and the steps that it took; the last one ends the epoch.
        """
        task = self.task
        if self.runs > 1 or (loop == "scan" and not done and gather is None):
            yield self.epoch(state, index, key, hyper), task.steps_per_epoch
            return
        plan = self.plan(state.step, index, key, hyper)

        def crops(batches: Any, turns: int, first: int) -> Iterable[Any]:
            return gather(self.devices, batches, first) if gather else [None] * (turns - first)

        if task.prototypes_per_class and done == 0:
            sums = self.empty_sums(state.step)
            for gathered in crops(plan.chunks, task.pass_shape[0], 0):
                sums = self.chunk(state, index, plan, sums, gathered)
            state = self.finish(state, sums)
        for gathered in crops(plan.steps, task.steps_per_epoch, done):
            state = self.step(state, index, plan, hyper, gathered)
            yield state, 1


def _train(
    task: Task,
    datasets: Sequence[Dataset],
    options: RunOptions,
    state: TrainState,
    inputs: tuple[np.ndarray, Hyper],
    keeper: "_Keeper",
    metrics: Path | None,
) -> TrainState:
    """The epochs that are left; the state is stacked and on the host, before and after."""
    runs, per_epoch, epochs = len(state.step), task.steps_per_epoch, task.stage.total_epochs
    step, devices, programs = int(np.max(state.step)), options.devices, keeper.programs
    resident = options.resident
    if resident is None:
        resident = runs > 1 or fits_on(devices, datasets[0].train.nbytes)
    gather = None if resident else functools.partial(gather_crops, datasets[0].train)
    loop = options.loop or default_loop()
    indices = [
        clip_index(one, resident=resident, standardization=task.standardization) for one in datasets
    ]
    shared = len(indices) == 1
    index = devices.replicate(indices[0]) if shared else programs.put(stack_runs(indices))
    key, hyper = programs.put(inputs)
    state = programs.put(state)

    title = keeper.name if runs == 1 else f"{keeper.name} x {runs}"
    meter = Meter(title, epochs, step // per_epoch, options.console)
    traced = 0 if metrics is None else options.profile
    trace = StepTrace((metrics or Path()).parent / "profile" / keeper.name, traced)
    with meter.running(), contextlib.closing(trace):
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
            if metrics is not None:
                line = {
                    "stage": keeper.name,
                    "epoch": epoch + 1,
                    "step": step,
                    "loss": float(losses.mean()),
                    **({"losses": losses.tolist()} if runs > 1 else {}),
                    "learning_rate": rate,
                    "seconds": round(seconds, 4),
                    "clips_per_second": round(clips, 1),
                }
                append(metrics, json.dumps(line) + "\n")
            keeper.look(state, step, epoch, last=epoch + 1 == epochs)
            meter.epoch(epoch + 1, f"loss {losses.mean():.4f}  rate {rate:g}  {clips:.0f} clips/s")
    if losses.min() < 1e-4:
        warnings.warn(
            f"{keeper.name}: the loss reached {losses.min():.1e}: the {task.num_classes} attribute "
            "classes are told apart perfectly and nothing is left to learn from. With few classes, "
            "add other machine types' normal clips, or trust the validation of your own faults",
            CollapseWarning,
            stacklevel=4,
        )
    return programs.get(state)


@dataclasses.dataclass
class _Keeper:
    """Says when a state is saved and when training stops; all processes must say the same."""

    name: str
    options: RunOptions
    programs: Programs
    checkpoints: Checkpoints | None
    identity: Mapping[str, Any]
    asked_to_stop: Callable[[], bool]
    saved: float = dataclasses.field(default_factory=time.monotonic)

    def look(
        self, state: TrainState, step: int, epoch: int, *, inside: bool = False, last: bool = False
    ) -> None:
        """Saves where it is time to, and ends training where it was asked to stop.

        Clocks of processes differ, and one alone may get a signal. To agree holds the devices up,
        so that ``inside`` an epoch they do so now and then only.
        """
        seconds, devices = self.options.save_seconds, self.options.devices
        if self.checkpoints is None:
            return
        if inside and devices.has_peers and step % _ASK_EVERY and seconds > 0:
            return
        due = time.monotonic() - self.saved > seconds
        due, stop = devices.agree(due, self.asked_to_stop())
        if due or stop or seconds <= 0 or last:
            arrays = self.programs.get(state)
            # The loss is one step behind: an update can break a state whose loss was still sound.
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(arrays)):
                raise self.diverged(epoch, np.array([math.nan]))
            self.checkpoints.save(step, arrays, identity=self.identity)
            self.saved = time.monotonic()
        if stop:
            self.checkpoints.wait()
            signals.stop(f"step {step} of {self.name} is saved")

    def diverged(self, epoch: int, losses: np.ndarray) -> DivergedError:
        """The error of losses, one a run, that are no numbers."""
        broken = np.flatnonzero(~np.isfinite(losses)).tolist()
        which = f"of runs {broken} of {len(losses)} " if len(losses) > 1 else ""
        where = "no checkpoint had been written yet"
        if self.checkpoints is not None and (step := self.checkpoints.latest()) is not None:
            where = f"the checkpoint of step {step} in {self.checkpoints.folder} is good"
        return DivergedError(
            f"{self.name}: the loss {which}became {losses[broken[0]]} in epoch {epoch + 1}; {where}"
            ". Lower the learning rate or raise the temperature, and start again from there"
        )
