"""Softmax over learned prototypes with a margin on the own class.

Each equation is a ``_logits`` function of embeddings ``[..., dim]``, learned prototypes and labels,
and gives logits ``[..., classes]``; its loss is minus their log-softmax. Products are read as
cosines: bring prototypes, and embeddings where a docstring does not say "any length", to unit
length first, with :func:`asdproto.prototypes.l2_normalize`.
"""

import functools
from typing import Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from asdproto.losses.numerics import (
    dots,
    dots_by_center,
    keep,
    own_class,
    own_scores,
    positive,
    scalar,
    squared_length,
)
from asdproto.losses.softmax import Options, counted_examples, nll


def arcface_logits(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 0.5,
    scale: ArrayLike = 64.0,
) -> jax.Array:
    r"""The own class's angle widened by ``margin`` radians, in ``[0, pi)`` (ArcFace).

    .. math:: s \cos(\theta_y + m), \quad s \cos\theta_c \text{ for } c \ne y,
       \qquad \cos\theta_c = z \cdot w_c

    Beyond :math:`\pi`, where the cosine would rise again, it goes on as :math:`\cos\theta_y - m
    \sin m`, as is usual.

    References:
      Deng et al., ArcFace: Additive Angular Margin Loss for Deep Face Recognition, 2019.
    """
    return _angular(dots(embeddings, prototypes), labels, margin, scale)


def arcface_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 0.5,
    scale: ArrayLike = 64.0,
    **options: Unpack[Options],
) -> jax.Array:
    """Minus the log-softmax of :func:`arcface_logits`.

    Examples:
      >>> z, label = jnp.array([0.8, 0.6]), 0
      >>> loss = arcface_loss(z, jnp.eye(2), label, margin=0.3, scale=4.0)
      >>> logits = 4 * jnp.array([jnp.cos(jnp.arccos(0.8) + 0.3), 0.6])
      >>> print(f"{loss:.3f}, plainly {-jax.nn.log_softmax(logits)[label]:.3f}")
      0.720, plainly 0.720
    """
    logits = functools.partial(arcface_logits, margin=margin, scale=scale)
    return nll(logits, embeddings, prototypes, labels, **options)


def cosface_logits(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 0.35,
    scale: ArrayLike = 64.0,
) -> jax.Array:
    r"""The own class's cosine lessened by ``margin`` (CosFace, additive margin softmax).

    .. math:: s (\cos\theta_y - m), \quad s \cos\theta_c \text{ for } c \ne y,
       \qquad \cos\theta_c = z \cdot w_c

    References:
      Wang et al., CosFace: Large Margin Cosine Loss for Deep Face Recognition, 2018.
    """
    cosine = dots(embeddings, prototypes)
    own = own_class(labels, cosine.shape[-1])
    margin = scalar("margin", margin, cosine.dtype)
    return positive("scale", scale, cosine.dtype) * (cosine - jnp.where(own, margin, 0))


def cosface_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 0.35,
    scale: ArrayLike = 64.0,
    **options: Unpack[Options],
) -> jax.Array:
    """Minus the log-softmax of :func:`cosface_logits`.

    Examples:
      >>> z, label = jnp.array([0.8, 0.6]), 0
      >>> loss = cosface_loss(z, jnp.eye(2), label, margin=0.1, scale=4.0)
      >>> logits = 4 * jnp.array([0.8 - 0.1, 0.6])
      >>> print(f"{loss:.3f}, plainly {-jax.nn.log_softmax(logits)[label]:.3f}")
      0.513, plainly 0.513
    """
    logits = functools.partial(cosface_logits, margin=margin, scale=scale)
    return nll(logits, embeddings, prototypes, labels, **options)


