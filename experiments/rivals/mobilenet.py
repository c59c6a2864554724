"""The MobileNetV2 row of Table 1: the second baseline of DCASE 2022 Task 2.

Plain log-mel -> windows of 64 frames -> MobileNetV2 -> section -> how little the clip's own section
is believed. One network a machine type, over its sections.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn

from asdproto.config import at_least, between, check_fields, positive
from asdproto.data.dataset import ClipArrays, Dataset
from asdproto.features import FeatureSettings
from asdproto.losses import proxy_softmax_loss
from asdproto.systems.system import Comparison, RunOptions, Section
from asdproto.training.objectives import Objective
from experiments.rivals.mobilenet_v2 import MobileNetV2
from experiments.rivals.rival import (
    Network,
    NetworkFit,
    RandomStage,
    Rival,
    adam_stage,
    evidence,
    fit_evidence,
    section_label,
    softmax_layer,
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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(
            self, alpha=positive(16), head=between(1, 65536), momentum=at_least(0, below=1)
        )

    def encoder(self) -> nn.Module:
        """See :class:`Rival`."""
        return MobileNetV2(alpha=self.alpha, head=self.head, momentum=self.momentum)

    def fit(self, data: Dataset, options: RunOptions, seed: int, run: str) -> NetworkFit:
        """See :class:`Rival`."""
        objective = Objective("sections", _loss, softmax_layer)
        state = train_encoder(self, self.stage, objective, data, options, seed, run)
        head = state.params["loss"]
        return fit_evidence(self, state, data, head["kernel"], head["bias"], odds=True)

    def score(self, network: Network, clips: ClipArrays, keys: Sequence[Section]) -> Comparison:
        """See :class:`Rival`."""
        return Comparison(evidence(self, network, clips, keys, odds=True))


def _loss(params, state, embeddings, batch, **_):
    losses = proxy_softmax_loss(
        embeddings,
        params["kernel"],
        batch.labels,
        temperature=1.0,
        bias=params["bias"],
        where=batch.where,
    )
    return losses, state.loss_state


# quick and small are for a few hundred clips on a CPU: a rate, a momentum and a number of windows
# that belong to a few hundred steps.
PRESETS = {
    "quick": MobileNetSystem(stage=adam_stage(8, 32), hop=32, momentum=0.9),
    "small": MobileNetSystem(stage=adam_stage(40, 32), hop=16, momentum=0.9),
    "paper": MobileNetSystem(),
}
