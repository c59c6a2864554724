"""What training carries from step to step, and what it is told once."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from asdproto.data.dataset import Dataset, Standardization
from asdproto.sampling import class_members

# On the host until they are put on devices.
Array = jax.Array | np.ndarray


class TrainState(NamedTuple):
    """Everything a resumed run needs; random numbers follow from the key and the step.

    Attributes:
      step: int32 scalar, steps done in this stage.
      params: ``{"encoder": ..., "loss": ...}``, float32.
      batch_stats: Running statistics of the encoder.
      optimizer: State of the optimizer.
      loss_state: State of the loss, such as an adaptive scale; empty for most.
      prototypes: float32, shape ``[classes, 1 + sub_prototypes, dim]``, the epoch's prototypes;
        ``None`` for objectives without.
      loss_sum: float32 scalar, sum of the losses of this epoch's steps so far.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    optimizer: Any
    loss_state: Any
    prototypes: jax.Array | None
    loss_sum: jax.Array


class ClipIndex(NamedTuple):
    """The training clips of a data set as they live on the devices; made by :func:`clip_index`.

    Attributes:
      features: Floating, shape ``[clips, frames, mels]``, as stored; ``None`` where the host
        gathers crops.
      labels: int32, shape ``[clips]``.
      frames: int32, shape ``[clips]``.
      order, offsets, counts: See :class:`asdproto.sampling.ClassMembers`.
      mean, scale: float32, shape ``[mels]``; frames are standardized as ``(x - mean) * scale``.
    """

    features: Array | None
    labels: Array
    frames: Array
    order: Array
    offsets: Array
    counts: Array
    mean: Array
    scale: Array


class Batch(NamedTuple):
    """One device's part of a batch, ready for the encoder.

    Attributes:
      clips: int32, shape ``[batch]``, rows of the training clips.
      crops: float32, shape ``[batch, crop, mels]``, standardized.
      labels: int32, shape ``[batch]``.
      where: Boolean, shape ``[batch]``, false for padding; ``None`` when nothing is padding.
    """

    clips: jax.Array
    crops: jax.Array
    labels: jax.Array
    where: jax.Array | None = None


def device_rows(axis_name: str | None, size: int) -> jax.Array:
    """Positions in the global batch of the ``size`` examples on this device, int32 ``[size]``."""
    rows = jnp.arange(size, dtype=jnp.int32)
    return rows if axis_name is None else rows + lax.axis_index(axis_name) * size


def clip_index(
    data: Dataset, *, resident: bool, standardization: Standardization = "band"
) -> ClipIndex:
    """Index of a data set's training clips, as NumPy arrays; with features where ``resident``.

    Raises:
      ValueError: A class has no clip, and so no prototype.
    """
    members = class_members(data.labels, len(data.classes))
    if not members.counts.all():
        raise ValueError(f"class {int(np.argmin(members.counts))} has no training clip")
    mean, scale = data.moments(standardization)
    return ClipIndex(
        features=data.train.load() if resident else None,
        labels=np.asarray(data.labels, np.int32),
        frames=data.train.usable_frames,
        order=members.order,
        offsets=members.offsets,
        counts=members.counts,
        mean=mean,
        scale=scale,
    )
