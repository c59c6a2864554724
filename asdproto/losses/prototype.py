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

    Args:
      embeddings: Floating, shape ``[..., dim]``, unit length.
      prototypes: Floating, shape ``[classes, dim]`` or ``[classes, per_class, dim]``, unit length.
      temperature: Positive scalar.

    Returns:
      Shape ``[..., classes]`` or ``[..., classes, per_class]``.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(prototypical_logits(jnp.array([1.0, 0.0]), jnp.eye(2), temperature=0.5))
      [2. 0.]
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

    Args:
      embeddings: Floating, shape ``[..., dim]``, unit length.
      prototypes: Floating, shape ``[classes, dim]`` or ``[classes, per_class, dim]``, unit length.
      labels: Integer, shape ``[...]``.
      mix: Coefficients in ``[0, 1]``, shape ``[..., classes]`` or ``[..., classes, per_class]``;
        :func:`asdproto.prototypes.sample_mix` draws them.
      normalize_mixed: Whether mixed vectors are scaled to unit length; the paper does not say.
      temperature: Positive scalar.

    Returns:
      Two arrays, each ``[..., classes]`` or ``[..., classes, per_class]``. For a cross entropy of
      one's own, join them: ``jnp.concatenate(..., axis=-1)``.

    Raises:
      ValueError: ``mix`` has another shape.

    Examples:
      >>> import jax.numpy as jnp
      >>> z, mix = jnp.array([1.0, 0.0]), jnp.array([0.0, 0.25])
      >>> prototypes = jnp.array([[1.0, 0.0], [0.6, 0.8]])
      >>> scores, mixed = negative_prototype_logits(z, prototypes, 0, mix, temperature=0.5)
      >>> print(scores, f"{mixed[1]:.1f}")
      [2.  1.2] 1.4
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

    Args:
      embeddings: Floating, shape ``[..., dim]``, unit length.
      prototypes: Floating, shape ``[classes, dim]``, unit length.
      labels: Integer, shape ``[...]``.
      temperature: Positive scalar.
      own_prototypes: Floating, shape ``[..., dim]``: for each example, what stands for its own
        class's prototype, such as the mean without the example itself
        (:func:`asdproto.prototypes.leave_one_out_prototypes`).
      **options: See :mod:`asdproto.losses`.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> z, labels = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0])
      >>> prototypes = jnp.array([[1.0, 0.0], [0.6, 0.8]])
      >>> loss = prototypical_loss(z, prototypes, labels, temperature=0.5)
      >>> [f"{x:.3f}" for x in loss]
      ['0.371', '1.784']

      The plain form:

      >>> logits = prototypical_logits(z, prototypes, temperature=0.5)
      >>> plain = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]
      >>> bool(jnp.allclose(loss, plain))
      True
    """

    def logits(examples: Any, prototypes: jax.Array, labels: jax.Array) -> jax.Array:
        z, own = examples
        scores = prototypical_logits(z, prototypes, temperature=temperature)
        return scores if own is None else _replace_own(scores, labels, z, own, temperature)

    own = _check_own(own_prototypes, embeddings)
    return nll(logits, (embeddings, own), prototypes, labels, **options)


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

    Arguments are those of :func:`prototypical_loss`, with prototypes ``[classes, per_class, dim]``:
    the class mean and its sub-prototypes (:func:`asdproto.prototypes.sub_prototypes`) side by side.
    Prototypes excluded by a ``class_where`` of ``[classes, per_class]`` occur in neither sum.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> z, label = jnp.array([1.0, 0.0]), 0
      >>> prototypes = jnp.array([[[1.0, 0.0], [0.8, 0.6]], [[0.0, 1.0], [0.6, 0.8]]])
      >>> loss = multi_prototype_loss(z, prototypes, label, temperature=0.5)
      >>> print(f"{loss:.3f}")
      1.013

      The plain form:

      >>> logits = prototypical_logits(z, prototypes, temperature=0.5)
      >>> bool(jnp.allclose(loss, -jnp.mean(jax.nn.log_softmax(logits, axis=(0, 1))[label])))
      True
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

    Arguments are those of :func:`negative_prototype_logits`, ``own_prototypes`` as in
    :func:`prototypical_loss`, and the options of :mod:`asdproto.losses`. Coefficients of the own
    class are not used; an excluded class gives no mixed negative either.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> z, mix = jnp.array([1.0, 0.0]), jnp.array([0.0, 0.25])
      >>> prototypes = jnp.array([[1.0, 0.0], [0.6, 0.8]])
      >>> loss = negative_prototype_loss(z, prototypes, 0, mix, temperature=0.5)
      >>> print(f"{loss:.3f}")
      0.692

      The plain form:

      >>> logits = negative_prototype_logits(z, prototypes, 0, mix, temperature=0.5)
      >>> bool(jnp.allclose(loss, -jax.nn.log_softmax(jnp.concatenate(logits))[0]))
      True
    """
    equation = functools.partial(
        negative_prototype_logits, normalize_mixed=normalize_mixed, temperature=temperature
    )

    def logits(examples: Any, prototypes: jax.Array, labels: jax.Array, mix: jax.Array) -> Any:
        z, own = examples
        scores, mixed = equation(z, prototypes, labels, mix)
        if own is not None:
            scores = _replace_own(scores, labels, z, own, temperature)
        return scores, mixed

    own = _check_own(own_prototypes, embeddings)
    return nll(logits, (embeddings, own), prototypes, labels, (mix,), **options)


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

    The paper uses Eq. 3 and 6 in different stages; their combination is ours.

    Arguments are those of :func:`negative_prototype_logits`, with prototypes ``[classes, per_class,
    dim]``, and the options of :mod:`asdproto.losses`.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> z, mix = jnp.array([1.0, 0.0]), jnp.full((2, 2), 0.5)
      >>> prototypes = jnp.array([[[1.0, 0.0], [0.8, 0.6]], [[0.0, 1.0], [0.6, 0.8]]])
      >>> loss = multi_negative_prototype_loss(z, prototypes, 0, mix, temperature=0.5)
      >>> print(f"{loss:.3f}")
      1.392

      The plain form:

      >>> logits = negative_prototype_logits(z, prototypes, 0, mix, temperature=0.5)
      >>> plain = -jnp.mean(jax.nn.log_softmax(jnp.concatenate(logits), axis=(0, 1))[0])
      >>> bool(jnp.allclose(loss, plain))
      True
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
      >>> import jax
      >>> import jax.numpy as jnp
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
    scores: jax.Array, labels: jax.Array, z: jax.Array, own: jax.Array, temperature: ArrayLike
) -> jax.Array:
    """Logits ``[..., C]`` with that of the own class by another prototype of it, ``[..., D]``."""
    product = jnp.sum(z.astype(scores.dtype) * own.astype(scores.dtype), axis=-1, keepdims=True)
    product /= positive("temperature", temperature, scores.dtype)
    return jnp.where(own_class(labels, scores.shape[-1]), product, scores)
