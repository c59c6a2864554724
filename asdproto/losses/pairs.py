"""Contrastive losses within a batch: supervised contrastive and NT-Xent."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from asdproto.losses.numerics import (
    accumulator,
    as_float,
    as_labels,
    as_mask,
    dots,
    gram,
    keep,
    masked_logsumexp,
    masked_mean,
    positive,
    replicated,
    softplus,
)

# One anchor's logits [N], which of them are positives and which are negatives, to its loss.
Anchor = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def supervised_contrastive_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 0.1,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    r"""Mean over an anchor's positives of -log softmax among all others of the batch (SupCon).

    .. math::
       L_i = -\frac{1}{|P(i)|} \sum_{p \in P(i)}
             \log \frac{\exp(z_i \cdot z_p / \tau)}{\sum_{a \ne i} \exp(z_i \cdot z_a / \tau)}

    with :math:`P(i)` the other examples of the anchor's class. An anchor without positives gives 0.

    Args:
      embeddings: Floating, shape ``[examples, dim]``, unit length; all views of all clips in one
        batch.
      labels: Integer, shape ``[examples]``; an example with a negative label has no class: it
        gives 0 and is a negative to everyone.
      temperature: Positive scalar; may be traced.
      where: Boolean, shape ``[examples]``; excluded examples are neither anchors (they
        give 0) nor compared with.
      axis_name: Mapped axis that examples are spread over; each device's anchors are compared
        with the examples of all. Average gradients over devices, as for any mean.
      chunk_size: Anchors at a time; the number of examples must then be known, not symbolic.

    Returns:
      Loss per anchor, shape ``[examples]``, float32 (float64 if an argument is).

    Raises:
      ValueError: Shapes do not fit; the message names both.

    References:
      Khosla et al., Supervised Contrastive Learning, 2020, Eq. 2.

    Examples:
      >>> import jax.numpy as jnp
      >>> embeddings = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
      >>> loss = supervised_contrastive_loss(embeddings, jnp.array([0, 0, 1]), temperature=0.5)
      >>> [f"{x:.3f}" for x in loss]
      ['0.263', '0.913', '0.000']
    """

    def anchor(logits: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
        mean = masked_mean(logits, positive)
        loss = masked_logsumexp(logits, where=positive | negative) - mean
        return jnp.where(positive.any(), loss, 0)

    return _in_batch(anchor, embeddings, labels, temperature, where, axis_name, chunk_size)


def nt_xent_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 0.1,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    r"""Mean over an anchor's positives of -log softmax of each against the negatives (NT-Xent).

    .. math::
       L_i = -\frac{1}{|P(i)|} \sum_{p \in P(i)} \log \frac{\exp(z_i \cdot z_p / \tau)}
             {\exp(z_i \cdot z_p / \tau) + \sum_{n \in N(i)} \exp(z_i \cdot z_n / \tau)}

    with :math:`P(i)` the other examples of the anchor's class and :math:`N(i)` those of other
    classes. For two views of every clip, as in SimCLR, give both views the clip's index as label:
    then an anchor has one positive. Unlike in SupCon, positives do not compete with each other.
    An anchor without positives gives 0; so does one without negatives.

    Arguments and results are those of :func:`supervised_contrastive_loss`.

    References:
      Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020.
      Sohn, Improved Deep Metric Learning with Multi-class N-pair Loss Objective, 2016.

    Examples:
      >>> import jax.numpy as jnp
      >>> embeddings = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
      >>> [f"{x:.3f}" for x in nt_xent_loss(embeddings, jnp.array([0, 0, 1]), temperature=0.5)]
      ['0.263', '0.913', '0.000']
    """

    def anchor(logits: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
        negatives = masked_logsumexp(logits, where=negative)
        each = softplus(negatives - jnp.where(positive, logits, 0))
        return masked_mean(each, positive)

    return _in_batch(anchor, embeddings, labels, temperature, where, axis_name, chunk_size)


def _in_batch(
    anchor: Anchor,
    embeddings: ArrayLike,
    labels: ArrayLike,
    temperature: ArrayLike,
    where: ArrayLike | None,
    axis_name: str | None,
    chunk_size: int | None,
) -> jax.Array:
    """Compares every anchor with all examples of all devices."""
    embeddings = as_float("embeddings", embeddings)
    if embeddings.ndim != 2:
        raise ValueError(
            "embeddings must have shape [examples, dim] (use vmap for several batches); found "
            f"{embeddings.shape} with labels {jnp.shape(labels)}"
        )
    examples = embeddings.shape[0]
    labels = as_labels(labels, embeddings)
    counted = jnp.ones_like(labels, bool)
    if where is not None:
        counted = as_mask("where", where, labels.shape)
        embeddings = keep(embeddings, counted)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, found {chunk_size}")
    scale = 1 / positive("temperature", temperature, accumulator(embeddings))
    # Beside zeros that are spread over devices as the labels are.
    place = jnp.arange(examples, dtype=jnp.int32) + jnp.zeros_like(labels, jnp.int32)
    if axis_name is not None:
        place += lax.axis_index(axis_name) * examples
    anchors = labels, counted, place
    contrasts, everyone = jax.tree.map(replicated, (embeddings, anchors))
    if axis_name is not None:
        contrasts, everyone = lax.all_gather((contrasts, everyone), axis_name, tiled=True)

    def one(scores: jax.Array, label: jax.Array, counted: jax.Array, place: jax.Array) -> jax.Array:
        labels, all_counted, places = everyone
        pair = counted & all_counted & (place != places)
        same = (label == labels) & (label >= 0)
        # An anchor without a class has no positives, and so, counted or not, gives 0.
        return anchor(scores * scale, pair & same, pair & ~same)

    if chunk_size is None or chunk_size >= examples:
        alone = contrasts is embeddings
        return jax.vmap(one)(gram(embeddings) if alone else dots(embeddings, contrasts), *anchors)

    # The scores of a block of anchors are computed again for its gradient instead of kept.
    @jax.checkpoint
    def scored(z: jax.Array, *anchor: jax.Array) -> jax.Array:
        return one(dots(z, contrasts), *anchor)

    each = jax.tree.map(replicated, (embeddings, *anchors))
    return lax.map(lambda x: scored(*x), each, batch_size=chunk_size)
