"""The one softmax behind every loss against prototypes: masks and chunks around an equation.

A loss against prototypes is ``nll(logits, embeddings, prototypes, labels)``, minus the log of the
softmax of the own class. ``logits`` is the equation of the loss, a plain function; everything that
all losses share is added here, once. The own logit is kept apart from the logsumexp of all others,
because ::

    -log(exp(own) / (exp(own) + sum(exp(others)))) = softplus(logsumexp(others) - own)

keeps every digit of a loss near 0, and because both are sums over classes, which can be taken for a
chunk of the classes at a time.
"""

from collections.abc import Callable
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from asdproto.losses.numerics import (
    LOG_ZERO,
    accumulator,
    as_float,
    as_labels,
    as_mask,
    as_pairs,
    check_vectors,
    expand,
    keep,
    masked_logsumexp,
    own_class,
    own_scores,
)

# (examples, classes, labels, *pairs) -> logits [..., C] or [..., C, M], or a tuple of these and of
# further negatives of the same shape.
Logits = Callable[..., Any]


class Options(TypedDict, total=False):
    """Keywords of every loss against prototypes; :mod:`asdproto.losses` says what they mean."""

    where: ArrayLike | None
    class_where: ArrayLike | None
    chunk_size: int | None


def nll(
    logits: Logits,
    examples: Any,
    classes: Any,
    labels: ArrayLike,
    pairs: tuple[Any, ...] = (),
    *,
    ndim: int = 2,
    joint: bool = False,
    **options: Unpack[Options],
) -> jax.Array:
    """Minus the log-softmax of the own class.

    Args:
      logits: The equation, ``(examples, classes, labels, *pairs) -> [..., C]`` or ``[..., C, M]``.
      examples: Embeddings ``[..., D]``, or a tuple that begins with them; all lead with ``[...]``.
      classes: Prototypes ``[C, ..., D]``, or a tuple that begins with them; all lead with ``[C]``.
      labels: Integer, shape ``[...]``.
      pairs: Arrays ``[..., C, ...]``, one entry a pair of example and class.
      ndim: Axes of the prototypes: 2, or 3 for several a class.
      joint: Of M own logits, whether their joint probability counts, or the mean over each (Eq. 3).
      **options: See :mod:`asdproto.losses`.

    Returns:
      Loss per example, shape ``[...]``; 0 where nothing counts.
    """
    own, counted, others = compare(logits, examples, classes, labels, pairs, ndim=ndim, **options)
    log_sum = masked_logsumexp(own, where=counted, axis=-1)
    loss = jax.nn.softplus(others - log_sum)
    if not joint:
        count = jnp.sum(counted, axis=-1).astype(own.dtype)
        loss += log_sum - jnp.sum(own, axis=-1) / jnp.maximum(count, 1)
    return jnp.where(counted.any(axis=-1), loss, 0)


