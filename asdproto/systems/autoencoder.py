"""The AutoEncoder row of Table 1: the baseline of DCASE 2022 Task 2.

Plain log-mel -> stacks of 5 frames -> autoencoder, one per machine type over all its sections ->
mean squared error of a clip's stacks.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from asdproto.config import ConfigError, between, check_fields, strictly_between
from asdproto.data.dataset import Classes, ClipArrays, Dataset
from asdproto.data.dcase import Clip
from asdproto.features import FeatureSettings
from asdproto.files import append
from asdproto.systems.reconstruction import (
    Network,
    ReconstructionConfig,
    fit_machines,
    score_clips,
)
from asdproto.systems.system import Comparison, Member, RunOptions, Section
from asdproto.training.loop import truncate_metrics


@dataclasses.dataclass(frozen=True)
class AutoEncoderSystem(ReconstructionConfig):
    """The system; the defaults are the official baseline's.

    Attributes:
      features: Feature settings; plain log-mel.
      folds: Parts that the training clips are dealt into for scores of clips that were held out,
        each by a network of its own; 0, as the official program, takes the network's errors of
        the clips that it was trained on, which are smaller than those of new clips.
      quantile: Of the gamma distribution of the training clips' scores, for decisions.
    """

    features: FeatureSettings = dataclasses.field(
        default_factory=lambda: FeatureSettings(scale="mel")
    )
    folds: int = 0
    quantile: float = 0.9

    kind: ClassVar[str] = "autoencoder"
    reads_waveforms: ClassVar[bool] = False
    classes: ClassVar[Classes] = "attributes"
    names: ClassVar[tuple[str, ...]] = ("autoencoder",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, folds=between(0, 10000), quantile=strictly_between(0, 1))
        if self.folds == 1:
            raise ConfigError("folds=1: expected 0 or at least 2")

    @property
    def crop(self) -> int:
        """Shortest clip, in frames."""
        return self.context

    def plan(self, clips: int) -> str:
        """What training does, in a few words."""
        folds = f", and {self.folds} more networks for held-out scores" if self.folds else ""
        return f"one network a machine type, {self.epochs} epochs{folds}"

    def train(
        self, data: Dataset, options: RunOptions, seeds: Sequence[int]
    ) -> dict[str, list[Member]]:
        """Trains a network for every machine type and seed; see :func:`fit_machines`."""
        if not options.devices.is_main:
            return {}
        machines = np.array([clip.machine_type for clip in data.train_clips])
        everything = data.train.load()
        parts: dict[str, np.ndarray] = {}
        for machine in sorted(set(machines.tolist())):
            rows = np.flatnonzero(machines == machine)
            parts[machine] = rows
            if len(rows) >= 2 * self.folds > 0:
                for n in range(self.folds):
                    parts[f"{machine}/{n}"] = np.delete(rows, np.s_[n :: self.folds])
        frames = data.train.usable_frames
        given = {name: (everything[rows], frames[rows]) for name, rows in parts.items()}
        members = []
        for seed in seeds:
            fitted = fit_machines(given, config=self, seed=seed, options=options)
            held_out = np.zeros(len(machines))
            for name, rows in parts.items():
                machine, _, fold = name.partition("/")
                if fold:
                    rows = parts[machine][int(fold) :: self.folds]
                held_out[rows] = score_clips(fitted[name], self, everything[rows], frames[rows])
            kept = {name: one for name, one in fitted.items() if "/" not in name}
            _write_curves(options, self, kept, seed if len(seeds) > 1 else None)
            members.append(Member(AutoEncoderModel(self, kept), seed, data.classes, held_out))
        return {"autoencoder": members}

    def check_clips(self, clips: Sequence[Clip]) -> None:
        """Any clips will do."""

    def refit(self, member: Member, data: Dataset) -> Member:
        """There is no back-end."""
        raise ConfigError("a run of the autoencoder has no back-end to fit again")

    def restore(self, arrays: Mapping[str, np.ndarray]) -> "AutoEncoderModel":
        """The model that :meth:`AutoEncoderModel.to_arrays` described."""
        networks = {}
        for machine, one in unflatten_dict(dict(arrays), sep="/").items():
            variables = {"params": one["params"], "batch_stats": one["batch_stats"]}
            networks[machine] = Network(variables, one["mean"], one["std"])
        return AutoEncoderModel(self, networks)


# quick and small are for a few hundred clips, in seconds on a CPU.
_QUICK = AutoEncoderSystem(epochs=10, held_out=0.0, standardize=True)
PRESETS = {
    "quick": _QUICK,
    "small": dataclasses.replace(_QUICK, epochs=30, folds=3),
    "paper": AutoEncoderSystem(),
}


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
        features, frames = clips.load(), clips.usable_frames
        machines = np.array([machine for machine, _ in sections])
        for machine in np.unique(machines):
            rows = np.flatnonzero(machines == machine)
            network = self.networks[str(machine)]
            scores[rows] = score_clips(network, self.system, features[rows], frames[rows])
        return Comparison(scores)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """See :class:`asdproto.systems.system.Model`."""
        tree = {
            machine: {**one.variables, "mean": one.mean, "std": one.std}
            for machine, one in self.networks.items()
        }
        return flatten_dict(tree, sep="/")


def _write_curves(
    options: RunOptions,
    system: AutoEncoderSystem,
    networks: Mapping[str, Network],
    seed: int | None,
) -> None:
    """Adds the losses of every epoch to ``metrics.jsonl``; a second time they replace the first."""
    if options.workdir is None:
        return
    metrics, text = options.workdir / "metrics.jsonl", ""
    for machine, network in networks.items():
        stage = f"autoencoder {machine}" + ("" if seed is None else f"-{seed}")
        truncate_metrics(metrics, stage, 0)
        for epoch, loss in enumerate(network.losses, start=1):
            line = {"stage": stage, "epoch": epoch, "step": epoch, "loss": float(loss)}
            text += json.dumps({**line, "learning_rate": system.learning_rate}) + "\n"
    append(metrics, text)
