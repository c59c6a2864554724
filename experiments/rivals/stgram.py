"""The STgram-MFN row of Table 1: a log-mel spectrogram beside one learned from the waveform.

Log-mel and waveform of whole clips -> MobileFaceNet -> ArcFace over machine types and sections ->
how little the clip's own section is believed. One network for all machine types.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from asdproto.config import ConfigError
from asdproto.data.dataset import ClipArrays, Dataset
from asdproto.features import FeatureSettings
from asdproto.losses import arcface_loss
from asdproto.models.convolution import Lowering, convolve, he_fan_out
from asdproto.models.normalization import BatchNorm
from asdproto.prototypes import l2_normalize
from asdproto.systems.system import Comparison, Section
from asdproto.training.devices import RunOptions
from asdproto.training.objectives import Objective
from experiments.rivals.mobilenet import convolutions, inverted_residuals
from experiments.rivals.rival import (
    Fitted,
    Network,
    RandomStage,
    Rival,
    evidence,
    fit_evidence,
    section_label,
    train_encoder,
)

# The network's bottlenecks: expansion, channels, blocks, first strides.
STAGES = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))


def _stage(epochs: int, rate: float, batch_size: int) -> RandomStage:
    return RandomStage(
        epochs=epochs,
        batch_size=batch_size,
        learning_rates=((rate, 20), (rate, 280)),
        cosine_to=rate / 10,
        optimizer="adam",
        weight_decay=0.0,
    )


@dataclasses.dataclass(frozen=True)
class STgramSystem(Rival):
    r"""The system; the defaults are the authors' code's, with the published MobileFaceNet.

    The score is the mean over a clip's windows (one, for clips of 10 s) of :math:`-\log` of the
    softmax over cosines, times the loss's scale, to the center of the clip's own section. 1.34
    million parameters, 1.64 billion floating-point operations a clip. The last epoch's network
    scores; the authors' program chooses an epoch by the test clips' AUC.

    Bands are standardized and samples divided by one number, where the authors give dB and samples
    as they are. A network takes clips of one length: ``crop`` frames.

    Attributes:
      stages: Of MobileFaceNet.
      head: Channels of its last map.
      stem: Channels of its first convolution.
      margin: Of ArcFace, radians.
      margin_scale: What cosines are multiplied by.

    References:
      Liu et al., Anomalous Sound Detection Using Spectral-Temporal Information Fusion, ICASSP 2022.
    """

    features: FeatureSettings = dataclasses.field(
        default_factory=lambda: FeatureSettings(scale="mel", waveform=True)
    )
    stage: RandomStage = dataclasses.field(default_factory=lambda: _stage(300, 1e-4, 128))
    crop: int = 313
    hop: int = 313
    stages: tuple[tuple[int, int, int, int], ...] = STAGES
    head: int = 512
    stem: int = 64
    margin: float = 0.7
    margin_scale: float = 30.0

    kind: ClassVar[str] = "experiments.rivals.stgram:STgramSystem"
    name: ClassVar[str] = "stgram"
    reads_waveforms: ClassVar[bool] = True
    label = staticmethod(section_label)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stages:
            raise ConfigError("stages=(): expected one or more")
        if not self.features.waveform:
            raise ConfigError("features.waveform=False: expected True, as it reads waveforms")

    def encoder(self) -> nn.Module:
        return STgramMFN(
            n_mels=self.features.n_mels, stages=self.stages, head=self.head, stem=self.stem
        )

    def fit(self, data: Dataset, options: RunOptions, seed: int, run: str) -> Fitted:
        data = level_samples(data, self.features.n_mels)
        objective = arcface_objective(self.margin, self.margin_scale)
        state = train_encoder(self, self.stage, objective, data, options, seed, run)
        centers = self.margin_scale * np.asarray(l2_normalize(state.params["loss"]["centers"]))
        bias = np.zeros(len(centers), np.float32)
        return fit_evidence(self, state, data, centers, bias, odds=False)

    def score(self, network: Network, clips: ClipArrays, keys: Sequence[Section]) -> Comparison:
        return Comparison(evidence(self, network, clips, keys, odds=False))


def level_samples(data: Dataset, n_mels: int) -> Dataset:
    """All samples of a frame get one scale, and no offset; bands keep theirs."""
    mean, std = np.array(data.mean), np.array(data.std)
    level = np.sqrt(np.mean(np.square(std[n_mels:]) + np.square(mean[n_mels:])))
    mean[n_mels:], std[n_mels:] = 0, level
    return dataclasses.replace(data, mean=mean, std=std)


def arcface_objective(margin: float, scale: float) -> Objective:
    """ArcFace with learned centers."""

    def init(key: jax.Array, num_classes: int, dim: int) -> tuple[Any, Any]:
        return {"centers": jax.random.normal(key, (num_classes, dim), jnp.float32)}, {}

    def loss(params, state, embeddings, batch, **_):
        centers = l2_normalize(params["centers"])
        losses = arcface_loss(embeddings, centers, batch.labels, margin=margin, scale=scale)
        return losses, state.loss_state

    return Objective("arcface_sections", loss, init)


class STgramMFN(nn.Module):
    """Spectral-temporal fusion: a log-mel spectrogram beside one learned from the waveform.

    Clips of 10 s at 16 kHz give 313 frames of 128 bands each way; MobileFaceNet embeds the two as
    channels of one image, by bottlenecks with PReLU and a global depthwise convolution for pooling
    (1.06 million parameters). The learned spectrogram is normalized over its frames with a gain a
    frame, so a trained network takes clips of one length.

    Attributes:
      n_mels: Bands of the log-mel spectrogram; the rest of every frame are its samples.
      stages: Expansion, channels, blocks and first strides of each stage.
      head: Channels of the last map.
      embedding_dim: Length of an embedding.
      stem: Channels of the first convolution.
      lowering: How convolutions are compiled.
      dtype: Of activations; parameters, statistics and embeddings are float32.
      axis_name: Mapped axis over which batch statistics are averaged; ``None`` for per device.

    References:
      Chen et al., MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification on Mobile
      Devices, 2018, Table 1.
    """

    n_mels: int = 128
    stages: tuple[tuple[int, int, int, int], ...] = STAGES
    head: int = 512
    embedding_dim: int = 128
    stem: int = 64
    lowering: Lowering = "native"
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, crops: jax.Array, *, train: bool, where: jax.Array | None = None
    ) -> jax.Array:
        """Embeds clips.

        Args:
          crops: Floating, shape ``[batch, frames, n_mels + hop_length]``: log-mel, then the samples
            from the frame's center to the next one's, as
            :attr:`asdproto.features.FeatureSettings.waveform` stores them.
          train: Normalize by the statistics of this batch, which enter ``batch_stats``, or by
            those.
          where: Boolean, shape ``[batch]``; other examples do not enter the batch statistics.

        Returns:
          Unit embeddings, float32, shape ``[batch, embedding_dim]``.
        """
        norm = functools.partial(BatchNorm, train=train, dtype=self.dtype, axis_name=self.axis_name)
        pointwise, depthwise = convolutions(self, he_fan_out, symmetric=True)

        def prelu(name: str, x: jax.Array) -> jax.Array:
            x = norm(name=f"{name}_norm")(x, where)
            slope = self.param(f"{name}_slope", nn.initializers.constant(0.25), x.shape[-1:])
            return jnp.where(x > 0, x, x * slope.astype(self.dtype))

        mel, hops = crops[..., : self.n_mels], crops[..., self.n_mels :]
        tgram = Tgram(self.n_mels, dtype=self.dtype, name="tgram")(hops)
        x = jnp.stack([mel.astype(self.dtype), tgram], axis=-1)
        kernel = self.param("stem", he_fan_out, (3, 3, 2, self.stem), jnp.float32)
        x = convolve(x, kernel.astype(self.dtype), strides=2, lowering=self.lowering)
        x = depthwise(1, name="stem_depthwise")(prelu("stem", x))
        x = prelu("stem_depthwise", x)
        x = inverted_residuals(x, self.stages, where, pointwise, depthwise, prelu, norm)
        x = prelu("head", pointwise(self.head, name="head")(x))
        kernel = self.param("pool", _pool_init, x.shape[1:], jnp.float32).astype(self.dtype)
        x = norm(name="pool_norm")(jnp.einsum("brcd,rcd->bd", x, kernel), where)
        x = norm(name="embedding_norm")(pointwise(self.embedding_dim, name="embedding")(x), where)
        return l2_normalize(x.astype(jnp.float32))


def _pool_init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """As :data:`he_fan_out` for a depthwise kernel as large as the map."""
    rows, columns, channels = shape
    return he_fan_out(key, (rows, columns, 1, channels), dtype).reshape(shape)


class Tgram(nn.Module):
    """A spectrogram learned from the waveform: one wide convolution, three narrow ones over time.

    Its windows of two hops begin one hop before the center of each log-mel frame; before the clip
    there are zeros.

    Attributes:
      bands: Channels of every convolution: the bands of the log-mel spectrogram beside it.
      layers: Narrow convolutions, each after a normalization over time and a leaky ReLU.
      dtype: Dtype of activations; parameters are float32.
    """

    bands: int = 128
    layers: int = 3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hops: jax.Array) -> jax.Array:
        """Maps samples ``[batch, frames, hop_length]`` to ``[batch, frames, bands]``."""
        x = hops.astype(self.dtype)
        # The wide convolution is two matrix products over hops, and no sample is copied.
        kernel = self._kernel("wide", (2, x.shape[2], self.bands))
        x = jnp.pad((x @ kernel[0])[:, :-1], ((0, 0), (1, 0), (0, 0))) + x @ kernel[1]
        for layer in range(1, self.layers + 1):
            # Every band of every clip to mean 0 and variance 1, then a gain and a bias a frame.
            norm = nn.LayerNorm(
                1e-5, dtype=self.dtype, reduction_axes=1, feature_axes=1, name=f"norm{layer}"
            )
            x = nn.leaky_relu(norm(x), 0.2)
            kernel = self._kernel(f"conv{layer}", (3, self.bands, self.bands))
            padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
            x = sum(padded[:, i : i + x.shape[1]] @ kernel[i] for i in (0, 2)) + x @ kernel[1]
        return x

    def _kernel(self, name: str, shape: tuple[int, ...]) -> jax.Array:
        # The authors' framework draws weights uniformly, up to the root of 1 / fan-in.
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        return self.param(name, init, shape, jnp.float32).astype(self.dtype)


# quick and small are for a few hundred clips on a CPU: a narrow, shallow network, a higher rate.
_NARROW = STgramSystem(
    stages=((2, 16, 1, 2), (2, 32, 1, 2), (2, 32, 1, 2)),
    head=128,
    stem=8,
    stage=_stage(6, 2e-3, 16),
)
PRESETS = {
    "quick": _NARROW,
    "small": dataclasses.replace(_NARROW, stage=_stage(40, 2e-3, 16)),
    "paper": STgramSystem(),
}