def sub_center_arcface_logits(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 0.5,
    scale: ArrayLike = 64.0,
) -> jax.Array:
    r"""ArcFace with the nearest of a class's several centers, for noisy classes.

    .. math:: \cos\theta_c = \max_m z \cdot w_{c,m} \quad \text{in the equation of ArcFace}

    Prototypes are ``[classes, sub_centers, dim]``.

    References:
      Deng et al., Sub-center ArcFace: Boosting Face Recognition by Large-scale Noisy Web
      Faces, 2020.
    """
    cosine = dots_by_center(embeddings, prototypes)
    # The maximum, equal ones sharing its gradient; that of jnp.max takes more passes.
    nearest = lax.stop_gradient(cosine.max(axis=-2, keepdims=True))
    return _angular(cosine.mean(axis=-2, where=cosine == nearest), labels, margin, scale)


def sub_center_arcface_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 0.5,
    scale: ArrayLike = 64.0,
    **options: Unpack[Options],
) -> jax.Array:
    """Minus the log-softmax of :func:`sub_center_arcface_logits`.

    Examples:
      >>> z, label = jnp.array([0.8, 0.6]), 0
      >>> p = jnp.array([[[1.0, 0], [0.6, 0.8]], [[0, 1.0], [0, 1.0]]])
      >>> loss = sub_center_arcface_loss(z, p, label, margin=0.3, scale=4.0)
      >>> logits = arcface_logits(z, p[:, 1], label, margin=0.3, scale=4.0)  # the nearest ones
      >>> print(f"{loss:.3f}, plainly {-jax.nn.log_softmax(logits)[label]:.3f}")
      0.330, plainly 0.330
    """
    logits = functools.partial(sub_center_arcface_logits, margin=margin, scale=scale)
    return nll(logits, embeddings, prototypes, labels, ndim=3, **options)


def sphereface_logits(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 4.0,
    scale: ArrayLike = 1.0,
) -> jax.Array:
    r"""The own class's angle multiplied by ``margin``, of embeddings of any length (SphereFace).

    .. math:: s \lVert z \rVert \psi(\theta_y), \quad s \, z \cdot w_c \text{ for } c \ne y, \qquad
       \psi(\theta) = (-1)^k \cos(m \theta) - 2 k, \quad k = \lfloor m \theta / \pi \rfloor

    The paper's scale is 1, its embeddings are long.

    References:
      Liu et al., SphereFace: Deep Hypersphere Embedding for Face Recognition, 2017, Eq. 7.
    """
    products = dots(embeddings, prototypes)
    length = _length(embeddings).astype(products.dtype)
    along = own_scores(products, labels)[..., None]
    cosine = jnp.where(length == 0, 0, along / jnp.where(length == 0, 1, length))
    inside = jnp.square(cosine) < 1 - 4 * jnp.finfo(cosine.dtype).eps
    ends = jnp.where(cosine > 0, 0, jnp.pi).astype(cosine.dtype)
    angle = jnp.where(inside, jnp.arccos(jnp.where(inside, cosine, 0)), ends)
    angle *= positive("margin", margin, cosine.dtype)
    turns = jnp.floor(angle / jnp.pi)
    widened = (1 - 2 * jnp.mod(turns, 2)) * jnp.cos(angle) - 2 * turns
    # A nan is on neither side, and has to be noticed.
    widened = jnp.where(jnp.isnan(cosine), cosine, widened)
    own = own_class(labels, products.shape[-1])
    return positive("scale", scale, cosine.dtype) * jnp.where(own, length * widened, products)


def sphereface_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 4.0,
    scale: ArrayLike = 1.0,
    **options: Unpack[Options],
) -> jax.Array:
    """Minus the log-softmax of :func:`sphereface_logits`.

    Examples:
      >>> z, label = jnp.array([4.0, 3.0]), 0
      >>> loss = sphereface_loss(z, jnp.eye(2), label, margin=2.0)
      >>> logits = jnp.array([5 * jnp.cos(2 * jnp.arccos(0.8)), 3.0])
      >>> print(f"{loss:.3f}, plainly {-jax.nn.log_softmax(logits)[label]:.3f}")
      1.784, plainly 1.784
    """
    logits = functools.partial(sphereface_logits, margin=margin, scale=scale)
    return nll(logits, embeddings, prototypes, labels, **options)


