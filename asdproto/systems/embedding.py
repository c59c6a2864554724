"""Embeddings of whole clips: the mean over windows that cover them; batch statistics for them."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from asdproto.data.dataset import ClipArrays
from asdproto.models.convolution import compiler_options
from asdproto.models.normalization import BatchNorm
from asdproto.training.devices import Devices, first_device


def window_starts(frames: int, crop: int, hop: int) -> np.ndarray:
    """First frames of evenly spread windows that cover a clip to its last frame.

    The clip has at least ``crop`` frames, and windows are at most ``hop`` apart. Returns int32,
    shape ``[ceil((frames - crop) / hop) + 1]``.
    """
    count = -(-(frames - crop) // hop) + 1
    return np.round(np.linspace(0, frames - crop, count)).astype(np.int32)


def _embed(
    model: nn.Module, variables: Any, crops: jax.Array, mean: jax.Array, scale: jax.Array
) -> jax.Array:
    crops = (crops.astype(jnp.float32) - mean) * scale
    return model.apply(variables, crops, train=False)  # type: ignore[return-value]


def _update(
    model: nn.Module, variables: Any, crops: jax.Array, mean: jax.Array, scale: jax.Array
) -> Any:
    crops = (crops.astype(jnp.float32) - mean) * scale
    _, updated = model.apply(variables, crops, train=True, mutable=["batch_stats"])
    return updated["batch_stats"]


@functools.cache
def _compiled(function: Any) -> Any:
    """One of the functions above, compiled once for each model and shape."""
    return jax.jit(function, static_argnums=0, compiler_options=compiler_options())


_sharing: Devices | None = None


@contextlib.contextmanager
def shared_by(devices: Devices) -> Iterator[None]:
    """While inside, these devices share the windows of clips, instead of the first one alone.

    Where they belong to several processes, all of these must embed the same clips. CPU devices of a
    process share its cores already; one of them works.
    """
    global _sharing
    before, _sharing = _sharing, devices
    if devices.local[0].platform == "cpu":
        per_process = len(devices.local)
        _sharing = Devices(
            devices.local[:1], devices.count // per_process, devices.first // per_process
        )
    try:
        yield
    finally:
        _sharing = before


def embed_clips(model: nn.Module, variables: Any, clips: ClipArrays, **options: Any) -> np.ndarray:
    """Unit embedding of every clip: its :func:`window_means`, brought to unit length.

    Arguments are those of :func:`window_means`. Returns float32 ``[clips, dim]``.
    """
    return unit_rows(window_means(model, variables, clips, **options)).astype(np.float32)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Vectors ``[n, dim]``, each divided by its length."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def window_means(
    model: nn.Module,
    variables: Any,
    clips: ClipArrays,
    *,
    mean: np.ndarray,
    scale: np.ndarray,
    hop: int = 32,
    full_clip: bool = False,
    batch: int = 256,
) -> np.ndarray:
    """Mean of a model's results over windows that cover each clip, in evaluation mode.

    Windows are compared in batches of one size, the last one padded, so a clip gives the same bits
    whichever other clips it comes with, and however many devices share the batches.

    Args:
      model: Module with the attribute ``embedding_dim``, the length of its results.
      variables: Its parameters and running statistics.
      clips: Features on the host.
      mean: Floating, shape ``[mels]``, subtracted from every frame.
      scale: Floating, shape ``[mels]``, multiplies every frame then.
      hop: Largest distance between windows, in frames.
      full_clip: One window over the whole clip instead.
      batch: Windows per call.

    Returns:
      float64, shape ``[clips, embedding_dim]``.
    """
    usable = clips.usable_frames
    dim: int = model.embedding_dim  # type: ignore[attr-defined]
    total = np.zeros((len(clips), dim), np.float64)
    count = np.zeros(len(clips), np.int64)
    devices = _sharing or first_device()
    moments = np.asarray(mean, np.float32), np.asarray(scale, np.float32)
    constants = [jax.device_put((variables, *moments), device) for device in devices.local]
    embed = _compiled(_embed)
    for length in np.unique(usable) if full_clip else [clips.crop]:
        chosen = np.flatnonzero(usable == length) if full_clip else np.arange(len(clips))
        windows = [window_starts(int(usable[clip]), int(length), hop) for clip in chosen]
        count[chosen] = [len(starts) for starts in windows]
        owners = np.repeat(chosen, count[chosen])
        starts = np.concatenate(windows) if windows else np.zeros(0, np.int32)
        source = dataclasses.replace(clips, crop=int(length))
        size = max(1, batch * clips.crop // int(length))
        # A batch a device in every round; devices work while the host reads their next batch.
        rounds = -(-len(owners) // (size * devices.count))
        vectors = np.zeros((rounds, len(devices.local), size, dim), np.float32)
        running: list[tuple[int, int, jax.Array]] = []
        for turn in range(rounds):
            begun = []
            for slot, (kept, *standards) in enumerate(constants):
                first = (turn * devices.count + devices.first + slot) * size
                part = slice(first, first + size)
                crops = source.crops(owners[part], starts[part])
                if len(crops):
                    crops = np.pad(crops, ((0, size - len(crops)), (0, 0), (0, 0)))
                    begun.append((turn, slot, embed(model, kept, crops, *standards)))
            for when, where, result in running:
                vectors[when, where] = result
            running = begun
        for when, where, result in running:
            vectors[when, where] = result
        in_order = devices.gather(vectors).reshape(-1, dim)[: len(owners)]
        np.add.at(total, owners, in_order)
    return total / np.maximum(count, 1)[:, None]


def training_batch_stats(
    model: nn.Module,
    variables: Any,
    clips: ClipArrays,
    *,
    mean: np.ndarray,
    scale: np.ndarray,
    batches: int = 32,
    batch: int = 128,
    seed: int = 0,
) -> Any:
    """Batch statistics of the finished encoder over the training clips, all of them alike.

    The running statistics that training leaves are those of its batches: of balanced episodes,
    which show the few clips of a small class as often as the many of a large one, and of parameters
    that were still moving. These are the mean over batches of random crops.

    Args:
      model: Encoder, as for :func:`window_means`, as are the next four.
      variables: Its parameters and running statistics.
      clips: Training clips on the host.
      mean: Subtracted from every frame.
      scale: Multiplies every frame then.
      batches: Batches to average over.
      batch: Crops in each.
      seed: Of the choice of clips and crops.

    Returns:
      What belongs in the place of ``variables["batch_stats"]``, float32 NumPy arrays.
    """
    rng = np.random.default_rng(seed)
    turns = -(-batches * batch // len(clips))
    order = np.concatenate([rng.permutation(len(clips)) for _ in range(turns)])
    starts = rng.integers(0, clips.usable_frames[order] - clips.crop + 1)
    # An update from zero is the batch's own statistic, times what an update counts.
    variables = {**variables, "batch_stats": jax.tree.map(np.zeros_like, variables["batch_stats"])}
    variables = jax.device_put(variables)
    moments = jnp.asarray(mean, jnp.float32), jnp.asarray(scale, jnp.float32)
    update, stats = _compiled(_update), []
    for first in range(0, batches * batch, batch):
        part = slice(first, first + batch)
        crops = clips.crops(order[part], starts[part])
        stats.append(jax.device_get(update(model, variables, crops, *moments)))
    share = batches * (1 - BatchNorm.momentum)

    def mean_of(*leaves: np.ndarray) -> np.ndarray:
        total = functools.reduce(np.add, [leaf.astype(np.float64) for leaf in leaves])
        return (total / share).astype(np.float32)

    return jax.tree.map(mean_of, *stats)
