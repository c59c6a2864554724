"""What training carries from step to step, and what it is told once."""

import dataclasses
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from asdproto.data.dataset import to_scale
from asdproto.sampling import ClassMembers, class_members
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
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    optimizer: Any
    loss_state: Any
    prototypes: jax.Array | None
    loss_sum: jax.Array


class Table(NamedTuple):
    """What the steps know of the training clips besides their features.

    Attributes:
      labels: int32, shape ``[clips]``.
      frames: int32, shape ``[clips]``.
      order: int32, shape ``[clips]``; see :class:`asdproto.sampling.ClassMembers`.
      offsets: int32, shape ``[classes]``.
      counts: int32, shape ``[classes]``.
      mean: float32, shape ``[mels]``, subtracted from every frame.
      scale: float32, shape ``[mels]``, multiplies every frame then.
    """

    labels: Array
    frames: Array
    order: Array
    offsets: Array
    counts: Array
    mean: Array
    scale: Array


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

    def __post_init__(self) -> None:
        if self.stage.sampler == "episodes" and self.stage.ways > self.num_classes:
            raise ValueError(
                f"an episode takes ways={self.stage.ways} attribute classes, but the training "
                f"clips have {self.num_classes}; set ways to at most {self.num_classes}"
            )
        if self.num_clips < 1:
            raise ValueError("there are no training clips")

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.stage.steps(self.num_clips)

    @property
    def device_batch(self) -> int:
        """Examples per device and step, padding included."""
        return -(-self.stage.batch // self.num_devices)

    @property
    def global_batch(self) -> int:
        """Examples per step over all devices, padding included."""
        return self.device_batch * self.num_devices

    @property
    def device_chunk(self) -> int:
        """Crops per device and call in the prototype pass."""
        return min(self.chunk, -(-self.num_clips // self.num_devices))

    @property
    def chunks(self) -> int:
        """Calls of the prototype pass."""
        return -(-self.num_clips // (self.device_chunk * self.num_devices))

    @property
    def prototypes_per_class(self) -> int:
        """Mean and sub-prototypes."""
        return 1 + self.objective.sub_prototypes

    def optimizer(self) -> optax.GradientTransformation:
        """Direction of stochastic gradient descent; the step multiplies it by the rate.

        Weight decay joins the gradient before the momentum, for every parameter, and the rate
        comes after it: the update of the framework that the paper used.
        """
        return optax.chain(
            optax.add_decayed_weights(self.stage.weight_decay),
            optax.trace(decay=self.stage.momentum),
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
        shape = (self.num_classes, self.prototypes_per_class, self.model.embedding_dim)
        return TrainState(
            step=jnp.int32(0),
            params=params,
            batch_stats=batch_stats,
            optimizer=self.optimizer().init(params),
            loss_state=loss_state,
            prototypes=jnp.zeros(shape) if self.objective.prototypes == "epoch" else None,
            loss_sum=jnp.float32(0),
        )

    @property
    def members(self) -> int:
        """Rows of weights in the prototype pass; 0 for objectives without epoch prototypes."""
        return self.prototypes_per_class if self.objective.prototypes == "epoch" else 0


@dataclasses.dataclass(frozen=True)
class Packing:
    """Parameters as a loop on the device carries them: all small ones side by side.

    A network has dozens of parameters of a few hundred numbers (scales, biases). To an accelerator
    the update of each costs as much as that of them all, so they make one vector.

    Attributes:
      treedef: Structure of the parameters.
      shapes: Of every leaf.
      small: Positions of the leaves that the vector holds, in its order.
      kernels: Positions of the encoder's leaves of two and more axes.
    """

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    small: tuple[int, ...]
    kernels: tuple[int, ...]

    # Leaves of more numbers are worth a program of their own.
    LIMIT = 1024

    @classmethod
    def of(cls, params: Any) -> "Packing":
        """The packing of these parameters."""
        leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
        shapes = tuple(leaf.shape for _, leaf in leaves)
        small = tuple(
            i for i, (_, x) in enumerate(leaves) if x.size <= cls.LIMIT and x.dtype == jnp.float32
        )
        encoder = jax.tree_util.DictKey("encoder")
        kernels = tuple(
            i for i, (path, x) in enumerate(leaves) if path[0] == encoder and x.ndim > 1
        )
        return cls(treedef, shapes, small, kernels)

    def pack(self, tree: Any) -> list[jax.Array]:
        """The vector, then the other leaves in order."""
        leaves = self.treedef.flatten_up_to(tree)
        vector = [leaves[index].reshape(-1) for index in self.small]
        packed = [jnp.concatenate(vector)] if vector else []
        return packed + [leaves[index] for index in self._large]

    def weights(self, packed: list[jax.Array], dtype: Any) -> list[jax.Array]:
        """Packed parameters as the encoder computes with them: its kernels in ``dtype``.

        A module casts its kernel at every use; in a loop that carries these, the update of a
        parameter writes the cast one too.
        """
        first = bool(self.small)
        return packed[:first] + [
            leaf.astype(dtype) if index in self.kernels else leaf
            for index, leaf in zip(self._large, packed[first:], strict=True)
        ]

    @property
    def _large(self) -> list[int]:
        return [index for index in range(len(self.shapes)) if index not in self.small]

    def unpack(self, packed: list[jax.Array]) -> Any:
        """The parameters again."""
        leaves: dict[int, jax.Array] = {}
        if self.small:
            vector, *packed = packed
            sizes = [math.prod(self.shapes[index]) for index in self.small]
            for index, part in zip(self.small, lax.split(vector, sizes), strict=True):
                leaves[index] = part.reshape(self.shapes[index])
        leaves |= zip(self._large, packed, strict=True)
        return self.treedef.unflatten([leaves[index] for index in range(len(self.shapes))])

    def pack_state(self, state: TrainState) -> TrainState:
        """The state with its parameters, and what the optimizer keeps for each, packed."""
        return self._map(state, self.treedef, self.pack)

    def unpack_state(self, state: TrainState) -> TrainState:
        """The state again."""
        packed = jax.tree.structure(state.params)
        return self._map(state, packed, self.unpack)

    def _map(self, state: TrainState, structure: Any, function: Any) -> TrainState:
        def is_like(tree: Any) -> bool:
            return jax.tree.structure(tree) == structure

        def convert(tree: Any) -> Any:
            return function(tree) if is_like(tree) else tree

        optimizer = jax.tree.map(convert, state.optimizer, is_leaf=is_like)
        return state._replace(params=function(state.params), optimizer=optimizer)


def make_table(
    labels: np.ndarray,
    frames: np.ndarray,
    mean: np.ndarray,
    deviation: np.ndarray,
    num_classes: int,
) -> tuple[Table, int]:
    """Table of the training clips, and the size of the largest class.

    Args:
      labels: Integer, shape ``[clips]``.
      frames: Integer, shape ``[clips]``.
      mean: Floating, shape ``[mels]``, mean of the training frames.
      deviation: Floating, shape ``[mels]``, their standard deviation; bands that never move are
        left as they are.
      num_classes: Attribute classes.

    Returns:
      The table, as NumPy arrays, and the number of clips in the largest class.
    """
    members = class_members(labels, num_classes)
    table = Table(
        labels=np.asarray(labels, np.int32),
        frames=np.asarray(frames, np.int32),
        order=members.order,
        offsets=members.offsets,
        counts=members.counts,
        mean=np.asarray(mean, np.float32),
        scale=to_scale(deviation),
    )
    return table, members.largest


def members_of(table: Table, largest: int) -> ClassMembers:
    """The table's index of clips by class."""
    return ClassMembers(table.order, table.offsets, table.counts, largest)
