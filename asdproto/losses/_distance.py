"""Losses of squared Euclidean distances: prototypical networks and center loss."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from asdproto.losses import _checks
from asdproto.losses._classes import compare, negative_log_likelihood
from asdproto.losses._numerics import dots, squared_length


def _nearness(z: jax.Array, prototypes: jax.Array, temperature: jax.Array) -> jax.Array:
    """(-|z - p|^2 + |z|^2) / t of an embedding ``[D]``."""
    return (2 * dots(z, prototypes) - squared_length(prototypes)) / temperature


def prototypical_network_logits(
    embeddings: ArrayLike, prototypes: ArrayLike, *, temperature: ArrayLike = 1.0
) -> jax.Array:
    r"""Negative squared distances, :math:`(-\lVert z - p_c \rVert^2 + \lVert z \rVert^2) / \tau`.

    The embedding's own length, the same for all classes, is left out: no softmax sees it.

    Args:
      embeddings: Floating, shape ``[..., dim]``, any length.
      prototypes: Floating, shape ``[classes, dim]``, any length.
      temperature: Positive scalar; may be traced.

    Returns:
      Shape ``[..., classes]``, float32 (float64 if an argument is).

    Raises:
      ValueError: Shapes do not fit; the message names both.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(prototypical_network_logits(jnp.array([0.0, 1.0]), jnp.eye(2)))
      [-1.  1.]
    """
    embeddings, prototypes = _checks.check_vectors(embeddings, prototypes)
    dtype = _checks.accumulator(embeddings, prototypes)
    temperature = _checks.positive("temperature", temperature, dtype)
    return _nearness(embeddings, prototypes, temperature)


def prototypical_network_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
    chunk_size: int | None = None,
    class_axis_name: str | None = None,
) -> jax.Array:
    r"""Cross entropy of a softmax over negative squared distances (prototypical networks).

    .. math::
       L = -\log \frac{\exp(-\lVert z - p_y \rVert^2 / \tau)}
                      {\sum_c \exp(-\lVert z - p_c \rVert^2 / \tau)}

    In an episode the embeddings are the queries, and the prototypes are the plain means of each
    class's support examples: ``sums / counts[:, None]`` of :func:`asdproto.prototypes.class_sums`,
    not brought to unit length. The query's own length cancels and is left out.

    Args:
      embeddings: Floating, shape ``[..., dim]``, any length.
      prototypes: Floating, shape ``[classes, dim]``, any length.
      labels: Integer, shape ``[...]``; an example whose label is outside ``[0, classes)`` gives 0.
      temperature: Positive scalar; may be traced.
      where: Boolean, broadcastable to ``[...]``; excluded examples give 0.
      class_where: Boolean, broadcastable to ``[..., classes]``; see :func:`prototypical_loss`.
      chunk_size: See :func:`prototypical_loss`.
      class_axis_name: See :func:`prototypical_loss`.

    Returns:
      Loss per example, shape ``[...]``, float32 (float64 if an argument is).

    Raises:
      ValueError: Shapes do not fit; the message names both.

    References:
      Snell et al., Prototypical Networks for Few-shot Learning, 2017, Eq. 2.

    Examples:
      >>> import jax.numpy as jnp
      >>> embeddings, prototypes = jnp.array([[0.0, 1.0]]), jnp.array([[0.0, 2.0], [1.0, 0.0]])
      >>> [f"{x:.3f}" for x in prototypical_network_loss(embeddings, prototypes, jnp.array([0]))]
      ['0.313']
    """
    embeddings, prototypes, labels = _checks.check_prototypes(embeddings, prototypes, labels)
    dtype = _checks.accumulator(embeddings, prototypes)
    temperature = _checks.positive("temperature", temperature, dtype)
    compared = compare(
        _nearness,
        embeddings,
        prototypes,
        labels,
        hyper={"temperature": temperature},
        where=where,
        class_where=class_where,
        chunk_size=chunk_size,
        class_axis_name=class_axis_name,
    )
    return negative_log_likelihood(compared)


def center_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
) -> jax.Array:
    r"""Half the squared distance to the own class's center (center loss).

    .. math:: L = \tfrac{1}{2} \lVert z - p_y \rVert^2

    It pulls only, and is used beside a loss that keeps classes apart. The paper moves its centers
    by a rule of their own; here they are prototypes like any other: learn them, compute them anew
    (:func:`asdproto.prototypes.class_prototypes`), or hold them with ``stop_gradient``.

    Args:
      embeddings: Floating, shape ``[..., dim]``, any length.
      prototypes: Floating, shape ``[classes, dim]``, any length.
      labels: Integer, shape ``[...]``; an example whose label is outside ``[0, classes)`` gives 0.
      where: Boolean, broadcastable to ``[...]``; excluded examples give 0.
      class_where: Boolean, broadcastable to ``[..., classes]``; examples of excluded classes
        give 0.

    Returns:
      Loss per example, shape ``[...]``, float32 (float64 if an argument is).

    Raises:
      ValueError: Shapes do not fit; the message names both.

    References:
      Wen et al., A Discriminative Feature Learning Approach for Deep Face Recognition, 2016.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(center_loss(jnp.array([[3.0, 4.0]]), jnp.zeros((2, 2)), jnp.array([1])))
      [12.5]
    """
    embeddings, prototypes, labels = _checks.check_prototypes(embeddings, prototypes, labels)
    classes = prototypes.shape[0]
    where = _checks.check_mask("where", where, labels.shape)
    valid = (labels >= 0) & (labels < classes)
    index = jnp.clip(labels, 0, classes - 1)
    class_where = _checks.check_mask("class_where", class_where, (*labels.shape, classes))
    if class_where is not None:
        present = jnp.broadcast_to(class_where, (*labels.shape, classes))
        valid &= jnp.take_along_axis(present, index[..., None], axis=-1)[..., 0]
    if where is not None:
        valid &= where
    dtype = _checks.accumulator(embeddings, prototypes)
    apart = embeddings.astype(dtype) - prototypes.astype(dtype)[index]
    return squared_length(jnp.where(valid[..., None], apart, 0)) / 2