def magface_logits(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    margins: tuple[ArrayLike, ArrayLike] = (0.45, 0.8),
    lengths: tuple[float, float] = (10.0, 110.0),
    scale: ArrayLike = 64.0,
) -> jax.Array:
    r"""ArcFace whose margin grows with the embedding's length, a measure of its quality (MagFace).

    Embeddings are of any length. The margin goes from the first of ``margins`` to the second,
    radians, as the length goes through ``lengths``; outside of these it stays.

    References:
      Meng et al., MagFace: A Universal Representation for Face Recognition and Quality Assessment,
      2021.
    """
    products = dots(embeddings, prototypes)
    length = _length(embeddings).astype(products.dtype)
    low, high = (scalar("margins", x, products.dtype) for x in margins)
    share = (jnp.clip(length, *lengths) - lengths[0]) / (lengths[1] - lengths[0])
    cosine = products / jnp.where(length == 0, 1, length)
    return _angular(cosine, labels, low + share * (high - low), scale)


def magface_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    margins: tuple[ArrayLike, ArrayLike] = (0.45, 0.8),
    lengths: tuple[float, float] = (10.0, 110.0),
    scale: ArrayLike = 64.0,
    length_weight: ArrayLike = 35.0,
    **options: Unpack[Options],
) -> jax.Array:
    r"""Minus the log-softmax of :func:`magface_logits`, and a reward for length.

    .. math:: L + \lambda \left( a / u^2 + 1 / a \right), \quad a = \lVert z \rVert

    with u the larger of ``lengths``. The second term is no softmax, so this loss is not only one.

    Examples:
      >>> z, label = jnp.array([8.0, 6.0]), 0
      >>> loss = magface_loss(z, jnp.eye(2), label, scale=4.0)
      >>> logits = arcface_logits(z / 10, jnp.eye(2), label, margin=0.45, scale=4.0)
      >>> plain = -jax.nn.log_softmax(logits)[label] + 35 * (10 / 110**2 + 1 / 10)
      >>> print(f"{loss:.3f}, plainly {plain:.3f}")
      4.542, plainly 4.542
    """
    logits = functools.partial(magface_logits, margins=margins, lengths=lengths, scale=scale)
    loss = nll(logits, embeddings, prototypes, labels, **options)
    counted = counted_examples(embeddings, prototypes, labels, **options)
    length = jnp.clip(_length(keep(jnp.asarray(embeddings), counted)), *lengths)[..., 0]
    reward = length / lengths[1] ** 2 + 1 / length
    weight = scalar("length_weight", length_weight, length.dtype)
    return loss + jnp.where(counted, weight * reward, 0).astype(loss.dtype)


def _length(embeddings: ArrayLike) -> jax.Array:
    """Lengths ``[..., 1]``; those of zero vectors have no gradient."""
    length2 = squared_length(embeddings)[..., None]
    zero = length2 == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, length2)))


def _angular(
    cosine: jax.Array, labels: ArrayLike, margin: ArrayLike, scale: ArrayLike
) -> jax.Array:
    """ArcFace's logits from cosines ``[..., C]``; the margin is a scalar or ``[..., 1]``."""
    if jnp.ndim(margin) == 0:
        margin = scalar("margin", margin, cosine.dtype)
    # One angle an example: over all classes the root takes longer than the softmax.
    widened = _widen(own_scores(cosine, labels)[..., None], jnp.asarray(margin))
    own = own_class(labels, cosine.shape[-1])
    return positive("scale", scale, cosine.dtype) * jnp.where(own, widened, cosine)


def _widen(cosine: jax.Array, margin: jax.Array) -> jax.Array:
    """cos(a + m) from cos(a), continued beyond pi."""
    sine2 = 1 - jnp.square(cosine)
    # By the addition theorem: arccos has no gradient at +-1, and the sine's own infinite one there
    # is only reached by rounding, where its square is noise.
    inside = sine2 > 4 * jnp.finfo(cosine.dtype).eps
    sine = jnp.where(inside, jnp.sqrt(jnp.where(inside, sine2, 1)), 0)
    widened = cosine * jnp.cos(margin) - sine * jnp.sin(margin)
    beyond = cosine < -jnp.cos(margin)
    return jnp.where(beyond, cosine - margin * jnp.sin(margin), widened)
