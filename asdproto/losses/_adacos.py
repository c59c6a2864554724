"""Cosine softmax with a scale that adapts itself: AdaCos, sub-cluster AdaCos, AdaProj.

The scale is state. It goes in as a small pytree and comes out anew, so that it can be carried
through compiled loops, averaged over devices and saved with a checkpoint like any other array.

For mixed-up examples weigh two calls with the same state: ``mix * loss(first labels) + (1 - mix) *
loss(second labels)`` is the cross entropy of soft labels. Keep the new state of the first.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from asdproto.losses import _checks
from asdproto.losses._classes import Compared, compare, negative_log_likelihood
from asdproto.losses._numerics import dots, gram, masked_logsumexp

# Below this the softmax is so flat that the loss has hardly a gradient. The formulas give 0 for
# two classes and nothing for one.
MIN_SCALE = 1.0


class AdaCosState(NamedTuple):
    """What the adaptive losses carry from step to step.

    Attributes:
      scale: Float32 scalar, at least 1.
    """

    scale: jax.Array


def adacos_init(num_classes: int, sub_clusters: int = 1) -> AdaCosState:
    r"""First state, and the scale of fixed AdaCos: :math:`\sqrt 2 \log(C S - 1)`, at least 1.

    Args:
      num_classes: Number of classes, of all devices.
      sub_clusters: Prototypes of each class.

    Returns:
      The state.

    References:
      Zhang et al., AdaCos: Adaptively Scaling Cosine Logits for Effectively Learning Deep Face
      Representations, 2019, Eq. 11.

    Examples:
      >>> print(f"{adacos_init(101).scale:.3f}")
      6.513
    """
    if num_classes < 1 or sub_clusters < 1:
        raise ValueError(
            "num_classes and sub_clusters must be at least 1, found "
            f"{num_classes} and {sub_clusters}"
        )
    others = num_classes * sub_clusters - 1
    scale = math.sqrt(2) * math.log(others) if others > 0 else MIN_SCALE
    return AdaCosState(jnp.asarray(max(scale, MIN_SCALE), jnp.float32))


def adacos_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    state: AdaCosState,
    *,
    adaptive: bool = True,
    where: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
    axis_name: str | None = None,
    chunk_size: int | None = None,
    class_axis_name: str | None = None,
) -> tuple[jax.Array, AdaCosState]:
    r"""Cosine softmax whose scale follows the training (AdaCos).

    .. math::
       L = -\log \frac{e^{s \cos\theta_y}}{\sum_c e^{s \cos\theta_c}}, \quad
       s = \frac{\log B}{\cos(\min(\pi / 4, \theta_{med}))}, \quad
       B = \frac{1}{N} \sum_i \sum_{c \ne y_i} e^{s' \cos\theta_{i,c}}

    with :math:`s'` the scale that came in, and the median of the angles to own prototypes. The
    new scale is used at once, and has no gradient. It is never below 1, and stays what it was
    where the batch is empty or not finite.

    Args:
      embeddings: Floating, shape ``[..., dim]``, unit length.
      prototypes: Floating, shape ``[classes, dim]``, unit length.
      labels: Integer, shape ``[...]``; an example whose label is outside ``[0, classes)`` gives 0
        and does not move the scale.
      state: From :func:`adacos_init` or the step before.
      adaptive: Whether to renew the scale; if not, the given one is used and returned: fixed
        AdaCos, and every evaluation.
      where: Boolean, broadcastable to ``[...]``; excluded examples give 0 and move nothing.
      class_where: Boolean, broadcastable to ``[..., classes]``; see :func:`prototypical_loss`.
      axis_name: Mapped axis that examples are spread over; the scale is that of all of them.
      chunk_size: See :func:`prototypical_loss`.
      class_axis_name: See :func:`prototypical_loss`.

    Returns:
      Loss per example, shape ``[...]``, float32 (float64 if an argument is), and the new state.

    Raises:
      ValueError: Shapes do not fit; the message names both.

    References:
      Zhang et al., AdaCos: Adaptively Scaling Cosine Logits for Effectively Learning Deep Face
      Representations, 2019.

    Examples:
      >>> import jax.numpy as jnp
      >>> embeddings, labels = jnp.eye(4)[:2], jnp.array([0, 1])
      >>> loss, state = adacos_loss(embeddings, jnp.eye(4), labels, adacos_init(4))
      >>> [f"{x:.3f}" for x in loss], f"{state.scale:.3f}"
      (['0.693', '0.693'], '1.099')
    """
    embeddings, prototypes, labels = _checks.check_prototypes(embeddings, prototypes, labels)
    return _adaptive_softmax(
        dots,
        embeddings,
        prototypes,
        labels,
        state,
        adaptive=adaptive,
        where=where,
        class_where=class_where,
        axis_name=axis_name,
        chunk_size=chunk_size,
        class_axis_name=class_axis_name,
    )


def sub_cluster_adacos_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    state: AdaCosState,
    *,
    adaptive: bool = True,
    where: ArrayLike | None = None,
    prototype_where: ArrayLike | None = None,
    axis_name: str | None = None,
    chunk_size: int | None = None,
    class_axis_name: str | None = None,
) -> tuple[jax.Array, AdaCosState]:
    r"""AdaCos with several prototypes a class, any of which an example may be near to.

    .. math::
       L = -\log \frac{\sum_m e^{s \cos\theta_{y,m}}}{\sum_c \sum_m e^{s \cos\theta_{c,m}}}, \quad
       s = \frac{\log B}{\cos(\min(\pi / 4, \theta_{med}))}, \quad
       B = \frac{1}{N} \sum_i \sum_{c,m} e^{s' \cos\theta_{i,c,m}}

    Unlike in AdaCos the own class counts in B, so that without mixed-up examples the scale grows
    as the loss falls. An example's angle is that to the nearest sub-cluster of its class, which
    is our reading: the paper does not define it for several.

    Args:
      embeddings: Floating, shape ``[..., dim]``, unit length.
      prototypes: Floating, shape ``[classes, sub_clusters, dim]``, unit length.
      labels: Integer, shape ``[...]``; an example whose label is outside ``[0, classes)`` gives 0
        and does not move the scale.
      state: From ``adacos_init(classes, sub_clusters)`` or the step before.
      adaptive: Whether to renew the scale; see :func:`adacos_loss`.
      where: Boolean, broadcastable to ``[...]``; excluded examples give 0 and move nothing.
      prototype_where: Boolean, broadcastable to ``[..., classes, sub_clusters]``; excluded
        prototypes occur nowhere.
      axis_name: Mapped axis that examples are spread over; the scale is that of all of them.
      chunk_size: See :func:`prototypical_loss`.
      class_axis_name: See :func:`prototypical_loss`.

    Returns:
      Loss per example, shape ``[...]``, float32 (float64 if an argument is), and the new state.

    Raises:
      ValueError: Shapes do not fit; the message names both.

    References:
      Wilkinghoff, Sub-Cluster AdaCos: Learning Representations for Anomalous Sound Detection,
      2021.

    Examples:
      >>> import jax.numpy as jnp
      >>> embeddings, labels = jnp.eye(4)[:2], jnp.array([0, 1])
      >>> prototypes = jnp.eye(4).reshape(2, 2, 4)
      >>> loss, state = sub_cluster_adacos_loss(
      ...     embeddings, prototypes, labels, adacos_init(2, 2), adaptive=False)
      >>> [f"{x:.3f}" for x in loss], f"{state.scale:.3f}"
      (['0.299', '1.352'], '1.554')
    """
    embeddings, prototypes, labels = _checks.check_prototypes(
        embeddings, prototypes, labels, ndim=3
    )
    return _adaptive_softmax(
        dots,
        embeddings,
        prototypes,
        labels,
        state,
        adaptive=adaptive,
        count_own=True,
        where=where,
        prototype_where=prototype_where,
        axis_name=axis_name,
        chunk_size=chunk_size,
        class_axis_name=class_axis_name,
    )


def adaproj_loss(
    embeddings: ArrayLike,
    bases: ArrayLike,
    labels: ArrayLike,
    state: AdaCosState,
    *,
    adaptive: bool = True,
    where: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
    axis_name: str | None = None,
    chunk_size: int | None = None,
    class_axis_name: str | None = None,
) -> tuple[jax.Array, AdaCosState]:
    r"""Cosine softmax against subspaces instead of points (AdaProj).

    .. math::
       \cos\theta_c = z \cdot \frac{q_c}{\lVert q_c \rVert}, \quad
       q_c = \sum_m (z \cdot w_{c,m}) \, w_{c,m}

    in place of AdaCos's cosine; loss and scale are those of :func:`adacos_loss`. For orthonormal
    vectors :math:`q_c` is the projection on their span, and the cosine its length. The projected
    vectors are never made: both products follow from :math:`z \cdot w_{c,m}` and the products of
    a class's vectors among themselves.

    Args:
      embeddings: Floating, shape ``[..., dim]``, unit length.
      bases: Floating, shape ``[classes, subspace_dim, dim]``, unit vectors (orthonormal within a
        class for a projection in the strict sense; random ones in many dimensions nearly are).
      labels: Integer, shape ``[...]``; an example whose label is outside ``[0, classes)`` gives 0
        and does not move the scale.
      state: From ``adacos_init(classes)`` or the step before.
      adaptive: Whether to renew the scale; see :func:`adacos_loss`.
      where: Boolean, broadcastable to ``[...]``; excluded examples give 0 and move nothing.
      class_where: Boolean, broadcastable to ``[..., classes]``; see :func:`prototypical_loss`.
      axis_name: Mapped axis that examples are spread over; the scale is that of all of them.
      chunk_size: See :func:`prototypical_loss`.
      class_axis_name: See :func:`prototypical_loss`.

    Returns:
      Loss per example, shape ``[...]``, float32 (float64 if an argument is), and the new state.

    Raises:
      ValueError: Shapes do not fit; the message names both.

    References:
      Wilkinghoff, AdaProj: Adaptively Scaled Angular Margin Subspace Projections for Anomalous
      Sound Detection with Auxiliary Classification Tasks, 2024.

    Examples:
      >>> import jax.numpy as jnp
      >>> embeddings, labels = jnp.array([[0.6, 0.8, 0.0, 0.0]]), jnp.array([0])
      >>> bases = jnp.eye(4).reshape(2, 2, 4)
      >>> loss, state = adaproj_loss(embeddings, bases, labels, adacos_init(2), adaptive=False)
      >>> [f"{x:.3f}" for x in loss], f"{state.scale:.3f}"
      (['0.313'], '1.000')
    """
    embeddings, bases, labels = _checks.check_prototypes(embeddings, bases, labels, ndim=3)
    return _adaptive_softmax(
        _subspace_cosines,
        embeddings,
        bases,
        labels,
        state,
        adaptive=adaptive,
        where=where,
        class_where=class_where,
        axis_name=axis_name,
        chunk_size=chunk_size,
        class_axis_name=class_axis_name,
    )


def _subspace_cosines(z: jax.Array, bases: jax.Array) -> jax.Array:
    """z.q / |q| of an embedding ``[D]`` and bases ``[C, M, D]``, shape ``[C]``."""
    scores = dots(z, bases).reshape(bases.shape[:2])
    # q.q takes the products of a class's vectors among themselves, the same for all embeddings.
    products = jax.vmap(gram)(bases)
    along = jnp.einsum("cnm,cm->cn", products, scores, precision=lax.Precision.HIGHEST)
    length2 = jnp.sum(along * scores, axis=-1)
    # An embedding orthogonal to the subspace has no projection: its cosine is 0.
    zero = length2 <= 1e-12  # and not "> 1e-12": nan must stay nan
    dot = jnp.sum(jnp.square(scores), axis=-1)  # z.q
    return jnp.where(zero, 0, dot * lax.rsqrt(jnp.where(zero, 1, length2)))


def _adaptive_softmax(
    cosines: Callable[[jax.Array, jax.Array], jax.Array],
    embeddings: jax.Array,
    prototypes: jax.Array,
    labels: jax.Array,
    state: AdaCosState,
    *,
    adaptive: bool,
    count_own: bool = False,
    axis_name: str | None,
    **options: Any,
) -> tuple[jax.Array, AdaCosState]:
    """Softmax of scaled cosines, renewing the scale first."""
    dtype = _checks.accumulator(embeddings, prototypes)
    scale = lax.stop_gradient(state.scale)

    def logits(z: jax.Array, prototypes: jax.Array, scale: jax.Array) -> jax.Array:
        return scale * cosines(z, prototypes)

    def at(scale: jax.Array, embeddings: jax.Array, prototypes: jax.Array) -> Compared:
        hyper = {"scale": scale.astype(dtype)}
        return compare(logits, embeddings, prototypes, labels, hyper=hyper, **options)

    if adaptive:
        compared = at(scale, *lax.stop_gradient((embeddings, prototypes)))
        own = jnp.where(compared.counted, compared.own, -jnp.inf)
        sums = compared.others
        if count_own:
            sums = jnp.logaddexp(sums, jax.nn.logsumexp(own, axis=-1))
        cosine = own.max(axis=-1) / scale
        scale = _next_scale(scale, cosine, sums, compared.counted.any(axis=-1), axis_name)
    compared = at(scale, embeddings, prototypes)
    return negative_log_likelihood(compared, clusters=True), AdaCosState(scale)


def _next_scale(
    scale: jax.Array,
    cosine: jax.Array,
    log_sums: jax.Array,
    valid: jax.Array,
    axis_name: str | None,
) -> jax.Array:
    """The scale from own cosines and log sums of exponentials, one of each per example."""
    cosine, log_sums, valid = cosine.ravel(), log_sums.ravel(), valid.ravel()
    if axis_name is not None:
        cosine, log_sums, valid = lax.all_gather(
            (cosine, log_sums, valid), axis_name, axis=0, tiled=True
        )
    if not valid.size:
        return scale
    count = jnp.sum(valid)
    log_mean = masked_logsumexp(log_sums, where=valid) - jnp.log(jnp.maximum(count, 1))
    # The median of what is counted: excluded angles sort behind all others.
    angles = jnp.sort(jnp.where(valid, jnp.arccos(jnp.clip(cosine, -1, 1)), jnp.inf))
    last = jnp.maximum(count - 1, 0)
    median = (angles[last // 2] + angles[(last + 1) // 2]) / 2
    renewed = log_mean / jnp.cos(jnp.minimum(jnp.pi / 4, median))
    usable = (count > 0) & jnp.isfinite(renewed)
    return jnp.where(usable, jnp.maximum(renewed, MIN_SCALE), scale).astype(scale.dtype)
