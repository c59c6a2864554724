"""Convolution with a choice of lowering: one operation, four ways to compile it.

XLA's convolution is right on an accelerator, but for windows larger than the map: its rewriting of
their gradients for a GPU adds transposes and copies, which one matrix product over gathered patches
does not need. For an H100 (experiments/benchmarks/program.py) patches there save 10 of the kernels
of a pre-training step and 13 of a fine-tuning step; patches everywhere would move twice the bytes.
On a CPU the convolution falls off cliffs: small maps and strided windows run tens of times slower
than patches, and any convolution inside a loop body loses its threads. Under ``vmap`` over models a
convolution becomes a grouped one, where patches become a batched matrix product. All lowerings
compute the same sums; only their order, and so the last bits, differ.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# "native": XLA's convolution. "patches": gathered patches and one matrix product. "native_if_fits":
# XLA's where the window fits into the result, else patches. "native_if_large": XLA's on large maps
# without strides, else patches.
Lowering = Literal["native", "patches", "native_if_fits", "native_if_large"]

# As residual networks are usually started: the gradient keeps its size from layer to layer.
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

# Output positions per example up to which patches beat XLA's CPU convolution: measured by
# experiments/benchmarks/train.py --part lowering on 2 cores at widths 16 to 64.
_CPU_SMALL_MAP = 16


def default_lowering(backend: str | None = None, *, in_loop: bool = False) -> Lowering:
    """Lowering that suits a backend (``"cpu"``, ``"gpu"``, ``"tpu"``; JAX's default when ``None``).

    ``in_loop`` says that the steps run inside ``scan``, or under ``vmap`` over models.
    """
    backend = backend or jax.default_backend()
    if backend == "cpu":
        return "patches" if in_loop else "native_if_large"
    return "native" if backend == "tpu" else "native_if_fits"


@functools.cache
def compiler_options(backend: str | None = None) -> dict[str, str] | None:
    """Options to compile programs full of convolutions with, for ``jax.jit(compiler_options=...)``.

    XLA:CPU hands convolutions to a kernel library that takes longer than its own: a step of this
    network gains a tenth (width 16) to a quarter (width 32) by keeping the library to products and
    reductions; ``experiments/benchmarks/train.py --parts lowering`` compares both. ``None`` stands
    for the defaults: of other backends, and of a version of XLA that does not know the option.
    """
    if (backend or jax.default_backend()) != "cpu":
        return None
    kept = "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    options = {"xla_cpu_experimental_ynn_fusion_type": kept}
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(jnp.sin, compiler_options=options).lower(0.0).compile()
    except (RuntimeError, ValueError):
        return None
    return options


def convolve(x: jax.Array, kernel: jax.Array, *, strides: int, lowering: Lowering) -> jax.Array:
    """Two-dimensional convolution with symmetric padding ``kernel // 2``.

    Args:
      x: Floating, shape ``[batch, rows, columns, channels]``.
      kernel: Same dtype, shape ``[size, size, channels, features]``, ``size`` odd.
      strides: Step in both directions.
      lowering: How it is compiled.

    Returns:
      Shape ``[batch, ceil(rows / strides), ceil(columns / strides), features]``.
    """
    size = kernel.shape[0]
    pad = size // 2
    rows, columns = (-(-n // strides) for n in x.shape[1:3])
    if lowering == "native_if_fits":
        lowering = "patches" if min(rows, columns) < size else "native"
    elif lowering != "native" and strides == 2 and size > 3 and x.shape[-1] == 1:
        x, kernel = _space_to_depth(x, kernel, rows, columns)
        size, strides, pad = kernel.shape[0], 1, 0
        lowering = "native" if lowering == "native_if_large" else lowering
    if lowering == "native_if_large":
        lowering = "patches" if strides > 1 or rows * columns <= _CPU_SMALL_MAP else "native"
    if lowering == "native":
        return lax.conv_general_dilated(
            x,
            kernel,
            (strides, strides),
            [(pad, pad), (pad, pad)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    patches = jnp.concatenate(windows(x, (size, size), strides, (rows, columns)), axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def _space_to_depth(
    x: jax.Array, kernel: jax.Array, rows: int, columns: int
) -> tuple[jax.Array, jax.Array]:
    """A strided convolution of one channel as a dense one of four: same sums, fewer windows.

    Every 2 x 2 square of ``x`` becomes one position of four channels, and the kernel, with a row
    and a column of zeros before it, is cut up alike. No padding is left to do.
    """
    pad = kernel.shape[0] // 2
    before = pad + pad % 2  # even, so that squares begin where windows do
    half = (kernel.shape[0] + 1) // 2
    batch, old_height, old_width, _ = x.shape
    height, width = 2 * (rows + half - 1), 2 * (columns + half - 1)
    after = height - before - old_height, width - before - old_width
    x = jnp.pad(x[..., 0], ((0, 0), (before, after[0]), (before, after[1])))
    x = x.reshape(batch, height // 2, 2, width // 2, 2).transpose(0, 1, 3, 2, 4)
    ends = before - pad, 2 * half - kernel.shape[0] - (before - pad)
    cut = jnp.pad(kernel[:, :, 0], (ends, ends, (0, 0)))
    cut = cut.reshape(half, 2, half, 2, -1).transpose(0, 2, 1, 3, 4)
    return x.reshape(batch, height // 2, width // 2, 4), cut.reshape(half, half, 4, -1)


def windows(
    x: jax.Array, size: tuple[int, int], strides: int, positions: Sequence[int]
) -> list[jax.Array]:
    """What each tap of a window meets, row by row: views ``[batch, *positions, channels]``."""
    rows, columns = ((n - 1) * strides + 1 for n in positions)
    return [
        x[:, i : i + rows : strides, j : j + columns : strides]
        for i in range(size[0])
        for j in range(size[1])
    ]


def max_pool_3x3(x: jax.Array) -> jax.Array:
    """Maximum over 3 x 3 windows with stride 2 and padding 1, as ResNet's stem uses it.

    Written as maxima of strided slices, rows first: its gradient is elementwise, where that of a
    windowed reduction is a scatter, slow on every backend. Two equal maxima share the gradient.
    """
    for axis in (1, 2):
        length = x.shape[axis]
        out = -(-length // 2)
        pad = [(0, 0)] * 4
        pad[axis] = (1, 2 * out - length)
        padded = jnp.pad(x, pad, constant_values=-jnp.inf)
        slices = [lax.slice_in_dim(padded, i, i + 2 * out - 1, 2, axis) for i in range(3)]
        x = jnp.maximum(jnp.maximum(slices[0], slices[1]), slices[2])
    return x


class Conv(nn.Module):
    """Bias-free square convolution with a choice of lowering.

    Attributes:
      features: Output channels.
      kernel_size: Window, odd.
      strides: Step in both directions.
      lowering: See :data:`Lowering`.
      kernel_init: Distribution of the first weights.
      dtype: Dtype of the arithmetic; the kernel is stored in float32.
    """

    features: int
    kernel_size: int = 3
    strides: int = 1
    lowering: Lowering = "native"
    kernel_init: nn.initializers.Initializer = he_fan_out
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[batch, rows, columns, channels]`` to ``[batch, rows', columns', features]``."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        return convolve(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            strides=self.strides,
            lowering=self.lowering,
        )
