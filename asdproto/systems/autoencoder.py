"""The AutoEncoder row of Table 1: the baseline of DCASE 2022 Task 2.

Plain log-mel -> stacks of 5 frames -> autoencoder, one per machine type over all its sections ->
mean squared error of a clip's stacks.
"""

import dataclasses
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from asdproto.config import ConfigError, at_least, between, check_fields, strictly_between
from asdproto.data.dataset import Classes, ClipArrays, Dataset
from asdproto.data.dcase import Clip
from asdproto.features import FeatureSettings
from asdproto.models.autoencoder import AutoEncoder
from asdproto.scoring.rows import rows_by
from asdproto.systems.embedding import window_means
from asdproto.systems.system import Comparison, Member, Section
from asdproto.training import loop as training
from asdproto.training.devices import RunOptions
from asdproto.training.objectives import reconstruction_objective
from asdproto.training.stage import FrameStacks, Optimizer, Stage
from asdproto.training.task import Task


@dataclasses.dataclass(frozen=True)
class Stacks(FrameStacks, Stage):
    """Training on every stack of frames; the defaults are the official baseline's."""

    epochs: int = 100
    learning_rates: tuple[tuple[float, int], ...] = ((1e-3, 1),)
    optimizer: Optimizer = "adam"
    weight_decay: float = 0.0


@dataclasses.dataclass(frozen=True)
class AutoEncoderSystem:
    """The system; the defaults are the official baseline's.

    Attributes:
      features: Feature settings; plain log-mel.
      stage: The training.
      context: Frames in a stack; stacks begin at every frame.
      held_out: Share of a machine type's training clips, the last ones, that are left out. The
        official program takes the tail of the list sorted by path, which is section 02.
      standardize: Give the network every mel band with zero mean and unit variance (of the trained
        clips). The official program leaves it in dB, which takes tens of thousands of steps to
        learn the mean. Errors are in dB^2 either way.
      folds: Parts that the training clips are dealt into for scores of clips that were held out,
        each by a network of its own; 0, as the official program, takes the network's errors of
        the clips that it was trained on, which are smaller than those of new clips.
      quantile: Of the gamma distribution of the training clips' scores, for decisions.
    """

    features: FeatureSettings = dataclasses.field(
        default_factory=lambda: FeatureSettings(scale="mel")
    )
    stage: Stacks = dataclasses.field(default_factory=Stacks)
    context: int = 5
    held_out: float = 0.1
    standardize: bool = False
    folds: int = 0
    quantile: float = 0.9

    kind: ClassVar[str] = "autoencoder"
    names: ClassVar[tuple[str, ...]] = ("autoencoder",)
    reads_waveforms: ClassVar[bool] = False
    is_fused: ClassVar[bool] = False
    classes: ClassVar[Classes] = "attributes"

    def __post_init__(self) -> None:
        check_fields(
            self,
            context=between(1, 10000),
            held_out=at_least(0, below=1),
            folds=between(0, 10000),
            quantile=strictly_between(0, 1),
        )
        if self.folds == 1:
            raise ConfigError("folds=1: expected 0 or at least 2")

    @property
    def crop(self) -> int:
        """Shortest clip, in frames."""
        return self.context

    def plan(self, clips: int) -> str:
        """What training does, in a few words."""
        folds = f", and {self.folds} more networks for held-out scores" if self.folds else ""
        return f"one network a machine type, {self.stage.total_epochs} epochs{folds}"

    def check_clips(self, clips: Sequence[Clip]) -> None:
        """Any clips will do."""

    def train(
        self, data: Dataset, options: RunOptions, seeds: Sequence[int]
    ) -> dict[str, list[Member]]:
        """Trains a network for every machine type and seed, and for every fold.

        All processes train and embed together, and return the same.
        """
        trained: dict[str, np.ndarray] = {}  # rows by name of the network
        scored: dict[str, np.ndarray] = {}
        by_machine = rows_by([clip.machine_type for clip in data.train_clips])
        for machine, rows in sorted(by_machine.items()):
            trained[machine] = rows[: len(rows) - round(self.held_out * len(rows))]
            scored[machine] = rows
            if len(rows) >= 2 * self.folds > 0:
                for fold in range(self.folds):
                    trained[f"{machine}/{fold}"] = np.delete(rows, np.s_[fold :: self.folds])
                    scored[f"{machine}/{fold}"] = rows[fold :: self.folds]
        parts = {name: self._part(data, rows) for name, rows in trained.items()}
        members = []
        for seed in seeds:
            networks = fit_networks(self, parts, options, seed)
            held_out = np.zeros(len(data.train_clips))
            for name, rows in scored.items():  # the folds come after their machine type
                held_out[rows] = networks[name].errors(data.train.take(rows))
            kept = {name: one for name, one in networks.items() if "/" not in name}
            members.append(Member(AutoEncoderModel(self, kept), seed, data.classes, held_out))
        return {"autoencoder": members}

    def _part(self, data: Dataset, rows: np.ndarray) -> Dataset:
        """Some of the training clips as one class, and what they are standardized by."""
        part, labels = data.take(rows), np.zeros(len(rows), np.int32)
        mean, std = np.zeros_like(data.mean), np.ones_like(data.std)
        if self.standardize:
            mean, std = part.train.statistics()
        return dataclasses.replace(part, labels=labels, classes=[("",)], mean=mean, std=std)

    def refit(self, member: Member, data: Dataset) -> Member:
        """There is no back-end."""
        del member, data
        raise ConfigError("a run of the autoencoder has no back-end to fit again")

    def restore(self, arrays: Mapping[str, np.ndarray]) -> "AutoEncoderModel":
        """The model that :meth:`AutoEncoderModel.to_arrays` described."""
        networks = {}
        for machine, one in unflatten_dict(dict(arrays), sep="/").items():
            variables = {"params": one["params"], "batch_stats": one["batch_stats"]}
            networks[machine] = Network(variables, one["mean"], one["scale"])
        return AutoEncoderModel(self, networks)


