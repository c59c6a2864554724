"""Embeddings of whole clips: the mean over windows that cover them."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from asdproto.data.dataset import ClipArrays
from asdproto.models.convolution import compiler_options
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


@functools.cache
def _compiled() -> Any:
    """:func:`_embed`, compiled once for each model and shape."""
    return jax.jit(_embed, static_argnums=0, compiler_options=compiler_options())


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
      batch: Windows per call.

    Returns:
      float64, shape ``[clips, embedding_dim]``.
    """
    dim: int = model.embedding_dim  # type: ignore[attr-defined]
    total = np.zeros((len(clips), dim), np.float64)
    devices = _sharing or first_device()
    moments = np.asarray(mean, np.float32), np.asarray(scale, np.float32)
    constants = [jax.device_put((variables, *moments), device) for device in devices.local]
    embed = _compiled()
    windows = [window_starts(int(frames), clips.crop, hop) for frames in clips.usable_frames]
    count = np.array([len(starts) for starts in windows], np.int64)
    owners = np.repeat(np.arange(len(clips)), count)
    starts = np.concatenate(windows) if windows else np.zeros(0, np.int32)
    # A batch a device in every round; devices work while the host reads their next batch.
    rounds = -(-len(owners) // (batch * devices.count))
    vectors = np.zeros((rounds, len(devices.local), batch, dim), np.float32)
    running: list[tuple[int, int, jax.Array]] = []
    for turn in range(rounds):
        begun = []
        for slot, (kept, *standards) in enumerate(constants):
            first = (turn * devices.count + devices.first + slot) * batch
            part = slice(first, first + batch)
            crops = clips.crops(owners[part], starts[part])
            if len(crops):
                crops = np.pad(crops, ((0, batch - len(crops)), (0, 0), (0, 0)))
                begun.append((turn, slot, embed(model, kept, crops, *standards)))
        for when, where, result in running:
            vectors[when, where] = result
        running = begun
    for when, where, result in running:
        vectors[when, where] = result
    in_order = devices.gather(vectors).reshape(-1, dim)[: len(owners)]
    np.add.at(total, owners, in_order)
    return total / np.maximum(count, 1)[:, None]
