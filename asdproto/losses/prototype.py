"""Losses against class prototypes: Eq. 1 (PL), Eq. 3 (MPE), Eq. 6 (NPE), and the last two together.

The equations are :func:`prototypical_logits` and :func:`negative_prototype_logits`; every loss is
minus the log-softmax of one of them.

References:
  Zeng et al., Robust Prototype Learning for Anomalous Sound Detection, 2023.
"""

import functools
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from asdproto.losses.numerics import (
    LOG_ZERO,
    accumulator,
    as_float,
    as_pairs,
    dots,
    expand,
    own_class,
    positive,
    squared_length,
)
from asdproto.losses.softmax import Options, nll


def prototypical_logits(
    embeddings: ArrayLike, prototypes: ArrayLike, *, temperature: ArrayLike = 0.07
) -> jax.Array:
    r"""Logits of Eq. 1 and 3, :math:`z \cdot p_c / \tau`.

    Prototypes are ``[classes, dim]`` or ``[classes, per_class, dim]``, and logits ``[...,
    classes]`` or ``[..., classes, per_class]``.
    """
    scores = dots(embeddings, prototypes, ndim=(2, 3))
    return scores / positive("temperature", temperature, scores.dtype)


def negative_prototype_logits(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    mix: ArrayLike,
    *,
    normalize_mixed: bool = False,
    temperature: ArrayLike = 0.07,
) -> tuple[jax.Array, jax.Array]:
    r"""Logits of Eq. 6: of all prototypes, and of the negatives mixed from them.

    .. math:: z \cdot p_c / \tau, \qquad z \cdot \hat z_c / \tau \text{ with }
       \hat z_c = \lambda_c z + (1 - \lambda_c) p_c

    The mixed vectors of Eq. 5 are never made: :math:`z \cdot \hat z_c = \lambda_c z \cdot z + (1 -
    \lambda_c) z \cdot p_c`. The first product is 1 for unit embeddings but is computed, so that
    value and gradient are the definition's for embeddings of any length. The paper mixes no
    negative from the own class; its place holds -1e30, which no softmax sees and which, unlike
    minus infinity, may be multiplied by a soft label of 0.

    ``mix`` are coefficients in ``[0, 1]``, one for every embedding and prototype: ``[...,
    classes]`` or ``[..., classes, per_class]``; :func:`asdproto.prototypes.sample_mix` draws them.
    The paper does not say whether mixed vectors are scaled to unit length, as ``normalize_mixed``
    does.

    Returns:
      Two arrays of the shape of ``mix``. For a cross entropy of one's own, join them:
      ``jnp.concatenate(..., axis=-1)``.
    """
    scores = dots(embeddings, prototypes, ndim=(2, 3))
    mix = as_pairs(mix, scores.shape).astype(scores.dtype)
    several = tuple(range(1 - jnp.ndim(prototypes), 0))
    z_dot_z = jnp.expand_dims(squared_length(embeddings), several)
    mixed = mix * z_dot_z + (1 - mix) * scores
    if normalize_mixed:  # m.m = l z.m + (1-l) p.m
        p_dot_p = expand(squared_length(prototypes), scores.ndim).astype(scores.dtype)
        p_dot_m = mix * scores + (1 - mix) * p_dot_p
        length2 = mix * mixed + (1 - mix) * p_dot_m
        # Below this the sum is rounding error of float32: the mixed vector counts as zero.
        zero = length2 <= 1e-8
        mixed = jnp.where(zero, 0, mixed * lax.rsqrt(jnp.where(zero, 1, length2)))
    tau = positive("temperature", temperature, scores.dtype)
    own = jnp.expand_dims(own_class(labels, jnp.shape(prototypes)[0]), several[1:])
    return scores / tau, jnp.where(own, LOG_ZERO, mixed / tau)