# quick and small are for a few hundred clips, in seconds on a CPU.
_QUICK = AutoEncoderSystem(stage=Stacks(epochs=10), held_out=0.0, standardize=True)
PRESETS = {
    "quick": _QUICK,
    "small": dataclasses.replace(_QUICK, stage=Stacks(epochs=30), folds=3),
    "paper": AutoEncoderSystem(),
}


class Network(NamedTuple):
    """A trained network of one machine type, NumPy arrays.

    Attributes:
      variables: Parameters and running statistics.
      mean: float32, shape ``[mels]``, subtracted from every frame.
      scale: float32, shape ``[mels]``, multiplies every frame then.
    """

    variables: Any
    mean: np.ndarray
    scale: np.ndarray

    def errors(self, clips: ClipArrays) -> np.ndarray:
        """Mean squared error of every clip's stacks, dB^2, float64 ``[clips]``."""
        stages = {kind: {"network": tree} for kind, tree in self.variables.items()}
        weights = {"params": {**stages["params"], "weights": self.scale**-2.0}}
        variables = {**stages, **weights}
        means = window_means(
            _Errors(), variables, clips, mean=self.mean, scale=self.scale, hop=1, batch=2048
        )
        return means[:, 0]


class _Errors(nn.Module):
    """Mean squared error of crops that an autoencoder rebuilds, weighted band by band."""

    embedding_dim: int = 1

    @nn.compact
    def __call__(self, crops: jax.Array, *, train: bool) -> jax.Array:
        """Maps float32 ``[batch, frames, mels]`` to ``[batch, 1]``."""
        weights = self.param("weights", nn.initializers.ones, crops.shape[-1:])
        wrong = AutoEncoder(name="network")(crops, train=train) - crops
        return jnp.mean(jnp.square(wrong) * weights, axis=(1, 2))[:, None]


def fit_networks(
    system: AutoEncoderSystem, parts: Mapping[str, Dataset], options: RunOptions, seed: int
) -> dict[str, Network]:
    """Trains a network on each data set, those of one size side by side where one process runs.

    Args:
      system: The system.
      parts: Machine type, or machine type and fold -> data set of one class. A network's random
        numbers depend on the seed and its name, not on its company.
      options: How the run goes.
      seed: Of parameters and order.
    """
    groups: dict[Any, list[str]] = {}
    for name, part in parts.items():
        frames = part.train.usable_frames
        size = len(frames), int(frames.sum()), int(frames.max())
        alone = name if jax.process_count() > 1 else None
        groups.setdefault((size, alone), []).append(name)
    networks = {}
    for names in groups.values():
        chosen = [parts[name] for name in names]
        numbers = [zlib.crc32(name.encode()) >> 1 for name in names]
        keys = [jax.random.fold_in(jax.random.key(seed), number) for number in numbers]
        task = Task.of(
            chosen[0],
            model=AutoEncoder(),
            stage=system.stage,
            objective=reconstruction_objective(),
            crop=system.context,
            num_devices=options.devices.count if len(names) == 1 else 1,
        )
        mels = chosen[0].train.features.shape[2]
        states = [task.init(jax.random.fold_in(key, 0), mels) for key in keys]
        keys = [jax.random.fold_in(key, 1) for key in keys]
        hypers = [system.stage.hyper()] * len(names)
        run = _run_name(names, seed)
        final = training.train(task, chosen, options, states, keys, hypers, name=run)
        for name, part, state in zip(names, chosen, final, strict=True):
            variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
            networks[name] = Network(variables, *part.moments())
    return networks


def _run_name(names: Sequence[str], seed: int) -> str:
    """What checkpoints and metrics of networks are called: short, and different for others."""
    words = re.sub(r"[^\w.-]+", "_", "-".join(names))
    short = words if len(words) <= 40 else f"{words[:30]}-{zlib.crc32(words.encode()):08x}"
    return f"autoencoder-{seed}-{short}"


@dataclasses.dataclass(frozen=True, eq=False)
class AutoEncoderModel:
    """Trained networks, one a machine type.

    Attributes:
      system: The system.
      networks: Machine type -> network.
    """

    system: AutoEncoderSystem
    networks: Mapping[str, Network]

    def compare(self, clips: ClipArrays, sections: Sequence[Section]) -> Comparison:
        """See :class:`asdproto.systems.system.Model`."""
        scores = np.zeros(len(clips))
        for machine, rows in rows_by([machine for machine, _ in sections]).items():
            scores[rows] = self.networks[machine].errors(clips.take(rows))
        return Comparison(scores)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """See :class:`asdproto.systems.system.Model`."""
        tree = {
            machine: {**one.variables, "mean": one.mean, "scale": one.scale}
            for machine, one in self.networks.items()
        }
        return {name: np.asarray(leaf) for name, leaf in flatten_dict(tree, sep="/").items()}
