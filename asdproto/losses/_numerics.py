"""Sums that do not overflow, cancel or turn to nan; shared by all losses."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from asdproto.losses import _checks

# Stands for log(0). Finite, so that a difference of two of them is 0 and not nan.
LOG_ZERO = -1e30


def dots(x: jax.Array, y: jax.Array) -> jax.Array:
    """Products ``[..., D] x [R, D] -> [..., R]``, summed in float32 or better.

    Of prototypes ``[C, M, D]`` it makes ``R = C * M`` rows: a short last axis is slow.

    At temperature 0.01 the three digits of TF32 are not enough: float32 inputs are multiplied in
    full. Products with bfloat16 inputs, in gradients too, stay fast.
    """
    narrow = jnp.finfo(jnp.result_type(x, y)).bits < 32
    return jnp.tensordot(
        x,
        y.reshape(-1, y.shape[-1]),
        axes=(-1, -1),
        preferred_element_type=_checks.accumulator(x, y),
        precision=None if narrow else lax.Precision.HIGHEST,
    )


@jax.custom_jvp
def gram(x: jax.Array) -> jax.Array:
    """Products of rows ``[N, D]`` among themselves, ``[N, N]``.

    Its gradient knows that both sides are the same, and takes one product where two would do.
    Without it, value and gradient of ``supervised_contrastive_loss`` take 1.26 times the CPU time
    at 512 x 256, 1.30 times at 1,024 x 512 and 0.91 times at 2,048 x 256 (2 cores).
    """
    return dots(x, x)


@gram.defjvp
def _gram_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x,), (change,) = primals, tangents
    half = dots(change, x)
    return gram(x), half + half.T


def squared_length(x: jax.Array) -> jax.Array:
    """Sum of squares over the last axis, in float32 or better."""
    return jnp.sum(jnp.square(x.astype(_checks.accumulator(x))), axis=-1)


def masked_logsumexp(
    *terms: jax.Array, where: jax.Array | None = None, axis: int | None = None
) -> jax.Array:
    """Logsumexp of finite numbers, over all terms of one shape.

    Returns:
      LOG_ZERO, with zero gradient, if all is masked or nothing is there.
    """
    if where is not None:
        terms = tuple(jnp.where(where, x, LOG_ZERO) for x in terms)
    largest = functools.reduce(jnp.maximum, terms)
    top = lax.stop_gradient(jnp.max(largest, axis, keepdims=True, initial=LOG_ZERO))
    # With all masked every term is exp(0), and LOG_ZERO plus log of a count is LOG_ZERO again;
    # only with no terms at all the sum is 0.
    total = jnp.sum(functools.reduce(jnp.add, [jnp.exp(x - top) for x in terms]), axis)
    return jnp.squeeze(top, axis) + jnp.log(jnp.where(total == 0, 1, total))


def softplus(x: jax.Array) -> jax.Array:
    """log(1 + exp(x)) of finite numbers, without the care for others that costs time."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def keep(embeddings: jax.Array, where: jax.Array | None) -> jax.Array:
    """Zeros where excluded: 0 times nan is nan, and what is masked may hold anything."""
    return embeddings if where is None else jnp.where(where[..., None], embeddings, 0)


def masked_mean(
    losses: ArrayLike, where: ArrayLike | None = None, *, axis_name: str | None = None
) -> jax.Array:
    """Mean of the losses that count; 0, with zero gradient, if none does.

    Args:
      losses: Floating, any shape.
      where: Boolean, broadcastable to the shape of ``losses``; the mask given to the loss.
      axis_name: Mapped axis that examples are spread over; sums and counts are added over it, so
        that devices with fewer examples do not count for more. Average gradients over devices.

    Returns:
      Scalar.

    Raises:
      ValueError: The mask does not fit; the message names both shapes.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(masked_mean(jnp.array([1.0, 3.0, 9.0]), jnp.array([True, True, False])))
      2.0
    """
    losses = _checks.as_float("losses", losses)
    where = _checks.check_mask("where", where, losses.shape)
    counted = jnp.broadcast_to(True if where is None else where, losses.shape)
    total = jnp.sum(jnp.where(counted, losses, 0))
    count = jnp.sum(counted).astype(losses.dtype)
    if axis_name is not None:
        total, count = lax.psum((total, count), axis_name)
    return total / jnp.maximum(count, 1)
