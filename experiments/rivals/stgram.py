"""The STgram-MFN row of Table 1: a log-mel spectrogram beside one learned from the waveform.

Log-mel and waveform of whole clips -> MobileFaceNet -> ArcFace over machine types and sections ->
how little the clip's own section is believed. One network for all machine types.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from asdproto.config import ConfigError, between, check_fields, positive
from asdproto.data.dataset import ClipArrays, Dataset
from asdproto.features import FeatureSettings
from asdproto.losses import arcface_loss
from asdproto.prototypes import l2_normalize
from asdproto.systems.system import Comparison, RunOptions, Section
from asdproto.training.objectives import Objective
from experiments.rivals.mobilefacenet import STAGES, STgramMFN
from experiments.rivals.rival import (
    Network,
    NetworkFit,
    RandomStage,
    Rival,
    evidence,
    fit_evidence,
    section_label,
    train_encoder,
)


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
        check_fields(
            self,
            stages=between(1, 4096),
            head=between(1, 65536),
            stem=between(1, 4096),
            margin=between(0, 3.14159),
            margin_scale=positive(1000),
        )
        if not self.stages:
            raise ConfigError("stages=(): expected one or more")
        if not self.features.waveform:
            raise ConfigError("features.waveform=False: expected True, as it reads waveforms")

    def encoder(self) -> nn.Module:
        """See :class:`Rival`."""
        return STgramMFN(
            n_mels=self.features.n_mels, stages=self.stages, head=self.head, stem=self.stem
        )

    def fit(self, data: Dataset, options: RunOptions, seed: int, run: str) -> NetworkFit:
        """See :class:`Rival`."""
        data = level_samples(data, self.features.n_mels)
        objective = arcface_objective(self.margin, self.margin_scale)
        state = train_encoder(self, self.stage, objective, data, options, seed, run)
        centers = self.margin_scale * np.asarray(l2_normalize(state.params["loss"]["centers"]))
        bias = np.zeros(len(centers), np.float32)
        return fit_evidence(self, state, data, centers, bias, odds=False)

    def score(self, network: Network, clips: ClipArrays, keys: Sequence[Section]) -> Comparison:
        """See :class:`Rival`."""
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
