"""Contrastive losses within a batch: supervised contrastive and NT-Xent."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from asdproto.losses import _checks, _numerics

Rows = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
# Embeddings, labels, which count, and their places in the whole batch.
Batch = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


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

    def rows(scores: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
        everything = _numerics.masked_logsumexp([scores], positive | negative)
        count = jnp.sum(positive, axis=-1)
        mean = jnp.sum(jnp.where(positive, scores, 0), axis=-1) / jnp.maximum(count, 1)
        return jnp.where(count > 0, everything - mean, 0)

    return _in_batch(rows, embeddings, labels, temperature, where, axis_name, chunk_size)


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

    def rows(scores: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
        others = _numerics.masked_logsumexp([scores], negative)[..., None]
        each = _numerics.softplus(others - jnp.where(positive, scores, 0))
        count = jnp.sum(positive, axis=-1)
        return jnp.sum(jnp.where(positive, each, 0), axis=-1) / jnp.maximum(count, 1)

    return _in_batch(rows, embeddings, labels, temperature, where, axis_name, chunk_size)


def _in_batch(
    rows: Rows,
    embeddings: ArrayLike,
    labels: ArrayLike,
    temperature: ArrayLike,
    where: ArrayLike | None,
    axis_name: str | None,
    chunk_size: int | None,
) -> jax.Array:
    """Scores every anchor against all examples of all devices and hands the rows on."""
    embeddings, labels = _checks.check_batch(embeddings, labels)
    where = _checks.check_mask("where", where, labels.shape)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, found {chunk_size}")
    examples = labels.shape[0]
    scale = 1 / _checks.positive("temperature", temperature, _checks.accumulator(embeddings))
    counted = jnp.broadcast_to(True if where is None else where, labels.shape)
    embeddings = _numerics.keep(embeddings, where)
    place = jnp.arange(examples, dtype=jnp.int32)
    everyone = (embeddings, labels, counted, place)
    if axis_name is not None:
        place = place + lax.axis_index(axis_name) * examples
        everyone = lax.all_gather((embeddings, labels, counted, place), axis_name, tiled=True)

    def block(scores: jax.Array, anchors: Batch, everyone: Batch) -> jax.Array:
        labels, counted, place = (x[:, None] for x in anchors[1:])
        _, contrast_labels, contrast_counted, contrast_place = everyone
        pair = counted & contrast_counted & (place != contrast_place)
        same = (labels == contrast_labels) & (labels >= 0)
        # An anchor without a class has no positives, and so, counted or not, gives 0.
        return rows(scores * scale, pair & same, pair & ~same)

    def scored_block(anchors: Batch, everyone: Batch) -> jax.Array:
        return block(_numerics.dots(anchors[0], everyone[0]), anchors, everyone)

    anchors = (embeddings, labels, counted, place)
    if chunk_size is None or chunk_size >= examples:
        if axis_name is None:
            return block(_numerics.gram(embeddings), anchors, everyone)
        return scored_block(anchors, everyone)
    scored_block = jax.checkpoint(scored_block)
    whole = examples // chunk_size * chunk_size
    head = jax.tree.map(lambda x: x[:whole].reshape(-1, chunk_size, *x.shape[1:]), anchors)
    losses = lax.map(lambda anchors: scored_block(anchors, everyone), head).reshape(-1)
    if whole == examples:
        return losses
    rest = scored_block(jax.tree.map(lambda x: x[whole:], anchors), everyone)
    return jnp.concatenate([losses, rest])
