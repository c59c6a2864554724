"""What a stage of training is: numbers (:class:`StageConfig`) and a loss (:class:`Objective`).

Pre-training and fine-tuning are two stages of one loop. A loss variant is one more
:class:`Objective`: a pure function of the batch's embeddings and of whatever they are compared
with. Training knows nothing else of it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from asdproto import prototypes as proto
from asdproto.losses import multi_prototype_loss, negative_prototype_loss, prototypical_loss

Sampler = Literal["random", "episodes"]
PrototypeSource = Literal["none", "epoch", "batch"]


class Hyper(NamedTuple):
    """Hyper-parameters that compiled code takes as arguments, so that a sweep may map over them.

    Attributes:
      learning_rate_scale: Factor on the whole schedule.
      temperature: Temperature of the loss, positive.
      mpe_ratio: Share of a class that a sub-prototype averages, in (0, 1].
      mix_low: Lower bound of the mixing coefficient, in [0, 1].
      mix_high: Upper bound of the mixing coefficient, in [mix_low, 1].
    """

    learning_rate_scale: jax.Array | float = 1.0
    temperature: jax.Array | float = 0.07
    mpe_ratio: jax.Array | float = 0.25
    mix_low: jax.Array | float = 0.25
    mix_high: jax.Array | float = 0.5


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """Numbers of one stage; the defaults are the paper's pre-training (section 4.2).

    Attributes:
      epochs: Passes; the sum of the schedule's epochs when 0.
      sampler: ``"random"``: every clip once an epoch. ``"episodes"``: balanced N x K episodes.
      batch_size: Clips per step of the random sampler, over all devices.
      ways: N, attribute classes per episode.
      shots: K, clips per class and episode.
      steps_per_epoch: Steps of an epoch; 0 for clips / batch size, rounded up for the random
        sampler and to the nearest whole number, at least 1, for episodes.
      learning_rates: Pairs (rate, epochs). A schedule of other length than ``epochs`` is
        stretched to it.
      momentum: Of stochastic gradient descent.
      weight_decay: Added to the gradient, for all parameters.
      temperature: Divides the similarities.
      sub_prototypes: Sub-prototypes per class (MPE); 0 switches MPE off.
      mpe_ratio: Share of a class that a sub-prototype averages.
      mix_range: Bounds of the mixing coefficient (NPE); ``None`` switches NPE off.
      normalize_mixed: Whether mixed negatives are scaled to unit length.
      leave_one_out: Whether an anchor is left out of its own in-batch prototype.
      stop_gradient: Whether the gradient stops at in-batch prototypes.
    """

    epochs: int = 120
    sampler: Sampler = "random"
    batch_size: int = 32
    ways: int = 10
    shots: int = 10
    steps_per_epoch: int = 0
    learning_rates: tuple[tuple[float, int], ...] = ((0.1, 50), (0.01, 40), (0.001, 30))
    momentum: float = 0.9
    weight_decay: float = 5e-5
    temperature: float = 0.07
    sub_prototypes: int = 1
    mpe_ratio: float = 0.25
    mix_range: tuple[float, float] | None = None
    normalize_mixed: bool = False
    leave_one_out: bool = False
    stop_gradient: bool = False

    def __post_init__(self) -> None:
        checks = {
            "epochs": (self.epochs >= 0, "at least 0"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "ways": (self.ways >= 2, "at least 2, or there is nothing to tell apart"),
            "shots": (self.shots >= 1, "at least 1"),
            "steps_per_epoch": (self.steps_per_epoch >= 0, "at least 0"),
            "temperature": (self.temperature > 0, "positive"),
            "sub_prototypes": (self.sub_prototypes >= 0, "at least 0"),
            "mpe_ratio": (0 < self.mpe_ratio <= 1, "in (0, 1]"),
            "sampler": (self.sampler in ("random", "episodes"), "'random' or 'episodes'"),
            "learning_rates": (
                len(self.learning_rates) > 0 and all(e > 0 for _, e in self.learning_rates),
                "one or more pairs (rate, epochs) with epochs > 0",
            ),
            "mix_range": (
                self.mix_range is None or 0 <= self.mix_range[0] <= self.mix_range[1] <= 1,
                "None or (low, high) with 0 <= low <= high <= 1",
            ),
        }
        for field, (fits, expected) in checks.items():
            if not fits:
                raise ValueError(f"{field}={getattr(self, field)!r}: expected {expected}")

    @property
    def batch(self) -> int:
        """Clips per step, over all devices."""
        return self.batch_size if self.sampler == "random" else self.ways * self.shots

    def steps(self, num_clips: int) -> int:
        """Steps of an epoch over ``num_clips`` clips."""
        if self.steps_per_epoch:
            return self.steps_per_epoch
        if self.sampler == "random":
            return -(-num_clips // self.batch_size)
        return max(1, round(num_clips / self.batch))

    def learning_rate(self, epoch: jax.Array | int) -> jax.Array:
        """Learning rate of an epoch, float32; ``epoch`` may be traced."""
        total = sum(epochs for _, epochs in self.learning_rates)
        stretch = (self.epochs or total) / total
        rate = jnp.float32(self.learning_rates[0][0])
        boundary = 0
        for (_, epochs), (following, _) in zip(
            self.learning_rates, self.learning_rates[1:], strict=False
        ):
            boundary += epochs
            rate = jnp.where(epoch >= round(boundary * stretch), jnp.float32(following), rate)
        return rate

    @property
    def total_epochs(self) -> int:
        """Epochs of the stage."""
        return self.epochs or sum(epochs for _, epochs in self.learning_rates)

    def hyper(self) -> Hyper:
        """The traced hyper-parameters at this configuration's values."""
        low, high = self.mix_range or (0.0, 0.0)
        return Hyper(
            learning_rate_scale=jnp.float32(1.0),
            temperature=jnp.float32(self.temperature),
            mpe_ratio=jnp.float32(self.mpe_ratio),
            mix_low=jnp.float32(low),
            mix_high=jnp.float32(high),
        )


