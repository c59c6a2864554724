"""Where crops come from: features resident on the devices, or the host, prefetched."""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from asdproto.training.epoch import Programs
from asdproto.training.parallel import Devices
from asdproto.training.stage import Hyper
from asdproto.training.state import Table, TrainState

_AHEAD = 3  # batches prepared while the device works on one


def tile_to(frames: np.ndarray, length: int) -> np.ndarray:
    """Repeats a clip shorter than ``length`` frames until it has as many, axis 0."""
    if len(frames) >= length:
        return frames
    return np.take(frames, np.arange(length) % len(frames), axis=0)


@dataclasses.dataclass(frozen=True)
class ClipArrays:
    """Features of chosen clips on the host, usually a part of a memory map.

    Attributes:
      features: Floating, shape ``[all clips, max_frames, mels]``.
      rows: Integer, shape ``[clips]``, the chosen rows.
      frames: Integer, shape ``[clips]``, frames of the chosen clips.
      crop: Frames of a crop; shorter clips are repeated up to it.
    """

    features: np.ndarray
    rows: np.ndarray
    frames: np.ndarray
    crop: int

    def __post_init__(self) -> None:
        if np.size(self.frames) and np.min(self.frames) < 1:
            raise ValueError(
                f"clip {int(np.argmin(self.frames))} has no frames; expected 1 or more"
            )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def usable_frames(self) -> np.ndarray:
        """int32, shape ``[clips]``: frames after short clips are repeated."""
        return np.maximum(self.frames, self.crop).astype(np.int32)

    @property
    def nbytes(self) -> int:
        """Bytes of the chosen clips once they are in memory."""
        shape = (len(self), self._longest(), self.features.shape[2])
        return int(np.prod(shape)) * self.features.dtype.itemsize

    def _longest(self) -> int:
        return int(self.usable_frames.max(initial=self.crop))

    def load(self) -> np.ndarray:
        """All chosen clips, shape ``[clips, longest, mels]``, zeros after a clip's end."""
        longest = self._longest()
        out = np.zeros((len(self), longest, self.features.shape[2]), self.features.dtype)
        for index, (row, frames) in enumerate(zip(self.rows, self.frames, strict=True)):
            clip = tile_to(self.features[row, :frames], self.crop)
            out[index, : len(clip)] = clip
        return out

    def crops(self, clips: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Gathers crops, shape ``[batch, crop, mels]``."""
        out = np.empty((len(clips), self.crop, self.features.shape[2]), self.features.dtype)
        for index, (clip, start) in enumerate(zip(clips, starts, strict=True)):
            frames = self.frames[clip]
            if frames >= self.crop:
                out[index] = self.features[self.rows[clip], start : start + self.crop]
            else:
                out[index] = tile_to(self.features[self.rows[clip], :frames], self.crop)
        return out

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of every mel band over all frames, float64 ``[mels]``."""
        count, total, squares = 0, 0.0, 0.0
        for row, frames in zip(self.rows, self.frames, strict=True):
            clip = np.asarray(self.features[row, :frames], np.float64)
            count += len(clip)
            total = total + clip.sum(axis=0)
            squares = squares + np.square(clip).sum(axis=0)
        mean = np.asarray(total) / max(count, 1)
        return mean, np.sqrt(np.maximum(np.asarray(squares) / max(count, 1) - mean**2, 0))


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
