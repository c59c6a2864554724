"""The DG-mix row of Table 1: VICReg whose two views are clips, and a mixture of them.

Log-mel -> crops of 2 s -> narrow MobileNetV2 -> distance to the nearest training clip of the
section. One network a machine type: first VICReg on mixed crops, then mixed section labels.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from asdproto.config import ConfigError
from asdproto.data.dataset import ClipArrays, Dataset
from asdproto.features import FeatureSettings
from asdproto.losses import vicreg_loss
from asdproto.models.normalization import BatchNorm
from asdproto.scoring.backends import Scorer
from asdproto.systems.system import Comparison, Section
from asdproto.training.devices import RunOptions
from asdproto.training.objectives import Objective, draw_mix
from experiments.rivals.mobilenet import MobileNetV2
from experiments.rivals.rival import (
    Fitted,
    Network,
    RandomStage,
    Rival,
    embed,
    fit_nearest,
    network_of,
    section_label,
    softmax_layer,
    softmax_loss,
    train_encoder,
)

_PRETRAIN = RandomStage(
    epochs=500,
    batch_size=2048,
    learning_rates=((0.8, 100),),
    warmup=50,
    cosine_to=0.0,
    optimizer="lars",
    weight_decay=1e-4,
)
_FINETUNE = RandomStage(
    epochs=100,
    batch_size=64,
    learning_rates=((1e-4, 20),),
    optimizer="adam",
    weight_decay=0.01,
)


@dataclasses.dataclass(frozen=True)
class DGMixSystem(Rival):
    r"""The system, after its abstract and an unofficial reproduction.

    For pairs x, y of a batch, :math:`z = \lambda x + (1 - \lambda) y` with :math:`\lambda` of
    Beta(1/2, 1/2), and h the network with its projector, pre-training minimizes

    .. math::
       25 \, \mathrm{MSE}(h(z), \lambda h(x) + (1 - \lambda) h(y))
       + 25 \cdot \tfrac12 [v(h(x)) + v(h(y))] + c(h(x)) + c(h(y))

    with VICReg's variance v and covariance c. Fine-tuning keeps the first term, on embeddings, and
    adds the cross entropy of the section labels mixed alike. The score is the distance to the
    nearest training clip of the section. Network: 320 numbers, 532,000 parameters without
    projector, 30 million floating-point operations a crop of 2 s.

    Inferred are how narrow the network is (alpha 0.5, and 320 instead of 1,280 channels in the
    end), one network a machine type, the two terms' weights in fine-tuning, and unit length before
    distances. An epoch here is one crop of every clip; theirs is counted as the five that fit.

    Attributes:
      stage: Numbers of pre-training.
      finetune: Numbers of fine-tuning; 0 epochs leave it out.
      alpha: Factor on the network's channels.
      dim: Length of an embedding.
      projector: Widths of the projector.
      momentum: Share of the running statistics that an update keeps.

    References:
      Nejjar et al., DG-Mix: Domain Generalization for Anomalous Sound Detection Based on
      Self-Supervised Learning, DCASE Workshop 2022.
    """

    features: FeatureSettings = dataclasses.field(
        default_factory=lambda: FeatureSettings(scale="mel")
    )
    stage: RandomStage = _PRETRAIN
    finetune: RandomStage = _FINETUNE
    crop: int = 63
    per_machine: bool = True
    alpha: float = 0.5
    dim: int = 320
    projector: tuple[int, ...] = (1280, 1280, 1280)
    momentum: float = 0.9

    kind: ClassVar[str] = "experiments.rivals.dgmix:DGMixSystem"
    name: ClassVar[str] = "dgmix"
    label = staticmethod(section_label)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.projector:
            raise ConfigError("projector=(): expected one or more widths")

    def encoder(self) -> nn.Module:
        return MobileNetV2(alpha=self.alpha, head=self.dim, momentum=self.momentum)

    def fit(self, data: Dataset, options: RunOptions, seed: int, run: str) -> Fitted:
        mixed_views = Objective("vicreg_mixup", mixup_vicreg, augment=add_mixed)
        state = train_encoder(
            self, self.stage, mixed_views, data, options, seed, f"{run}-pretrain",
            wrap=lambda encoder: Projected(encoder, self.projector, encoder.axis_name),
        )  # fmt: skip
        params, batch_stats = state.params["encoder"], state.batch_stats
        state = state._replace(
            params={"encoder": params["encoder"]}, batch_stats=batch_stats["encoder"]
        )
        if self.finetune.total_epochs:
            labels = Objective("mixed_sections", mixed_sections, softmax_layer, augment=add_mixed)
            state = train_encoder(
                self, self.finetune, labels, data, options, seed, f"{run}-finetune", before=state
            )
        network = network_of(state, data)
        embeddings = embed(self, network, data.train)
        backend, held_out = fit_nearest(embeddings, data)
        return network._replace(backend=backend), Comparison(held_out, None, embeddings)

    def score(self, network: Network, clips: ClipArrays, keys: Sequence[Section]) -> Comparison:
        embeddings = embed(self, network, clips)
        scores = Scorer.from_arrays(network.backend).score(embeddings, keys)
        return Comparison(scores, None, embeddings)


class Projected(nn.Module):
    """An encoder with a projector behind it in training.

    Attributes:
      encoder: The encoder.
      widths: Of the projector's layers: batch normalization and ReLU follow all but the last,
        which has no bias.
      axis_name: Mapped axis over which batch statistics are averaged.
    """

    encoder: nn.Module
    widths: tuple[int, ...]
    axis_name: str | None = None

    @property
    def embedding_dim(self) -> int:
        """Length of a projection."""
        return self.widths[-1]

    @nn.compact
    def __call__(
        self, crops: jax.Array, *, train: bool, where: jax.Array | None = None
    ) -> jax.Array:
        """Projections, float32 ``[batch, widths[-1]]``."""
        x = self.encoder(crops, train=train, where=where)
        for layer, width in enumerate(self.widths[:-1], start=1):
            norm = BatchNorm(train, relu=True, axis_name=self.axis_name, name=f"norm{layer}")
            x = norm(nn.Dense(width, name=f"dense{layer}")(x), where)
        return nn.Dense(self.widths[-1], use_bias=False, name=f"dense{len(self.widths)}")(x)


def add_mixed(batch, *, key, axis_name, **_):
    """The crops, then the mixture of each pair of neighbors: ``[1.5 batch, crop, columns]``."""
    if len(batch.crops) % 2:
        raise ValueError(
            f"pairs are mixed, found {len(batch.crops)} crops a device; choose a batch size and a "
            "number of devices that leave an even number on each"
        )
    mix = pair_mix(batch, key, axis_name)[:, None, None]
    mixed = mix * batch.crops[::2] + (1 - mix) * batch.crops[1::2]
    where = None
    if batch.where is not None:
        where = jnp.concatenate([batch.where, _pairs_where(batch)])
    return jnp.concatenate([batch.crops, mixed]), where


def pair_mix(batch, key, axis_name):
    """Beta(1/2, 1/2) by its inverse distribution function, one a pair, float32 ``[pairs]``."""
    uniform = draw_mix(key, (len(batch.labels), 1), 0.0, 1.0, axis_name)[::2, 0]
    return jnp.square(jnp.sin(jnp.pi / 2 * uniform))


def _pairs_where(batch):
    return None if batch.where is None else batch.where[::2] & batch.where[1::2]


def _three(embeddings, batch):
    """h(x), h(y), h(z) of each pair."""
    size = len(batch.labels)
    return embeddings[:size:2], embeddings[1:size:2], embeddings[size:]


def _geometric_constraint(first, second, mixed, mix):
    """Mean squared distance of h(z) from the mixture of h(x) and h(y), float32 ``[pairs]``."""
    expected = mix[:, None] * first + (1 - mix[:, None]) * second
    return jnp.mean(jnp.square(mixed - expected), axis=-1)


def mixup_vicreg(params, state, embeddings, batch, *, key, axis_name, **_):
    """The loss of pre-training, see :class:`DGMixSystem`; pairs with padding give 0."""
    del params
    first, second, mixed = _three(embeddings, batch)
    where = _pairs_where(batch)
    terms = vicreg_loss(first, second, where=where, axis_name=axis_name)
    mix = pair_mix(batch, key, axis_name)
    constraint = 25 * _geometric_constraint(first, second, mixed, mix)
    losses = constraint + terms.variance + terms.covariance
    losses = losses if where is None else jnp.where(where, losses, 0)
    return jnp.repeat(losses, 2), state.loss_state


def mixed_sections(params, state, embeddings, batch, *, key, axis_name, **_):
    """The loss of fine-tuning, see :class:`DGMixSystem`."""
    first, second, mixed = _three(embeddings, batch)
    mix = pair_mix(batch, key, axis_name)

    def entropy(labels):
        return softmax_loss(params, mixed, labels, temperature=1.0)

    losses = mix * entropy(batch.labels[::2]) + (1 - mix) * entropy(batch.labels[1::2])
    losses += _geometric_constraint(first, second, mixed, mix)
    return jnp.repeat(losses, 2), state.loss_state


# quick and small are for a few hundred clips on a CPU, where batches of 2,048 would be one step.
def _small(pretrain: int, finetune: int) -> DGMixSystem:
    adam: dict[str, Any] = {
        "batch_size": 32,
        "learning_rates": ((1e-3, 1),),
        "optimizer": "adam",
        "weight_decay": 0.0,
    }
    return DGMixSystem(
        stage=dataclasses.replace(_PRETRAIN, epochs=pretrain, warmup=pretrain // 10, **adam),
        finetune=dataclasses.replace(_FINETUNE, epochs=finetune, **adam),
        projector=(256, 256, 256),
    )


PRESETS = {"quick": _small(8, 3), "small": _small(60, 20), "paper": DGMixSystem()}