def prototypical_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 0.07,
    own_prototypes: ArrayLike | None = None,
    **options: Unpack[Options],
) -> jax.Array:
    r"""Negative log-likelihood of an embedding's own prototype (Eq. 1).

    .. math::
       L = -\log \frac{\exp(z \cdot p_y / \tau)}{\sum_{c=1}^C \exp(z \cdot p_c / \tau)}

    ``own_prototypes``, floating ``[..., dim]``, stand for each example's own prototype, such as the
    mean without the example itself (:func:`asdproto.prototypes.leave_one_out_prototypes`).

    Examples:
      >>> z, label, prototypes = jnp.array([0.0, 1.0]), 0, jnp.array([[1.0, 0.0], [0.6, 0.8]])
      >>> loss = prototypical_loss(z, prototypes, label, temperature=0.5)
      >>> print(f"{loss:.3f}, plainly {-jax.nn.log_softmax(prototypes @ z / 0.5)[label]:.3f}")
      1.784, plainly 1.784
    """

    def logits(examples: Any, prototypes: jax.Array, labels: jax.Array) -> jax.Array:
        z, own = examples
        scores = prototypical_logits(z, prototypes, temperature=temperature)
        return _replace_own(scores, labels, z, own, temperature)

    examples = embeddings, _check_own(own_prototypes, embeddings)
    return nll(logits, examples, prototypes, labels, **options)


def multi_prototype_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 0.07,
    **options: Unpack[Options],
) -> jax.Array:
    r"""Mean negative log-likelihood of a class's several prototypes (MPE, Eq. 3).

    .. math::
       L = -\frac{1}{|P_y|} \sum_{p \in P_y}
           \log \frac{\exp(z \cdot p / \tau)}{\sum_{a \in P} \exp(z \cdot a / \tau)}

    Prototypes are ``[classes, per_class, dim]``: the class mean and its sub-prototypes
    (:func:`asdproto.prototypes.sub_prototypes`) side by side. Those excluded by a ``class_where``
    of ``[classes, per_class]`` occur in neither sum.

    Examples:
      >>> z, label = jnp.array([1.0, 0.0]), 0
      >>> prototypes = jnp.array([[[1.0, 0.0], [0.8, 0.6]], [[0.0, 1.0], [0.6, 0.8]]])
      >>> loss = multi_prototype_loss(z, prototypes, label, temperature=0.5)
      >>> plain = -jnp.mean(jax.nn.log_softmax(prototypes @ z / 0.5, axis=(0, 1))[label])
      >>> print(f"{loss:.3f}, plainly {plain:.3f}")
      1.013, plainly 1.013
    """

    def logits(z: jax.Array, prototypes: jax.Array, labels: jax.Array) -> jax.Array:
        return prototypical_logits(z, prototypes, temperature=temperature)

    return nll(logits, embeddings, prototypes, labels, ndim=3, **options)


def negative_prototype_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    mix: ArrayLike,
    *,
    normalize_mixed: bool = False,
    temperature: ArrayLike = 0.07,
    own_prototypes: ArrayLike | None = None,
    **options: Unpack[Options],
) -> jax.Array:
    r"""Prototypical loss with negatives mixed between anchor and prototypes (NPE, Eq. 6).

    .. math::
       L = -\log \frac{\exp(z \cdot p_y / \tau)}
           {\sum_i \exp(z \cdot p_i / \tau) + \sum_{j \ne y} \exp(z \cdot \hat z_j / \tau)},
       \quad \hat z_j = \lambda_j z + (1 - \lambda_j) p_j

    Arguments are those of :func:`negative_prototype_logits`, and ``own_prototypes`` as in
    :func:`prototypical_loss`. An excluded class gives no mixed negative either.

    Examples:
      >>> z, label, mix = jnp.array([1.0, 0.0]), 0, jnp.array([0.0, 0.25])
      >>> prototypes = jnp.array([[1.0, 0.0], [0.6, 0.8]])
      >>> loss = negative_prototype_loss(z, prototypes, label, mix, temperature=0.5)
      >>> mixed = 0.25 * z + 0.75 * prototypes[1]
      >>> logits = jnp.append(prototypes @ z, mixed @ z) / 0.5
      >>> print(f"{loss:.3f}, plainly {-jax.nn.log_softmax(logits)[label]:.3f}")
      0.692, plainly 0.692
    """
    equation = functools.partial(
        negative_prototype_logits, normalize_mixed=normalize_mixed, temperature=temperature
    )

    def logits(examples: Any, prototypes: jax.Array, labels: jax.Array, mix: jax.Array) -> Any:
        z, own = examples
        scores, mixed = equation(z, prototypes, labels, mix)
        return _replace_own(scores, labels, z, own, temperature), mixed

    examples = embeddings, _check_own(own_prototypes, embeddings)
    return nll(logits, examples, prototypes, labels, (mix,), **options)


