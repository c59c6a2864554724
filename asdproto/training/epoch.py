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
    """A stage's compiled programs for given devices.

    Args:
      task: Static description.
      devices: Where the programs run.
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

    def __init__(self, task: Task, devices: Devices, unroll: int = 1):
        if task.num_devices != devices.count:
            raise ValueError(
                f"the task is laid out for {task.num_devices} devices, but {devices.count} are used"
            )
        self.task, self.devices = task, devices
        self.traces: collections.Counter = collections.Counter()

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

        whole = functools.partial(run_epoch, task, unroll=unroll)
        self.epoch = self._compile("epoch", whole, in_axes=(None,) * 4, donate=(0,))
        self.plan = self._compile("plan", plan, in_axes=(None,) * 4)
        self.empty_sums = self._compile("empty_sums", empty, in_axes=(None,), out_axes=0)
        self.chunk = self._compile(
            "chunk", chunk, in_axes=(None, None, None, 0, 0), out_axes=0, donate=(3,)
        )
        self.finish = self._compile("finish", finish, in_axes=(None, 0), donate=(0,))
        self.step = self._compile("step", step, in_axes=(None,) * 4 + (0,), donate=(0,))

    def _compile(self, name: str, function: Callable[..., Any], **layout: Any) -> Callable:
        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.traces[name] += 1
            return function(*args, **kwargs)

        return self.devices.compile(counted, **layout)

    def dispatch(
        self,
        state: TrainState,
        index: ClipIndex,
        key: jax.Array,
        hyper: Hyper,
        *,
        done: int = 0,
        gather: Callable[..., Iterable[Any]] | None = None,
    ) -> Iterator[TrainState]:
        """Runs the rest of the epoch that ``state`` stands in, one call a step.

        Args:
          state: State at any step, on the devices; donated.
          index: The training clips, on the devices.
          key: Random key of the stage, on the devices.
          hyper: Traced hyper-parameters, on the devices.
          done: Steps of the epoch already done.
          gather: ``(devices, batches, first)`` -> crops of the batches from the first on, as
            :func:`asdproto.training.host.gather_crops` makes them; ``None`` takes them from the
            resident features, and nothing crosses between host and device.

        Yields:
          The state after each step; the last one ends the epoch.
        """
        plan = self.plan(state.step, index, key, hyper)

        def crops(batches: Any, turns: int, first: int) -> Iterable[Any]:
            return gather(self.devices, batches, first) if gather else [None] * (turns - first)

        if self.task.prototypes_per_class and done == 0:
            sums = self.empty_sums(state.step)
            for gathered in crops(plan.chunks, self.task.chunks, 0):
                sums = self.chunk(state, index, plan, sums, gathered)
            state = self.finish(state, sums)
        for gathered in crops(plan.steps, self.task.steps_per_epoch, done):
            state = self.step(state, index, plan, hyper, gathered)
            yield state


def compile_sweep(task: Task, devices: Devices, unroll: int = 1) -> Any:
    """Compiled epoch of several runs.

    Args:
      task: Static description of one run; laid out for one device.
      devices: Where the runs go.
      unroll: Steps per turn of the loop.

    Returns:
      ``(states, index, keys, hypers) -> states``. On one device, states, keys and hypers have a
      leading axis of runs; on several, two: devices and runs on each.
    """
    if task.num_devices != 1:
        raise ValueError(
            f"a sweep's runs take one device each, found num_devices={task.num_devices}"
        )
    in_axes = (0, None, 0, 0)
    epoch = jax.vmap(functools.partial(run_epoch, task, unroll=unroll), in_axes=in_axes)
    return devices.compile_runs(epoch, in_axes=in_axes)
