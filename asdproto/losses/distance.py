"""Losses of squared Euclidean distances: prototypical networks and center loss."""

from typing import Unpack

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from asdproto.losses.numerics import (
    accumulator,
    as_float,
    as_labels,
    check_vectors,
    dots,
    expand,
    keep,
    positive,
    squared_length,
    take_rows,
)
from asdproto.losses.softmax import Options, counted_examples, nll


def prototypical_network_logits(
    embeddings: ArrayLike, prototypes: ArrayLike, *, temperature: ArrayLike = 1.0
) -> jax.Array:
    r"""Negative squared distances, :math:`(-\lVert z - p_c \rVert^2 + \lVert z \rVert^2) / \tau`.

    Of vectors of any length. The embedding's own length, the same for all classes, is left out: no
    softmax sees it. In an episode the embeddings are the queries, and the prototypes are the plain
    means of each class's support examples: ``sums / counts[:, None]`` of
    :func:`asdproto.prototypes.class_sums`, not brought to unit length.

    References:
      Snell et al., Prototypical Networks for Few-shot Learning, 2017, Eq. 2.
    """
    scores = dots(embeddings, prototypes)
    length2 = expand(squared_length(prototypes).astype(scores.dtype), scores.ndim)
    return (scores - length2 / 2) * (2 / positive("temperature", temperature, scores.dtype))


def prototypical_network_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    **options: Unpack[Options],
) -> jax.Array:
    """Minus the log-softmax of :func:`prototypical_network_logits`.

    Examples:
      >>> z, prototypes = jnp.array([0.0, 1.0]), jnp.array([[0.0, 2.0], [1.0, 0.0]])
      >>> loss = prototypical_network_loss(z, prototypes, 0)
      >>> logits = -jnp.sum((z - prototypes) ** 2, axis=1)
      >>> print(f"{loss:.3f}, plainly {-jax.nn.log_softmax(logits)[0]:.3f}")
      0.313, plainly 0.313
    """

    def logits(z: jax.Array, prototypes: jax.Array, labels: jax.Array) -> jax.Array:
        return prototypical_network_logits(z, prototypes, temperature=temperature)

    return nll(logits, embeddings, prototypes, labels, **options)


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

    Of vectors of any length. It pulls only, and is used beside a loss that keeps classes apart. It
    is no softmax, and has no ``chunk_size``. The paper moves its centers by a rule of their own;
    here they are prototypes like any other: learn them, compute them anew
    (:func:`asdproto.prototypes.class_prototypes`), or hold them with ``stop_gradient``.

    References:
      Wen et al., A Discriminative Feature Learning Approach for Deep Face Recognition, 2016.

    Examples:
      >>> z, prototypes, label = jnp.array([3.0, 4.0]), jnp.zeros((2, 2)), 1
      >>> loss = center_loss(z, prototypes, label)
      >>> print(f"{loss}, plainly {jnp.sum((z - prototypes[label]) ** 2) / 2}")
      12.5, plainly 12.5
    """
    embeddings, prototypes = as_float("embeddings", embeddings), as_float("prototypes", prototypes)
    check_vectors(embeddings, prototypes)
    classes = prototypes.shape[0]
    counted = counted_examples(embeddings, prototypes, labels, where, class_where)
    if class_where is not None:
        prototypes = keep(prototypes, jnp.asarray(class_where).astype(bool))
    index = jnp.clip(as_labels(labels, embeddings, classes), 0, classes - 1)
    dtype = accumulator(embeddings, prototypes)
    kept = keep(embeddings, counted).astype(dtype)
    apart = kept - take_rows(prototypes.astype(dtype), index)
    return jnp.where(counted, squared_length(apart) / 2, 0)
