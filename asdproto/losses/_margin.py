"""Softmax over learned prototypes, plain and with margins: proxy softmax, ArcFace, CosFace.

Prototypes here are parameters of the model, one vector a class. The margin losses read dot products
as cosines: bring embeddings and prototypes to unit length first, with
:func:`asdproto.prototypes.l2_normalize`, which is the only part of these losses that is not here.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from asdproto.losses import _checks
from asdproto.losses._classes import compare, negative_log_likelihood
from asdproto.losses._numerics import dots


def _proxy_logits(
    z: jax.Array, prototypes: jax.Array, bias: ArrayLike = 0, *, temperature: jax.Array
) -> jax.Array:
    return dots(z, prototypes) / temperature + bias


def _scaled_cosines(z: jax.Array, prototypes: jax.Array, scale: jax.Array) -> jax.Array:
    return scale * dots(z, prototypes)


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
      temperature: Positive scalar; may be traced.
      bias: Floating, shape ``[classes]``.

    Returns:
      Shape ``[..., classes]``, float32 (float64 if an argument is).

    Raises:
      ValueError: Shapes do not fit; the message names both.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(proxy_softmax_logits(jnp.array([1.0, 0.0]), jnp.eye(2), temperature=0.5))
      [2. 0.]
    """
    embeddings, prototypes = _checks.check_vectors(embeddings, prototypes)
    dtype = _checks.accumulator(embeddings, prototypes)
    temperature = _checks.positive("temperature", temperature, dtype)
    bias = 0 if bias is None else _check_bias(bias, prototypes)
    return _proxy_logits(embeddings, prototypes, bias, temperature=temperature)


def proxy_softmax_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 0.05,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
    chunk_size: int | None = None,
    class_axis_name: str | None = None,
) -> jax.Array:
    r"""Cross entropy of a softmax over learned prototypes (proxy NLL, normalized softmax).

    .. math::
       L = -\log \frac{\exp(z \cdot w_y / \tau + b_y)}{\sum_c \exp(z \cdot w_c / \tau + b_c)}

    With unit vectors and a small temperature this is the normalized softmax; with raw vectors,
    ``temperature=1`` and a bias it is the usual last layer of a classifier.

    Args:
      embeddings: Floating, shape ``[..., dim]``.
      prototypes: Floating, shape ``[classes, dim]``.
      labels: Integer, shape ``[...]``; an example whose label is outside ``[0, classes)`` gives 0.
      temperature: Positive scalar; may be traced.
      bias: Floating, shape ``[classes]``.
      where: Boolean, broadcastable to ``[...]``; excluded examples give 0.
      class_where: Boolean, broadcastable to ``[..., classes]``; excluded classes do not occur in
        the sum, and examples of them give 0.
      chunk_size: See :func:`prototypical_loss`.
      class_axis_name: See :func:`prototypical_loss`.

    Returns:
      Loss per example, shape ``[...]``, float32 (float64 if an argument is).

    Raises:
      ValueError: Shapes do not fit; the message names both.

    References:
      Zhai and Wu, Classification is a Strong Baseline for Deep Metric Learning, 2019.
      Movshovitz-Attias et al., No Fuss Distance Metric Learning using Proxies, 2017.

    Examples:
      >>> import jax.numpy as jnp
      >>> embeddings, labels = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0, 1])
      >>> loss = proxy_softmax_loss(embeddings, jnp.eye(2), labels, temperature=1.0)
      >>> [f"{x:.3f}" for x in loss]
      ['0.313', '0.313']
    """
    embeddings, prototypes, labels = _checks.check_prototypes(embeddings, prototypes, labels)
    dtype = _checks.accumulator(embeddings, prototypes)
    temperature = _checks.positive("temperature", temperature, dtype)
    compared = compare(
        _proxy_logits,
        embeddings,
        prototypes,
        labels,
        hyper={"temperature": temperature},
        bias=None if bias is None else _check_bias(bias, prototypes),
        where=where,
        class_where=class_where,
        chunk_size=chunk_size,
        class_axis_name=class_axis_name,
    )
    return negative_log_likelihood(compared)


