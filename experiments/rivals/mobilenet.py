"""The MobileNetV2 row of Table 1: the second baseline of DCASE 2022 Task 2.

Plain log-mel -> windows of 64 frames -> MobileNetV2 -> section -> how little the clip's own section
is believed. One network a machine type, over its sections.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from asdproto.data.dataset import ClipArrays, Dataset
from asdproto.features import FeatureSettings
from asdproto.models.convolution import Lowering, windows
from asdproto.models.normalization import BatchNorm
from asdproto.systems.system import Comparison, Section
from asdproto.training.devices import RunOptions
from asdproto.training.objectives import Objective
from experiments.rivals.rival import (
    Fitted,
    Network,
    RandomStage,
    Rival,
    adam_stage,
    evidence,
    fit_evidence,
    section_label,
    softmax_layer,
    softmax_loss,
    train_encoder,
)


@dataclasses.dataclass(frozen=True)
class MobileNetSystem(Rival):
    r"""The system; the defaults are the official baseline's.

    The score is the mean over a clip's windows of :math:`\log(1 - p) - \log p`, with p the
    probability of the clip's own section. 687,680 parameters and 32 million floating-point
    operations a window; 250 windows a clip of 10 s at test time.

    Three things differ from the official program. A network takes standardized bands, not dB. An
    epoch is one random window of every clip; 20 passes over 32 windows of a clip, 8 frames apart,
    are 640 of these. Thresholds rest on scores of clips that were trained on, as there.

    Attributes:
      alpha: Factor on the network's channels.
      head: Length of an embedding.
      momentum: Share of the running statistics that an update keeps; Keras's 0.999 needs thousands
        of steps.

    References:
      Dohi et al., Description and discussion on DCASE 2022 Challenge Task 2, DCASE Workshop 2022.
    """

    features: FeatureSettings = dataclasses.field(
        default_factory=lambda: FeatureSettings(scale="mel")
    )
    stage: RandomStage = dataclasses.field(default_factory=lambda: adam_stage(640, 32, 1e-5))
    hop: int = 1
    per_machine: bool = True
    alpha: float = 0.5
    head: int = 1280
    momentum: float = 0.999

    kind: ClassVar[str] = "experiments.rivals.mobilenet:MobileNetSystem"
    name: ClassVar[str] = "mobilenet"
    label = staticmethod(section_label)

    def encoder(self) -> nn.Module:
        return MobileNetV2(alpha=self.alpha, head=self.head, momentum=self.momentum)

    def fit(self, data: Dataset, options: RunOptions, seed: int, run: str) -> Fitted:
        objective = Objective("sections", _loss, softmax_layer)
        state = train_encoder(self, self.stage, objective, data, options, seed, run)
        head = state.params["loss"]
        return fit_evidence(self, state, data, head["kernel"], head["bias"], odds=True)

    def score(self, network: Network, clips: ClipArrays, keys: Sequence[Section]) -> Comparison:
        return Comparison(evidence(self, network, clips, keys, odds=True))


def _loss(params, state, embeddings, batch, **_):
    losses = softmax_loss(params, embeddings, batch.labels, temperature=1.0, where=batch.where)
    return losses, state.loss_state


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
    """MobileNetV2: inverted residual blocks of depthwise convolutions, over log-mel frames.

    The defaults are the baseline's: narrow, not pre-trained, Keras's batch normalization and
    weights drawn from Glorot's uniform distribution. The baseline gives the image to all three
    channels of the stem. Three equal channels are one channel under the sum of their kernels, so
    that is what runs; the three are still trained apart.

    Attributes:
      alpha: Factor on the channels of every stage.
      head: Channels of the last 1 x 1 convolution, the length of an embedding.
      stages: Expansion, channels at alpha 1, blocks and first strides of each stage.
      momentum: Share of the running statistics that one update keeps.
      lowering: How depthwise convolutions are compiled, see :class:`Depthwise`.
      dtype: Dtype of activations; parameters, statistics and embeddings are float32.
      axis_name: Mapped axis over which batch statistics are averaged; ``None`` for per device.

    References:
      Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018, Table 2.
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
        """Mean of the last map, float32 ``[batch, head]``, which a softmax with bias classifies.

        Args:
          crops: Floating, shape ``[batch, frames, mels]``, standardized log-mel.
          train: Normalize by the statistics of this batch, which enter ``batch_stats``, or by
            those.
          where: Boolean, shape ``[batch]``; other examples do not enter the batch statistics.
        """
        norm = functools.partial(
            BatchNorm,
            train=train,
            dtype=self.dtype,
            axis_name=self.axis_name,
            momentum=self.momentum,
            epsilon=1e-3,
        )
        glorot = nn.initializers.glorot_uniform()
        pointwise, depthwise = convolutions(self, glorot, symmetric=False)

        def relu6(name: str, x: jax.Array) -> jax.Array:
            return jnp.minimum(norm(relu=True, name=f"{name}_norm")(x, where), 6)

        x = crops.astype(self.dtype)
        x = relu6("stem", self._stem(x, round_channels(32 * self.alpha)))
        stages = [(t, round_channels(c * self.alpha), n, s) for t, c, n, s in self.stages]
        x = inverted_residuals(x, stages, where, pointwise, depthwise, relu6, norm)
        x = relu6("head", pointwise(self.head, name="head")(x))
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)

    def _stem(self, images: jax.Array, features: int) -> jax.Array:
        """A 3 x 3 convolution of stride 2 over three channels that all hold the image."""
        shape = (3, 3, 3, features)
        kernel = self.param("stem", nn.initializers.glorot_uniform(), shape, jnp.float32)
        kernel = jnp.sum(kernel, axis=2).astype(self.dtype)
        taps = shifted(images[..., None], 2, symmetric=False)
        return jnp.concatenate(taps, axis=-1) @ kernel.reshape(9, features)


