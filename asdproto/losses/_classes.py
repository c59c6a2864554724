"""Takes one embedding's equation over a batch: with masks, by pieces of classes, over devices.

A loss against prototypes needs two things of an embedding z: the logits of its own class, and the
logsumexp of all other logits. :func:`compare` computes both, and :func:`negative_log_likelihood`
makes the loss of them, since ::

    -log(exp(own) / (exp(own) + sum(exp(others)))) = softplus(logsumexp(others) - own)

Both are sums over classes, so they can be computed for a part of the classes at a time, in a loop
or on several devices, and added up. A loss gives the logits of one embedding,
``logits(z[D], prototypes[C, D]) -> [C]``; everything else is here, once for all losses. To follow
the computation without masks, pieces and devices, read :func:`_one`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from asdproto.losses import _checks, _numerics
from asdproto.losses._numerics import masked_logsumexp

# Coefficients [..., classes(, M)], from the first of these classes, their number, and bounds.
Draw = Callable[[jax.Array | int, int, jax.Array, jax.Array], jax.Array]
Logits = Callable[..., jax.Array | tuple[jax.Array, jax.Array]]


class Compared(NamedTuple):
    """Embeddings compared with their own class and with all others.

    Attributes:
      own: Logits of the own class's M prototypes, shape ``[..., M]``; 0 where they do not count.
      counted: Which of these prototypes count, shape ``[..., M]``; none does for an example whose
        loss is 0.
      others: Logsumexp of all other logits, shape ``[...]``.
    """

    own: jax.Array
    counted: jax.Array
    others: jax.Array


def compare(
    logits: Logits,
    embeddings: jax.Array,
    prototypes: jax.Array,
    labels: jax.Array,
    *,
    hyper: dict[str, jax.Array],
    bias: jax.Array | None = None,
    mix: jax.Array | None = None,
    draw: Draw | None = None,
    mix_range: Sequence[jax.Array] = (),
    where: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
    prototype_where: ArrayLike | None = None,
    chunk_size: int | None = None,
    class_axis_name: str | None = None,
) -> Compared:
    """Compares every embedding of a batch with its own class and with all others.

    Args:
      logits: Takes an embedding ``[D]``, the prototypes of some classes, their ``bias`` and ``mix``
        where they are given, and the hyper-parameters; returns logits ``[C]`` or ``[C * M]``, or
        two such arrays, the second of which holds further negatives. It closes over no array.
      embeddings: ``[..., D]``.
      prototypes: ``[C, D]`` or ``[C, M, D]``; this device's with ``class_axis_name``.
      labels: ``[...]``, over the classes of all devices.
      hyper: Scalars.
      bias: ``[C]``.
      mix: ``[..., C]`` or ``[..., C, M]``.
      draw: In the place of ``mix``: draws the coefficients of some classes.
      mix_range: Bounds that ``draw`` is given.
      where: Examples that count, broadcastable to ``[...]``.
      class_where: Classes that count, broadcastable to ``[..., C]``.
      prototype_where: In the place of ``class_where``: prototypes that count, broadcastable to
        ``[..., C, M]``.
      chunk_size: Most classes in a piece; all if None.
      class_axis_name: Mapped axis that classes are spread over, in order.

    Returns:
      Own logits and the logsumexp of others.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, found {chunk_size}")
    batch, classes = labels.shape, prototypes.shape[0]
    where = _checks.check_mask("where", where, batch)
    mask = _checks.check_mask("class_where", class_where, (*batch, classes))
    width = 1  # the mask's numbers per class: one, or one for each of its prototypes
    if mask is not None:
        mask = mask[..., None]
    elif prototype_where is not None:
        width = prototypes.shape[1]
        mask = _checks.check_mask("prototype_where", prototype_where, (*batch, classes, width))
    embeddings = _numerics.keep(embeddings, where)
    offset: jax.Array | int = 0
    if class_axis_name is not None:
        offset = lax.axis_index(class_axis_name) * classes
    # In int32: small or unsigned labels could not hold the difference.
    place = labels.astype(jnp.int32) - offset
    counted = ((place >= 0) & (place < classes))[..., None]
    arrays = {"prototypes": prototypes, "bias": bias, "mix": mix}
    # The axis of classes in each array: mix has the axes of the batch before it.
    axes = {"prototypes": 0, "bias": 0, "mix": len(batch), "mask": 0}
    if where is not None and arrays["mix"] is not None:
        example = jnp.broadcast_to(where, batch)
        example = jnp.expand_dims(example, range(len(batch), arrays["mix"].ndim))
        arrays["mix"] = jnp.where(example, arrays["mix"], 0)
    if mask is not None and mask.ndim <= 2:
        mask = jnp.broadcast_to(mask, (classes, width))
        counted &= mask[jnp.clip(place, 0, classes - 1)]
        # A class excluded for all examples may hold anything, even nan.
        arrays = {n: _clear(x, mask, axes[n]) for n, x in arrays.items()}
    elif mask is not None:
        axes["mask"] = len(batch)
        mask = jnp.broadcast_to(mask, (*batch, classes, width))
        index = jnp.clip(place, 0, classes - 1)[..., None, None]
        counted &= jnp.take_along_axis(mask, index, axis=-2)[..., 0, :]
    if where is not None:
        counted &= where[..., None]
    local = functools.partial(_local, logits, draw, axes, chunk_size, place, offset, mask)
    shared = embeddings, hyper, tuple(mix_range)
    if class_axis_name is None:
        own, others = local(shared, arrays)
    else:
        own, others = _over_devices(local, class_axis_name, shared, arrays)
        counted = lax.psum(counted.astype(jnp.int32), class_axis_name) > 0
    counted = jnp.broadcast_to(counted, own.shape)
    return Compared(jnp.where(counted, own, 0), counted, others)


