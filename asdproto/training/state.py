"""What training carries from step to step, and what it is told once."""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from asdproto.data.dataset import Dataset, Standardization
from asdproto.sampling import class_members
from asdproto.training.stage import Objective, StageConfig

# On the host until they are put on devices.
Array = jax.Array | np.ndarray


class TrainState(NamedTuple):
    """Everything a resumed run needs; random numbers follow from the key and the step.

    Attributes:
      step: int32 scalar, steps done in this stage.
      params: ``{"encoder": ..., "loss": ...}``, float32.
      batch_stats: Running statistics of the encoder.
      optimizer: State of the optimizer.
      loss_state: State of the loss, such as an adaptive scale; empty for most.
      prototypes: float32, shape ``[classes, 1 + sub_prototypes, dim]``, the epoch's prototypes;
        ``None`` for objectives without.
      loss_sum: float32 scalar, sum of the losses of this epoch's steps so far.
      weights: Belongs to :mod:`asdproto.training.packing`; ``None`` but inside a loop on a device.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    optimizer: Any
    loss_state: Any
    prototypes: jax.Array | None
    loss_sum: jax.Array
    weights: Any = None


class ClipIndex(NamedTuple):
    """The training clips of a data set as they live on the devices; made by :func:`clip_index`.

    Attributes:
      features: Floating, shape ``[clips, frames, mels]``, as stored; ``None`` where the host
        gathers crops.
      labels: int32, shape ``[clips]``.
      frames: int32, shape ``[clips]``.
      order: int32, shape ``[clips]``; see :class:`asdproto.sampling.ClassMembers`.
      offsets: int32, shape ``[classes]``.
      counts: int32, shape ``[classes]``.
      mean: float32, shape ``[mels]``, subtracted from every frame.
      scale: float32, shape ``[mels]``, multiplies every frame then.
    """

    features: Array | None
    labels: Array
    frames: Array
    order: Array
    offsets: Array
    counts: Array
    mean: Array
    scale: Array


class Batch(NamedTuple):
    """One device's part of a batch, ready for the encoder.

    Attributes:
      clips: int32, shape ``[batch]``, rows of the training clips.
      crops: float32, shape ``[batch, crop, mels]``, standardized.
      labels: int32, shape ``[batch]``.
      where: Boolean, shape ``[batch]``, false for padding; ``None`` when nothing is padding.
    """

    clips: jax.Array
    crops: jax.Array
    labels: jax.Array
    where: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """Static description of a stage on a data set; compiled code is specialized to it.

    Attributes:
      model: Encoder: ``model.apply(variables, crops, train=..., where=...) -> embeddings``, with
        ``embedding_dim``.
      stage: Numbers of the stage.
      objective: Its loss.
      num_classes: Attribute classes.
      num_clips: Training clips.
      largest_class: Clips of the largest class.
      crop: Frames of a crop.
      chunk: Crops per device and call in the prototype pass.
      num_devices: Devices that share a batch.
      standardization: Of the features, see :meth:`asdproto.data.dataset.Dataset.moments`.
    """

    model: nn.Module
    stage: StageConfig
    objective: Objective
    num_classes: int
    num_clips: int
    largest_class: int
    crop: int = 64
    chunk: int = 256
    num_devices: int = 1
    standardization: Standardization = "band"

    def __post_init__(self) -> None:
        if self.stage.sampler == "episodes" and self.stage.ways > self.num_classes:
            raise ValueError(
                f"an episode takes ways={self.stage.ways} attribute classes, but the training "
                f"clips have {self.num_classes}; set ways to at most {self.num_classes}"
            )
        if self.num_clips < 1:
            raise ValueError("there are no training clips")

    @classmethod
    def of(cls, data: Dataset, **given: Any) -> "Task":
        """The task of a data set, of which it takes the numbers of classes and clips."""
        return cls(
            num_classes=len(data.classes),
            num_clips=len(data.labels),
            largest_class=int(np.bincount(data.labels).max()),
            **given,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch."""
        return self.stage.steps(self.num_clips)

    @property
    def device_batch(self) -> int:
        """Examples per device and step, padding included."""
        return -(-self.stage.batch // self.num_devices)

    @property
    def global_batch_size(self) -> int:
        """Examples per step over all devices, padding included."""
        return self.device_batch * self.num_devices

    @property
    def prototype_crops(self) -> int:
        """Crops of the prototype pass over all devices, without padding."""
        return self.num_clips * self.stage.prototype_crops

    @property
    def device_chunk(self) -> int:
        """Crops per device and call in the prototype pass."""
        return min(self.chunk, -(-self.prototype_crops // self.num_devices))

    @property
    def chunks(self) -> int:
        """Calls of the prototype pass."""
        return -(-self.prototype_crops // (self.device_chunk * self.num_devices))

    @property
    def prototypes_per_class(self) -> int:
        """Mean and sub-prototypes that are renewed every epoch; 0 where the loss wants none."""
        return 1 + self.objective.sub_prototypes if self.objective.epoch_prototypes else 0

    def optimizer(self, learning_rate: jax.Array | float = 0.0) -> optax.GradientTransformation:
        """The stage's optimizer at a learning rate, which may be traced.

        In stochastic gradient descent, weight decay joins the gradient before the momentum, for
        every parameter, and the rate comes after it: the update of the framework that the paper
        used.
        """
        stage = self.stage
        if stage.optimizer == "adam":
            return optax.adamw(learning_rate, weight_decay=stage.weight_decay)
        if stage.optimizer == "lars":
            return optax.lars(
                learning_rate, weight_decay=stage.weight_decay, momentum=stage.momentum
            )
        return optax.chain(
            optax.add_decayed_weights(stage.weight_decay),
            optax.trace(decay=stage.momentum),
            optax.scale_by_learning_rate(learning_rate),
        )

    def init(self, key: jax.Array, mels: int) -> TrainState:
        """Fresh state.

        Args:
          key: Random key; the same key gives the same parameters on any number of devices.
          mels: Mel filters of the features.

        Returns:
          State at step 0, on the default device.
        """
        encoder_key, loss_key = jax.random.split(key)

        @jax.jit  # one program instead of a hundred small ones
        def create(key: jax.Array) -> Any:
            return self.model.init(key, jnp.zeros((1, self.crop, mels), jnp.float32), train=False)

        variables = dict(create(encoder_key))
        return self.start(variables.pop("params"), variables.get("batch_stats", {}), loss_key)

    def start(self, encoder: Any, batch_stats: Any, key: jax.Array) -> TrainState:
        """State at step 0 around an encoder that exists, as fine-tuning starts.

        Args:
          encoder: Parameters of the encoder.
          batch_stats: Its running statistics.
          key: Random key for parameters of the loss.

        Returns:
          State at step 0 with a fresh optimizer.
        """
        loss_params, loss_state = self.objective.init(
            key, self.num_classes, self.model.embedding_dim
        )
        params = {"encoder": encoder, "loss": loss_params}
        per_class, dim = self.prototypes_per_class, self.model.embedding_dim
        return TrainState(
            step=jnp.int32(0),
            params=params,
            batch_stats=batch_stats,
            optimizer=self.optimizer().init(params),
            loss_state=loss_state,
            prototypes=jnp.zeros((self.num_classes, per_class, dim)) if per_class else None,
            loss_sum=jnp.float32(0),
        )


def clip_index(
    data: Dataset, *, resident: bool, standardization: Standardization = "band"
) -> ClipIndex:
    """Index of a data set's training clips, as NumPy arrays.

    Args:
      data: The data set.
      resident: Whether features belong to it.
      standardization: Of the features.

    Returns:
      The index, to be put on the devices.

    Raises:
      ValueError: A class has no clip, and so no prototype.
    """
    members = class_members(data.labels, data.num_classes)
    if not members.counts.all():
        raise ValueError(f"class {int(np.argmin(members.counts))} has no training clip")
    mean, scale = data.moments(standardization)
    return ClipIndex(
        features=data.train.load() if resident else None,
        labels=np.asarray(data.labels, np.int32),
        frames=data.train.usable_frames,
        order=members.order,
        offsets=members.offsets,
        counts=members.counts,
        mean=mean,
        scale=scale,
    )
