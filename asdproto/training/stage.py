"""What a stage of training is: a schedule, a sampler, and options of its loss.

A stage is a frozen dataclass that joins one of each by inheritance, one level deep, so that it
holds only fields that it reads: :class:`Pretraining` and :class:`Finetuning` are the paper's, and
others are as short, such as ``class Mine(RandomBatches, Stage)``. What the loss is, stands in
:mod:`asdproto.training.objectives`.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from asdproto.config import ConfigError, at_least, between, check_fields, positive

Optimizer = Literal["sgd", "adam", "lars"]

_RANGES = {
    "epochs": between(0, 1000000),
    "steps_per_epoch": between(0, 1000000),
    "warmup": between(0, 1000000),
    "cosine_to": between(0, 1000),
    "momentum": at_least(0, below=1),
    "weight_decay": between(0, 1000),
    "batch_size": between(1, 1000000),
    "ways": between(2, 100000),  # one class leaves nothing to tell apart
    "shots": between(1, 100000),
    "temperature": positive(1000),
    "sub_prototypes": between(0, 10000),
    "mpe_ratio": positive(1),
    "prototype_crops": between(1, 1000),
    "mix_range": between(0, 1),
}


class Hyper(NamedTuple):
    """Hyper-parameters that compiled code takes as arguments, so that a sweep may map over them.

    ``learning_rate_scale`` multiplies the whole schedule; the others are fields of the stage, with
    ``mix_range`` as its two ends.
    """

    learning_rate_scale: jax.Array | float = 1.0
    temperature: jax.Array | float = 0.07
    mpe_ratio: jax.Array | float = 0.25
    mix_low: jax.Array | float = 0.25
    mix_high: jax.Array | float = 0.5


@dataclasses.dataclass(frozen=True)
class Stage:
    """The schedule of a stage; the defaults are the paper's pre-training (section 4.2).

    Attributes:
      epochs: Passes; the sum of the schedule's epochs when 0.
      steps_per_epoch: Steps of an epoch; 0 for as many as the sampler needs to go through the data.
      learning_rates: Pairs (rate, epochs). A schedule of other length than ``epochs`` is
        stretched to it.
      warmup: Epochs over which the rate rises linearly, from the first epoch's share of it.
      cosine_to: Rate that the last pair's falls to along half a cosine over its epochs; ``None``
        keeps it.
      optimizer: ``"sgd"``, with momentum; ``"adam"``; ``"lars"``, layerwise adapted rates with
        momentum.
      momentum: Of stochastic gradient descent and LARS.
      weight_decay: Added to the gradient, for all parameters; Adam's is decoupled from its moments,
        times the rate.
    """

    epochs: int = 120
    steps_per_epoch: int = 0
    learning_rates: tuple[tuple[float, int], ...] = ((0.1, 50), (0.01, 40), (0.001, 30))
    warmup: int = 0
    cosine_to: float | None = None
    optimizer: Optimizer = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-5

    def __post_init__(self) -> None:
        names = {field.name for field in dataclasses.fields(self)}
        check_fields(self, **{name: r for name, r in _RANGES.items() if name in names})
        rates = self.learning_rates
        if not rates or not all(0 <= rate <= 1000 and 0 < e <= 1000000 for rate, e in rates):
            expected = "pairs (rate, epochs), rates in [0, 1000], epochs in [1, 1000000]"
            raise ConfigError(f"learning_rates={rates!r}: expected one or more {expected}")
        if isinstance(self, EpisodePrototypes) and self.mix_range is not None:
            low, high = self.mix_range
            if low > high:
                raise ConfigError(f"mix_range={(low, high)!r}: expected (low, high), low <= high")

    @property
    def batch(self) -> int:
        """Examples per step, over all devices; the sampler's."""
        raise NotImplementedError

    def full_steps(self, examples: int) -> int:
        """Batches that hold every clip (or crop, for :class:`FrameStacks`).

        The last one is completed from the first.
        """
        return -(-examples // self.batch)

    def steps(self, examples: int) -> int:
        """Steps of an epoch over so many clips or crops."""
        return self.steps_per_epoch or self.full_steps(examples)

    @property
    def total_epochs(self) -> int:
        """Epochs of the stage."""
        return self.epochs or sum(epochs for _, epochs in self.learning_rates)

    def learning_rate(self, epoch: jax.Array | int) -> jax.Array:
        """Learning rate of an epoch, float32; ``epoch`` may be traced."""
        stretch = self.total_epochs / sum(epochs for _, epochs in self.learning_rates)
        rate, end, start = jnp.float32(0), 0, 0
        for value, epochs in self.learning_rates:
            start = round(end * stretch)
            rate = jnp.where(epoch >= start, jnp.float32(value), rate)
            end += epochs
        if self.cosine_to is not None:
            first, last = self.learning_rates[-1][0], self.cosine_to
            done = (epoch - start) / max(self.total_epochs - start, 1)
            fallen = last + (first - last) * (1 + jnp.cos(jnp.pi * done)) / 2
            rate = jnp.where(epoch >= start, fallen, rate)
        if self.warmup:
            rate *= jnp.minimum(1, (epoch + 1) / (self.warmup + 1))
        return rate

    def update_rule(self, learning_rate: jax.Array | float = 0.0) -> optax.GradientTransformation:
        """The optimizer at a learning rate, which may be traced.

        In stochastic gradient descent, weight decay joins the gradient before the momentum, for
        every parameter, and the rate comes after it: the update of the framework that the paper
        used.
        """
        if self.optimizer == "adam":
            return optax.adamw(learning_rate, weight_decay=self.weight_decay)
        if self.optimizer == "lars":
            return optax.lars(learning_rate, weight_decay=self.weight_decay, momentum=self.momentum)
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay),
            optax.trace(decay=self.momentum),
            optax.scale_by_learning_rate(learning_rate),
        )

    def hyper(self) -> Hyper:
        """The traced hyper-parameters at this stage's values, float32."""
        values = {name: jnp.float32(x) for name, x in vars(self).items() if name in Hyper._fields}
        if isinstance(self, EpisodePrototypes):
            low, high = self.mix_range or (0.0, 0.0)
            values |= {"mix_low": jnp.float32(low), "mix_high": jnp.float32(high)}
        return jax.tree.map(jnp.float32, Hyper(**values))


