"""Pooling of a time-frequency map into one vector."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

Attention = Literal["time-frequency", "time", "frequency", "mean"]


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
        time_mean = jnp.mean(x, axis=1, dtype=jnp.float32)  # [batch, frequency, channels]
        frequency_mean = jnp.mean(x, axis=2, dtype=jnp.float32)  # [batch, time, channels]
        # Each mean serves twice: as the input of one attention, and as the summary that the other
        # attention weighs where the variant averages this axis. The map is read once more at most.
        if self.attention == "mean":
            return jnp.mean(time_mean, axis=1)
        if self.attention == "time":
            return jnp.einsum("bt,btc->bc", self._weights("time", frequency_mean), frequency_mean)
        if self.attention == "frequency":
            return jnp.einsum("bf,bfc->bc", self._weights("frequency", time_mean), time_mean)
        if self.attention != "time-frequency":
            raise ValueError(
                f"attention={self.attention!r} is unknown; expected 'time-frequency', 'time', "
                "'frequency' or 'mean'"
            )
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
