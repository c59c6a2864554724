"""Two views of a batch: VICReg, its terms by themselves, and Barlow Twins."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from asdproto.losses.numerics import (
    accumulator,
    as_mask,
    as_paired_rows,
    as_rows,
    dots,
    gram,
    keep,
    positive,
    replicated,
    scalar,
)


class VICRegTerms(NamedTuple):
    """The weighted terms of :func:`vicreg_loss`: ``invariance.mean() + variance + covariance``.

    Attributes:
      invariance: Per example, shape ``[examples]``.
      variance: Scalar; a statistic of the batch, so there is none per example.
      covariance: Scalar.
    """

    invariance: jax.Array
    variance: jax.Array
    covariance: jax.Array


def vicreg_loss(
    first: ArrayLike,
    second: ArrayLike,
    *,
    invariance_weight: ArrayLike = 25.0,
    variance_weight: ArrayLike = 25.0,
    covariance_weight: ArrayLike = 1.0,
    eps: ArrayLike = 1e-4,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> VICRegTerms:
    r"""Variance-invariance-covariance regularization of two views of a batch.

    .. math::
       \lambda \, \frac{1}{D} \lVert x_i - x'_i \rVert^2, \qquad
       \mu \, \frac{v(X) + v(X')}{2}, \qquad \nu \, (c(X) + c(X'))

    with :math:`v` of :func:`variance_loss` and :math:`c` of :func:`covariance_loss`. The variance
    is halved as in the authors' code, which their default weights belong to.

    Row i of ``second`` is another view of row i of ``first``, ``[examples, dim]``, of any length.
    ``eps`` is added to variances before the root. Pairs that ``where``, ``[examples]``, excludes
    count nowhere. Where examples are spread over a mapped axis ``axis_name``, means and covariances
    are those of all; average gradients over devices, as for any mean.

    References:
      Bardes et al., VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised
      Learning, 2022.

    Examples:
      >>> first = jnp.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
      >>> print(vicreg_loss(first, first + 1.0))
      VICRegTerms(invariance=Array([25., 25., 25., 25.], dtype=float32), ...)
    """
    first, second = as_paired_rows(first=first, second=second)
    if where is not None:
        where = as_mask("where", where, first.shape[:1])
        first, second = keep(first, where), keep(second, where)
    dtype = accumulator(first, second)
    apart = jnp.mean(jnp.square(first.astype(dtype) - second.astype(dtype)), axis=-1)
    variance = variance_loss(first, eps=eps, where=where, axis_name=axis_name)
    variance += variance_loss(second, eps=eps, where=where, axis_name=axis_name)
    covariance = covariance_loss(first, where=where, axis_name=axis_name)
    covariance += covariance_loss(second, where=where, axis_name=axis_name)
    return VICRegTerms(
        scalar("invariance_weight", invariance_weight, dtype) * apart,
        scalar("variance_weight", variance_weight, dtype) * variance / 2,
        scalar("covariance_weight", covariance_weight, dtype) * covariance,
    )


def variance_loss(
    embeddings: ArrayLike,
    *,
    eps: ArrayLike = 1e-4,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    r"""Mean hinge of the standard deviations of a batch: keeps embeddings from collapsing.

    .. math:: v(X) = \frac{1}{D} \sum_d \max(0, 1 - \sqrt{\mathrm{var}(X_d) + \epsilon})

    A scalar of embeddings ``[examples, dim]``, 0 for fewer than two; further arguments are those of
    :func:`vicreg_loss`.

    References:
      Bardes et al., VICReg, 2022, Eq. 1. The variance is the unbiased one.

    Examples:
      >>> print(f"{variance_loss(jnp.zeros((4, 3))):.3f}")
      0.990
    """
    centered, count = _center(embeddings, where, axis_name)
    squares = jnp.sum(jnp.square(centered), axis=0)
    if axis_name is not None:
        squares = lax.psum(squares, axis_name)
    eps = positive("eps", eps, centered.dtype)
    spread = jnp.sqrt(squares / jnp.maximum(count - 1, 1) + eps)
    return jnp.where(count > 1, jnp.mean(jax.nn.relu(1 - spread)), 0)


def covariance_loss(
    embeddings: ArrayLike, *, where: ArrayLike | None = None, axis_name: str | None = None
) -> jax.Array:
    r"""Sum of squared covariances between different dimensions: decorrelates them.

    .. math:: c(X) = \frac{1}{D} \sum_{d \ne e} \mathrm{cov}(X_d, X_e)^2

    A scalar of embeddings ``[examples, dim]``, 0 for fewer than two; further arguments are those of
    :func:`vicreg_loss`.

    References:
      Bardes et al., VICReg, 2022, Eq. 3 and 4.

    Examples:
      >>> print(covariance_loss(jnp.array([[1.0, 1.0], [-1.0, -1.0], [0.0, 0.0]])))
      1.0
    """
    centered, count = _center(embeddings, where, axis_name)
    examples, dim = centered.shape
    # The sum of all squared entries of X'X is that of XX', which is small for a small batch of wide
    # embeddings. With twice as many dimensions as examples the diagonal is at most half of the sum,
    # and the difference loses no more than a bit.
    few = isinstance(examples, int) and 2 * examples <= dim  # not where the size is symbolic
    if axis_name is None and few:
        products = gram(centered)
        diagonal = jnp.sum(jnp.square(centered), axis=0)
        squares = jnp.sum(jnp.square(products)) - jnp.sum(jnp.square(diagonal))
    else:
        products = gram(centered.T)
        if axis_name is not None:
            products = lax.psum(products, axis_name)
        apart = ~jnp.eye(dim, dtype=bool)
        squares = jnp.sum(jnp.square(jnp.where(apart, products, 0)))
    return squares / jnp.square(jnp.maximum(count - 1, 1)) / dim


def barlow_twins_loss(
    first: ArrayLike,
    second: ArrayLike,
    *,
    off_diagonal: ArrayLike = 5e-3,
    eps: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    r"""Two views' dimensions correlate with themselves, and not with others (Barlow Twins).

    .. math:: L = \sum_d (1 - c_{dd})^2 + \lambda \sum_{d \ne e} c_{de}^2

    with the correlations c of the views' dimensions over the batch: one number a batch, 0 without
    examples. ``eps`` is added to variances before the root; further arguments are those of
    :func:`vicreg_loss`.

    References:
      Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy Reduction, 2021, Eq. 1.

    Examples:
      >>> x = jnp.array([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
      >>> print(f"{barlow_twins_loss(x, -x):.2f}, plainly {2 * (1 + 1)**2:.2f}")
      8.00, plainly 8.00
    """
    first, second = as_paired_rows(first=first, second=second)
    eps = positive("eps", eps, accumulator(first, second))
    views = []
    for x in (first, second):
        centered, count = _center(x, where, axis_name)
        squares = jnp.sum(jnp.square(centered), axis=0)
        if axis_name is not None:
            squares = lax.psum(squares, axis_name)
        count = jnp.maximum(count, 1)
        views.append((centered * lax.rsqrt(squares / count + eps)[None]).astype(eps.dtype))
    correlation = dots(views[0].T, views[1].T) / count.astype(eps.dtype)
    if axis_name is not None:
        correlation = lax.psum(correlation, axis_name)
    same = jnp.eye(len(correlation), dtype=bool)
    weight = scalar("off_diagonal", off_diagonal, eps.dtype)
    terms = jnp.where(same, jnp.square(1 - correlation), weight * jnp.square(correlation))
    return jnp.where(squares.any() | jnp.isnan(squares).any(), jnp.sum(terms), 0)


def _center(
    embeddings: ArrayLike, where: ArrayLike | None, axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    """Embeddings about their mean (zero where excluded), in the accumulator's dtype, and count."""
    embeddings = as_rows("embeddings", embeddings)
    embeddings = replicated(embeddings.astype(accumulator(embeddings)))
    counted = jnp.ones(embeddings.shape[:1], bool)
    if where is not None:
        counted = replicated(as_mask("where", where, embeddings.shape[:1]))
        embeddings = keep(embeddings, counted)
    count = jnp.sum(counted).astype(embeddings.dtype)
    total = jnp.sum(embeddings, axis=0)
    if axis_name is not None:
        total, count = lax.psum((total, count), axis_name)
    return keep(embeddings - (total / jnp.maximum(count, 1))[None], counted), count
