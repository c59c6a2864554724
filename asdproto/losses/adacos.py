"""Cosine softmax with a scale that adapts itself: AdaCos, sub-cluster AdaCos, AdaProj.

The scale is state. It goes in as a small pytree and comes out anew, so that it can be carried
through compiled loops, averaged over devices and saved with a checkpoint like any other array.

For mixed-up examples weigh two calls with the same state: ``mix * loss(first labels) + (1 - mix) *
loss(second labels)`` is the cross entropy of soft labels. Keep the new state of the first.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from asdproto.losses.numerics import dots, gram, masked_logsumexp, replicated
from asdproto.losses.softmax import Options, compare, nll

# Below this the softmax is so flat that the loss has hardly a gradient. The formulas give 0 for
# two classes and nothing for one.
MIN_SCALE = 1.0


class AdaCosState(NamedTuple):
    """What the adaptive losses carry from step to step: a float32 scalar, at least 1."""

    scale: jax.Array


def adacos_init(num_classes: int, sub_clusters: int = 1) -> AdaCosState:
    r"""First state, and the scale of fixed AdaCos: :math:`\sqrt 2 \log(C S - 1)`, at least 1.

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
    axis_name: str | None = None,
    **options: Unpack[Options],
) -> tuple[jax.Array, AdaCosState]:
    r"""Cosine softmax whose scale follows the training (AdaCos).

    .. math::
       L = -\log \frac{e^{s \cos\theta_y}}{\sum_c e^{s \cos\theta_c}}, \quad
       s = \frac{\log B}{\cos(\min(\pi / 4, \theta_{med}))}, \quad
       B = \frac{1}{N} \sum_i \sum_{c \ne y_i} e^{s' \cos\theta_{i,c}}

    with :math:`s'` the scale that came in, and the median of the angles to own prototypes. The
    new scale is used at once, and has no gradient. It is never below 1, and stays what it was
    where the batch is empty or not finite. Examples that do not count do not move it.

    The state is from :func:`adacos_init` or the step before, and the new one is returned beside the
    loss. Without ``adaptive`` the scale is not renewed: fixed AdaCos, and every evaluation. Where
    examples are spread over a mapped axis ``axis_name``, the scale is that of all of them.

    References:
      Zhang et al., AdaCos, 2019.

    Examples:
      >>> z, label = jnp.array([0.8, 0.6]), 0
      >>> loss, state = adacos_loss(z, jnp.eye(2), label, adacos_init(9))
      >>> scale = 2.94 * 0.6 / jnp.cos(jnp.arccos(0.8))  # the log of a single exponential
      >>> print(f"{loss:.3f}, plainly {-jax.nn.log_softmax(scale * z)[label]:.3f}")
      0.497, plainly 0.497
    """
    return _adaptive_softmax(
        dots, embeddings, prototypes, labels, state, adaptive, axis_name, **options
    )


def sub_cluster_adacos_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    state: AdaCosState,
    *,
    adaptive: bool = True,
    axis_name: str | None = None,
    **options: Unpack[Options],
) -> tuple[jax.Array, AdaCosState]:
    r"""AdaCos with several prototypes a class, any of which an example may be near to.

    .. math::
       L = -\log \frac{\sum_m e^{s \cos\theta_{y,m}}}{\sum_c \sum_m e^{s \cos\theta_{c,m}}}, \quad
       s = \frac{\log B}{\cos(\min(\pi / 4, \theta_{med}))}, \quad
       B = \frac{1}{N} \sum_i \sum_{c,m} e^{s' \cos\theta_{i,c,m}}

    Unlike in AdaCos the own class counts in B, so that without mixed-up examples the scale grows
    as the loss falls. An example's angle is that to the nearest sub-cluster of its class, which
    is our reading: the paper does not define it for several.

    Arguments and results are those of :func:`adacos_loss`, with prototypes ``[classes,
    sub_clusters, dim]`` and a state from ``adacos_init(classes, sub_clusters)``.

    References:
      Wilkinghoff, Sub-Cluster AdaCos: Learning Representations for Anomalous Sound Detection,
      2021.

    Examples:
      >>> z, label, state = jnp.array([0.6, 0.8, 0.0, 0.0]), 0, adacos_init(2, 2)
      >>> prototypes = jnp.eye(4).reshape(2, 2, 4)
      >>> loss, _ = sub_cluster_adacos_loss(z, prototypes, label, state, adaptive=False)
      >>> probability = jax.nn.softmax(state.scale * prototypes @ z, axis=(0, 1))[label].sum()
      >>> print(f"{loss:.3f}, plainly {-jnp.log(probability):.3f}")
      0.287, plainly 0.287
    """
    return _adaptive_softmax(
        functools.partial(dots, ndim=(3,)),
        embeddings,
        prototypes,
        labels,
        state,
        adaptive,
        axis_name,
        ndim=3,
        count_own=True,
        **options,
    )


