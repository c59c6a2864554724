"""Compiled epochs: one call where loops on the device are fast, one call a step where not.

``scan``: the whole epoch (plan, prototype pass, all steps) is one program, right for accelerators.
``dispatch``: the host calls one compiled step after another, right for a CPU, where a convolution
inside a loop loses its threads, and for crops that the host gathers.
"""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import jax
import numpy as np
from jax import lax

from asdproto.training.devices import Devices
from asdproto.training.stage import Hyper
from asdproto.training.state import ClipIndex, TrainState
from asdproto.training.step import (
    ClassSums,
    EpochPlan,
    add_chunk,
    cast_kernels,
    empty_sums,
    finish_prototypes,
    plan_epoch,
    take_batch,
    train_step,
)
from asdproto.training.task import Task

Loop = Literal["scan", "dispatch"]


def default_loop(backend: str | None = None) -> Loop:
    """``"dispatch"`` on CPU, ``"scan"`` elsewhere: measured by experiments/benchmarks/train.py."""
    return "dispatch" if (backend or jax.default_backend()) == "cpu" else "scan"


def run_epoch(
    task: Task,
    state: TrainState,
    index: ClipIndex,
    key: jax.Array,
    hyper: Hyper,
    *,
    axis_name: str | None = None,
    unroll: int = 1,
) -> TrainState:
    """A whole epoch as one pure function; ``state.step`` must stand at its start.

    Args:
      task: Static description.
      state: State before the epoch.
      index: The training clips, with resident features.
      key: Random key of the stage.
      hyper: Traced hyper-parameters.
      axis_name: Mapped axis over which batches are spread, or ``None``.
      unroll: Steps per turn of the loop.

    Returns:
      State after the epoch; ``loss_sum`` in it is the sum of its steps' losses.
    """
    plan = plan_epoch(task, state.step, index, key, hyper)
    if task.prototypes_per_class:
        state = scan_pass(task, state, index, plan, axis_name)
    return scan_steps(task, state, index, plan, hyper, axis_name, unroll=unroll)


def scan_pass(
    task: Task, state: TrainState, index: ClipIndex, plan: EpochPlan, axis_name: str | None = None
) -> TrainState:
    """State with renewed prototypes: the prototype pass as one loop on the device."""

    def add(_: Any, sums: ClassSums) -> ClassSums:
        batch = take_batch(task, index, plan.chunks, sums.chunk, axis_name)
        return add_chunk(task, state, batch, plan.membership, sums)

    sums = lax.fori_loop(0, task.chunks, add, empty_sums(task))
    return finish_prototypes(state, sums, axis_name)


def scan_steps(
    task: Task,
    state: TrainState,
    index: ClipIndex,
    plan: EpochPlan,
    hyper: Hyper,
    axis_name: str | None = None,
    *,
    unroll: int = 1,
) -> TrainState:
    """The steps of an epoch as one loop on the device; results as of :func:`run_epoch`."""

    def body(_: Any, carried: Any) -> Any:
        state, kernels = carried
        turn = state.step % task.steps_per_epoch
        batch = take_batch(task, index, plan.steps, turn, axis_name)
        state, _ = train_step(task, state, batch, plan.key, hyper, axis_name, kernels)
        return state, cast_kernels(task, state.params)

    carried = state, cast_kernels(task, state.params)
    return lax.fori_loop(0, task.steps_per_epoch, body, carried, unroll=unroll)[0]


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
      unroll: Steps per turn of a scanned loop.

    Attributes:
      epoch: ``(state, index, key, hyper) -> state`` after it; donates state.
      plan: ``(step, index, key, hyper) -> EpochPlan``, the same on all devices.
      empty_sums: ``(step) -> ClassSums`` per device.
      chunk: ``(state, index, plan, sums, crops) -> sums``; donates sums. ``crops`` are the host's,
        or ``None``.
      finish: ``(state, sums) -> state`` with the epoch's prototypes; donates state.
      step: ``(state, index, plan, hyper, crops) -> state``; donates state.
      traces: How often each program was traced, which is how often it was compiled.
    """

    def __init__(
        self,
        task: Task,
        devices: Devices,
        runs: int = 1,
        *,
        own_data: bool = False,
        unroll: int = 1,
    ):
        count = devices.count if runs == 1 else 1
        if task.num_devices != count:
            raise ValueError(
                f"the task is laid out for {task.num_devices} devices, but a run uses {count}"
            )
        self.task, self.devices, self.runs = task, devices, runs
        self.traces: collections.Counter = collections.Counter()
        whole = functools.partial(run_epoch, task, unroll=unroll)
        if runs > 1:
            in_axes = (0, 0 if own_data else None, 0, 0)
            vmapped = jax.vmap(self._counted("epoch", whole), in_axes=in_axes)
            self.epoch = devices.compile_runs(vmapped, in_axes=in_axes)
            return

        def plan(step, index, key, hyper, *, axis_name):
            return plan_epoch(task, step, index, key, hyper)

        def empty(step, *, axis_name):
            return empty_sums(task)

        def chunk(state, index, plan, sums, crops, *, axis_name):
            batch = take_batch(task, index, plan.chunks, sums.chunk, axis_name, crops)
            return add_chunk(task, state, batch, plan.membership, sums)

        def finish(state, sums, *, axis_name):
            return finish_prototypes(state, sums, axis_name)

        def step(state, index, plan, hyper, crops, *, axis_name):
            turn = state.step % task.steps_per_epoch
            batch = take_batch(task, index, plan.steps, turn, axis_name, crops)
            return train_step(task, state, batch, plan.key, hyper, axis_name)[0]

        self.epoch = self._compile("epoch", whole, in_axes=(None,) * 4, donate=(0,))
        self.plan = self._compile("plan", plan, in_axes=(None,) * 4)
        self.empty_sums = self._compile("empty_sums", empty, in_axes=(None,), out_axes=0)
        self.chunk = self._compile(
            "chunk", chunk, in_axes=(None, None, None, 0, 0), out_axes=0, donate=(3,)
        )
        self.finish = self._compile("finish", finish, in_axes=(None, 0), donate=(0,))
        self.step = self._compile("step", step, in_axes=(None,) * 4 + (0,), donate=(0,))

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.traces[name] += 1
            return function(*args, **kwargs)

        return counted

    def _compile(self, name: str, function: Callable[..., Any], **layout: Any) -> Callable:
        return self.devices.compile(self._counted(name, function), **layout)

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
        """Runs the rest of the epoch that ``state`` stands in.

        Args:
          state: State at any step, on the devices; donated.
          index: The training clips, on the devices.
          key: Random key of the stage, on the devices.
          hyper: Traced hyper-parameters, on the devices.
          loop: ``"scan"`` calls the whole epoch at once, ``"dispatch"`` one step after the other.
            An epoch that is partly done, and crops of the host, are always dispatched.
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
            for gathered in crops(plan.chunks, task.chunks, 0):
                sums = self.chunk(state, index, plan, sums, gathered)
            state = self.finish(state, sums)
        for gathered in crops(plan.steps, task.steps_per_epoch, done):
            state = self.step(state, index, plan, hyper, gathered)
            yield state, 1
