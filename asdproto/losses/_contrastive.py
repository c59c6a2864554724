"""Contrastive losses within a batch: supervised contrastive and NT-Xent."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from asdproto.losses import _checks, _numerics
from asdproto.losses._numerics import masked_logsumexp, softplus

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
      where: Boolean, broadcastable to ``[examples]``; excluded examples are neither anchors (they
        give 0) nor compared with.
      axis_name: Mapped axis that examples are spread over; each device's anchors are compared
        with the examples of all. Average gradients over devices, as for any mean.
      chunk_size: Anchors at a time. Values and gradients are the same; memory is
        ``[chunk_size, examples]``, and scores are computed twice.

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
        count = jnp.sum(positive)
        mean = jnp.sum(jnp.where(positive, logits, 0)) / jnp.maximum(count, 1)
        return jnp.where(count > 0, masked_logsumexp(logits, where=positive | negative) - mean, 0)

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

    Args:
      embeddings: Floating, shape ``[examples, dim]``, unit length.
      labels: Integer, shape ``[examples]``; an example with a negative label has no class: it
        gives 0 and is a negative to everyone.
      temperature: Positive scalar; may be traced.
      where: Boolean, broadcastable to ``[examples]``; excluded examples are neither anchors (they
        give 0) nor compared with.
      axis_name: Mapped axis that examples are spread over; see
        :func:`supervised_contrastive_loss`.
      chunk_size: Anchors at a time; see :func:`supervised_contrastive_loss`.

    Returns:
      Loss per anchor, shape ``[examples]``, float32 (float64 if an argument is).

    Raises:
      ValueError: Shapes do not fit; the message names both.

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
        return jnp.sum(jnp.where(positive, each, 0)) / jnp.maximum(jnp.sum(positive), 1)

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
    embeddings, labels = _checks.check_batch(embeddings, labels)
    where = _checks.check_mask("where", where, labels.shape)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, found {chunk_size}")
    examples = labels.shape[0]
    scale = 1 / _checks.positive("temperature", temperature, _checks.accumulator(embeddings))
    counted = jnp.broadcast_to(True if where is None else where, labels.shape)
    embeddings = _numerics.keep(embeddings, where)
    place = jnp.arange(examples, dtype=jnp.int32)
    if axis_name is not None:
        place += lax.axis_index(axis_name) * examples
    anchors = everyone = (labels, counted, place)
    contrasts = embeddings
    if axis_name is not None:
        contrasts, everyone = lax.all_gather((embeddings, everyone), axis_name, tiled=True)

    def one(scores: jax.Array, label: jax.Array, counted: jax.Array, place: jax.Array) -> jax.Array:
        labels, all_counted, places = everyone
        pair = counted & all_counted & (place != places)
        same = (label == labels) & (label >= 0)
        # An anchor without a class has no positives, and so, counted or not, gives 0.
        return anchor(scores * scale, pair & same, pair & ~same)

    if chunk_size is None or chunk_size >= examples:
        together = axis_name is None
        scores = _numerics.gram(embeddings) if together else _numerics.dots(embeddings, contrasts)
        return jax.vmap(one)(scores, *anchors)

    # The scores of a block of anchors are computed again for its gradient instead of kept.
    @jax.checkpoint
    def scored(z: jax.Array, *anchor: jax.Array) -> jax.Array:
        return one(_numerics.dots(z, contrasts), *anchor)

    return lax.map(lambda x: scored(*x), (embeddings, *anchors), batch_size=chunk_size)
