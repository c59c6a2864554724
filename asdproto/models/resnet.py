"""ResNet18 over log-mel crops, with attention pooling: the paper's encoder."""

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from asdproto.models.convolution import Conv, Lowering, he_fan_out, max_pool_3x3
from asdproto.models.normalization import BatchNorm
from asdproto.models.pooling import Attention, TimeFrequencyAttentionPooling
from asdproto.prototypes import l2_normalize

Init = Literal["fan_out", "fan_in"]


class ResNet(nn.Module):
    """Residual network of basic blocks that maps crops to unit embeddings.

    The default is the paper's encoder (section 4.2): ResNet18, whose last map is pooled by
    time-frequency attention; the pooled vector, brought to unit length, is the embedding.

    Attributes:
      width: Channels of the first stage; 64 is ResNet18 (11.2 million parameters, embeddings of
        512), 16 the small network of the tests (embeddings of 128).
      stages: Blocks in each stage; each stage after the first halves the map and doubles the
        channels.
      attention: Pooling variant, see :class:`TimeFrequencyAttentionPooling`.
      stem_strides: Of the first convolution; 1 keeps twice as many positions of each axis, for four
        times the work.
      init_weights: First weights of convolutions, of variance 2 / fan: ``"fan_out"``, normal, the
        usual one of residual networks, or ``"fan_in"``, truncated normal. The latter makes those of
        the stem 8 times as large at width 64, and their direction, which is all that counts under
        batch normalization, 64 times as slow to learn.
      lowering: How convolutions are compiled, see :mod:`asdproto.models.convolution`.
      dtype: Dtype of activations; parameters, batch statistics and the embedding are float32.
      all_stages: Whether the embedding holds, beside the pooled last map, the mean over time and
        frequency of the map that each earlier stage ends with, all brought to unit length. To tell
        classes apart, the last stage forgets what does not; earlier ones still hear it.
      axis_name: Mapped axis over which batch statistics are averaged, so that several devices
        normalize as one; ``None`` keeps them per device.
    """

    width: int = 64
    stages: tuple[int, ...] = (2, 2, 2, 2)
    attention: Attention = "time-frequency"
    stem_strides: int = 2
    init_weights: Init = "fan_out"
    lowering: Lowering = "native"
    dtype: jnp.dtype = jnp.float32
    all_stages: bool = False
    axis_name: str | None = None

    @property
    def embedding_dim(self) -> int:
        """Length of an embedding."""
        features = [self.width * 2**stage for stage in range(len(self.stages))]
        return sum(features) if self.all_stages else features[-1]

    @nn.compact
    def __call__(
        self, crops: jax.Array, *, train: bool, where: jax.Array | None = None
    ) -> jax.Array:
        """Embeds crops.

        Args:
          crops: Floating, shape ``[batch, frames, mels]``, standardized log-mel.
          train: Normalize by the statistics of this batch (and update the running ones, in the
            collection ``batch_stats``), or by the running ones.
          where: Boolean, shape ``[batch]``; examples outside it are padding and do not enter the
            batch statistics.

        Returns:
          Unit embeddings, float32, shape ``[batch, embedding_dim]``.
        """
        inits = {"fan_out": he_fan_out, "fan_in": nn.initializers.he_normal()}
        conv = functools.partial(
            Conv, kernel_init=inits[self.init_weights], lowering=self.lowering, dtype=self.dtype
        )
        norm = functools.partial(BatchNorm, train=train, dtype=self.dtype, axis_name=self.axis_name)

        x = crops[..., None].astype(self.dtype)
        x = conv(self.width, kernel_size=7, strides=self.stem_strides, name="stem")(x)
        x = norm(relu=True, name="stem_norm")(x, where)
        x = max_pool_3x3(x)
        ends = []  # the map that each stage ends with
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                features = self.width * 2**stage
                strides = 2 if stage > 0 and block == 0 else 1
                name = f"stage{stage + 1}_block{block + 1}"
                shortcut = x
                y = conv(features, strides=strides, name=f"{name}_conv1")(x)
                y = norm(relu=True, name=f"{name}_norm1")(y, where)
                y = conv(features, name=f"{name}_conv2")(y)
                if shortcut.shape != y.shape:
                    shortcut = conv(
                        features, kernel_size=1, strides=strides, name=f"{name}_project"
                    )(x)
                    shortcut = norm(name=f"{name}_project_norm")(shortcut, where)
                x = norm(relu=True, name=f"{name}_norm2")(y, where, shortcut)
            ends.append(x)
        pool = TimeFrequencyAttentionPooling(self.attention, dtype=self.dtype, name="pool")
        embedding = l2_normalize(pool(x))
        if not self.all_stages:
            return embedding
        means = [jnp.mean(end, axis=(1, 2), dtype=jnp.float32) for end in ends[:-1]]
        return l2_normalize(jnp.concatenate([embedding, *map(l2_normalize, means)], axis=-1))
