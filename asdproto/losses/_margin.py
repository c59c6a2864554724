"""Softmax over learned prototypes, plain and with margins: proxy softmax, ArcFace, CosFace.

Prototypes here are parameters of the model, one vector a class. The margin losses read dot products
as cosines: bring embeddings and prototypes to unit length first, with
:func:`asdproto.prototypes.l2_normalize`, which is the only part of these losses that is not here.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from asdproto.losses import _checks, _compare, _numerics


def softmax_loss(
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
      chunk_size: Classes to compare with at a time; see :func:`prototypical_loss`.
      class_axis_name: Mapped axis that classes are spread over; see :func:`prototypical_loss`.

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
      >>> loss = softmax_loss(embeddings, jnp.eye(2), labels, temperature=1.0)
      >>> [f"{x:.3f}" for x in loss]
      ['0.313', '0.313']
    """
    embeddings, prototypes, labels = _checks.check_prototypes(embeddings, prototypes, labels)
    dtype = _checks.accumulator(embeddings, prototypes)
    temperature = _checks.positive("temperature", temperature, dtype)
    if bias is not None:
        bias = _checks.as_float("bias", bias).astype(dtype)
        if bias.shape != prototypes.shape[:1]:
            raise ValueError(
                f"bias must have shape [classes]; found bias {bias.shape} and prototypes "
                f"{prototypes.shape}"
            )
    return _scaled_softmax(
        embeddings,
        prototypes,
        labels,
        None,
        scale=1 / temperature,
        bias=bias,
        where=where,
        class_where=class_where,
        chunk_size=chunk_size,
        class_axis_name=class_axis_name,
    )


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
      chunk_size: Classes to compare with at a time; see :func:`prototypical_loss`.
      class_axis_name: Mapped axis that classes are spread over; see :func:`prototypical_loss`.

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

    def widen(cosine: jax.Array) -> jax.Array:
        sine2 = 1 - jnp.square(cosine)
        # cos(a + m) by the addition theorem: arccos has no gradient at +-1, and the sine's own
        # infinite one there is only reached by rounding, where its square is noise.
        inside = sine2 > 4 * jnp.finfo(dtype).eps
        sine = jnp.where(inside, jnp.sqrt(jnp.where(inside, sine2, 1)), 0)
        widened = cosine * jnp.cos(margin) - sine * jnp.sin(margin)
        beyond = cosine < -jnp.cos(margin)
        return jnp.where(beyond, cosine - margin * jnp.sin(margin), widened)

    return _scaled_softmax(
        embeddings,
        prototypes,
        labels,
        widen,
        scale=_checks.positive("scale", scale, dtype),
        where=where,
        class_where=class_where,
        chunk_size=chunk_size,
        class_axis_name=class_axis_name,
    )


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
      chunk_size: Classes to compare with at a time; see :func:`prototypical_loss`.
      class_axis_name: Mapped axis that classes are spread over; see :func:`prototypical_loss`.

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
    return _scaled_softmax(
        embeddings,
        prototypes,
        labels,
        lambda cosine: cosine - margin,
        scale=_checks.positive("scale", scale, dtype),
        where=where,
        class_where=class_where,
        chunk_size=chunk_size,
        class_axis_name=class_axis_name,
    )


def _scaled_softmax(
    embeddings: jax.Array,
    prototypes: jax.Array,
    labels: jax.Array,
    own_score: Callable[[jax.Array], jax.Array] | None,
    *,
    scale: jax.Array,
    bias: jax.Array | None = None,
    where: ArrayLike | None,
    class_where: ArrayLike | None,
    chunk_size: int | None,
    class_axis_name: str | None,
) -> jax.Array:
    """Cross entropy of scaled scores, the own one of which is replaced by a function of it."""
    where = _checks.check_mask("where", where, labels.shape)
    shape = (*labels.shape, prototypes.shape[0])
    class_where = _checks.check_mask("class_where", class_where, shape)
    own, counted, others = _compare.compare(
        _numerics.keep(embeddings, where),
        prototypes[:, None, :],
        labels,
        scale=scale,
        where=None if class_where is None else class_where[..., None],
        bias=bias,
        chunk_size=chunk_size,
        class_axis_name=class_axis_name,
    )
    if own_score is not None:
        own = own_score(own)
    return _compare.negative_log_likelihood(own * scale, counted, others, where)