def over_batch(one: Callable[..., Any], ndim: int, in_axes: Any = 0) -> Callable[..., Any]:
    """A function of one example, mapped over ``ndim`` leading axes."""
    for _ in range(ndim):
        one = jax.vmap(one, in_axes)
    return one


def _clear(x: jax.Array | None, mask: jax.Array, axis: int) -> jax.Array | None:
    """``x`` with zeros where a mask ``[C, M]`` is false; ``axis`` is the axis of classes."""
    if x is None:
        return None
    further = x.ndim - axis - 1
    mask = mask[:, 0] if further == 0 else mask.reshape(mask.shape + (1,) * (further - 1))
    return jnp.where(mask, x, 0)


def _local(
    logits: Logits,
    draw: Draw | None,
    axes: dict[str, int],
    chunk_size: int | None,
    place: jax.Array,
    offset: jax.Array | int,
    mask: jax.Array | None,
    shared: tuple[jax.Array, dict[str, jax.Array], tuple[jax.Array, ...]],
    arrays: dict[str, Any],
) -> tuple[jax.Array, jax.Array]:
    """Own logits and logsumexp of others over this device's classes."""
    embeddings, hyper, mix_range = shared
    classes = arrays["prototypes"].shape[0]
    # Cast here and back within a piece, so that the gradients of pieces are summed in float32.
    wide = embeddings.astype(_checks.accumulator(embeddings))

    def piece(first: jax.Array | int, arrays: dict[str, Any]) -> Any:
        size = arrays["prototypes"].shape[0]
        if draw is not None:
            arrays = arrays | {"mix": draw(offset + first, size, *mix_range)}
        given = {name: x for name, x in arrays.items() if x is not None}
        in_axes = {name: 0 if axes[name] else None for name in given}
        one = functools.partial(_one, functools.partial(logits, **hyper))
        run = over_batch(one, place.ndim, (0, 0, in_axes))
        return run(wide.astype(embeddings.dtype), place - first, given)

    arrays = arrays | {"mask": mask}
    if chunk_size is None or chunk_size >= classes:
        return piece(0, arrays)
    # Pieces of equal size, where a divisor is near; else excluded zeros fill up the last one, which
    # copies all arrays.
    divisors = (n for n in range(chunk_size, chunk_size // 2, -1) if classes % n == 0)
    size = next(divisors, chunk_size)
    pieces = -(-classes // size)
    if rest := pieces * size - classes:
        if mask is None:
            arrays["mask"] = jnp.ones((classes, 1), bool)
        arrays = {name: _fill_up(x, axes[name], rest) for name, x in arrays.items()}

    # The loop gets prototypes and biases cut into pieces, because the gradient of a slice has the
    # size of the whole; it slices coefficients and masks itself, which copies nothing.
    cut = {
        name: arrays[name].reshape(pieces, size, *arrays[name].shape[1:])
        for name in ("prototypes", "bias")
        if arrays[name] is not None
    }

    # The logits of a piece are computed again for its gradient instead of kept.
    @jax.checkpoint
    def step(first: jax.Array, cut: dict[str, Any]) -> Any:
        for name in ("mix", "mask"):
            if arrays[name] is not None:
                cut[name] = lax.dynamic_slice_in_dim(arrays[name], first, size, axes[name])
        return piece(first, cut)

    first = jnp.arange(pieces, dtype=jnp.int32) * size
    own, others = lax.map(lambda part: step(*part), (first, cut))
    return own.sum(axis=0), masked_logsumexp(others, axis=0)


def _fill_up(x: jax.Array | None, axis: int, count: int) -> jax.Array | None:
    """``x`` with ``count`` zeros appended along an axis."""
    if x is None:
        return None
    return jnp.pad(x, [(0, count if i == axis else 0) for i in range(x.ndim)])


def _one(
    logits: Logits,
    z: jax.Array,
    place: jax.Array,
    arrays: dict[str, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Own logits ``[M]`` of one embedding, and the logsumexp of its other logits.

    ``place`` is the own class among these classes; outside of them there is none.
    """
    arrays = dict(arrays)
    mask = arrays.pop("mask", None)
    prototypes = arrays.pop("prototypes")
    classes = prototypes.shape[0]
    scores = logits(z, prototypes, **arrays)
    scores, *mixed = scores if isinstance(scores, tuple) else (scores,)
    per_class = len(scores) // classes
    others = jnp.arange(len(scores), dtype=jnp.int32) // per_class != place
    if mask is not None:
        others &= jnp.broadcast_to(mask, (classes, per_class)).reshape(-1)
    is_own = jnp.arange(classes, dtype=jnp.int32)[:, None] == place
    own = jnp.sum(jnp.where(is_own, scores.reshape(classes, per_class), 0), axis=0)
    return own, masked_logsumexp(scores, *mixed, where=others)


def _over_devices(
    local: Callable[[Any, Any], tuple[jax.Array, jax.Array]],
    axis_name: str,
    shared: Any,
    arrays: Any,
) -> tuple[jax.Array, jax.Array]:
    """Adds up what each device computes over its own classes.

    The gradient has a rule of its own, because the transposition of a ``psum`` cannot know that
    every device returns the same losses, and that the mean over devices is differentiated.
    """

    def add(own: jax.Array, others: jax.Array) -> tuple[jax.Array, jax.Array]:
        top = lax.pmax(others, axis_name)
        total = lax.psum(jnp.exp(others - top), axis_name)
        return lax.psum(own, axis_name), top + jnp.log(total)

    @jax.custom_vjp
    def run(shared: Any, arrays: Any) -> tuple[jax.Array, jax.Array]:
        return add(*local(shared, arrays))

    def forward(shared: Any, arrays: Any) -> Any:
        # Makes them differ between devices, or a wrapper would sum their gradients before we do.
        device = lax.axis_index(axis_name)
        shared = jax.tree.map(lambda x: x + (0 * device).astype(x.dtype), shared)
        part, pull = jax.vjp(local, shared, arrays)
        total = add(*part)
        return total, (pull, part[1] - total[1], device)

    def backward(saved: Any, gradients: Any) -> Any:
        pull, log_share, device = saved
        of_own, of_others = lax.pmean(gradients, axis_name)
        of_own += (0 * device).astype(of_own.dtype)
        of_shared, of_arrays = pull((of_own, of_others * jnp.exp(log_share)))
        return lax.psum(of_shared, axis_name), of_arrays

    run.defvjp(forward, backward)
    return run(shared, arrays)


def negative_log_likelihood(compared: Compared, *, clusters: bool = False) -> jax.Array:
    """-log softmax of own logits; 0 where none counts.

    Of several own logits it is the mean over each, as in Eq. 3; with ``clusters`` it is that of
    their joint probability.
    """
    own, counted, others = compared
    log_sum = masked_logsumexp(own, where=counted, axis=-1)
    # log(1 + e^x) keeps every digit of a loss near 0.
    loss = jax.nn.softplus(others - log_sum)
    if not clusters:
        loss += log_sum - jnp.sum(own, axis=-1) / jnp.maximum(jnp.sum(counted, axis=-1), 1)
    return jnp.where(counted.any(axis=-1), loss, 0)