# --- samplers


@dataclasses.dataclass(frozen=True)
class RandomBatches:
    """Sampler: every clip once an epoch, with a random crop.

    Attributes:
      batch_size: Clips per step, over all devices.
    """

    batch_size: int = 32

    @property
    def batch(self) -> int:
        """Clips per step."""
        return self.batch_size


@dataclasses.dataclass(frozen=True)
class FrameStacks:
    """Sampler: every crop that clips hold once an epoch, as autoencoders of short stacks of frames.

    Attributes:
      batch_size: Crops per step, over all devices.
    """

    batch_size: int = 512

    @property
    def batch(self) -> int:
        """Crops per step."""
        return self.batch_size


@dataclasses.dataclass(frozen=True)
class Episodes:
    """Sampler: balanced episodes of N attribute classes, K clips of each.

    Attributes:
      ways: N, attribute classes per episode.
      shots: K, clips per class and episode.
    """

    ways: int = 10
    shots: int = 10

    @property
    def batch(self) -> int:
        """Clips per step."""
        return self.ways * self.shots

    def full_steps(self, examples: int) -> int:
        """Episodes of as many clips as there are, to the nearest whole number, at least 1."""
        return max(1, round(examples / self.batch))


# --- options of losses


@dataclasses.dataclass(frozen=True)
class EpochPrototypes:
    """Loss options of Eq. 3: prototypes of all training clips, renewed before every epoch.

    Attributes:
      temperature: Divides the similarities.
      sub_prototypes: Sub-prototypes per class (MPE); 0 switches MPE off.
      mpe_ratio: Share of a class that a sub-prototype averages.
      prototype_crops: Random crops of every clip that the pass over all clips averages; the paper
        does not say, more make the prototypes of an epoch less noisy and the pass longer.
    """

    temperature: float = 0.07
    sub_prototypes: int = 1
    mpe_ratio: float = 0.25
    prototype_crops: int = 1


@dataclasses.dataclass(frozen=True)
class EpisodePrototypes:
    """Loss options of Eq. 6: prototypes of the batch, and negatives mixed from them.

    Attributes:
      temperature: Divides the similarities.
      mix_range: Bounds of the mixing coefficient (NPE); ``None`` switches NPE off.
      normalize_mixed: Whether mixed negatives are scaled to unit length.
      leave_one_out: Whether an anchor is left out of its own in-batch prototype.
      stop_gradient: Whether the gradient stops at in-batch prototypes.
    """

    temperature: float = 0.07
    mix_range: tuple[float, float] | None = (0.25, 0.5)
    normalize_mixed: bool = False
    leave_one_out: bool = False
    stop_gradient: bool = False


# --- the paper's


@dataclasses.dataclass(frozen=True)
class Pretraining(RandomBatches, EpochPrototypes, Stage):
    """Stage 1 of the paper: random batches against the epoch's prototypes (Eq. 3)."""


@dataclasses.dataclass(frozen=True)
class Finetuning(Episodes, EpisodePrototypes, Stage):
    """Stage 2 of the paper: episodes against their own prototypes and mixed negatives (Eq. 6)."""

    epochs: int = 50
    learning_rates: tuple[tuple[float, int], ...] = ((0.01, 30), (0.001, 20))
