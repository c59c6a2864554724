"""Softmax over learned prototypes, plain and with margins: proxy softmax, ArcFace, CosFace.

Prototypes here are parameters of the model, one vector a class. The margin losses read dot products
as cosines: bring embeddings and prototypes to unit length first, with
:func:`asdproto.prototypes.l2_normalize`, which is the only part of these losses that is not here.
"""

import functools
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from asdproto.losses.numerics import (
    as_float,
    dots,
    expand,
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

    Args:
      embeddings: Floating, shape ``[..., dim]``.
      prototypes: Floating, shape ``[classes, dim]``.
      temperature: Positive scalar.
      bias: Floating, shape ``[classes]``.

    Returns:
      Shape ``[..., classes]``.

    Raises:
      ValueError: ``bias`` has another shape.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(proxy_softmax_logits(jnp.array([1.0, 0.0]), jnp.eye(2), temperature=0.5))
      [2. 0.]
    """
    scores = dots(embeddings, prototypes)
    scores /= positive("temperature", temperature, scores.dtype)
    if bias is None:
        return scores
    return scores + expand(_check_bias(bias, prototypes).astype(scores.dtype), scores.ndim)


def proxy_softmax_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 0.05,
    bias: ArrayLike | None = None,
    **options: Unpack[Options],
) -> jax.Array:
    r"""Cross entropy of a softmax over learned prototypes (proxy NLL, normalized softmax).

    .. math::
       L = -\log \frac{\exp(z \cdot w_y / \tau + b_y)}{\sum_c \exp(z \cdot w_c / \tau + b_c)}

    With unit vectors and a small temperature this is the normalized softmax; with raw vectors,
    ``temperature=1`` and a bias it is the usual last layer of a classifier.

    Arguments are those of :func:`proxy_softmax_logits`, and the options of :mod:`asdproto.losses`;
    the loss is one number an example, shape ``[...]``.

    References:
      Zhai and Wu, Classification is a Strong Baseline for Deep Metric Learning, 2019.
      Movshovitz-Attias et al., No Fuss Distance Metric Learning using Proxies, 2017.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> z, label = jnp.array([1.0, 0.0]), 0
      >>> loss = proxy_softmax_loss(z, jnp.eye(2), label, temperature=1.0)
      >>> logits = proxy_softmax_logits(z, jnp.eye(2), temperature=1.0)
      >>> print(f"{loss:.3f}, plainly {-jax.nn.log_softmax(logits)[label]:.3f}")
      0.313, plainly 0.313
    """
    bias = None if bias is None else _check_bias(bias, prototypes)

    def logits(z: jax.Array, classes: Any, labels: jax.Array) -> jax.Array:
        return proxy_softmax_logits(z, classes[0], temperature=temperature, bias=classes[1])

    return nll(logits, embeddings, (prototypes, bias), labels, **options)


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
    cosine = dots(embeddings, prototypes)
    own = own_class(labels, cosine.shape[-1])
    # One angle an example: over all classes the root takes longer than the softmax.
    own_cosine = jnp.sum(jnp.where(own, cosine, 0), axis=-1, keepdims=True)
    widened = _widen(own_cosine, scalar("margin", margin, cosine.dtype))
    return positive("scale", scale, cosine.dtype) * jnp.where(own, widened, cosine)


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


def _check_bias(bias: ArrayLike, prototypes: ArrayLike) -> jax.Array:
    bias = as_float("bias", bias)
    if bias.shape != jnp.shape(prototypes)[:1]:
        raise ValueError(
            f"bias must have shape [classes]; found bias {bias.shape} and prototypes "
            f"{jnp.shape(prototypes)}"
        )
    return bias
