"""Softmax over learned prototypes, and other losses against them: proxies, centers, anchors.

Prototypes here are parameters of the model; bring them and embeddings to unit length first, with
:func:`asdproto.prototypes.l2_normalize`, where a docstring says so.
"""

import functools
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from asdproto.losses.distance import prototypical_network_loss
from asdproto.losses.numerics import (
    as_float,
    as_labels,
    as_mask,
    dots,
    dots_by_center,
    expand,
    keep,
    masked_logsumexp,
    own_class,
    positive,
    scalar,
)
from asdproto.losses.softmax import Options, nll


def proxy_softmax_logits(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    *,
    temperature: ArrayLike = 0.05,
    bias: ArrayLike | None = None,
) -> jax.Array:
    r"""Logits of the softmax over learned prototypes, :math:`z \cdot w_c / \tau + b_c`.

    The bias is ``[classes]``. Of unit vectors and a small temperature this is the normalized
    softmax; of any length, with ``temperature=1`` and a bias, the last layer of a classifier.

    References:
      Zhai and Wu, Classification is a Strong Baseline for Deep Metric Learning, 2019.
      Movshovitz-Attias et al., No Fuss Distance Metric Learning using Proxies, 2017.
    """
    scores = dots(embeddings, prototypes)
    scores /= positive("temperature", temperature, scores.dtype)
    if bias is None:
        return scores
    return scores + expand(_per_class("bias", bias, prototypes).astype(scores.dtype), scores.ndim)


def proxy_softmax_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 0.05,
    bias: ArrayLike | None = None,
    **options: Unpack[Options],
) -> jax.Array:
    """Minus the log-softmax of :func:`proxy_softmax_logits` (normalized softmax, proxy NLL).

    Examples:
      >>> z, label = jnp.array([1.0, 0.0]), 0
      >>> loss = proxy_softmax_loss(z, jnp.eye(2), label, temperature=0.5)
      >>> print(f"{loss:.3f}, plainly {-jax.nn.log_softmax(z / 0.5)[label]:.3f}")
      0.127, plainly 0.127
    """
    bias = None if bias is None else _per_class("bias", bias, prototypes)

    def logits(z: jax.Array, classes: Any, labels: jax.Array) -> jax.Array:
        return proxy_softmax_logits(z, classes[0], temperature=temperature, bias=classes[1])

    return nll(logits, embeddings, (prototypes, bias), labels, **options)


def logit_adjusted_logits(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    counts: ArrayLike,
    *,
    temperature: ArrayLike = 0.05,
    adjustment: ArrayLike = 1.0,
) -> jax.Array:
    r"""Logits that expect frequent classes more, :math:`z \cdot w_c / \tau + a \log n_c`.

    ``counts``, floating ``[classes]``, are training examples of each; less than one counts as one.
    Scoring without the second term is then balanced over classes.

    References:
      Menon et al., Long-tail Learning via Logit Adjustment, 2021, Eq. 10.
    """
    logits = proxy_softmax_logits(embeddings, prototypes, temperature=temperature)
    log_counts = jnp.log(jnp.maximum(_per_class("counts", counts, prototypes), 1))
    weight = scalar("adjustment", adjustment, logits.dtype)
    return logits + weight * expand(log_counts.astype(logits.dtype), logits.ndim)


def logit_adjusted_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    counts: ArrayLike,
    *,
    temperature: ArrayLike = 0.05,
    adjustment: ArrayLike = 1.0,
    **options: Unpack[Options],
) -> jax.Array:
    """Minus the log-softmax of :func:`logit_adjusted_logits`.

    Examples:
      >>> z, label, counts = jnp.array([0.8, 0.6]), 0, jnp.array([2.0, 20.0])
      >>> loss = logit_adjusted_loss(z, jnp.eye(2), label, counts, temperature=0.5)
      >>> logits = z @ jnp.eye(2) / 0.5 + jnp.log(counts)
      >>> print(f"{loss:.3f}, plainly {-jax.nn.log_softmax(logits)[label]:.3f}")
      2.042, plainly 2.042
    """

    def logits(z: jax.Array, classes: Any, labels: jax.Array) -> jax.Array:
        return logit_adjusted_logits(
            z, classes[0], classes[1], temperature=temperature, adjustment=adjustment
        )

    counts = _per_class("counts", counts, prototypes)
    return nll(logits, embeddings, (prototypes, counts), labels, **options)


