"""ResNet18 over log-mel crops, with attention pooling: the paper's encoder."""

import functools
from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from asdproto.models.convolution import Conv, Lowering, he_fan_out, max_pool_3x3
from asdproto.models.normalization import BatchNorm
from asdproto.prototypes import l2_normalize

Init = Literal["fan_out", "fan_in"]
Attention = Literal["time-frequency", "time", "frequency", "mean"]
LAST_WEIGHT = 0.25  # of the trained embedding beside the maps of earlier stages


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
      init_weights: First weights of convolutions, of variance 2 / fan: ``"fan_out"``, normal, the
        usual one of residual networks, or ``"fan_in"``, truncated normal. The latter makes those of
        the stem 8 times as large at width 64, and their direction, which is all that counts under
        batch normalization, 64 times as slow to learn.
      lowering: How convolutions are compiled, see :mod:`asdproto.models.convolution`.
      dtype: Dtype of activations; parameters, batch statistics and the embedding are float32.
      all_stages: Whether the embedding holds, beside a quarter of the pooled last map, the mean
        over time and frequency of the map that each earlier stage ends with, at unit length. To
        tell classes apart, the last stage forgets what does not, and what it forgets differs
        between seeds; earlier ones still hear it.
      axis_name: Mapped axis over which batch statistics are averaged, so that several devices
        normalize as one; ``None`` keeps them per device.
    """

    width: int = 64
    stages: tuple[int, ...] = (2, 2, 2, 2)
    attention: Attention = "time-frequency"
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
          train: Whether to normalize by the batch, see :class:`BatchNorm`.
          where: Boolean, shape ``[batch]``, false for padding.

        Returns:
          Unit embeddings, float32, shape ``[batch, embedding_dim]``.
        """
        inits = {"fan_out": he_fan_out, "fan_in": nn.initializers.he_normal()}
        conv = functools.partial(
            Conv, kernel_init=inits[self.init_weights], lowering=self.lowering, dtype=self.dtype
        )
        norm = functools.partial(BatchNorm, train=train, dtype=self.dtype, axis_name=self.axis_name)

        x = crops[..., None].astype(self.dtype)
        x = conv(self.width, kernel_size=7, strides=2, name="stem")(x)
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
        stages = [LAST_WEIGHT * embedding, *map(l2_normalize, means)]
        return l2_normalize(jnp.concatenate(stages, axis=-1))


class TimeFrequencyAttentionPooling(nn.Module):
    r"""Attention over time and over frequency, each from the mean along the other axis.

    .. math::
        u_t = \tfrac1F \sum_f X_{tf}, \quad v_f = \tfrac1T \sum_t X_{tf}, \quad
        a = \mathrm{softmax}_t(w_2^\top \tanh(W_1 u_t)), \quad
        b = \mathrm{softmax}_f(w_4^\top \tanh(W_3 v_f)), \quad
        z = \sum_{t,f} a_t\, b_f\, X_{tf}

    The paper names this pooling (section 4.2, after Chen et al., ICASSP 2022) without printing its
    formula; the one above is our reading.

    Attributes:
      attention: ``"time-frequency"``, or only one of the two (the other axis is averaged), or
        ``"mean"`` for plain averaging.
      hidden: Width of the tanh layer; a quarter of the channels when ``None``.
      dtype: Dtype of the matrix products; the two softmaxes are always float32.
    """

    attention: Attention = "time-frequency"
    hidden: int | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[batch, time, frequency, channels]`` to float32 ``[batch, channels]``."""
        if self.attention not in get_args(Attention):
            expected = ", ".join(map(repr, get_args(Attention)))
            raise ValueError(f"attention={self.attention!r} is unknown; expected one of {expected}")
        # Each mean is the input of one attention, and what the other attention weighs where the
        # variant averages this axis. The map is read once more at most.
        time_mean = jnp.mean(x, axis=1, dtype=jnp.float32)  # [batch, frequency, channels]
        frequency_mean = jnp.mean(x, axis=2, dtype=jnp.float32)  # [batch, time, channels]
        if self.attention == "mean":
            return jnp.mean(time_mean, axis=1)
        if self.attention == "time":
            return jnp.einsum("bt,btc->bc", self._weights("time", frequency_mean), frequency_mean)
        if self.attention == "frequency":
            return jnp.einsum("bf,bfc->bc", self._weights("frequency", time_mean), time_mean)
        a = self._weights("time", frequency_mean)
        b = self._weights("frequency", time_mean)
        weights = a[:, :, None] * b[:, None, :]
        return jnp.einsum("btf,btfc->bc", weights, x, preferred_element_type=jnp.float32)

    def _weights(self, axis: str, summary: jax.Array) -> jax.Array:
        """Softmax weights along one axis from its summary ``[batch, length, channels]``."""
        hidden = self.hidden or max(1, summary.shape[-1] // 4)
        h = jnp.tanh(nn.Dense(hidden, dtype=self.dtype, name=f"{axis}_hidden")(summary))
        logits = nn.Dense(1, use_bias=False, dtype=self.dtype, name=f"{axis}_logit")(h)[..., 0]
        return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
