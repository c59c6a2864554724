"""Batch normalization that stays exact over masked batches and over devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from asdproto.models.fused_norm import normalize, scale_and_shift


class BatchNorm(nn.Module):
    """Normalizes every channel by the statistics of the batch, or by running ones.

    ``flax.linen.BatchNorm`` is not used: it averages the means of the devices, which is off as soon
    as one of them holds padding. Here sums and counts cross devices, so that devices which hold
    different numbers of real examples weigh as they should; and what follows a normalization in a
    residual network, the shortcut's addition and the rectifier, belongs to it, which saves an
    accelerator passes over the activations (:mod:`asdproto.models.fused_norm`, with the figures).
    Forward-mode differentiation is not supported in training.

    Attributes:
      train: Use the batch's statistics and update the running ones (collection ``batch_stats``).
      relu: Rectify the result.
      dtype: Dtype of the result; statistics, scale and bias are float32.
      axis_name: Mapped axis over which a batch is spread; ``None`` for per-device statistics.
      momentum: Share of the running statistics that one update keeps.
      epsilon: Added to the variance.
    """

    train: bool
    relu: bool = False
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        where: jax.Array | None = None,
        shortcut: jax.Array | None = None,
    ) -> jax.Array:
        """Normalizes.

        Args:
          x: Floating, shape ``[batch, ..., channels]``.
          where: Boolean, shape ``[batch]``; other examples do not enter the statistics.
          shortcut: Like ``x``; added to what is normalized, before the rectifier.

        Returns:
          Same shape, of dtype ``dtype``.
        """
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if not self.train:
            mean, inverse_std = running_mean.value, lax.rsqrt(running_var.value + self.epsilon)
            y = scale_and_shift(x, scale, bias, shortcut, mean, inverse_std, self.relu)
            return y.astype(self.dtype)
        axis_name = None if self.is_initializing() else self.axis_name
        y, mean, var = normalize(
            x, scale, bias, shortcut, where, self.relu, axis_name, self.epsilon, self.dtype
        )
        if not self.is_initializing():
            keep = self.momentum
            mean, var = lax.stop_gradient((mean, var))
            running_mean.value = keep * running_mean.value + (1 - keep) * mean
            running_var.value = keep * running_var.value + (1 - keep) * var
        return y
