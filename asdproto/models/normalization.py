"""Batch normalization that stays exact over masked batches and over devices."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class BatchNorm(nn.Module):
    """Normalizes every channel by the statistics of the batch, or by running ones.

    Statistics are kept as sums and counts until they have crossed devices, so devices that hold
    different numbers of real examples weigh as they should. ``flax.linen.BatchNorm`` averages the
    devices' means instead, which is off as soon as one of them holds padding.

    What follows a normalization in a residual network, the shortcut's addition and the rectifier,
    is part of it, and the gradient is written out: forwards and backwards, one pass over the
    activations sums and one writes. Forward-mode differentiation is not supported in training.

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
            mean, inverse = running_mean.value, lax.rsqrt(running_var.value + self.epsilon)
            return _apply(x, scale, bias, shortcut, mean, inverse, self.relu).astype(self.dtype)
        axis_name = None if self.is_initializing() else self.axis_name
        y, mean, var = _normalize(
            x, scale, bias, shortcut, where, self.relu, axis_name, self.epsilon, self.dtype
        )
        if not self.is_initializing():
            keep = self.momentum
            mean, var = lax.stop_gradient((mean, var))
            running_mean.value = keep * running_mean.value + (1 - keep) * mean
            running_var.value = keep * running_var.value + (1 - keep) * var
        return y


def _apply(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shortcut: jax.Array | None,
    mean: jax.Array,
    inverse: jax.Array,
    relu: bool,
) -> jax.Array:
    """One multiply and one add per element, in float32 registers whatever ``x`` is stored as."""
    gain = scale * inverse
    y = x.astype(jnp.float32) * gain + (bias - mean * gain)
    if shortcut is not None:
        y += shortcut.astype(jnp.float32)
    return jnp.maximum(y, 0) if relu else y


def _rows(where: jax.Array, ndim: int) -> jax.Array:
    """A mask of examples, shaped to go with their activations."""
    return where.reshape((-1,) + (1,) * (ndim - 1))


def _forward(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shortcut: jax.Array | None,
    where: jax.Array | None,
    relu: bool,
    axis_name: str | None,
    epsilon: float,
    dtype: Any,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], Any]:
    """The result with the batch's mean and variance, and what the gradient needs of it."""
    wide = x.astype(jnp.float32)
    positions = math.prod(x.shape[1:-1])
    if where is None:
        count = jnp.float32(x.shape[0] * positions)
    else:
        wide = jnp.where(_rows(where, x.ndim), wide, 0)
        count = jnp.sum(where, dtype=jnp.float32) * positions
    total, squares = _sums(wide, jnp.square(wide))
    if axis_name is not None:
        total, squares, count = lax.psum((total, squares, count), axis_name)
    count = jnp.maximum(count, 1)
    mean = total / count
    var = jnp.maximum(squares / count - jnp.square(mean), 0)
    inverse = lax.rsqrt(var + epsilon)
    y = _apply(x, scale, bias, shortcut, mean, inverse, relu).astype(dtype)
    # An empty array stands for a shortcut: the gradient needs to know its dtype, no more.
    has_shortcut = None if shortcut is None else jnp.zeros(0, shortcut.dtype)
    saved = (x, y if relu else None, scale, mean, inverse, count, where, has_shortcut)
    return (y, mean, var), saved


def _backward(
    relu: bool, axis_name: str | None, epsilon: float, dtype: Any, saved: Any, cotangents: Any
) -> tuple[Any, ...]:
    """Gradients of ``x``, ``scale``, ``bias`` and ``shortcut``; mean and variance have none."""
    del epsilon, dtype
    x, y, scale, mean, inverse, count, where, shortcut = saved
    slope = cotangents[0]
    if relu:
        slope = jnp.where(y > 0, slope, 0)
    to_shortcut = None if shortcut is None else slope.astype(shortcut.dtype)
    slope = slope.astype(jnp.float32)
    wide = x.astype(jnp.float32)
    to_bias, with_x = _sums(slope, slope * wide)
    to_scale = (with_x - mean * to_bias) * inverse
    total = to_bias, to_scale
    if axis_name is not None:  # every device's result moves with the statistics of all
        total = lax.psum(total, axis_name)
    # What the statistics pass on is affine in x: one multiplication per element, one for the rest.
    tilt = total[1] * inverse / count
    common = wide * tilt + (total[0] / count - mean * tilt)
    if where is not None:
        common = jnp.where(_rows(where, x.ndim), common, 0)
    to_x = (scale * inverse * (slope - common)).astype(x.dtype)
    return to_x, to_scale, to_bias, to_shortcut, None


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8))
def _normalize(*args: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    return _forward(*args)[0]


_normalize.defvjp(_forward, _backward)


def _sums(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums over all axes but the last, float32."""
    # Two sums become two passes on a GPU, one of them over what the other wrote; one sum of pairs
    # is a single pass. XLA:CPU does not vectorize sums of pairs.
    return lax.platform_dependent(first, second, cpu=_two_sums, default=_sum_of_pairs)


def _two_sums(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    axes = tuple(range(first.ndim - 1))
    return jnp.sum(first, axes), jnp.sum(second, axes)


def _sum_of_pairs(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    channels = first.shape[-1]
    rows = first.size // channels
    # XLA:GPU gives as many as 4,096 rows of 32 channels to one block, and then most of the device
    # waits for a few; two sums of about sqrt(rows) each keep it busy.
    shape: tuple[int, ...] = (rows, channels)
    if rows > 1024:
        parts = max(part for part in range(1, math.isqrt(rows) + 1) if rows % part == 0)
        shape = (parts, rows // parts, channels)
    pairs = first.reshape(shape), second.reshape(shape)
    while pairs[0].ndim > 1:
        pairs = lax.reduce(pairs, (jnp.float32(0),) * 2, _add_pairs, (pairs[0].ndim - 2,))
    return pairs


def _add_pairs(pair: Any, other: Any) -> Any:
    return pair[0] + other[0], pair[1] + other[1]
