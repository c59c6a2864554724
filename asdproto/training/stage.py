"""What a stage of training is: numbers (:class:`StageConfig`) and a loss (:class:`Objective`).

Pre-training and fine-tuning are two stages of one loop. The two objectives of the paper stand
here; any other loss becomes one more :class:`Objective`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from asdproto import prototypes as proto
from asdproto.config import ConfigError, at_least, between, check_fields, positive
from asdproto.losses import multi_prototype_loss, negative_prototype_loss, prototypical_loss

Sampler = Literal["random", "episodes"]
Optimizer = Literal["sgd", "adam", "lars"]


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
      warmup: Epochs over which the rate rises linearly, from the first epoch's share of it.
      cosine_to: Rate that the last pair's falls to along half a cosine over its epochs; ``None``
        keeps it.
      optimizer: ``"sgd"``, with momentum; ``"adam"``; ``"lars"``, layerwise adapted rates with
        momentum.
      momentum: Of stochastic gradient descent and LARS.
      weight_decay: Added to the gradient, for all parameters; Adam's is decoupled from its moments,
        times the rate.
      temperature: Divides the similarities.
      sub_prototypes: Sub-prototypes per class (MPE); 0 switches MPE off.
      mpe_ratio: Share of a class that a sub-prototype averages.
      prototype_crops: Random crops of every clip that the pass over all clips averages; the paper
        does not say, more make the prototypes of an epoch less noisy and the pass longer.
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
    warmup: int = 0
    cosine_to: float | None = None
    optimizer: Optimizer = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-5
    temperature: float = 0.07
    sub_prototypes: int = 1
    mpe_ratio: float = 0.25
    prototype_crops: int = 1
    mix_range: tuple[float, float] | None = None
    normalize_mixed: bool = False
    leave_one_out: bool = False
    stop_gradient: bool = False

    def __post_init__(self) -> None:
        check_fields(
            self,
            epochs=between(0, 1000000),
            batch_size=between(1, 1000000),
            ways=between(2, 100000),  # one class leaves nothing to tell apart
            shots=between(1, 100000),
            steps_per_epoch=between(0, 1000000),
            warmup=between(0, 1000000),
            cosine_to=between(0, 1000),
            momentum=at_least(0, below=1),
            weight_decay=between(0, 1000),
            temperature=positive(1000),
            sub_prototypes=between(0, 10000),
            prototype_crops=between(1, 1000),
            mpe_ratio=positive(1),
            mix_range=between(0, 1),
        )
        rates = self.learning_rates
        if not rates or not all(0 <= rate <= 1000 and 0 < e <= 1000000 for rate, e in rates):
            expected = (
                "one or more pairs (rate, epochs), rates in [0, 1000], epochs in [1, 1000000]"
            )
            raise ConfigError(f"learning_rates={rates!r}: expected {expected}")
        if self.mix_range is not None and self.mix_range[0] > self.mix_range[1]:
            raise ConfigError(f"mix_range={self.mix_range!r}: expected (low, high), low <= high")

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
        if self.cosine_to is not None:
            first, last = self.learning_rates[-1][0], self.cosine_to
            start = round(boundary * stretch)
            done = (epoch - start) / max(self.total_epochs - start, 1)
            fallen = last + (first - last) * (1 + jnp.cos(jnp.pi * done)) / 2
            rate = jnp.where(epoch >= start, fallen, rate)
        if self.warmup:
            rate *= jnp.minimum(1, (epoch + 1) / (self.warmup + 1))
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


def _no_parameters(key: jax.Array, num_classes: int, dim: int) -> tuple[Any, Any]:
    del key, num_classes, dim
    return {}, {}


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss as training sees it.

    Training calls ``loss`` with the loss's own parameters, the state before the step
    (:class:`asdproto.training.state.TrainState`: the epoch's prototypes, the loss's carried state),
    float32 unit embeddings ``[batch, dim]`` and the batch they come from
    (:class:`asdproto.training.state.Batch`), and by keyword with

    - ``key``: random key of the step, the same on all devices;
    - ``hyper``: :class:`Hyper`;
    - ``num_classes``: attribute classes of the data set, static;
    - ``axis_name``: mapped axis over which the batch is spread, or ``None``.

    A loss names the keywords that it needs and takes the others as ``**_``. It returns the loss of
    every example, shape ``[batch]``, and the new carried state. The step leaves out the losses of
    padding; a loss has to ask ``batch.where`` only where examples meet, or for its state.

    Attributes:
      name: For logs and files.
      loss: ``(params, state, embeddings, batch, **keywords) -> (losses, carried state)``, pure.
      init: ``(key, num_classes, dim) -> (params, state)``: learned vectors and carried state of
        the loss itself, such as class weights or an adaptive scale.
      epoch_prototypes: Whether the loss compares with means over all training clips, which are
        renewed before each epoch and fixed during it.
      sub_prototypes: Random sub-prototypes per class beside each of these means (MPE).
      augment: ``(batch, **keywords) -> (crops, where)``, pure: what the encoder embeds in the place
        of the batch's crops, such as mixtures of them, and which of it are real. ``None`` leaves
        crops alone.
    """

    name: str
    loss: Callable[..., tuple[jax.Array, Any]]
    init: Callable[[jax.Array, int, int], tuple[Any, Any]] = _no_parameters
    epoch_prototypes: bool = False
    sub_prototypes: int = 0
    augment: Callable[..., tuple[jax.Array, jax.Array | None]] | None = None


