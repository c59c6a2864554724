"""The MobileNetV2 row of Table 1: the second baseline of DCASE 2022 Task 2.

Plain log-mel -> windows of 64 frames -> MobileNetV2 -> section -> how little the clip's own section
is believed. One network a machine type, over its sections.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from asdproto.config import check_fields
from asdproto.data.dataset import ClipArrays, Dataset
from asdproto.data.dcase import Clip
from asdproto.features import FeatureSettings
from asdproto.losses import proxy_softmax_loss
from asdproto.models.convolution import Lowering
from asdproto.models.mobilenet import MobileNetV2
from asdproto.systems.encoders import (
    EncoderSystem,
    Part,
    PartFit,
    fit_sections,
    own_class,
    section_label,
)
from asdproto.systems.members import Comparison, Section
from asdproto.training.stage import Objective, StageConfig
from asdproto.training.state import TrainState


def _stage(epochs: int, rate: float) -> StageConfig:
    return StageConfig(
        epochs=epochs,
        batch_size=32,
        learning_rates=((rate, epochs),),
        optimizer="adam",
        weight_decay=0.0,
    )


@dataclasses.dataclass(frozen=True)
class MobileNetSystem(EncoderSystem):
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
    stage: StageConfig = dataclasses.field(default_factory=lambda: _stage(640, 1e-5))
    hop: int = 1
    per_machine: bool = True
    alpha: float = 0.5
    head: int = 1280
    momentum: float = 0.999

    kind: ClassVar[str] = "mobilenet"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, alpha="(0, 16]", head="[1, 65536]", momentum="[0, 1)")

    def module(self, lowering: Lowering, axis_name: str | None) -> nn.Module:
        """See :class:`EncoderSystem`."""
        return MobileNetV2(
            alpha=self.alpha,
            head=self.head,
            momentum=self.momentum,
            lowering=lowering,
            dtype=jnp.dtype(self.dtype),  # type: ignore[arg-type]
            axis_name=axis_name,
        )

    def label(self, clip: Clip) -> Section:
        """See :class:`EncoderSystem`."""
        return section_label(clip)

    def objective(self, classes: Sequence[Any]) -> Objective:
        """Cross entropy of a softmax layer with bias."""
        del classes
        return Objective("sections", _loss, _init)

    def fit(self, part: Part, state: TrainState, data: Dataset) -> PartFit:
        """See :class:`EncoderSystem`."""
        head = state.params["loss"]
        return fit_sections(self, part, head["kernel"], head["bias"], data, odds=True)

    def compare(self, part: Part, clips: ClipArrays, sections: Sequence[Section]) -> Comparison:
        """See :class:`EncoderSystem`."""
        return Comparison(own_class(part, self.evidence(part, clips, odds=True), sections))


def _init(key: jax.Array, num_classes: int, dim: int) -> tuple[Any, Any]:
    kernel = nn.initializers.glorot_uniform()(key, (num_classes, dim), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(num_classes)}, {}


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
    "quick": MobileNetSystem(stage=_stage(8, 1e-3), hop=32, momentum=0.9),
    "small": MobileNetSystem(stage=_stage(40, 1e-3), hop=16, momentum=0.9),
    "paper": MobileNetSystem(),
}