def compare(
    logits: Logits,
    examples: Any,
    classes: Any,
    labels: ArrayLike,
    pairs: tuple[Any, ...] = (),
    *,
    ndim: int = 2,
    where: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
    chunk_size: int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compares every example with its own class and with all others; arguments as :func:`nll`.

    Returns:
      Logits of the own class's M prototypes, shape ``[..., M]``, 0 where they do not count; which
      of them count, none for an example whose loss is 0; and the logsumexp of all other logits,
      shape ``[...]``.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, found {chunk_size}")
    examples = jax.tree.map(lambda x: as_float("embeddings", x), examples)
    classes = jax.tree.map(lambda x: as_float("prototypes", x), classes)
    embeddings, prototypes = jax.tree.leaves(examples)[0], jax.tree.leaves(classes)[0]
    check_vectors(embeddings, prototypes, (ndim,))
    batch, num_classes = embeddings.shape[:-1], prototypes.shape[0]
    counted = counted_examples(embeddings, prototypes, labels, where, class_where)
    labels = as_labels(labels, embeddings, num_classes)
    pairs = jax.tree.map(lambda x: as_pairs(x, (*batch, *prototypes.shape[:-1])), pairs)
    present = None if class_where is None else jnp.asarray(class_where).astype(bool)
    # What does not count may hold anything, even nan, of which a product with 0 makes nan.
    examples = jax.tree.map(lambda x: keep(x, counted), examples)
    if present is not None:
        classes = jax.tree.map(lambda x: keep(x, present), classes)

    def chunk(first: jax.Array | int, examples: Any, classes: Any, pairs: Any, present: Any) -> Any:
        # Not before they are cut into chunks, which would copy the largest array there is.
        pairs = jax.tree.map(lambda x: keep(x, counted), pairs)
        if present is not None:
            pairs = jax.tree.map(lambda x: keep(x, present, len(batch)), pairs)
        return _compare_all(logits, examples, classes, labels - first, pairs, present)

    if chunk_size is None or chunk_size >= num_classes:
        own, own_counted, others = chunk(0, examples, classes, pairs, present)
    else:
        own, own_counted, others = _by_chunks(
            chunk, examples, classes, pairs, present, chunk_size, len(batch), num_classes
        )
    own_counted &= counted[..., None]
    return jnp.where(own_counted, own, 0), own_counted, others


def counted_examples(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    where: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Which examples count, boolean ``[...]``: with a class that does, and not excluded."""
    del chunk_size
    shape = jnp.shape(prototypes)[:-1]
    labels = as_labels(labels, jnp.asarray(embeddings), shape[0])
    counted = (labels >= 0) & (labels < shape[0])
    if class_where is not None:
        present = jnp.asarray(class_where).astype(bool)
        if present.shape not in (shape[:1], shape):
            raise ValueError(
                "class_where must have shape [classes], or [classes, per_class] for several "
                f"prototypes a class; found {present.shape} for prototypes {jnp.shape(prototypes)}"
            )
        own = own_class(labels, shape[0])
        counted = (own & expand(present.reshape(shape[0], -1).any(axis=1), own.ndim)).any(axis=-1)
    if where is not None:
        counted &= as_mask("where", where, counted.shape)
    return counted


def _compare_all(
    logits: Logits, examples: Any, classes: Any, labels: jax.Array, pairs: Any, present: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Own logits ``[..., M]``, which of them count, and the logsumexp of the others ``[...]``."""
    scores = logits(examples, classes, labels, *pairs)
    scores, *negatives = scores if isinstance(scores, tuple) else (scores,)
    lead, num_classes = labels.shape, scores.shape[labels.ndim]
    if scores.ndim == labels.ndim + 1:
        if present is not None and present.ndim > 1:
            raise ValueError(f"class_where must have shape [classes], found {present.shape}")
        scores = scores[..., None]
    per_class = scores.shape[-1]
    own = own_scores(scores, labels)
    own_counted = jnp.ones_like(own, bool)
    # Rows of C * M: a last axis that is short is slow.
    rows = (*lead, num_classes * per_class)
    position = lax.broadcasted_iota(jnp.int32, (*(1 for _ in lead), rows[-1]), len(lead))
    other = lax.div(position, jnp.int32(per_class)) != labels[..., None]
    negatives = [x.reshape(rows) for x in negatives]
    if present is not None:
        present = jnp.broadcast_to(present.reshape(num_classes, -1), (num_classes, per_class))
        present = jnp.expand_dims(present, range(len(lead)))
        own_counted = (own_class(labels, num_classes)[..., None] & present).any(axis=-2)
        present = present.reshape(position.shape)
        other &= present
        negatives = [jnp.where(present, x, LOG_ZERO) for x in negatives]
    others = jnp.where(other, scores.reshape(rows), LOG_ZERO)
    return own, own_counted, masked_logsumexp(others, *negatives, axis=-1)


def _by_chunks(
    compare_chunk: Callable[..., Any],
    examples: Any,
    classes: Any,
    pairs: Any,
    present: jax.Array | None,
    chunk_size: int,
    batch_ndim: int,
    num_classes: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compares with a chunk of the classes at a time, and adds the chunks up.

    The logits of a chunk are computed again for its gradient instead of kept.
    """
    # Chunks of equal size, where a divisor is near; else zeros that do not count fill up the last
    # one, which copies all arrays.
    divisors = (n for n in range(chunk_size, chunk_size // 2, -1) if num_classes % n == 0)
    size = next(divisors, chunk_size)
    chunks = -(-num_classes // size)
    if rest := chunks * size - num_classes:

        def fill_up(x: jax.Array, axis: int = 0) -> jax.Array:
            return jnp.pad(x, [(0, rest if i == axis else 0) for i in range(x.ndim)])

        present = fill_up(jnp.ones(num_classes, bool) if present is None else present)
        classes = jax.tree.map(fill_up, classes)
        pairs = jax.tree.map(lambda x: fill_up(x, batch_ndim), pairs)
    # Cast here and back within a chunk, so that the gradients of chunks are summed in float32.
    dtypes = jax.tree.map(lambda x: x.dtype, examples)
    wide = jax.tree.map(lambda x: x.astype(accumulator(x)), examples)

    # The loop gets classes cut into chunks, because the gradient of a slice has the size of the
    # whole; it slices pairs itself, which copies nothing.
    @jax.checkpoint
    def step(first: jax.Array, cut: Any) -> Any:
        narrow = jax.tree.map(lambda x, dtype: x.astype(dtype), wide, dtypes)
        sliced = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first, size, batch_ndim), pairs)
        return compare_chunk(first, narrow, cut[0], sliced, cut[1])

    cut = jax.tree.map(lambda x: x.reshape(chunks, size, *x.shape[1:]), (classes, present))
    first = jnp.arange(chunks, dtype=jnp.int32) * size
    own, own_counted, others = lax.map(lambda part: step(*part), (first, cut))
    return own.sum(axis=0), own_counted.any(axis=0), masked_logsumexp(others, axis=0)