class LossInputs(NamedTuple):
    """What a loss sees of a batch.

    Attributes:
      embeddings: float32, shape ``[batch, dim]``, unit length.
      labels: int32, shape ``[batch]``, attribute classes of the data set.
      where: Boolean, shape ``[batch]``, or ``None`` when no example is padding.
      prototypes: float32, shape ``[classes, per_class, dim]``; ``None`` when the objective asks for
        none. Of the data set's classes, or (in-batch prototypes of episodes) of the episode's.
      targets: int32, shape ``[batch]``, rows of ``prototypes`` that the examples belong to.
      present: Boolean, shape ``[classes]``, prototypes that exist.
      sums: float32, shape ``[classes, dim]``; in-batch sums behind the prototypes, or ``None``.
      counts: float32, shape ``[classes]``, or ``None``.
      key: Random key of the step, the same on all devices.
      hyper: Traced hyper-parameters.
      rows: int32 scalar, position of the first example in the global batch.
      global_batch: Examples in the global batch, padding included; static.
      axis_name: Mapped axis over which the batch is spread, or ``None``.
      num_classes: Classes of the data set; static.
    """

    embeddings: jax.Array
    labels: jax.Array
    where: jax.Array | None
    prototypes: jax.Array | None
    targets: jax.Array
    present: jax.Array | None
    sums: jax.Array | None
    counts: jax.Array | None
    key: jax.Array
    hyper: Hyper
    rows: jax.Array | int
    global_batch: int
    axis_name: str | None
    num_classes: int

    def draw(self, sample: Callable[[jax.Array, tuple[int, ...]], jax.Array], width: int):
        """Random numbers ``[batch, width]`` that do not depend on the number of devices."""
        everything = sample(self.key, (self.global_batch, width))
        if self.axis_name is None:
            return everything
        return lax.dynamic_slice_in_dim(everything, self.rows, self.embeddings.shape[0])


