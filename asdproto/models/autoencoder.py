"""The autoencoder of the DCASE 2022 Task 2 baseline."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from asdproto.models.normalization import BatchNorm


class AutoEncoder(nn.Module):
    """Fully connected autoencoder of short stacks of log-mel frames.

    Four layers of 128, a bottleneck of 8 and four layers of 128, each with batch normalization
    and ReLU, then a linear layer back to the input's size.

    Attributes:
      hidden: Units of each layer before the bottleneck, and, reversed, of each after it.
      bottleneck: Units of the bottleneck.
      dtype: Dtype of activations; parameters, statistics and the result are float32.

    References:
      Dohi et al., Description and discussion on DCASE 2022 Challenge Task 2: Unsupervised anomalous
      sound detection for machine condition monitoring applying domain generalization techniques,
      DCASE Workshop 2022.
    """

    hidden: tuple[int, ...] = (128, 128, 128, 128)
    bottleneck: int = 8
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, stacks: jax.Array, *, train: bool, where: jax.Array | None = None
    ) -> jax.Array:
        """Reconstructs stacks of frames.

        Args:
          stacks: Floating, shape ``[batch, ...]``; all but the first axis are one vector.
          train: Whether to normalize by the batch, see :class:`BatchNorm`.
          where: Boolean, shape ``[batch]``, false for padding.

        Returns:
          float32, of the same shape.
        """
        widths = (*self.hidden, self.bottleneck, *reversed(self.hidden))
        vectors = stacks.reshape(len(stacks), -1)
        x = vectors.astype(self.dtype)
        for number, width in enumerate(widths, start=1):
            x = self._dense(width, f"dense{number}")(x)
            norm = BatchNorm(
                train, dtype=self.dtype, momentum=0.99, epsilon=1e-3, name=f"norm{number}"
            )
            x = nn.relu(norm(x, where))
        x = self._dense(vectors.shape[-1], f"dense{len(widths) + 1}")(x)
        return x.astype(jnp.float32).reshape(stacks.shape)

    def _dense(self, width: int, name: str) -> nn.Dense:
        # The baseline's framework draws weights from Glorot's uniform distribution.
        init = nn.initializers.glorot_uniform()
        return nn.Dense(width, dtype=self.dtype, kernel_init=init, name=name)
