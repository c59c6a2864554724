"""Softmax over learned prototypes with a margin on the own class.

The margin losses read dot products as cosines: bring prototypes, and embeddings where a docstring
says so, to unit length first, with :func:`asdproto.prototypes.l2_normalize`, which is the only part
of these losses that is not here.
"""

import functools
from typing import Unpack

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from asdproto.losses.numerics import dots, keep, own_class, positive, scalar, squared_length
from asdproto.losses.softmax import Options, counted_examples, nll


def arcface_logits(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 0.5,
    scale: ArrayLike = 64.0,
) -> jax.Array:
    r"""Scaled cosines with the own class's angle widened (ArcFace).

    .. math:: s \cos(\theta_y + m), \quad s \cos\theta_c \text{ for } c \ne y,
       \qquad \cos\theta_c = z \cdot w_c

    Where the angle and the margin exceed :math:`\pi`, and the cosine would rise again, it is
    continued by :math:`\cos\theta_y - m \sin m`, as is usual.

    Args:
      embeddings: Floating, shape ``[..., dim]``, unit length.
      prototypes: Floating, shape ``[classes, dim]``, unit length.
      labels: Integer, shape ``[...]``.
      margin: Radians, in ``[0, pi)``.
      scale: Positive scalar.

    Returns:
      Shape ``[..., classes]``.

    Examples:
      >>> import jax.numpy as jnp
      >>> logits = arcface_logits(jnp.array([0.8, 0.6]), jnp.eye(2), 0, margin=0.3, scale=4.0)
      >>> [f"{x:.2f}" for x in logits]
      ['2.35', '2.40']
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
    r"""Softmax with an additive angular margin on the own class (ArcFace).

    Minus the log-softmax of :func:`arcface_logits`. Arguments are those, and the options of
    :mod:`asdproto.losses`; the loss is one number an example, shape ``[...]``.

    References:
      Deng et al., ArcFace: Additive Angular Margin Loss for Deep Face Recognition, 2019.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> z, label = jnp.array([0.8, 0.6]), 0
      >>> loss = arcface_loss(z, jnp.eye(2), label, margin=0.3, scale=4.0)
      >>> logits = arcface_logits(z, jnp.eye(2), label, margin=0.3, scale=4.0)
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
    r"""Scaled cosines less a margin on the own class (CosFace).

    .. math:: s (\cos\theta_y - m), \quad s \cos\theta_c \text{ for } c \ne y,
       \qquad \cos\theta_c = z \cdot w_c

    Args:
      embeddings: Floating, shape ``[..., dim]``, unit length.
      prototypes: Floating, shape ``[classes, dim]``, unit length.
      labels: Integer, shape ``[...]``.
      margin: Scalar, of the cosine.
      scale: Positive scalar.

    Returns:
      Shape ``[..., classes]``.

    Examples:
      >>> import jax.numpy as jnp
      >>> logits = cosface_logits(jnp.array([0.8, 0.6]), jnp.eye(2), 0, margin=0.2, scale=4.0)
      >>> [f"{x:.2f}" for x in logits]
      ['2.40', '2.40']
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
    r"""Softmax with a margin on the own class's cosine (CosFace, additive margin softmax).

    Minus the log-softmax of :func:`cosface_logits`. Arguments are those, and the options of
    :mod:`asdproto.losses`; the loss is one number an example, shape ``[...]``.

    References:
      Wang et al., CosFace: Large Margin Cosine Loss for Deep Face Recognition, 2018.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> z, label = jnp.array([0.8, 0.6]), 0
      >>> loss = cosface_loss(z, jnp.eye(2), label, margin=0.2, scale=4.0)
      >>> logits = cosface_logits(z, jnp.eye(2), label, margin=0.2, scale=4.0)
      >>> print(f"{loss:.3f}, plainly {-jax.nn.log_softmax(logits)[label]:.3f}")
      0.693, plainly 0.693
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

    Args:
      embeddings: Floating, shape ``[..., dim]``, unit length.
      prototypes: Floating, shape ``[classes, sub_centers, dim]``, unit length.
      labels: Integer, shape ``[...]``.
      margin: Radians, in ``[0, pi)``.
      scale: Positive scalar.

    Returns:
      Shape ``[..., classes]``.
    """
    return _angular(dots(embeddings, prototypes, (3,)).max(axis=-1), labels, margin, scale)


def sub_center_arcface_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 0.5,
    scale: ArrayLike = 64.0,
    **options: Unpack[Options],
) -> jax.Array:
    """Minus the log-softmax of :func:`sub_center_arcface_logits`; arguments as there.

    References:
      Deng et al., Sub-center ArcFace: Boosting Face Recognition by Large-scale Noisy Web
      Faces, 2020.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
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
    r"""Products with the own class's angle multiplied (SphereFace, A-softmax).

    .. math:: s \lVert z \rVert \psi(\theta_y), \quad s \, z \cdot w_c \text{ for } c \ne y, \qquad
       \psi(\theta) = (-1)^k \cos(m \theta) - 2 k, \quad k = \lfloor m \theta / \pi \rfloor

    Args:
      embeddings: Floating, shape ``[..., dim]``, any length.
      prototypes: Floating, shape ``[classes, dim]``, unit length.
      labels: Integer, shape ``[...]``.
      margin: Positive factor of the angle.
      scale: Positive scalar; the paper's is 1, its embeddings are long.

    Returns:
      Shape ``[..., classes]``.
    """
    products = dots(embeddings, prototypes)
    own = own_class(labels, products.shape[-1])
    length = _length(embeddings).astype(products.dtype)
    along = jnp.sum(jnp.where(own, products, 0), axis=-1, keepdims=True)
    cosine = jnp.where(length == 0, 0, along / jnp.where(length == 0, 1, length))
    inside = jnp.square(cosine) < 1 - 4 * jnp.finfo(cosine.dtype).eps
    ends = jnp.where(cosine > 0, 0, jnp.pi).astype(cosine.dtype)
    angle = jnp.where(inside, jnp.arccos(jnp.where(inside, cosine, 0)), ends)
    angle *= positive("margin", margin, cosine.dtype)
    turns = jnp.floor(angle / jnp.pi)
    widened = (1 - 2 * jnp.mod(turns, 2)) * jnp.cos(angle) - 2 * turns
    # A nan is on neither side, and has to be noticed.
    widened = jnp.where(jnp.isnan(cosine), cosine, widened)
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
    """Minus the log-softmax of :func:`sphereface_logits`; arguments as there.

    References:
      Liu et al., SphereFace: Deep Hypersphere Embedding for Face Recognition, 2017, Eq. 7.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
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

    The margin is that of ``margins`` in proportion to the length's place in ``lengths``.

    Args:
      embeddings: Floating, shape ``[..., dim]``, any length.
      prototypes: Floating, shape ``[classes, dim]``, unit length.
      labels: Integer, shape ``[...]``.
      margins: Smallest and largest, radians.
      lengths: Between which embeddings are meant to lie; others count as the nearer end.
      scale: Positive scalar.

    Returns:
      Shape ``[..., classes]``.
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

    with u the larger of ``lengths``; the second term is no softmax, so this loss is not only one.

    References:
      Meng et al., MagFace: A Universal Representation for Face Recognition and Quality Assessment,
      2021.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
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
    own = own_class(labels, cosine.shape[-1])
    # One angle an example: over all classes the root takes longer than the softmax.
    own_cosine = jnp.sum(jnp.where(own, cosine, 0), axis=-1, keepdims=True)
    if jnp.ndim(margin) == 0:
        margin = scalar("margin", margin, cosine.dtype)
    widened = _widen(own_cosine, jnp.asarray(margin))
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
