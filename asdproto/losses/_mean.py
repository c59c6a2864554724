"""The mean of losses per example, with masks and over devices."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from asdproto.losses import _checks


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
