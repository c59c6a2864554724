"""MobileNetV2: inverted residual blocks of depthwise convolutions, over windows of log-mel frames.

A depthwise convolution is a sum of a few shifted products, one per tap. Written that way it is
elementwise: XLA:CPU runs it 5 to 20 times as fast as its grouped convolution (forward pass, 3 x 3,
maps of 32 x 64 x 96 down to 4 x 8 x 192, batch 32, 2 cores), gradients at its speed or up to twice
that, and ``vmap`` over models leaves it elementwise.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from asdproto.models.convolution import Lowering, windows
from asdproto.models.normalization import BatchNorm

# The network's inverted residual stages: expansion, channels at alpha 1, blocks, first strides.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    """MobileNetV2 of the DCASE 2022 Task 2 baseline: narrow, over images of log-mel frames.

    The defaults are the baseline's: alpha 0.5, no pre-training, Keras's batch normalization and
    weights drawn from Glorot's uniform distribution; 687,680 parameters and 18,544 running
    statistics, and 32 million floating-point operations a window of 64 frames and 128 bands. The
    baseline gives the image to all three channels of the stem. Three equal channels are one channel
    under the sum of their kernels, so that is what runs; the three are still trained apart.

    Attributes:
      alpha: Factor on the channels of every stage.
      head: Channels of the last 1 x 1 convolution, the length of an embedding.
      stages: Expansion, channels at alpha 1, blocks and first strides of each stage.
      momentum: Share of the running statistics that one update keeps.
      lowering: How depthwise convolutions are compiled, see :func:`depthwise`.
      dtype: Dtype of activations; parameters, statistics and embeddings are float32.
      axis_name: Mapped axis over which batch statistics are averaged; ``None`` for per device.

    References:
      Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018, Table 2.
      Dohi et al., Description and discussion on DCASE 2022 Challenge Task 2, DCASE Workshop 2022.
    """

    alpha: float = 0.5
    head: int = 1280
    stages: tuple[tuple[int, int, int, int], ...] = STAGES
    momentum: float = 0.999
    lowering: Lowering = "native"
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @property
    def embedding_dim(self) -> int:
        """Length of an embedding."""
        return self.head

    @nn.compact
    def __call__(
        self, crops: jax.Array, *, train: bool, where: jax.Array | None = None
    ) -> jax.Array:
        """Embeds windows.

        Args:
          crops: Floating, shape ``[batch, frames, mels]``, standardized log-mel.
          train: Normalize by the statistics of this batch (and update the running ones, in the
            collection ``batch_stats``), or by the running ones.
          where: Boolean, shape ``[batch]``; examples outside it are padding and do not enter the
            batch statistics.

        Returns:
          Mean of the last map, float32, shape ``[batch, head]``; not of unit length, as a softmax
          with bias classifies it.
        """
        norm = functools.partial(
            BatchNorm,
            train=train,
            dtype=self.dtype,
            axis_name=self.axis_name,
            momentum=self.momentum,
            epsilon=1e-3,
        )
        pointwise = functools.partial(
            nn.Dense,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.glorot_uniform(),
        )

        def relu6(name: str, x: jax.Array) -> jax.Array:
            return jnp.minimum(norm(relu=True, name=name)(x, where), 6)

        x = crops.astype(self.dtype)
        x = relu6("stem_norm", self._stem(x, round_channels(32 * self.alpha)))
        for stage, (expansion, channels, blocks, strides) in enumerate(self.stages, start=1):
            for block in range(blocks):
                name = f"stage{stage}_block{block + 1}"
                shortcut = x
                if expansion > 1:
                    x = pointwise(expansion * x.shape[-1], name=f"{name}_expand")(x)
                    x = relu6(f"{name}_expand_norm", x)
                x = Depthwise(
                    strides=1 if block else strides,
                    symmetric=False,
                    kernel_init=nn.initializers.glorot_uniform(),
                    lowering=self.lowering,
                    dtype=self.dtype,
                    name=f"{name}_depthwise",
                )(x)
                x = relu6(f"{name}_depthwise_norm", x)
                x = pointwise(round_channels(channels * self.alpha), name=f"{name}_project")(x)
                same = shortcut.shape == x.shape
                x = norm(name=f"{name}_project_norm")(x, where, shortcut if same else None)
        x = relu6("head_norm", pointwise(self.head, name="head")(x))
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)

    def _stem(self, images: jax.Array, features: int) -> jax.Array:
        """A 3 x 3 convolution of stride 2 over three channels that all hold the image."""
        shape = (3, 3, 3, features)
        kernel = self.param("stem", nn.initializers.glorot_uniform(), shape, jnp.float32)
        kernel = jnp.sum(kernel, axis=2).astype(self.dtype)
        taps = shifted(images[..., None], 3, strides=2, symmetric=False)
        return jnp.concatenate(taps, axis=-1) @ kernel.reshape(9, features)


class Depthwise(nn.Module):
    """Bias-free 3 x 3 convolution of every channel with a kernel of its own.

    Attributes:
      strides: Step in both directions.
      symmetric: See :func:`depthwise`.
      kernel_init: Draws the kernel, of shape ``[3, 3, 1, channels]``.
      lowering: See :func:`depthwise`.
      dtype: Dtype of the arithmetic; the kernel is stored in float32.
    """

    strides: int
    symmetric: bool
    kernel_init: nn.initializers.Initializer
    lowering: Lowering = "native"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[batch, rows, columns, channels]`` to ``[batch, rows', columns', channels]``."""
        kernel = self.param("kernel", self.kernel_init, (3, 3, 1, x.shape[-1]), jnp.float32)
        return depthwise(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            strides=self.strides,
            symmetric=self.symmetric,
            lowering=self.lowering,
        )