def adaproj_loss(
    embeddings: ArrayLike,
    bases: ArrayLike,
    labels: ArrayLike,
    state: AdaCosState,
    *,
    adaptive: bool = True,
    axis_name: str | None = None,
    **options: Unpack[Options],
) -> tuple[jax.Array, AdaCosState]:
    r"""Cosine softmax against subspaces instead of points (AdaProj).

    .. math::
       \cos\theta_c = z \cdot \frac{q_c}{\lVert q_c \rVert}, \quad
       q_c = \sum_m (z \cdot w_{c,m}) \, w_{c,m}

    in place of AdaCos's cosine; loss and scale are those of :func:`adacos_loss`. For orthonormal
    vectors :math:`q_c` is the projection on their span, and the cosine its length. The projected
    vectors are never made: both products follow from :math:`z \cdot w_{c,m}` and the products of
    a class's vectors among themselves.

    Arguments and results are those of :func:`adacos_loss`, with bases ``[classes, subspace_dim,
    dim]`` of unit vectors, orthonormal within a class for a projection in the strict sense (random
    ones in many dimensions nearly are).

    References:
      Wilkinghoff, AdaProj: Adaptively Scaled Angular Margin Subspace Projections for Anomalous
      Sound Detection with Auxiliary Classification Tasks, 2024.

    Examples:
      >>> z, bases = jnp.array([0.6, 0.8, 0.0, 0.0]), jnp.eye(4).reshape(2, 2, 4)
      >>> loss, state = adaproj_loss(z, bases, 0, adacos_init(2), adaptive=False)
      >>> cosine = jnp.linalg.norm(bases @ z, axis=1)  # of orthonormal vectors
      >>> print(f"{loss:.3f}, plainly {-jax.nn.log_softmax(state.scale * cosine)[0]:.3f}")
      0.313, plainly 0.313
    """
    return _adaptive_softmax(
        _subspace_cosines, embeddings, bases, labels, state, adaptive, axis_name, ndim=3, **options
    )


def _subspace_cosines(embeddings: ArrayLike, bases: ArrayLike) -> jax.Array:
    """z.q / |q| of embeddings ``[..., D]`` and bases ``[C, M, D]``, shape ``[..., C]``."""
    scores = dots(embeddings, bases, ndim=(3,))
    # q.q takes the products of a class's vectors among themselves, the same for all embeddings.
    products = jax.vmap(gram)(bases)
    along = jnp.einsum(
        "cnm,...cm->...cn", products.astype(scores.dtype), scores, precision=lax.Precision.HIGHEST
    )
    length2 = jnp.sum(along * scores, axis=-1)
    # An embedding orthogonal to the subspace has no projection: its cosine is 0.
    zero = length2 <= 1e-12  # and not "> 1e-12": nan must stay nan
    dot = jnp.sum(jnp.square(scores), axis=-1)  # z.q
    return jnp.where(zero, 0, dot * lax.rsqrt(jnp.where(zero, 1, length2)))


def _adaptive_softmax(
    cosines: Callable[[jax.Array, jax.Array], jax.Array],
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    state: AdaCosState,
    adaptive: bool,
    axis_name: str | None,
    *,
    ndim: int = 2,
    count_own: bool = False,
    **options: Unpack[Options],
) -> tuple[jax.Array, AdaCosState]:
    """Softmax of scaled cosines, renewing the scale first."""

    def logits(z: jax.Array, prototypes: jax.Array, labels: jax.Array) -> jax.Array:
        cosine = cosines(z, prototypes)
        return scale.astype(cosine.dtype) * cosine

    scale = lax.stop_gradient(state.scale)
    if adaptive:
        fixed = lax.stop_gradient((jnp.asarray(embeddings), jnp.asarray(prototypes)))
        own, counted, sums = compare(logits, *fixed, labels, ndim=ndim, **options)
        own = jnp.where(counted, own, -jnp.inf)
        if count_own:
            sums = jnp.logaddexp(sums, jax.nn.logsumexp(own, axis=-1))
        cosine = own.max(axis=-1) / scale.astype(own.dtype)
        scale = _next_scale(scale, cosine, sums, counted.any(axis=-1), axis_name)
    loss = nll(logits, embeddings, prototypes, labels, ndim=ndim, joint=True, **options)
    return loss, AdaCosState(scale)


def _next_scale(
    scale: jax.Array,
    cosine: jax.Array,
    log_sums: jax.Array,
    valid: jax.Array,
    axis_name: str | None,
) -> jax.Array:
    """The scale from own cosines and log sums of exponentials, one of each per example."""
    cosine, log_sums, valid = (replicated(x).ravel() for x in (cosine, log_sums, valid))
    if axis_name is not None:
        cosine, log_sums, valid = lax.all_gather(
            (cosine, log_sums, valid), axis_name, axis=0, tiled=True
        )
    if not valid.size:
        return scale
    count = jnp.sum(valid)
    total = jnp.maximum(count, 1).astype(log_sums.dtype)
    log_mean = masked_logsumexp(log_sums, where=valid) - jnp.log(total)
    # The median of what is counted: excluded angles sort behind all others.
    angles = jnp.sort(jnp.where(valid, jnp.arccos(jnp.clip(cosine, -1, 1)), jnp.inf))
    last = jnp.maximum(count - 1, 0)
    median = (angles[last // 2] + angles[(last + 1) // 2]) / 2
    renewed = log_mean / jnp.cos(jnp.minimum(jnp.pi / 4, median))
    usable = (count > 0) & jnp.isfinite(renewed)
    renewed = jnp.maximum(renewed, MIN_SCALE).astype(scale.dtype)
    return jnp.where(usable, renewed, scale)