def convolutions(
    network: Any, init: nn.initializers.Initializer, *, symmetric: bool
) -> tuple[Callable[..., nn.Module], Callable[..., nn.Module]]:
    """Makers of a network's 1 x 1 convolutions and of its :class:`Depthwise` ones, without bias."""
    both = {"kernel_init": init, "dtype": network.dtype}
    pointwise = functools.partial(nn.Dense, use_bias=False, **both)
    return pointwise, functools.partial(
        Depthwise, symmetric=symmetric, lowering=network.lowering, **both
    )


def inverted_residuals(
    x: jax.Array,
    stages: Sequence[tuple[int, int, int, int]],
    where: jax.Array | None,
    pointwise: Callable[..., nn.Module],
    depthwise: Callable[..., nn.Module],
    activate: Callable[[str, jax.Array], jax.Array],
    norm: Callable[..., nn.Module],
) -> jax.Array:
    """The blocks of a MobileNet: expansion, depthwise convolution, projection and a shortcut.

    Called inside a module, whose layers they become.

    Args:
      x: Floating, shape ``[batch, rows, columns, channels]``.
      stages: Expansion, channels, blocks and first strides of each stage.
      where: Boolean, shape ``[batch]``; other examples do not enter the batch statistics.
      pointwise: Makes a 1 x 1 convolution of so many channels.
      depthwise: Makes a convolution of so large strides.
      activate: Normalization and activation, by name.
      norm: Makes the normalization without activation that ends a block.
    """
    for stage, (expansion, channels, blocks, strides) in enumerate(stages, start=1):
        for block in range(blocks):
            name, y = f"stage{stage}_block{block + 1}", x
            if expansion > 1:
                y = pointwise(expansion * x.shape[-1], name=f"{name}_expand")(y)
                y = activate(f"{name}_expand", y)
            y = depthwise(1 if block else strides, name=f"{name}_depthwise")(y)
            y = activate(f"{name}_depthwise", y)
            y = pointwise(channels, name=f"{name}_project")(y)
            # A shortcut goes around every block of a stage but the one that changes the map.
            shortcut = x if x.shape == y.shape else None
            x = norm(name=f"{name}_project_norm")(y, where, shortcut)
    return x


class Depthwise(nn.Module):
    """Bias-free 3 x 3 convolution of every channel with a kernel of its own.

    As a sum of shifted products, one a tap, it is elementwise: XLA:CPU runs that 5 to 20 times as
    fast as its grouped convolution (forward pass, maps of 32 x 64 x 96 down to 4 x 8 x 192, batch
    32, 2 cores), gradients at its speed or up to twice that, and ``vmap`` over models leaves it
    elementwise.

    Attributes:
      strides: Step in both directions.
      symmetric: See :func:`padding`.
      kernel_init: Draws the kernel, of shape ``[3, 3, 1, channels]``.
      lowering: ``"native"`` and ``"native_if_fits"``: XLA's grouped convolution; the others:
        shifted products.
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
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.lowering in ("native", "native_if_fits"):
            return lax.conv_general_dilated(
                x,
                kernel,
                (self.strides, self.strides),
                padding(x, self.strides, self.symmetric),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=x.shape[-1],
            )
        taps = kernel.reshape(9, -1)
        met = shifted(x, self.strides, self.symmetric)
        return sum(x * tap for x, tap in zip(met[1:], taps[1:], strict=True)) + met[0] * taps[0]


def padding(x: jax.Array, strides: int, symmetric: bool) -> list[tuple[int, int]]:
    """Zeros before and after rows and columns, for 3 x 3 windows that cover a map.

    One around it (``symmetric``), as in PyTorch; otherwise as few as are needed, the odd one after,
    as in TensorFlow. They differ for strides above 1.
    """
    if symmetric:
        return [(1, 1), (1, 1)]
    return lax.padtype_to_pads(x.shape[1:3], (3, 3), (strides, strides), "SAME")


def shifted(x: jax.Array, strides: int, symmetric: bool) -> list[jax.Array]:
    """What each tap of a 3 x 3 window meets: views ``[batch, rows', columns', channels]``."""
    positions = [-(-n // strides) for n in x.shape[1:3]]
    x = jnp.pad(x, ((0, 0), *padding(x, strides, symmetric), (0, 0)))
    return windows(x, (3, 3), strides, positions)


def round_channels(channels: float) -> int:
    """The multiple of 8 nearest to a number of channels, never more than a tenth below it."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


# quick and small are for a few hundred clips on a CPU: a rate, a momentum and a number of windows
# that belong to a few hundred steps.
PRESETS = {
    "quick": MobileNetSystem(stage=adam_stage(8, 32), hop=32, momentum=0.9),
    "small": MobileNetSystem(stage=adam_stage(40, 32), hop=16, momentum=0.9),
    "paper": MobileNetSystem(),
}
