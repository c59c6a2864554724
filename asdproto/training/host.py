"""Where crops come from: features resident on the devices, or the host, prefetched."""

import concurrent.futures
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from asdproto.data.dataset import ClipArrays
from asdproto.training.devices import Devices
from asdproto.training.epoch import Programs
from asdproto.training.stage import Hyper
from asdproto.training.state import Table, TrainState

_AHEAD = 3  # batches prepared while the device works on one


def _ahead(tasks: Iterator[Callable[[], Any]]) -> Iterator[Any]:
    """Results of tasks in order, a few of them computed ahead by a thread."""
    with concurrent.futures.ThreadPoolExecutor(1, "prefetch") as pool:
        waiting: list[concurrent.futures.Future] = []
        try:
            for task in tasks:
                waiting.append(pool.submit(task))
                if len(waiting) > _AHEAD:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def host_epoch(
    programs: Programs,
    data: ClipArrays,
    state: TrainState,
    table: Table,
    key: jax.Array,
    hyper: Hyper,
    done: int = 0,
) -> Iterator[TrainState]:
    """Runs the rest of an epoch with crops gathered by the host.

    The same batches as :meth:`Programs.resident_epoch` from the same key. The epoch's choices are
    drawn on the device and fetched once; a thread gathers crops and sends them a few steps ahead.
    Each process gathers what its own devices need.

    Args:
      programs: The stage's programs.
      data: The training clips on the host.
      state: State at any step of the epoch, on the devices; donated.
      table: The training clips, on the devices.
      key: Random key of the stage, on the devices.
      hyper: Traced hyper-parameters, on the devices.
      done: Steps of the epoch already done.

    Yields:
      The state after each step.
    """
    task, devices = programs.task, programs.devices
    draw = programs.draw(state.step, table, key, hyper)
    on_host = devices.to_host(draw._replace(key=None))

    def send(clips: np.ndarray, starts: np.ndarray) -> jax.Array:
        crops = data.crops(clips, starts)
        if devices.count > 1:
            crops = crops.reshape(len(devices.local), -1, *crops.shape[1:])
        return devices.shard(crops)

    def part(values: np.ndarray, per_device: int) -> np.ndarray:
        first = devices.first * per_device
        return values[first : first + len(devices.local) * per_device]

    if task.members and done == 0:
        size = task.device_chunk
        rows = np.arange(task.chunks * size * task.num_devices).reshape(task.chunks, -1)
        rows = np.where(rows < task.num_clips, rows, 0)
        starts = on_host.pass_starts.reshape(task.chunks, -1)

        def chunk(index: int) -> Callable[[], jax.Array]:
            return lambda: send(part(rows[index], size), part(starts[index], size))

        sums = programs.empty_sums(state.step)
        for crops in _ahead(chunk(index) for index in range(task.chunks)):
            sums = programs.host_chunk(state, crops, table, draw, sums)
        state = programs.finish(state, sums)

    def batch(index: int) -> Callable[[], jax.Array]:
        per_device = task.device_batch
        return lambda: send(
            part(on_host.clips[index], per_device), part(on_host.starts[index], per_device)
        )

    for crops in _ahead(batch(index) for index in range(done, task.steps)):
        state, _ = programs.host_step(state, crops, table, draw, hyper)
        yield state


def fits_on(devices: Devices, nbytes: int, share: float = 0.6) -> bool:
    """Whether an array of ``nbytes`` may live on every device, leaving room to train.

    Args:
      devices: The devices.
      nbytes: Size of the array.
      share: Largest share of a device's memory that the data may take.

    Returns:
      True where the device does not tell its memory (CPU).
    """
    stats = devices.local[0].memory_stats() or {}
    limit = stats.get("bytes_limit")
    return limit is None or nbytes <= share * limit