def arcface_logits(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 0.5,
    scale: ArrayLike = 64.0,
) -> jax.Array:
    r"""Scaled cosines with the own class's angle widened (ArcFace).

    .. math:: s \cos(\theta_y + m), \quad s \cos\theta_c \text{ for } c \ne y

    Args:
      embeddings: Floating, shape ``[..., dim]``, unit length.
      prototypes: Floating, shape ``[classes, dim]``, unit length.
      labels: Integer, shape ``[...]``; outside ``[0, classes)`` no class is widened.
      margin: Radians, in ``[0, pi)``; may be traced. See :func:`arcface_loss`.
      scale: Positive scalar; may be traced.

    Returns:
      Shape ``[..., classes]``, float32 (float64 if an argument is).

    Raises:
      ValueError: Shapes do not fit; the message names both.

    Examples:
      >>> import jax.numpy as jnp
      >>> z, y = jnp.array([0.8, 0.6]), jnp.array(0)
      >>> [f"{x:.2f}" for x in arcface_logits(z, jnp.eye(2), y, margin=0.3, scale=4.0)]
      ['2.35', '2.40']
    """
    cosine, labels = _cosines(embeddings, prototypes, labels)
    margin = _checks.scalar("margin", margin, cosine.dtype)
    scale = _checks.positive("scale", scale, cosine.dtype)
    own = _is_own(labels, cosine)
    return scale * jnp.where(own, _widen(cosine, margin), cosine)


def arcface_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 0.5,
    scale: ArrayLike = 64.0,
    where: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
    chunk_size: int | None = None,
    class_axis_name: str | None = None,
) -> jax.Array:
    r"""Softmax with an additive angular margin on the own class (ArcFace).

    .. math::
       L = -\log \frac{e^{s \cos(\theta_y + m)}}
           {e^{s \cos(\theta_y + m)} + \sum_{c \ne y} e^{s \cos\theta_c}},
       \quad \cos\theta_c = z \cdot w_c

    Where the angle and the margin exceed :math:`\pi`, and the cosine would rise again, it is
    continued by :math:`\cos\theta_y - m \sin m`, as is usual.

    Args:
      embeddings: Floating, shape ``[..., dim]``, unit length.
      prototypes: Floating, shape ``[classes, dim]``, unit length.
      labels: Integer, shape ``[...]``; an example whose label is outside ``[0, classes)`` gives 0.
      margin: Radians, in ``[0, pi)``; may be traced.
      scale: Positive scalar; may be traced.
      where: Boolean, broadcastable to ``[...]``; excluded examples give 0.
      class_where: Boolean, broadcastable to ``[..., classes]``; see :func:`prototypical_loss`.
      chunk_size: See :func:`prototypical_loss`.
      class_axis_name: See :func:`prototypical_loss`.

    Returns:
      Loss per example, shape ``[...]``, float32 (float64 if an argument is).

    Raises:
      ValueError: Shapes do not fit; the message names both.

    References:
      Deng et al., ArcFace: Additive Angular Margin Loss for Deep Face Recognition, 2019.

    Examples:
      >>> import jax.numpy as jnp
      >>> embeddings, labels = jnp.array([[0.8, 0.6]]), jnp.array([0])
      >>> loss = arcface_loss(embeddings, jnp.eye(2), labels, margin=0.3, scale=4.0)
      >>> [f"{x:.3f}" for x in loss]
      ['0.720']
    """
    embeddings, prototypes, labels = _checks.check_prototypes(embeddings, prototypes, labels)
    dtype = _checks.accumulator(embeddings, prototypes)
    margin = _checks.scalar("margin", margin, dtype)
    scale = _checks.positive("scale", scale, dtype)
    compared = compare(
        _scaled_cosines,
        embeddings,
        prototypes,
        labels,
        hyper={"scale": scale},
        where=where,
        class_where=class_where,
        chunk_size=chunk_size,
        class_axis_name=class_axis_name,
    )
    own = scale * _widen(compared.own / scale, margin)
    return negative_log_likelihood(compared._replace(own=own))


