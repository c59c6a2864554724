"""The Baseline row of Table 1: attribute classification in the place of prototypes of clips.

The paper's encoder and back-end; the stage before tells attribute classes apart by a softmax over
cosines to class weights that are learned with the encoder. The schedule is that of the paper's
pre-training.

Taken over from the paper's description and the abstract of its reference (Chen et al., ICASSP
2022): encoder, pooling, loss, back-end. Inferred: weights and embeddings are of unit length and
share the paper's temperature, as its own prototypes; where target centers are imprinted, they are
renewed before each epoch.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import jax.numpy as jnp

from asdproto.systems.prototype import PRESETS as PROTOTYPE_PRESETS
from asdproto.systems.prototype import PrototypeSystem
from asdproto.training.objectives import Objective, make_objective
from asdproto.training.stage import Stage


@dataclasses.dataclass(frozen=True)
class BaselineSystem(PrototypeSystem):
    """The system; ``pretrain`` holds the numbers of the classification.

    Attributes:
      imprint: Give target classes the mean embedding of their training clips as weight, renewed
        before each epoch, instead of a learned one: a handful of clips learns a poor one.
      stages: ``("pretrain", "finetune")`` lets the paper's second stage follow.
    """

    imprint: bool = False
    stages: tuple[Literal["pretrain", "finetune"], ...] = ("pretrain",)

    kind: ClassVar[str] = "baseline"

    @property
    def names(self) -> tuple[str, ...]:
        """Detectors that training makes; the last one is the result."""
        return tuple("baseline" if stage == "pretrain" else stage for stage in self.stages)

    def objective(self, stage: str, classes: Sequence[tuple] = ()) -> Objective:
        """The loss of a stage that tells these classes apart."""
        if stage == "finetune":
            return super().objective(stage, classes)
        # The domain is the third part of a class; see asdproto.data.dcase.class_key.
        target = [self.imprint and name[2] == "target" for name in classes]
        return softmax_objective(self.pretrain, imprinted=target)


def softmax_objective(config: Stage, *, imprinted: Sequence[bool] = ()) -> Objective:
    r"""Attribute classification, :math:`-\log \mathrm{softmax}_y (z \cdot w_c / \tau)`.

    Args:
      config: Numbers of the stage.
      imprinted: Per class, whether its weight is the mean embedding of its training clips, of unit
        length; the others are learned. All are learned when none is.

    Returns:
      The objective; embeddings z and weights w are of unit length.
    """
    learned = make_objective("softmax", config)
    if not any(imprinted):
        return learned

    def loss(params, state, embeddings, batch, **keywords):
        fixed = jnp.asarray(imprinted)[:, None]
        weights = jnp.where(fixed, state.prototypes[:, 0], params["prototypes"])
        return learned.loss({"prototypes": weights}, state, embeddings, batch, **keywords)

    return dataclasses.replace(learned, name="softmax_imprinted", loss=loss, epoch_prototypes=True)


PRESETS = {
    name: BaselineSystem(
        encoder=system.encoder,
        pretrain=system.pretrain,
        finetune=system.finetune,
        score=system.score,
    )
    for name, system in PROTOTYPE_PRESETS.items()
}
