"""Losses of pairs within a batch: contrastive, triplet and their kin.

Each is an equation for one anchor: of its products with all examples, and of which of these are its
positives and negatives. :func:`_in_batch` takes it over the batch.
"""

from collections.abc import Callable
from typing import TypedDict, Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from asdproto.losses.numerics import (
    accumulator,
    as_labels,
    as_mask,
    as_paired_rows,
    as_rows,
    dots,
    gram,
    keep,
    masked_logsumexp,
    masked_mean,
    replicated,
    scalar,
    softplus,
)
from asdproto.losses.numerics import positive as positive_scalar
from asdproto.losses.prototype import prototypical_loss

# One anchor's products [N], which of them are positives and which are negatives, to its loss.
Anchor = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Options(TypedDict, total=False):
    """Keywords of every loss within a batch; :mod:`asdproto.losses` says what they mean."""

    where: ArrayLike | None
    axis_name: str | None
    chunk_size: int | None


def supervised_contrastive_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 0.1,
    **options: Unpack[Options],
) -> jax.Array:
    r"""Mean over an anchor's positives of -log softmax among all others of the batch (SupCon).

    .. math::
       L_i = -\frac{1}{|P(i)|} \sum_{p \in P(i)}
             \log \frac{\exp(z_i \cdot z_p / \tau)}{\sum_{a \ne i} \exp(z_i \cdot z_a / \tau)}

    with :math:`P(i)` the other examples of the anchor's class: all views of all clips in one batch.

    References:
      Khosla et al., Supervised Contrastive Learning, 2020, Eq. 2.

    Examples:
      >>> z = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
      >>> loss = supervised_contrastive_loss(z, jnp.array([0, 0, 1]), temperature=0.5)
      >>> print(f"{loss[0]:.3f}, plainly {-jax.nn.log_softmax(z[1:] @ z[0] / 0.5)[0]:.3f}")
      0.263, plainly 0.263
    """
    scale = _inverse("temperature", temperature, embeddings)

    def anchor(scores: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
        logits = scores * scale
        mean = masked_mean(logits, positive)
        return masked_logsumexp(logits, where=positive | negative) - mean

    return _in_batch(anchor, embeddings, labels, **options)


def nt_xent_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 0.1,
    **options: Unpack[Options],
) -> jax.Array:
    r"""Mean over an anchor's positives of -log softmax of each against the negatives (NT-Xent).

    .. math::
       L_i = -\frac{1}{|P(i)|} \sum_{p \in P(i)} \log \frac{\exp(z_i \cdot z_p / \tau)}
             {\exp(z_i \cdot z_p / \tau) + \sum_{n \in N(i)} \exp(z_i \cdot z_n / \tau)}

    with :math:`P(i)` the other examples of the anchor's class and :math:`N(i)` those of other
    classes; without negatives an anchor gives 0. For two views of every clip, as in SimCLR, give
    both views the clip's index as label: then an anchor has one positive. Unlike in SupCon,
    positives do not compete with each other.

    References:
      Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020.
      Sohn, Improved Deep Metric Learning with Multi-class N-pair Loss Objective, 2016.

    Examples:
      >>> z = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
      >>> loss = nt_xent_loss(z, jnp.array([0, 0, 1]), temperature=0.5)
      >>> positive, negative = jnp.exp(z[1:] @ z[0] / 0.5)
      >>> print(f"{loss[0]:.3f}, plainly {-jnp.log(positive / (positive + negative)):.3f}")
      0.263, plainly 0.263
    """
    scale = _inverse("temperature", temperature, embeddings)

    def anchor(scores: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
        logits = scores * scale
        negatives = masked_logsumexp(logits, where=negative)
        each = softplus(negatives - jnp.where(positive, logits, 0))
        return masked_mean(each, positive)

    return _in_batch(anchor, embeddings, labels, **options)


def multi_similarity_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike = 2.0,
    beta: ArrayLike = 50.0,
    base: ArrayLike = 0.5,
    **options: Unpack[Options],
) -> jax.Array:
    r"""Soft weights on positives less similar, and negatives more similar, than a base.

    .. math::
       L_i = \frac{1}{\alpha} \log \Big(1 + \sum_{p \in P(i)} e^{-\alpha (z_i \cdot z_p - b)}\Big)
           + \frac{1}{\beta} \log \Big(1 + \sum_{n \in N(i)} e^{\beta (z_i \cdot z_n - b)}\Big)

    Pairs are not mined.

    References:
      Wang et al., Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning, 2019,
      Eq. 17.

    Examples:
      >>> z = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
      >>> loss = multi_similarity_loss(z, jnp.array([0, 0, 1]))
      >>> pull = jnp.log(1 + jnp.exp(-2 * (0.6 - 0.5))) / 2
      >>> push = jnp.log(1 + jnp.exp(50 * (0.0 - 0.5))) / 50
      >>> print(f"{loss[0]:.3f}, plainly {pull + push:.3f}")
      0.299, plainly 0.299
    """
    dtype = accumulator(jnp.asarray(embeddings))
    a, b = positive_scalar("alpha", alpha, dtype), positive_scalar("beta", beta, dtype)
    middle = scalar("base", base, dtype)

    def anchor(scores: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
        pull = masked_logsumexp(-a * (scores - middle), where=positive)
        push = masked_logsumexp(b * (scores - middle), where=negative)
        return softplus(pull) / a + softplus(push) / b

    return _in_batch(anchor, embeddings, labels, **options)


def circle_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 0.4,
    scale: ArrayLike = 80.0,
    **options: Unpack[Options],
) -> jax.Array:
    r"""Every pair weighed by its distance from its optimum (circle loss).

    .. math::
       L_i = \log \Big(1 + \sum_{n \in N(i)} e^{s a_n (c_n - m)}
             \sum_{p \in P(i)} e^{-s a_p (c_p - 1 + m)}\Big), \quad
       a_n = [c_n + m]_+, \quad a_p = [1 + m - c_p]_+, \quad c_j = z_i \cdot z_j

    The weights a have no gradient.

    References:
      Sun et al., Circle Loss: A Unified Perspective of Pair Similarity Optimization, 2020, Eq. 6.

    Examples:
      >>> z = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
      >>> loss = circle_loss(z, jnp.array([0, 0, 1]), margin=0.4, scale=4.0)
      >>> pull, push = -4 * (1.4 - 0.6) * (0.6 - 0.6), 4 * (0.0 + 0.4) * (0.0 - 0.4)
      >>> print(f"{loss[0]:.3f}, plainly {jnp.log(1 + jnp.exp(pull + push)):.3f}")
      0.423, plainly 0.423
    """
    dtype = accumulator(jnp.asarray(embeddings))
    m, s = scalar("margin", margin, dtype), positive_scalar("scale", scale, dtype)

    def anchor(scores: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
        fixed = lax.stop_gradient(scores)
        pull = -s * jnp.maximum(1 + m - fixed, 0) * (scores - (1 - m))
        push = s * jnp.maximum(fixed + m, 0) * (scores - m)
        return softplus(
            masked_logsumexp(pull, where=positive) + masked_logsumexp(push, where=negative)
        )

    return _in_batch(anchor, embeddings, labels, **options)


def triplet_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 0.2,
    hard: bool = False,
    **options: Unpack[Options],
) -> jax.Array:
    r"""Positives nearer than negatives by a margin, of all triplets or the hardest (triplet loss).

    .. math::
       L_i = \frac{1}{|P(i)| |N(i)|} \sum_{p, n} [m + d_{ip} - d_{in}]_+ \quad \text{or} \quad
       L_i = [m + \max_p d_{ip} - \min_n d_{in}]_+, \qquad d_{ij} = \lVert z_i - z_j \rVert

    ``hard`` takes an anchor's farthest positive and nearest negative only. Time and memory grow
    with the pairs, not the triplets. An anchor without negatives gives 0.

    References:
      Hermans et al., In Defense of the Triplet Loss for Person Re-Identification, 2017, Eq. 5, 6.

    Examples:
      >>> z = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
      >>> loss = triplet_loss(z, jnp.array([0, 0, 1]), margin=1.0)
      >>> far, near = jnp.linalg.norm(z[0] - z[1]), jnp.linalg.norm(z[0] - z[2])
      >>> print(f"{loss[0]:.3f}, plainly {1 + far - near:.3f}")
      0.480, plainly 0.480
    """
    m = scalar("margin", margin, accumulator(jnp.asarray(embeddings)))

    def anchor(scores: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
        apart = 2 - 2 * scores  # of unit vectors
        same = apart <= 0  # where the root has no gradient; and not "> 0": nan must stay nan
        distance = jnp.where(same, 0, jnp.sqrt(jnp.where(same, 1, apart)))
        if hard:
            far = jnp.max(jnp.where(positive, distance, 0), initial=0)
            near = jnp.min(jnp.where(negative, distance, 2), initial=2)
            return jnp.where(negative.any(), jnp.maximum(m + far - near, 0), 0)
        # Of all triplets without making them: sorted, a positive exceeds the negatives before it,
        # and a negative is exceeded by the positives behind it. These counts have no gradient.
        reach = jnp.where(positive, m + distance, distance)
        position = jnp.arange(reach.shape[0], dtype=jnp.int32) + jnp.zeros_like(positive, jnp.int32)
        order = lax.sort((lax.stop_gradient(reach), position, positive, negative), num_keys=1)[1:]
        position, positives, negatives = (x.astype(jnp.int32) for x in order)
        times = lax.cumsum(negatives) * positives
        times -= lax.cumsum(positives, reverse=True) * negatives
        times = lax.sort((position, times), num_keys=1)[1].astype(reach.dtype)
        total = jnp.sum(jnp.where(positive | negative, times * reach, 0))
        triplets = jnp.sum(positives.astype(reach.dtype)) * jnp.sum(negatives.astype(reach.dtype))
        return total / jnp.maximum(triplets, 1)

    return _in_batch(anchor, embeddings, labels, **options)


def n_pair_loss(
    embeddings: ArrayLike, positives: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    r"""One positive an example, and those of all others as negatives (multi-class N-pair loss).

    .. math:: L_i = \log \Big(1 + \sum_{j \ne i} e^{z_i \cdot p_j - z_i \cdot p_i}\Big)

    The prototypical loss with the positives as prototypes, a class each, at temperature 1.
    Embeddings and positives are ``[examples, dim]``, of any length: two examples of each class, no
    class twice. What ``where`` excludes is no negative either. The paper's further term, the mean
    squared length, is left to the caller.

    References:
      Sohn, Improved Deep Metric Learning with Multi-class N-pair Loss Objective, 2016, Eq. 6.

    Examples:
      >>> z, p = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([[1.0, 0.0], [1.0, 1.0]])
      >>> loss, plain = n_pair_loss(z, p), -jnp.diag(jax.nn.log_softmax(z @ p.T))
      >>> print(loss, plain)
      [0.693... 0.313...] [0.693... 0.313...]
    """
    embeddings, positives = as_paired_rows(embeddings=embeddings, positives=positives)
    labels = jnp.arange(embeddings.shape[0]) + jnp.zeros_like(embeddings[:, 0], int)
    present = None if where is None else replicated(jnp.asarray(where))
    return prototypical_loss(
        embeddings, replicated(positives), labels, temperature=1.0, where=where, class_where=present
    )


def _inverse(name: str, value: ArrayLike, embeddings: ArrayLike) -> jax.Array:
    return 1 / positive_scalar(name, value, accumulator(jnp.asarray(embeddings)))


def _in_batch(
    anchor: Anchor,
    embeddings: ArrayLike,
    labels: ArrayLike,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Compares every anchor with all examples of all devices."""
    embeddings = as_rows("embeddings", embeddings)
    examples = embeddings.shape[0]
    labels = as_labels(labels, embeddings)
    counted = jnp.ones_like(labels, bool)
    if where is not None:
        counted = as_mask("where", where, labels.shape)
        embeddings = keep(embeddings, counted)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, found {chunk_size}")
    # A sum with zeros that are spread over devices as the embeddings are is spread so, too.
    zeros = jnp.zeros_like(embeddings[:, 0], bool)
    position = jnp.arange(examples, dtype=jnp.int32) + zeros.astype(jnp.int32)
    labels = replicated(labels) + zeros.astype(labels.dtype)
    counted = replicated(counted) | zeros
    if axis_name is not None:
        position += lax.axis_index(axis_name) * examples
    anchors = labels, counted, position
    contrasts, everyone = jax.tree.map(replicated, (embeddings, anchors))
    if axis_name is not None:
        contrasts, everyone = lax.all_gather((contrasts, everyone), axis_name, tiled=True)

    def one(
        scores: jax.Array, label: jax.Array, counted: jax.Array, position: jax.Array
    ) -> jax.Array:
        labels, all_counted, positions = everyone
        pair = counted & all_counted & (position != positions)
        same = (label == labels) & (label >= 0)
        # An anchor without a class, or not counted, has no positives either.
        return jnp.where((pair & same).any(), anchor(scores, pair & same, pair & ~same), 0)

    if chunk_size is None or chunk_size >= examples:
        alone = contrasts is embeddings
        return jax.vmap(one)(gram(embeddings) if alone else dots(embeddings, contrasts), *anchors)

    # The scores of a block of anchors are computed again for its gradient instead of kept.
    @jax.checkpoint
    def scored(z: jax.Array, *anchor: jax.Array) -> jax.Array:
        return one(dots(z, contrasts), *anchor)

    each = jax.tree.map(replicated, (embeddings, *anchors))
    return lax.map(lambda x: scored(*x), each, batch_size=chunk_size)