def cosface_logits(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 0.35,
    scale: ArrayLike = 64.0,
) -> jax.Array:
    r"""Scaled cosines less a margin on the own class (CosFace).

    .. math:: s (\cos\theta_y - m), \quad s \cos\theta_c \text{ for } c \ne y

    Args:
      embeddings: Floating, shape ``[..., dim]``, unit length.
      prototypes: Floating, shape ``[classes, dim]``, unit length.
      labels: Integer, shape ``[...]``; outside ``[0, classes)`` no class has a margin.
      margin: Scalar, of the cosine; may be traced.
      scale: Positive scalar; may be traced.

    Returns:
      Shape ``[..., classes]``, float32 (float64 if an argument is).

    Raises:
      ValueError: Shapes do not fit; the message names both.

    Examples:
      >>> import jax.numpy as jnp
      >>> z, y = jnp.array([0.8, 0.6]), jnp.array(0)
      >>> [f"{x:.2f}" for x in cosface_logits(z, jnp.eye(2), y, margin=0.2, scale=4.0)]
      ['2.40', '2.40']
    """
    cosine, labels = _cosines(embeddings, prototypes, labels)
    margin = _checks.scalar("margin", margin, cosine.dtype)
    scale = _checks.positive("scale", scale, cosine.dtype)
    return scale * (cosine - margin * _is_own(labels, cosine))


def cosface_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 0.35,
    scale: ArrayLike = 64.0,
    where: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
    chunk_size: int | None = None,
    class_axis_name: str | None = None,
) -> jax.Array:
    r"""Softmax with a margin on the own class's cosine (CosFace, additive margin softmax).

    .. math::
       L = -\log \frac{e^{s (\cos\theta_y - m)}}
           {e^{s (\cos\theta_y - m)} + \sum_{c \ne y} e^{s \cos\theta_c}},
       \quad \cos\theta_c = z \cdot w_c

    Args:
      embeddings: Floating, shape ``[..., dim]``, unit length.
      prototypes: Floating, shape ``[classes, dim]``, unit length.
      labels: Integer, shape ``[...]``; an example whose label is outside ``[0, classes)`` gives 0.
      margin: Scalar, of the cosine; may be traced.
      scale: Positive scalar; may be traced.
      where: Boolean, broadcastable to ``[...]``; excluded examples give 0.
      class_where: Boolean, broadcastable to ``[..., classes]``; see :func:`prototypical_loss`.
      chunk_size: See :func:`prototypical_loss`.
      class_axis_name: See :func:`prototypical_loss`.

    Returns:
      Loss per example, shape ``[...]``, float32 (float64 if an argument is).

    Raises:
      ValueError: Shapes do not fit; the message names both.

    References:
      Wang et al., CosFace: Large Margin Cosine Loss for Deep Face Recognition, 2018.

    Examples:
      >>> import jax.numpy as jnp
      >>> embeddings, labels = jnp.array([[0.8, 0.6]]), jnp.array([0])
      >>> loss = cosface_loss(embeddings, jnp.eye(2), labels, margin=0.2, scale=4.0)
      >>> [f"{x:.3f}" for x in loss]
      ['0.693']
    """
    embeddings, prototypes, labels = _checks.check_prototypes(embeddings, prototypes, labels)
    dtype = _checks.accumulator(embeddings, prototypes)
    margin = _checks.scalar("margin", margin, dtype)
    scale = _checks.positive("scale", scale, dtype)
    compared = compare(
        _scaled_cosines,
        embeddings,
        prototypes,
        labels,
        hyper={"scale": scale},
        where=where,
        class_where=class_where,
        chunk_size=chunk_size,
        class_axis_name=class_axis_name,
    )
    return negative_log_likelihood(compared._replace(own=compared.own - scale * margin))


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


def _cosines(
    embeddings: ArrayLike, prototypes: ArrayLike, labels: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    embeddings, prototypes, labels = _checks.check_prototypes(embeddings, prototypes, labels)
    return dots(embeddings, prototypes), labels


def _is_own(labels: jax.Array, logits: jax.Array) -> jax.Array:
    return labels[..., None] == jnp.arange(logits.shape[-1])


def _check_bias(bias: ArrayLike, prototypes: jax.Array) -> jax.Array:
    bias = _checks.as_float("bias", bias).astype(_checks.accumulator(prototypes))
    if bias.shape != prototypes.shape[:1]:
        raise ValueError(
            f"bias must have shape [classes]; found bias {bias.shape} and prototypes "
            f"{prototypes.shape}"
        )
    return bias
