"""The static description of a training: a network, a stage and an objective on a data set.

Everything that trains is a :class:`Task` in :func:`asdproto.training.loop.train`: the paper's
stages, rivals, and the autoencoder, whose network maps crops to their likes.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from asdproto.config import to_dict
from asdproto.data.dataset import Dataset, Standardization
from asdproto.files import checksum, json_checksum
from asdproto.training.objectives import Objective
from asdproto.training.stage import Episodes, FrameStacks, Hyper, Stage
from asdproto.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Task:
    """Static description of a stage on a data set; compiled code is specialized to it.

    Attributes:
      model: Network: ``model.apply(variables, crops, train=..., where=...) -> embeddings``, with
        ``embedding_dim`` where its objective compares embeddings with anything.
      stage: Schedule, sampler and loss options.
      objective: The loss.
      num_classes: Attribute classes.
      num_clips: Training clips.
      largest_class: Clips of the largest class.
      num_crops: Crops that the training clips hold, one beginning at every frame.
      crop: Frames of a crop.
      chunk: Crops per device and call in the prototype pass.
      num_devices: Devices that share a batch.
      standardization: Of the features, see :meth:`asdproto.data.dataset.Dataset.moments`.
    """

    model: nn.Module
    stage: Stage
    objective: Objective
    num_classes: int
    num_clips: int
    largest_class: int
    num_crops: int
    crop: int = 64
    chunk: int = 256
    num_devices: int = 1
    standardization: Standardization = "band"

    def __post_init__(self) -> None:
        if isinstance(self.stage, Episodes) and self.stage.ways > self.num_classes:
            raise ValueError(
                f"an episode takes ways={self.stage.ways} attribute classes, but the training "
                f"clips have {self.num_classes}; set ways to at most {self.num_classes}"
            )
        if self.num_clips < 1:
            raise ValueError("there are no training clips")

    @classmethod
    def of(cls, data: Dataset, *, crop: int = 64, **fields: Any) -> "Task":
        """The task of a data set, of which it takes the numbers of classes, clips and crops."""
        return cls(**_numbers(data, crop), crop=crop, **fields)

    def check(self, data: Dataset) -> None:
        """Refuses a data set that the task is not of."""
        for name, value in _numbers(data, self.crop).items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"the task has {name}={getattr(self, name)}, but the data set {value}; make "
                    "the task of the data set that it is trained on"
                )

    def identity(
        self, datasets: Sequence[Dataset], key: np.ndarray, hyper: Hyper
    ) -> dict[str, Any]:
        """What a checkpoint must have been trained with to be continued; fit for json.

        Where it was trained, and how that was compiled, does not count.

        Args:
          datasets: The data set of all runs, or one for each.
          key: Numbers of the random key of each run.
          hyper: Hyper-parameters, each with an axis of runs.
        """
        return {
            "stage": to_dict(self.stage),
            "loss": self.objective.name,
            "network": _settings(self.model),
            "crop": self.crop,
            "standardization": self.standardization,
            "hyper-parameters": {name: x.tolist() for name, x in hyper._asdict().items()},
            "random key": key.tolist(),
            "training clips": [_fingerprint(data) for data in datasets],
        }

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch."""
        stacks = isinstance(self.stage, FrameStacks)
        return self.stage.steps(self.num_crops if stacks else self.num_clips)

    @property
    def global_batch_size(self) -> int:
        """Examples per step over all devices, padding included."""
        return -(-self.stage.batch // self.num_devices) * self.num_devices

    @property
    def prototypes_per_class(self) -> int:
        """Mean and sub-prototypes that are renewed every epoch; 0 where the loss wants none."""
        return 1 + self.objective.sub_prototypes if self.objective.epoch_prototypes else 0

    @property
    def pass_shape(self) -> tuple[int, int]:
        """Calls of the prototype pass, and crops of each over all devices, padding included."""
        crops = self.num_clips * self.objective.prototype_crops
        size = min(self.chunk, -(-crops // self.num_devices)) * self.num_devices
        return -(-crops // size), size

    def init(self, key: jax.Array, mels: int) -> TrainState:
        """Fresh state at step 0, the same on any number of devices."""
        encoder_key, loss_key = jax.random.split(key)

        @jax.jit  # one program instead of a hundred small ones
        def create(key: jax.Array) -> Any:
            return self.model.init(key, jnp.zeros((1, self.crop, mels), jnp.float32), train=False)

        variables = dict(create(encoder_key))
        return self.start(variables.pop("params"), variables.get("batch_stats", {}), loss_key)

    def start(self, encoder: Any, batch_stats: Any, key: jax.Array) -> TrainState:
        """State at step 0 around the parameters and running statistics of an encoder.

        The key is for parameters of the loss.
        """
        loss_params: Any = {}
        loss_state: Any = {}
        prototypes = None
        if self.objective.init is not None:
            dim = self.model.embedding_dim
            loss_params, loss_state = self.objective.init(key, self.num_classes, dim)
        if per_class := self.prototypes_per_class:
            prototypes = jnp.zeros((self.num_classes, per_class, self.model.embedding_dim))
        params = {"encoder": encoder, "loss": loss_params}
        return TrainState(
            step=jnp.int32(0),
            params=params,
            batch_stats=batch_stats,
            optimizer=self.stage.update_rule().init(params),
            loss_state=loss_state,
            prototypes=prototypes,
            loss_sum=jnp.float32(0),
        )


def _numbers(data: Dataset, crop: int) -> dict[str, Any]:
    """What compiled code is specialized to."""
    return {
        "num_classes": len(data.classes),
        "num_clips": len(data.labels),
        "largest_class": int(np.bincount(data.labels).max(initial=0)),
        "num_crops": int(np.sum(data.train.usable_frames - crop + 1)),
    }


def _settings(module: nn.Module) -> dict[str, Any]:
    """Numbers and words of a network, and of those that it is made of."""
    found: dict[str, Any] = {"kind": type(module).__name__}
    for field in dataclasses.fields(module):  # type: ignore[arg-type]
        name, value = field.name, getattr(module, field.name)
        if name in ("parent", "name", "axis_name", "lowering"):
            continue
        if name == "dtype":
            found[name] = str(value)
        elif isinstance(value, nn.Module):
            found[name] = _settings(value)
        elif all(isinstance(x, int | float | str) for x in jax.tree.leaves(value)):
            found[name] = value
    return found


def _fingerprint(data: Dataset) -> dict[str, int]:
    """Number of the training clips, and a checksum of their classes, lengths and first frames."""
    clips = np.arange(len(data.labels))
    first = dataclasses.replace(data.train, crop=1).crops(clips, np.zeros_like(clips))
    parts = [checksum(array) for array in (data.labels, data.train.frames, first)]
    return {"number": len(clips), "checksum": json_checksum(parts)}
