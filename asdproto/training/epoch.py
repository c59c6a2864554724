"""Compiled epochs: one call where loops on the device are fast, one call a step where not.

Three shapes of the same computation. ``scan``: the whole epoch (draw, prototype pass, all steps) is
one program, right for accelerators. ``dispatch``: the host calls one compiled step after another,
right for a CPU, where a convolution inside a loop loses its threads. The host path is a dispatch
loop whose crops come from the host, for data that do not fit on the device.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from asdproto.training import step as steps
from asdproto.training.devices import Devices
from asdproto.training.stage import Hyper
from asdproto.training.state import Packing, Table, Task, TrainState

Loop = Literal["scan", "dispatch"]


def default_loop(backend: str | None = None) -> Loop:
    """``"dispatch"`` on CPU, ``"scan"`` elsewhere: measured by experiments/benchmarks/train.py."""
    return "dispatch" if (backend or jax.default_backend()) == "cpu" else "scan"


def run_epoch(
    task: Task,
    state: TrainState,
    features: jax.Array,
    table: Table,
    key: jax.Array,
    hyper: Hyper,
    *,
    axis_name: str | None = None,
    unroll: int = 1,
) -> tuple[TrainState, jax.Array]:
    """A whole epoch as one pure function; ``state.step`` must stand at its start.

    Args:
      task: Static description.
      state: State before the epoch.
      features: Floating, shape ``[clips, frames, mels]``.
      table: The training clips.
      key: Random key of the stage.
      hyper: Traced hyper-parameters.
      axis_name: Mapped axis over which batches are spread, or ``None``.
      unroll: Steps per turn of the loop.

    Returns:
      State after the epoch, and the loss of every step, float32, shape ``[steps]``.
    """
    draw = steps.draw_epoch(task, state.step, table, key, hyper)
    if task.members:
        sums = steps.empty_sums(task)

        def add(_: Any, sums: steps.Sums) -> steps.Sums:
            return _add_resident_chunk(task, state, features, table, draw, sums, axis_name)

        sums = lax.fori_loop(0, task.chunks, add, sums)
        state = steps.finish_prototypes(task, state, sums, axis_name)

    return scan_steps(task, state, features, table, draw, hyper, axis_name, unroll=unroll)


def scan_steps(
    task: Task,
    state: TrainState,
    features: jax.Array,
    table: Table,
    draw: steps.EpochDraw,
    hyper: Hyper,
    axis_name: str | None = None,
    *,
    unroll: int = 1,
) -> tuple[TrainState, jax.Array]:
    """An epoch's steps as one loop on the device, which carries the parameters packed.

    Args:
      task: Static description.
      state: State before the steps.
      features: Floating, shape ``[clips, frames, mels]``.
      table: The training clips.
      draw: The epoch's choices.
      hyper: Traced hyper-parameters.
      axis_name: Mapped axis over which batches are spread, or ``None``.
      unroll: Steps per turn of the loop.

    Returns:
      State after the steps, and the loss of each, float32, shape ``[steps]``.
    """
    packing = Packing.of(state.params)
    dtype = getattr(task.model, "dtype", jnp.float32)

    def body(carried: tuple[TrainState, Any], _: None) -> tuple[tuple[TrainState, Any], jax.Array]:
        state, weights = carried
        state, loss = _resident_step(
            task, state, features, table, draw, hyper, axis_name, packing, weights
        )
        return (state, packing.weights(state.params, dtype)), loss

    state = packing.pack_state(state)
    start = state, packing.weights(state.params, dtype)
    (state, _), losses = lax.scan(body, start, None, length=task.steps, unroll=unroll)
    return packing.unpack_state(state), losses


def _add_resident_chunk(
    task: Task,
    state: TrainState,
    features: jax.Array,
    table: Table,
    draw: steps.EpochDraw,
    sums: steps.Sums,
    axis_name: str | None,
) -> steps.Sums:
    clips, starts, batch = steps.chunk_rows(task, table, draw, sums.chunk, axis_name)
    crops = steps.take_crops(features, clips, starts, task.crop)
    return steps.add_chunk(task, state, table, batch._replace(crops=crops), sums)


def _resident_step(
    task: Task,
    state: TrainState,
    features: jax.Array,
    table: Table,
    draw: steps.EpochDraw,
    hyper: Hyper,
    axis_name: str | None,
    packing: Packing | None = None,
    weights: Any = None,
) -> tuple[TrainState, jax.Array]:
    batch = steps.take_batch(task, features, table, draw, state.step, axis_name)
    return steps.train_step(task, state, table, batch, draw.key, hyper, axis_name, packing, weights)


@dataclasses.dataclass
class Programs:
    """A stage's compiled programs for given devices.

    Attributes:
      task: Static description.
      devices: Where the programs run.
      loop: ``"scan"`` or ``"dispatch"``.
      traces: How often each program was traced, which is how often it was compiled.
    """

    task: Task
    devices: Devices
    loop: Loop
    unroll: int = 1
    traces: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def __post_init__(self) -> None:
        if self.task.num_devices != self.devices.count:
            raise ValueError(
                f"the task is laid out for {self.task.num_devices} devices, but "
                f"{self.devices.count} are used"
            )

    def _compile(self, name: str, function: Callable[..., Any], **layout: Any) -> Callable:
        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.traces[name] += 1
            return function(*args, **kwargs)

        return self.devices.compile(counted, **layout)

    @functools.cached_property
    def epoch(self) -> Callable:
        """``(state, features, table, key, hyper) -> (state, losses [steps])``; donates state."""

        def epoch(state, features, table, key, hyper, *, axis_name):
            return run_epoch(
                self.task,
                state,
                features,
                table,
                key,
                hyper,
                axis_name=axis_name,
                unroll=self.unroll,
            )

        return self._compile("epoch", epoch, in_axes=(None,) * 5, donate=(0,))

    @functools.cached_property
    def draw(self) -> Callable:
        """``(step, table, key, hyper) -> EpochDraw``, the same on all devices."""

        def draw(step, table, key, hyper, *, axis_name):
            del axis_name
            return steps.draw_epoch(self.task, step, table, key, hyper)

        return self._compile("draw", draw, in_axes=(None,) * 4)

    @functools.cached_property
    def empty_sums(self) -> Callable:
        """``(step) -> Sums`` per device."""

        def empty(step, *, axis_name):
            del step, axis_name
            return steps.empty_sums(self.task)

        return self._compile("empty_sums", empty, in_axes=(None,), out_axes=0)

    @functools.cached_property
    def chunk(self) -> Callable:
        """``(state, features, table, draw, sums) -> sums`` from resident features."""

        def chunk(state, features, table, draw, sums, *, axis_name):
            return _add_resident_chunk(self.task, state, features, table, draw, sums, axis_name)

        return self._compile("chunk", chunk, in_axes=(None,) * 4 + (0,), out_axes=0, donate=(4,))

    @functools.cached_property
    def host_chunk(self) -> Callable:
        """``(state, crops, table, draw, sums) -> sums`` from crops that the host gathered."""

        def chunk(state, crops, table, draw, sums, *, axis_name):
            batch = steps.chunk_rows(self.task, table, draw, sums.chunk, axis_name)[2]
            return steps.add_chunk(self.task, state, table, batch._replace(crops=crops), sums)

        axes = (None, 0, None, None, 0)
        return self._compile("chunk", chunk, in_axes=axes, out_axes=0, donate=(4,))

    @functools.cached_property
    def finish(self) -> Callable:
        """``(state, sums) -> state`` with the epoch's prototypes."""

        def finish(state, sums, *, axis_name):
            return steps.finish_prototypes(self.task, state, sums, axis_name)

        return self._compile("finish", finish, in_axes=(None, 0), donate=(0,))

    @functools.cached_property
    def step(self) -> Callable:
        """``(state, features, table, draw, hyper) -> (state, loss)`` from resident features."""

        def step(state, features, table, draw, hyper, *, axis_name):
            return _resident_step(self.task, state, features, table, draw, hyper, axis_name)

        return self._compile("step", step, in_axes=(None,) * 5, donate=(0,))

    @functools.cached_property
    def host_step(self) -> Callable:
        """``(state, crops, table, draw, hyper) -> (state, loss)`` from the host's crops."""

        def step(state, crops, table, draw, hyper, *, axis_name):
            clips, _ = steps.batch_rows(self.task, draw, state.step, axis_name)
            where = steps.padding(self.task, axis_name)
            batch = steps.Batch(crops, jnp.take(table.labels, clips), where)
            return steps.train_step(self.task, state, table, batch, draw.key, hyper, axis_name)

        return self._compile("step", step, in_axes=(None, 0, None, None, None), donate=(0,))

    def resident_epoch(
        self,
        state: TrainState,
        features: jax.Array,
        table: Table,
        key: jax.Array,
        hyper: Hyper,
        done: int = 0,
    ) -> Iterator[TrainState]:
        """Runs the rest of the epoch that ``state`` stands in, from resident features.

        Nothing crosses between host and device. The state that goes in is donated.

        Args:
          state: State at any step (dispatch) or at the start of an epoch (scan), on the devices.
          features: Floating, shape ``[clips, frames, mels]``, on the devices.
          table: The training clips, on the devices.
          key: Random key of the stage, on the devices.
          hyper: Traced hyper-parameters, on the devices.
          done: Steps of the epoch already done; 0 for ``scan``.

        Yields:
          The state after each call of a step or an epoch; the last one ends the epoch.
        """
        if self.loop == "scan":
            if done:
                raise ValueError(f"a scanned epoch starts at its first step, not at step {done}")
            state, _ = self.epoch(state, features, table, key, hyper)
            yield state
            return
        draw = self.draw(state.step, table, key, hyper)
        if self.task.members and done == 0:
            sums = self.empty_sums(state.step)
            for _ in range(self.task.chunks):
                sums = self.chunk(state, features, table, draw, sums)
            state = self.finish(state, sums)
        for _ in range(done, self.task.steps):
            state, _ = self.step(state, features, table, draw, hyper)
            yield state
