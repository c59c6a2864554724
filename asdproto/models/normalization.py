"""Batch normalization that stays exact over masked batches and over devices.

What follows a normalization in a residual network, the shortcut's addition and the rectifier,
belongs to it, and the gradient of all is written out: forwards and backwards, one pass over the
activations sums and one writes. Skip :func:`normalize` on a first reading: it computes what the
textbook says, and the tests hold its gradient to that of automatic differentiation.

Each part was measured alone by ``experiments/benchmarks/program.py`` for an H100 (width 64,
bfloat16), as kernels and megabytes of a pre-training step: the written gradient saves 40 and 96 of
automatic differentiation's, one sum of pairs 16 and 12 of two sums', and sums of pairs in two
halves cost 8 kernels, but save 40 MB.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class BatchNorm(nn.Module):
    """Normalizes every channel by the statistics of the batch, or by running ones.

    ``flax.linen.BatchNorm`` is not used: it averages the means of the devices, which is off as soon
    as one of them holds padding. Here sums and counts cross devices, so that devices which hold
    different numbers of real examples weigh as they should. Forward-mode differentiation is not
    supported in training.

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


def scale_and_shift(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shortcut: jax.Array | None,
    mean: jax.Array,
    inverse_std: jax.Array,
    relu: bool,
) -> jax.Array:
    """One multiply and one add per element, in float32 whatever ``x`` is stored as."""
    factor = scale * inverse_std
    y = x.astype(jnp.float32) * factor + (bias - mean * factor)
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
    x32 = x.astype(jnp.float32)
    positions = math.prod(x.shape[1:-1])
    if where is None:
        count = jnp.float32(x.shape[0] * positions)
    else:
        x32 = jnp.where(_rows(where, x.ndim), x32, 0)
        count = jnp.sum(where, dtype=jnp.float32) * positions
    total, squares = _sums(x32, jnp.square(x32))
    if axis_name is not None:
        total, squares, count = lax.psum((total, squares, count), axis_name)
    count = jnp.maximum(count, 1)
    mean = total / count
    var = jnp.maximum(squares / count - jnp.square(mean), 0)
    inverse_std = lax.rsqrt(var + epsilon)
    y = scale_and_shift(x, scale, bias, shortcut, mean, inverse_std, relu).astype(dtype)
    # An empty array stands for a shortcut: the gradient needs to know its dtype, no more.
    has_shortcut = None if shortcut is None else jnp.zeros(0, shortcut.dtype)
    saved = (x, y if relu else None, scale, mean, inverse_std, count, where, has_shortcut)
    return (y, mean, var), saved


def _backward(
    relu: bool, axis_name: str | None, epsilon: float, dtype: Any, saved: Any, cotangents: Any
) -> tuple[Any, ...]:
    """Gradients of ``x``, ``scale``, ``bias`` and ``shortcut``; mean and variance have none."""
    del epsilon, dtype
    x, y, scale, mean, inverse_std, count, where, shortcut = saved
    gradient_y = cotangents[0]
    if relu:
        gradient_y = jnp.where(y > 0, gradient_y, 0)
    gradient_shortcut = None if shortcut is None else gradient_y.astype(shortcut.dtype)
    gradient_y = gradient_y.astype(jnp.float32)
    x32 = x.astype(jnp.float32)
    gradient_bias, sum_with_x = _sums(gradient_y, gradient_y * x32)
    gradient_scale = (sum_with_x - mean * gradient_bias) * inverse_std
    sum_bias, sum_scale = gradient_bias, gradient_scale
    if axis_name is not None:  # every device's result moves with the statistics of all
        sum_bias, sum_scale = lax.psum((sum_bias, sum_scale), axis_name)
    # What the statistics pass on is affine in x: one multiplication per element, one for the rest.
    factor = sum_scale * inverse_std / count
    through_statistics = x32 * factor + (sum_bias / count - mean * factor)
    if where is not None:
        through_statistics = jnp.where(_rows(where, x.ndim), through_statistics, 0)
    gradient_x = (scale * inverse_std * (gradient_y - through_statistics)).astype(x.dtype)
    return gradient_x, gradient_scale, gradient_bias, gradient_shortcut, None


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8))
def normalize(*args: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalized, added, rectified; with mean and variance of the batch over all devices.

    The arguments are those of :func:`_forward`, as in :class:`BatchNorm`.
    """
    return _forward(*args)[0]


normalize.defvjp(_forward, _backward)


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