def multi_negative_prototype_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    mix: ArrayLike,
    *,
    normalize_mixed: bool = False,
    temperature: ArrayLike = 0.07,
    **options: Unpack[Options],
) -> jax.Array:
    r"""Several prototypes a class, and each of the others mixed as a negative (MPE and NPE).

    .. math::
       L = -\frac{1}{|P_y|} \sum_{p \in P_y} \log \frac{\exp(z \cdot p / \tau)}
           {\sum_{a \in P} \exp(z \cdot a / \tau) +
            \sum_{a \in P \setminus P_y} \exp(z \cdot \hat z_a / \tau)},
       \quad \hat z_a = \lambda_a z + (1 - \lambda_a) a

    The paper uses Eq. 3 and 6 in different stages; their combination is ours. Arguments are those
    of :func:`negative_prototype_logits`, with prototypes ``[classes, per_class, dim]``.

    Examples:
      >>> z, mix = jnp.array([1.0, 0.0]), jnp.full((2, 2), 0.5)
      >>> prototypes = jnp.array([[[1.0, 0.0], [0.8, 0.6]], [[0.0, 1.0], [0.6, 0.8]]])
      >>> loss = multi_negative_prototype_loss(z, prototypes, 0, mix, temperature=0.5)
      >>> vectors = jnp.concatenate([*prototypes, (z + prototypes[1]) / 2])
      >>> print(f"{loss:.3f}, plainly {-jax.nn.log_softmax(vectors @ z / 0.5)[:2].mean():.3f}")
      1.392, plainly 1.392
    """
    logits = functools.partial(
        negative_prototype_logits, normalize_mixed=normalize_mixed, temperature=temperature
    )
    return nll(logits, embeddings, prototypes, labels, (mix,), ndim=3, **options)


def angular_prototypical_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    scale: ArrayLike = 10.0,
    own_prototypes: ArrayLike | None = None,
    **options: Unpack[Options],
) -> jax.Array:
    r"""Softmax of scaled cosines to the classes' means (angular prototypical, GE2E).

    .. math:: L = -\log \frac{\exp(w \cos(z, p_y))}{\sum_c \exp(w \cos(z, p_c))}

    :func:`prototypical_loss` at temperature 1 / w; learn w by its logarithm. The papers' bias
    cancels in the softmax. GE2E leaves each example out of its own mean (``own_prototypes``); the
    angular prototypical loss takes means of other examples of the episode.

    References:
      Wan et al., Generalized End-to-End Loss for Speaker Verification, 2018, Eq. 5 and 6.
      Chung et al., In Defence of Metric Learning for Speaker Recognition, 2020, Eq. 8.

    Examples:
      >>> z, label = jnp.array([0.8, 0.6]), 0
      >>> loss = angular_prototypical_loss(z, jnp.eye(2), label)
      >>> print(f"{loss:.3f}, plainly {-jax.nn.log_softmax(10 * z - 5)[label]:.3f}")
      0.127, plainly 0.127
    """
    dtype = accumulator(jnp.asarray(embeddings), jnp.asarray(prototypes))
    temperature = 1 / positive("scale", scale, dtype)
    return prototypical_loss(
        embeddings,
        prototypes,
        labels,
        temperature=temperature,
        own_prototypes=own_prototypes,
        **options,
    )


def _check_own(own_prototypes: ArrayLike | None, embeddings: ArrayLike) -> jax.Array | None:
    if own_prototypes is None:
        return None
    own_prototypes = as_float("own_prototypes", own_prototypes)
    if own_prototypes.shape != jnp.shape(embeddings):
        raise ValueError(
            "own_prototypes must have the shape of embeddings; found own_prototypes "
            f"{own_prototypes.shape} and embeddings {jnp.shape(embeddings)}"
        )
    return own_prototypes


def _replace_own(
    scores: jax.Array,
    labels: jax.Array,
    z: jax.Array,
    own: jax.Array | None,
    temperature: ArrayLike,
) -> jax.Array:
    """Logits ``[..., C]`` with that of the own class by another prototype of it, ``[..., D]``."""
    if own is None:
        return scores
    product = jnp.sum(z.astype(scores.dtype) * own.astype(scores.dtype), axis=-1, keepdims=True)
    product /= positive("temperature", temperature, scores.dtype)
    return jnp.where(own_class(labels, scores.shape[-1]), product, scores)
