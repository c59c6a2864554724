"""Crops gathered by the host, a few batches ahead, for features that do not fit on the devices."""

import concurrent.futures
from collections.abc import Iterator

import jax
import numpy as np

from asdproto.data.dataset import ClipArrays
from asdproto.sampling import Plan
from asdproto.training.devices import Devices

_AHEAD = 3  # batches prepared while the device works on one
_SHARE = 0.6  # of a device's memory, at most, for the data


def gather_crops(
    clips: ClipArrays, devices: Devices, batches: Plan, first: int = 0
) -> Iterator[jax.Array]:
    """Crops of batches, gathered and sent by a thread a few batches ahead.

    Each process gathers what its own devices need.

    Args:
      clips: The training clips on the host.
      devices: Where the crops go.
      batches: Batches for all devices, on the devices; fetched once.
      first: Batches to leave out at the beginning.

    Yields:
      Crops of one batch after the other, as stored, on the devices.
    """
    all_clips, all_starts = devices.to_host(batches)
    size = all_clips.shape[1] // devices.count
    own = slice(devices.first * size, (devices.first + len(devices.local)) * size)

    def send(turn: int) -> jax.Array:
        crops = clips.crops(np.maximum(all_clips[turn, own], 0), all_starts[turn, own])
        if devices.count > 1:
            crops = crops.reshape(len(devices.local), size, *crops.shape[1:])
        return devices.shard(crops)

    with concurrent.futures.ThreadPoolExecutor(1, "prefetch") as pool:
        waiting: list[concurrent.futures.Future] = []
        try:
            for turn in range(first, len(all_clips)):
                waiting.append(pool.submit(send, turn))
                if len(waiting) > _AHEAD:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def fits_on(devices: Devices, nbytes: int) -> bool:
    """Whether an array of ``nbytes`` may live on every device, leaving room to train.

    True where a device does not tell its memory, as CPUs.
    """
    stats = devices.local[0].memory_stats() or {}
    limit = stats.get("bytes_limit")
    return limit is None or nbytes <= _SHARE * limit