def focal_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    focus: ArrayLike = 2.0,
    temperature: ArrayLike = 0.05,
    bias: ArrayLike | None = None,
    **options: Unpack[Options],
) -> jax.Array:
    r"""Softmax cross entropy that counts less what is certain already (focal loss).

    .. math:: -(1 - p_y)^\gamma \log p_y, \quad p = \mathrm{softmax}(z \cdot w / \tau + b)

    It is no softmax itself, and so has no logits; the p are those of :func:`proxy_softmax_logits`.
    Any other log-likelihood becomes focal by ``(1 - exp(-loss)) ** focus * loss``.

    References:
      Lin et al., Focal Loss for Dense Object Detection, 2017, Eq. 4.

    Examples:
      >>> z, label = jnp.array([0.8, 0.6]), 0
      >>> loss = focal_loss(z, jnp.eye(2), label, temperature=0.5)
      >>> p = jax.nn.softmax(z / 0.5)[label]
      >>> print(f"{loss:.4f}, plainly {-((1 - p) ** 2) * jnp.log(p):.4f}")
      0.0826, plainly 0.0826
    """
    loss = proxy_softmax_loss(
        embeddings, prototypes, labels, temperature=temperature, bias=bias, **options
    )
    miss = -jnp.expm1(-loss)
    certain = miss <= 0  # and not "> 0": nan must stay nan
    power = scalar("focus", focus, loss.dtype) * jnp.log(jnp.where(certain, 1, miss))
    return jnp.where(certain, 0, jnp.exp(power)) * loss


def proxy_nca_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 1 / 9,
    **options: Unpack[Options],
) -> jax.Array:
    """Softmax over squared distances to learned unit proxies, the own one among them (ProxyNCA++).

    :func:`prototypical_network_loss` of learned unit prototypes, at another temperature.

    References:
      Teh et al., ProxyNCA++: Revisiting and Revitalizing Proxy Neighborhood Component Analysis,
      2020, Eq. 4.

    Examples:
      >>> z, label = jnp.array([0.8, 0.6]), 1
      >>> loss = proxy_nca_loss(z, jnp.eye(2), label)
      >>> logits = -9 * jnp.sum((z - jnp.eye(2)) ** 2, axis=1)
      >>> print(f"{loss:.3f}, plainly {-jax.nn.log_softmax(logits)[label]:.3f}")
      3.627, plainly 3.627
    """
    return prototypical_network_loss(
        embeddings, prototypes, labels, temperature=temperature, **options
    )


def soft_triple_logits(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 0.1,
    margin: ArrayLike = 0.01,
    scale: ArrayLike = 20.0,
) -> jax.Array:
    r"""Scaled similarities to classes of several centers, the near ones weighing more (SoftTriple).

    .. math:: \lambda (S_c - \delta \, [c = y]), \quad
       S_c = \sum_m \mathrm{softmax}_m(z \cdot w_{c,m} / \gamma) \; z \cdot w_{c,m}

    Prototypes are ``[classes, centers, dim]``; ``temperature`` is that of the choice among centers.
    The paper's further term, which merges centers, knows no examples and is left to the caller.

    References:
      Qian et al., SoftTriple Loss: Deep Metric Learning Without Triplet Sampling, 2019, Eq. 8.
    """
    scores = dots_by_center(embeddings, prototypes)
    weights = jax.nn.softmax(scores / positive("temperature", temperature, scores.dtype), axis=-2)
    similarity = jnp.sum(weights * scores, axis=-2)
    own = own_class(labels, similarity.shape[-1])
    less = jnp.where(own, scalar("margin", margin, similarity.dtype), 0)
    return positive("scale", scale, similarity.dtype) * (similarity - less)