def _no_parameters(key: jax.Array, num_classes: int, dim: int) -> tuple[Any, Any]:
    del key, num_classes, dim
    return {}, {}


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss as training sees it.

    Attributes:
      name: For logs and files.
      loss: ``(params, state, inputs) -> (loss [batch], new state)``, pure.
      init: ``(key, num_classes, dim) -> (params, state)``: learned vectors and carried state of
        the loss itself, such as class weights or an adaptive scale.
      prototypes: ``"none"``; ``"epoch"``: means over all training clips, renewed before each
        epoch and fixed during it; ``"batch"``: means over the batch.
      sub_prototypes: Random sub-prototypes per class beside each mean (MPE); epoch only.
      stop_gradient: Whether the gradient stops at in-batch prototypes.
    """

    name: str
    loss: Callable[[Any, Any, LossInputs], tuple[jax.Array, Any]]
    init: Callable[[jax.Array, int, int], tuple[Any, Any]] = _no_parameters
    prototypes: PrototypeSource = "none"
    sub_prototypes: int = 0
    stop_gradient: bool = False


def _expanded_loss(params: Any, state: Any, inputs: LossInputs) -> tuple[jax.Array, Any]:
    """Eq. 3 against the epoch's prototypes and sub-prototypes; Eq. 1 when there is one a class."""
    del params
    assert inputs.prototypes is not None
    assert inputs.present is not None
    per_class = inputs.prototypes.shape[1]
    values = multi_prototype_loss(
        inputs.embeddings,
        inputs.prototypes,
        inputs.targets,
        temperature=inputs.hyper.temperature,
        where=inputs.where,
        prototype_where=jnp.broadcast_to(inputs.present[:, None], (len(inputs.present), per_class)),
    )
    return values, state


def mpe_objective(config: StageConfig) -> Objective:
    """Stage 1: Eq. 3, prototypes of all training clips and their random sub-prototypes."""
    return Objective(
        name="mpe" if config.sub_prototypes else "prototypical",
        loss=_expanded_loss,
        prototypes="epoch",
        sub_prototypes=config.sub_prototypes,
    )


def npe_objective(config: StageConfig) -> Objective:
    """Stage 2: Eq. 6, prototypes of the episode and negatives mixed from them."""

    def loss(params: Any, state: Any, inputs: LossInputs) -> tuple[jax.Array, Any]:
        del params
        assert inputs.prototypes is not None
        prototypes, where = inputs.prototypes[:, 0], inputs.where
        extra: dict[str, Any] = {}
        if config.leave_one_out:
            assert inputs.sums is not None
            assert inputs.counts is not None
            own, exists = proto.leave_one_out_prototypes(
                inputs.embeddings, inputs.targets, inputs.sums, inputs.counts
            )
            extra["own_prototypes"] = lax.stop_gradient(own) if config.stop_gradient else own
            where = exists if where is None else exists & where
        common: dict[str, Any] = dict(
            temperature=inputs.hyper.temperature,
            where=where,
            class_where=inputs.present,
            **extra,
        )
        hyper = inputs.hyper
        if config.mix_range is None:
            values = prototypical_loss(inputs.embeddings, prototypes, inputs.targets, **common)
        else:
            mix = inputs.draw(
                lambda key, shape: proto.sample_mix(key, shape, hyper.mix_low, hyper.mix_high),
                prototypes.shape[0],
            )
            values = negative_prototype_loss(
                inputs.embeddings,
                prototypes,
                inputs.targets,
                mix,
                normalize_mixed=config.normalize_mixed,
                **common,
            )
        return values, state

    return Objective(
        name="prototypical" if config.mix_range is None else "npe",
        loss=loss,
        prototypes="batch",
        stop_gradient=config.stop_gradient,
    )