def depthwise(
    x: jax.Array, kernel: jax.Array, *, strides: int, symmetric: bool, lowering: Lowering
) -> jax.Array:
    """Depthwise convolution that covers its input.

    Args:
      x: Floating, shape ``[batch, rows, columns, channels]``.
      kernel: Same dtype, shape ``[size, size, 1, channels]``, ``size`` odd.
      strides: Step in both directions.
      symmetric: Whether ``size // 2`` zeros go before and after, as in PyTorch; otherwise as few as
        are needed, the odd one after, as in TensorFlow. They differ for strides above 1.
      lowering: ``"native"`` and ``"native_if_fits"``: XLA's grouped convolution; the others:
        shifted products.

    Returns:
      Shape ``[batch, ceil(rows / strides), ceil(columns / strides), channels]``.
    """
    size = kernel.shape[0]
    if lowering in ("native", "native_if_fits"):
        return lax.conv_general_dilated(
            x,
            kernel,
            (strides, strides),
            [padding(n, size, strides, symmetric) for n in x.shape[1:3]],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1],
        )
    taps = kernel.reshape(size * size, -1)
    met = shifted(x, size, strides=strides, symmetric=symmetric)
    return sum(x * tap for x, tap in zip(met[1:], taps[1:], strict=True)) + met[0] * taps[0]


def padding(length: int, size: int, strides: int, symmetric: bool) -> tuple[int, int]:
    """Zeros before and after an axis, for windows at ``ceil(length / strides)`` positions."""
    needed = max((-(-length // strides) - 1) * strides + size - length, 0)
    before = size // 2 if symmetric else needed // 2
    return before, needed - before


def shifted(x: jax.Array, size: int, *, strides: int, symmetric: bool) -> list[jax.Array]:
    """What each tap of a window meets, row by row: views ``[batch, rows', columns', channels]``."""
    ends = [-(-n // strides) for n in x.shape[1:3]]
    zeros = [padding(n, size, strides, symmetric) for n in x.shape[1:3]]
    # Symmetric padding may reach beyond the last window: no zeros are needed there.
    x = jnp.pad(x, ((0, 0), *((before, max(after, 0)) for before, after in zeros), (0, 0)))
    return windows(x, (size, size), strides, ends)


def round_channels(channels: float) -> int:
    """The multiple of 8 nearest to a number of channels, never more than a tenth below it."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8