def soft_triple_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 0.1,
    margin: ArrayLike = 0.01,
    scale: ArrayLike = 20.0,
    **options: Unpack[Options],
) -> jax.Array:
    """Minus the log-softmax of :func:`soft_triple_logits`.

    Examples:
      >>> z, label = jnp.array([0.8, 0.6]), 0
      >>> p = jnp.array([[[1.0, 0], [0.6, 0.8]], [[0, 1.0], [0, 1.0]]])
      >>> loss = soft_triple_loss(z, p, label, scale=4.0)
      >>> similarity = jnp.sum(jax.nn.softmax(p @ z / 0.1) * (p @ z), axis=1)
      >>> logits = 4 * (similarity - jnp.array([0.01, 0]))
      >>> print(f"{loss:.3f}, plainly {-jax.nn.log_softmax(logits)[label]:.3f}")
      0.243, plainly 0.243
    """
    logits = functools.partial(
        soft_triple_logits, temperature=temperature, margin=margin, scale=scale
    )
    return nll(logits, embeddings, prototypes, labels, ndim=3, **options)


def proxy_anchor_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 0.1,
    scale: ArrayLike = 32.0,
    where: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
) -> jax.Array:
    r"""Every proxy against the examples of the batch (Proxy-Anchor).

    .. math::
       L_c = \frac{C}{C^+} \log \Big(1 + \sum_{i: y_i = c} e^{-s (z_i \cdot w_c - m)}\Big) +
             \log \Big(1 + \sum_{i: y_i \ne c} e^{s (z_i \cdot w_c + m)}\Big)

    with :math:`C^+` the classes that have an example. Embeddings are ``[examples, dim]``. The
    anchors are the classes, so this fits no softmax and is **one number a class**, 0 where no
    example counts; its mean over the classes is the paper's loss. An example without a class is a
    negative to everyone, as is one of a class that ``class_where`` excludes. There is no
    ``chunk_size``.

    References:
      Kim et al., Proxy Anchor Loss for Deep Metric Learning, 2020, Eq. 4.

    Examples:
      >>> z, labels = jnp.array([[0.8, 0.6], [0.6, 0.8]]), jnp.array([0, 0])
      >>> loss = proxy_anchor_loss(z, jnp.eye(2), labels, scale=2.0)
      >>> positive = jnp.log(1 + jnp.exp(-2 * (z[:, 0] - 0.1)).sum())
      >>> negative = jnp.log(1 + jnp.exp(2 * (z[:, 1] + 0.1)).sum())
      >>> print(f"{loss[0]:.3f} {loss[1]:.3f}, plainly {2 * positive:.3f} {negative:.3f}")
      0.958 2.407, plainly 0.958 2.407
    """
    embeddings, prototypes = as_float("embeddings", embeddings), as_float("prototypes", prototypes)
    classes = jnp.shape(prototypes)[0]
    labels = as_labels(labels, embeddings, classes)
    counted, present = jnp.ones_like(labels, bool), jnp.ones(classes, bool)
    if where is not None:
        counted = as_mask("where", where, labels.shape)
    if class_where is not None:
        present = as_mask("class_where", class_where, (classes,))
    cosine = dots(keep(embeddings, counted), keep(prototypes, present))
    scale, margin = positive("scale", scale, cosine.dtype), scalar("margin", margin, cosine.dtype)
    own = own_class(labels, classes)
    pull, push = own & counted[:, None], ~own & counted[:, None]
    positives = masked_logsumexp(-scale * (cosine - margin), where=pull, axis=0)
    negatives = masked_logsumexp(scale * (cosine + margin), where=push, axis=0)
    with_positives = pull.any(axis=0) & present
    share = jnp.sum(present) / jnp.maximum(jnp.sum(with_positives), 1)
    pulled = jnp.where(with_positives, share.astype(cosine.dtype) * jax.nn.softplus(positives), 0)
    return pulled + jnp.where(present & push.any(axis=0), jax.nn.softplus(negatives), 0)


def _per_class(name: str, x: ArrayLike, prototypes: ArrayLike) -> jax.Array:
    """A number a class."""
    x = as_float(name, x)
    if x.shape != jnp.shape(prototypes)[:1]:
        raise ValueError(
            f"{name} must have shape [classes]; found {name} {x.shape} and prototypes "
            f"{jnp.shape(prototypes)}"
        )
    return x
