"""Batch normalisation that stays exact over masked batches and over devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class BatchNorm(nn.Module):
    """Normalises every channel by the statistics of the batch, or by running ones.

    Statistics are kept as sums and counts until they have crossed devices, so devices that hold
    different numbers of real examples weigh as they should. ``flax.linen.BatchNorm`` averages the
    devices' means instead, which is off as soon as one of them holds padding.

    Attributes:
      train: Use the batch's statistics and update the running ones (collection ``batch_stats``).
      dtype: Dtype of the result; statistics, scale and bias are float32.
      axis_name: Mapped axis over which a batch is spread; ``None`` for per-device statistics.
      momentum: Share of the running statistics that one update keeps.
      epsilon: Added to the variance.
    """

    train: bool
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, where: jax.Array | None = None) -> jax.Array:
        """Normalises.

        Args:
          x: Floating, shape ``[batch, ..., channels]``.
          where: Boolean, shape ``[batch]``; other examples do not enter the statistics.

        Returns:
          Same shape, of dtype ``dtype``.
        """
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if self.train:
            mean, var = self._statistics(x, where)
            if not self.is_initializing():
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * var
        else:
            mean, var = running_mean.value, running_var.value
        gain = scale * lax.rsqrt(var + self.epsilon)
        # One multiply and one add per element, in float32 registers whatever x is stored as.
        return (x.astype(jnp.float32) * gain + (bias - mean * gain)).astype(self.dtype)

    def _statistics(self, x: jax.Array, where: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Mean and variance of every channel, from one pass over ``x``."""
        wide = x.astype(jnp.float32)
        axes = tuple(range(x.ndim - 1))
        positions = 1
        for length in x.shape[1:-1]:
            positions *= length
        if where is None:
            count = jnp.float32(x.shape[0] * positions)
        else:
            wide = jnp.where(where.reshape((-1,) + (1,) * (x.ndim - 1)), wide, 0)
            count = jnp.sum(where, dtype=jnp.float32) * positions
        total, squares = jnp.sum(wide, axes), jnp.sum(jnp.square(wide), axes)
        if self.axis_name is not None and not self.is_initializing():
            total, squares, count = lax.psum((total, squares, count), self.axis_name)
        count = jnp.maximum(count, 1)
        mean = total / count
        return mean, jnp.maximum(squares / count - jnp.square(mean), 0)
