"""Sampling: keys to indices, inside compiled code.

A plan says for every step of an epoch which clips form the batch and where each crop starts. It is
drawn at once for the whole epoch, as a pure function of the key, so that a run resumed in the
middle of an epoch, a loop on the host and a loop on the device all see the same batches. Of plans,
``frames`` is int32 ``[clips]``, frames of each clip and no fewer than a crop; numbers are static.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike


class Plan(NamedTuple):
    """Batches of a number of steps.

    Attributes:
      clips: int32, shape ``[steps, batch]``, rows of the feature array.
      starts: int32, shape ``[steps, batch]``, first frame of each crop.
    """

    clips: jax.Array
    starts: jax.Array


class ClassMembers(NamedTuple):
    """Clips ordered by class, so that members are found without a loop over classes.

    Attributes:
      order: int32, shape ``[clips]``, clips sorted by class.
      offsets: int32, shape ``[classes]``, where each class begins in ``order``.
      counts: int32, shape ``[classes]``, clips of each class.
      largest: Python int, the largest count; static.
    """

    order: jax.Array | np.ndarray
    offsets: jax.Array | np.ndarray
    counts: jax.Array | np.ndarray
    largest: int


def class_members(labels: ArrayLike, num_classes: int) -> ClassMembers:
    """Indexes clips by class, on the host, once per data set.

    Args:
      labels: Integer in ``[0, num_classes)``, shape ``[clips]``.
      num_classes: Number of classes.

    Returns:
      The index; its arrays are NumPy arrays until they are put on a device.

    Raises:
      ValueError: ``labels`` is not one-dimensional, or a label is out of range.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be integers of shape [clips], found {labels.dtype} {labels.shape}"
        )
    if labels.size and not (0 <= labels.min() and labels.max() < num_classes):
        raise ValueError(
            f"labels must lie in [0, {num_classes}), found [{labels.min()}, {labels.max()}]"
        )
    counts = np.bincount(labels, minlength=num_classes).astype(np.int32)
    return ClassMembers(
        order=np.argsort(labels, kind="stable").astype(np.int32),
        offsets=(np.cumsum(counts) - counts).astype(np.int32),
        counts=counts,
        largest=int(counts.max(initial=0)),
    )