def mpe_objective(config: StageConfig) -> Objective:
    """Stage 1: Eq. 3, prototypes of all training clips and their random sub-prototypes."""

    def loss(params, state, embeddings, batch, *, hyper, **_):
        del params
        losses = multi_prototype_loss(
            embeddings,
            state.prototypes,
            batch.labels,
            temperature=hyper.temperature,
        )
        return losses, state.loss_state

    return Objective(
        name="mpe" if config.sub_prototypes else "prototypical",
        loss=loss,
        epoch_prototypes=True,
        sub_prototypes=config.sub_prototypes,
    )


def npe_objective(config: StageConfig) -> Objective:
    """Stage 2: Eq. 6, prototypes of the episode and negatives mixed from them."""

    def loss(params, state, embeddings, batch, *, key, hyper, num_classes, axis_name):
        del params
        targets, sums, counts = batch_sums(config, embeddings, batch, num_classes, axis_name)
        where = batch.where
        options: dict[str, Any] = {"temperature": hyper.temperature, "class_where": counts > 0}
        if config.leave_one_out:
            own, exists = proto.leave_one_out_prototypes(embeddings, targets, sums, counts)
            options["own_prototypes"] = lax.stop_gradient(own) if config.stop_gradient else own
            where = exists if where is None else exists & where
        prototypes = proto.class_means(sums, counts)
        if config.mix_range is None:
            losses = prototypical_loss(embeddings, prototypes, targets, where=where, **options)
        else:
            losses = negative_prototype_loss(
                embeddings,
                prototypes,
                targets,
                draw_mix(key, hyper, embeddings.shape[0], prototypes.shape[0], axis_name),
                normalize_mixed=config.normalize_mixed,
                where=where,
                **options,
            )
        return losses, state.loss_state

    return Objective(name="prototypical" if config.mix_range is None else "npe", loss=loss)


def batch_sums(
    config: StageConfig,
    embeddings: jax.Array,
    batch: Any,
    num_classes: int,
    axis_name: str | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums behind the prototypes of a batch, over all devices.

    Args:
      config: Numbers of the stage. The classes of an episode are those of the episode, by their
        position in it: N prototypes instead of one for every class of the data set.
      embeddings: float32, shape ``[batch, dim]``.
      batch: What they come from.
      num_classes: Attribute classes of the data set.
      axis_name: Mapped axis over which the batch is spread, or ``None``.

    Returns:
      Class of every example among the batch's, int32 ``[batch]``; sums, float32
      ``[classes, dim]``; counts, float32 ``[classes]``.
    """
    targets = batch.labels
    if config.sampler == "episodes":
        num_classes = config.ways
        position = device_rows(axis_name, embeddings.shape[0])
        # lax.div, not //: rounding negative numbers down is a kernel of its own on a GPU.
        targets = jnp.minimum(lax.div(position, jnp.int32(config.shots)), num_classes - 1)
    summands = lax.stop_gradient(embeddings) if config.stop_gradient else embeddings
    sums, counts = proto.class_sums(summands, targets, num_classes, where=batch.where)
    if axis_name is not None:
        sums, counts = lax.psum((sums, counts), axis_name)
    return targets, sums, counts


def draw_mix(
    key: jax.Array, hyper: Hyper, batch: int, width: int, axis_name: str | None
) -> jax.Array:
    """This device's rows of the mixing coefficients of a batch, float32 ``[batch, width]``.

    They are drawn for the global batch, so that they do not depend on the number of devices.
    """
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    mix = proto.sample_mix(key, (batch * devices, width), hyper.mix_low, hyper.mix_high)
    if axis_name is None:
        return mix
    return lax.dynamic_slice_in_dim(mix, lax.axis_index(axis_name) * batch, batch)


def device_rows(axis_name: str | None, size: int) -> jax.Array:
    """Positions in the global batch of the ``size`` examples on this device, int32 ``[size]``."""
    rows = jnp.arange(size, dtype=jnp.int32)
    return rows if axis_name is None else rows + lax.axis_index(axis_name) * size