def epoch_permutation(key: jax.Array, num_clips: int, batch_size: int) -> jax.Array:
    """Every clip once, in random order, as batches.

    The last batch is completed from the start of the same permutation, so that all batches have
    one shape and batch statistics never come from a remnant: 21,000 clips make 657 batches of 32.

    Args:
      key: Random key.
      num_clips: Number of clips; static.
      batch_size: Clips per batch; static.

    Returns:
      int32, shape ``[ceil(num_clips / batch_size), batch_size]``.

    Examples:
      >>> print(sorted(epoch_permutation(jax.random.key(0), 4, 2).ravel().tolist()))
      [0, 1, 2, 3]
    """
    steps = -(-num_clips // batch_size)
    order = jax.random.permutation(key, jnp.arange(num_clips, dtype=jnp.int32))
    return jnp.take(order, jnp.arange(steps * batch_size) % num_clips).reshape(steps, batch_size)


def episode(
    key: jax.Array, members: ClassMembers, num_ways: int, num_shots: int
) -> tuple[jax.Array, jax.Array]:
    """One balanced episode: N attribute classes, K clips of each (section 3.1.2).

    Classes are drawn without replacement among those that have clips. Members are drawn without
    replacement too; a class with fewer than K clips goes round: every clip is used
    ``floor(K / n)`` or ``ceil(K / n)`` times, and the random crops tell the copies apart.

    Args:
      key: Random key.
      members: Index of clips by class.
      num_ways: N, classes per episode; static, at most the number of classes with clips.
      num_shots: K, clips per class; static.

    Returns:
      Clips, int32, shape ``[num_ways, num_shots]``, and their classes, int32,
      shape ``[num_ways]``.
    """
    class_key, member_key = jax.random.split(key)
    counts, offsets = jnp.asarray(members.counts), jnp.asarray(members.offsets)
    order = jnp.asarray(members.order)
    # Random numbers in [0, 1) order the classes that have clips; empty ones come last.
    rank = jnp.where(counts > 0, jax.random.uniform(class_key, counts.shape), 2.0)
    classes = jnp.argsort(rank)[:num_ways].astype(jnp.int32)
    count = jnp.take(counts, classes)
    place = jnp.arange(members.largest)
    noise = jax.random.uniform(member_key, (num_ways, members.largest))
    shuffled = jnp.argsort(jnp.where(place < count[:, None], noise, 2.0), axis=1)
    turn = jnp.arange(num_shots) % jnp.maximum(count, 1)[:, None]
    chosen = jnp.take_along_axis(shuffled, turn, axis=1)
    return jnp.take(order, jnp.take(offsets, classes)[:, None] + chosen), classes


def crop_starts(key: jax.Array, frames: ArrayLike, crop: int) -> jax.Array:
    """First frame of a random crop of each clip, uniform over all crops that fit.

    Args:
      key: Random key.
      frames: Integer, any shape, frames of each clip, at least ``crop``.
      crop: Frames of a crop; static.

    Returns:
      int32 in ``[0, frames - crop]``, same shape.
    """
    frames = jnp.asarray(frames)
    room = jnp.maximum(frames - crop + 1, 1)
    return jax.random.randint(key, frames.shape, 0, room, dtype=jnp.int32)


def plan_permutation(key: jax.Array, frames: ArrayLike, batch_size: int, crop: int) -> Plan:
    """Plan of an epoch of random batches: every clip once, each with a random crop.

    It has ``ceil(clips / batch_size)`` steps.
    """
    frames = jnp.asarray(frames)
    order_key, crop_key = jax.random.split(key)
    clips = epoch_permutation(order_key, frames.shape[0], batch_size)
    return Plan(clips, crop_starts(crop_key, jnp.take(frames, clips), crop))


def plan_episodes(
    key: jax.Array,
    frames: ArrayLike,
    members: ClassMembers,
    *,
    steps: int,
    num_ways: int,
    num_shots: int,
    crop: int,
) -> Plan:
    """Plan of an epoch of balanced episodes.

    It has ``steps`` steps of ``num_ways * num_shots`` clips, the shots of a class adjacent.
    """
    frames = jnp.asarray(frames)
    episode_key, crop_key = jax.random.split(key)

    def draw(step: jax.Array) -> jax.Array:
        key = jax.random.fold_in(episode_key, step)
        return episode(key, members, num_ways, num_shots)[0].ravel()

    # A loop, not one large sort: an epoch's noise is steps x N x largest class, 70 MB for the
    # paper's schedule, and more where a class is larger.
    clips = lax.map(draw, jnp.arange(steps), batch_size=16)
    return Plan(clips, crop_starts(crop_key, jnp.take(frames, clips), crop))


def plan_stacks(
    key: jax.Array, frames: ArrayLike, num_crops: int, batch_size: int, crop: int
) -> Plan:
    """Plan of an epoch of every crop of every clip once, in random order.

    ``num_crops`` is the sum of ``frames - crop + 1``. There are ``ceil(num_crops / batch_size)``
    steps; the last is completed from the first.
    """
    ends = jnp.cumsum(jnp.asarray(frames) - crop + 1)
    number = epoch_permutation(key, num_crops, batch_size)
    clips = jnp.searchsorted(ends, number, side="right").astype(jnp.int32)
    return Plan(clips, number - jnp.where(clips > 0, jnp.take(ends, clips - 1), 0))


def take_crops(features: jax.Array, clips: jax.Array, starts: jax.Array, crop: int) -> jax.Array:
    """Gathers crops from the resident feature array.

    Args:
      features: Floating, shape ``[clips, frames, mels]``.
      clips: Integer, shape ``[batch]``.
      starts: Integer, shape ``[batch]``.
      crop: Frames of a crop; static.

    Returns:
      Same dtype, shape ``[batch, crop, mels]``.
    """

    def take(clip: jax.Array, start: jax.Array) -> jax.Array:
        sizes = (1, crop, features.shape[2])
        return lax.dynamic_slice(features, (clip, start, jnp.zeros_like(start)), sizes)[0]

    return jax.vmap(take)(clips, starts)
