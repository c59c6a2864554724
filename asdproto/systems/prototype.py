"""The paper's system: inverted log-mel, ResNet18 with attention pooling, two stages, Mahalanobis.

Everything it consists of is said in :class:`PrototypeSystem`; the functions below train it and make
scoring members of the trained encoders.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from asdproto.config import between, check_fields, strictly_between, to_dict
from asdproto.data.dataset import CLASS_KEYS, Classes, ClipArrays, Dataset, Standardization
from asdproto.data.dcase import Clip
from asdproto.errors import DataError
from asdproto.features import FeatureSettings
from asdproto.models.convolution import default_lowering
from asdproto.models.resnet import Attention, Init, ResNet
from asdproto.scoring.backends import BackendConfig, Scorer
from asdproto.systems.embedding import embed_clips
from asdproto.systems.system import Comparison, Member, Section, fit_backend
from asdproto.training import loop as training
from asdproto.training.devices import (
    AXIS,
    Devices,
    Loop,
    RunOptions,
    default_loop,
    first_device,
    use_devices,
)
from asdproto.training.objectives import Objective, mpe_objective, npe_objective
from asdproto.training.stage import Episodes, Finetuning, Pretraining
from asdproto.training.state import TrainState
from asdproto.training.task import Task

STAGES = ("pretrain", "finetune")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The encoder.

    Attributes:
      width: Channels of the first stage; 64 is ResNet18.
      attention: Pooling variant.
      dtype: Dtype of the arithmetic; parameters are float32 always.
      crop: Frames of a crop.
      init: First weights of convolutions, see :class:`asdproto.models.resnet.ResNet`.
      lowering: How convolutions are compiled; ``"auto"`` takes what suits the backend.
      standardization: ``"global"``: one mean and standard deviation for all mel bands. ``"band"``:
        those of every band, which amplifies the noise of empty bands.
    """

    width: int = 64
    attention: Attention = "time-frequency"
    dtype: Literal["float32", "bfloat16"] = "float32"
    crop: int = 64
    init: Init = "fan_out"
    lowering: Literal["auto", "native", "patches", "native_if_fits", "native_if_large"] = "auto"
    standardization: Standardization = "global"

    def __post_init__(self) -> None:
        check_fields(self, width=between(1, 4096), crop=between(1, 100000))


@dataclasses.dataclass(frozen=True)
class ScoreConfig(BackendConfig):
    """How clips are embedded for scoring, and the back-end.

    Attributes:
      all_stages: Whether clips are compared by the maps of all stages of the ResNet, see
        :class:`asdproto.models.resnet.ResNet`, or by the embedding that is trained.
      hop: Largest distance between the windows of a clip, in frames.
      dtype: Dtype of the encoder's arithmetic when clips are scored, whatever it was in training:
        an accelerator and a CPU then agree.
    """

    all_stages: bool = False
    hop: int = 32
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, hop=between(1, 100000))

    @property
    def backend(self) -> BackendConfig:
        """The back-end alone."""
        fields = dataclasses.fields(BackendConfig)
        return BackendConfig(**{field.name: getattr(self, field.name) for field in fields})


@dataclasses.dataclass(frozen=True)
class PrototypeSystem:
    """The paper's system; the defaults are section 4.2.

    One with an encoder of its own overrides :meth:`network`, and has its path as its kind::

        @dataclasses.dataclass(frozen=True)
        class Mine(PrototypeSystem):
            kind: ClassVar[str] = "package.module:Mine"

            def network(self, devices, loop="dispatch", score=None):
                return MyEncoder()

        PRESETS = {"small": Mine(pretrain=Pretraining(epochs=10))}

    Attributes:
      features: Feature settings.
      encoder: The encoder.
      pretrain: Stage 1.
      finetune: Stage 2.
      score: The back-end.
      classes: What the encoder learns to tell apart, see
        :data:`asdproto.data.dataset.CLASS_KEYS`.
      stages: Which are trained; ``("finetune",)`` starts from scratch, the paper's "w/o pre-train".
      quantile: For decisions: of the gamma distribution of the held-out training scores.
    """

    features: FeatureSettings = dataclasses.field(default_factory=FeatureSettings)
    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    pretrain: Pretraining = dataclasses.field(default_factory=Pretraining)
    finetune: Finetuning = dataclasses.field(default_factory=Finetuning)
    score: ScoreConfig = dataclasses.field(default_factory=ScoreConfig)
    classes: Classes = "attributes"
    stages: tuple[Literal["pretrain", "finetune"], ...] = STAGES  # type: ignore[assignment]
    quantile: float = 0.9

    kind: ClassVar[str] = "prototype"
    reads_waveforms: ClassVar[bool] = False
    is_fused: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, quantile=strictly_between(0, 1))
        if not self.stages or list(self.stages) != [s for s in STAGES if s in self.stages]:
            raise ValueError(f"stages={self.stages!r}: expected one or both of {STAGES}, in order")

    @property
    def names(self) -> tuple[str, ...]:
        """Detectors that training makes; the last one is the result."""
        return self.stages

    @property
    def crop(self) -> int:
        """Shortest clip, in frames."""
        return self.encoder.crop

    def network(
        self, devices: Devices, loop: Loop = "dispatch", score: ScoreConfig | None = None
    ) -> nn.Module:
        """The encoder for devices and a loop that train it, or as ``score`` says for scoring.

        A flax module with the attribute ``embedding_dim`` (int) and the call
        ``module(crops, *, train, where=None)``: crops float32 ``[batch, crop, mels]``, ``where`` a
        boolean ``[batch]`` that is false for padding, result float32 ``[batch, embedding_dim]`` of
        unit length. It may keep ``batch_stats``; several devices that train it share them over
        the axis :data:`asdproto.training.devices.AXIS`.
        """
        encoder, lowering = self.encoder, self.encoder.lowering
        if lowering == "auto":
            lowering = default_lowering(devices.local[0].platform, in_loop=loop == "scan")
        return ResNet(
            width=encoder.width,
            attention=encoder.attention,
            init_weights=encoder.init,
            lowering=lowering,
            dtype=jnp.dtype((score or encoder).dtype),  # type: ignore[arg-type]
            all_stages=score is not None and score.all_stages,
            axis_name=AXIS if score is None and devices.count > 1 else None,
        )

    def objective(self, stage: str, classes: Sequence[tuple] = ()) -> Objective:
        """The loss of a stage; the paper's do not depend on what the classes are."""
        del classes
        if stage == "pretrain":
            return mpe_objective(self.pretrain)
        return npe_objective(self.finetune)

    def plan(self, clips: int) -> str:
        """What training on so many clips does, in a few words."""
        parts = [f"width {self.encoder.width}"]
        for stage in self.stages:
            config = getattr(self, stage)
            steps = f"{config.steps(clips)} steps of {config.batch}"
            parts.append(f"{stage} {config.total_epochs} epochs x {steps}")
        return ", ".join(parts)

    def check_clips(self, clips: Sequence[Clip]) -> None:
        """Refuses training clips of one class only."""
        classes = {CLASS_KEYS[self.classes](clip) for clip in clips}
        if len(classes) < 2:
            raise DataError(
                "the training clips",
                f"{len(classes)} attribute class among {len(clips)} clips",
                "at least 2, since prototypes are learned by telling classes apart",
                "Add clips of other sections, operating conditions or machine types; or train "
                "another system: --system autoencoder.",
            )

    def train(
        self, data: Dataset, options: RunOptions, seeds: Sequence[int]
    ) -> dict[str, list[Member]]:
        """Trains the stages and fits the back-end on their embeddings.

        Several seeds are trained as one program on accelerators. All processes embed the clips
        together, and return the same.
        """
        together = jax.process_count() == 1 and options.devices.local[0].platform != "cpu"
        if together or len(seeds) == 1:
            states = train(self, data, options, seeds)
        else:
            states = [train(self, data, options, [seed], label=f"-{seed}")[0] for seed in seeds]
        return {
            name: [
                fit(self, data, state[stage], seed)
                for state, seed in zip(states, seeds, strict=True)
            ]
            for name, stage in zip(self.names, self.stages, strict=True)
        }

    def refit(self, member: Member, data: Dataset) -> Member:
        """The back-end of this system on a trained member's encoder, without training."""
        assert isinstance(member.model, PrototypeModel)
        return dataclasses.replace(member.model, system=self).fitted(data, member.seed)

    def restore(self, arrays: Mapping[str, np.ndarray]) -> "PrototypeModel":
        """The model that :meth:`PrototypeModel.to_arrays` described."""
        tree = unflatten_dict(dict(arrays), sep="/")
        return PrototypeModel(
            system=self,
            variables={"params": tree["params"], "batch_stats": tree.get("batch_stats", {})},
            mean=tree["mean"],
            scale=tree["scale"],
            scorer=Scorer.from_arrays(tree["scorer"]),
        )


def _small(pretrain: int, finetune: int) -> PrototypeSystem:
    """The small presets, by the epochs of their stages."""
    return PrototypeSystem(
        encoder=EncoderConfig(width=16),
        pretrain=Pretraining(epochs=pretrain),
        finetune=Finetuning(epochs=finetune),
        score=ScoreConfig(kind="mahalanobis-knn", shrinkage=0.3, all_stages=True),
    )


# quick shows that everything runs; small is for CPUs and small sets; paper is section 4.2. The
# first two differ from the paper in what was better on small sets (docs/experiments.md): clips are
# compared with the nearest training clips, not with prototypes, by the maps of all stages; and they
# train for a twelfth of the paper's epochs and less.
PRESETS = {
    "quick": _small(5, 3),
    "small": _small(10, 5),
    "paper": PrototypeSystem(),
}


# --- training


def make_task(
    system: PrototypeSystem, stage: str, data: Dataset, devices: Devices, loop: Loop
) -> Task:
    """Static description of a stage of the system on a data set.

    Episodes take all classes where there are fewer than the configured N.
    """
    config: Pretraining | Finetuning = getattr(system, stage)
    if isinstance(config, Episodes):
        config = dataclasses.replace(config, ways=min(config.ways, len(data.classes)))
    return Task.of(
        data,
        model=system.network(devices, loop),
        stage=config,
        objective=system.objective(stage, data.classes),
        crop=system.encoder.crop,
        chunk=128 if devices.local[0].platform == "cpu" else 512,
        num_devices=devices.count,
        standardization=system.encoder.standardization,
    )


def train(
    system: PrototypeSystem,
    data: Dataset,
    options: RunOptions,
    seeds: Sequence[int],
    *,
    label: str = "",
) -> list[dict[str, TrainState]]:
    """Trains the stages in order, each from its latest checkpoint where there is one.

    Args:
      system: The system.
      data: The data set.
      options: How the run goes.
      seeds: Of everything random; the same seed gives the same result on the same machine. Several
        are trained side by side as one program, each on one device.
      label: Follows the stage's name in checkpoints and logs.

    Returns:
      Final state of each stage, as NumPy arrays, for each seed.
    """
    several = len(seeds) > 1
    devices = use_devices(1) if several else options.devices
    loop = options.loop or default_loop(devices.local[0].platform)
    keys = [jax.random.key(seed) for seed in seeds]
    final: list[dict[str, TrainState]] = [{} for _ in seeds]
    settings: dict[str, Any] = {"seeds": list(seeds)}
    for stage in system.stages:
        task = make_task(system, stage, data, devices, "scan" if several else loop)
        states = [
            start(task, key, data, before.get("pretrain"))
            for key, before in zip(keys, final, strict=True)
        ]
        stage_keys = [stage_key(key, stage) for key in keys]
        hypers = [task.stage.hyper() for _ in keys]
        trained = training.train(
            task, data, options, states, stage_keys, hypers, name=stage + label, settings=settings
        )
        for stages, state in zip(final, trained, strict=True):
            stages[stage] = state
        settings[stage] = {"loss": task.objective.name, **to_dict(task.stage)}
    return final


def start(task: Task, key: jax.Array, data: Dataset, before: TrainState | None) -> TrainState:
    """State that a stage starts with: around the pre-trained encoder, or from scratch."""
    if before is not None:
        return task.start(before.params["encoder"], before.batch_stats, key)
    return task.init(jax.random.fold_in(key, 0), data.train.features.shape[2])


def stage_key(key: jax.Array, stage: str) -> jax.Array:
    """Random key of a stage, from the run's."""
    return jax.random.fold_in(key, 1 + STAGES.index(stage))


# --- scoring


@dataclasses.dataclass(frozen=True, eq=False)
class PrototypeModel:
    """A trained encoder and its back-end.

    Attributes:
      system: The system.
      variables: Parameters and running statistics of the encoder.
      mean: float32, shape ``[mels]``, subtracted from every frame.
      scale: float32, shape ``[mels]``, multiplies every frame then.
      scorer: The fitted back-end.
    """

    system: PrototypeSystem
    variables: dict[str, Any]
    mean: np.ndarray
    scale: np.ndarray
    scorer: Scorer

    def compare(self, clips: ClipArrays, sections: Sequence[Section]) -> Comparison:
        """See :class:`asdproto.systems.system.Model`."""
        return Comparison(*self.scorer.compare(self.embed(clips), sections))

    def embed(self, clips: ClipArrays) -> np.ndarray:
        """Unit embeddings, float32, shape ``[clips, dim]``."""
        return embed_clips(
            evaluation_model(self.system),
            self.variables,
            clips,
            mean=self.mean,
            scale=self.scale,
            hop=self.system.score.hop,
        )

    def fitted(self, data: Dataset, seed: int) -> Member:
        """This model with a back-end fitted on its embeddings of the training clips."""
        embeddings, config = self.embed(data.train), self.system.score.backend
        scorer, held_out = fit_backend(embeddings, data, config, seed=seed)
        model = dataclasses.replace(self, scorer=scorer)
        return Member(model, seed, data.classes, held_out, embeddings=embeddings)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """See :class:`asdproto.systems.system.Model`."""
        tree = {**self.variables, "scorer": self.scorer.to_arrays()}
        flat = flatten_dict(tree, sep="/")
        return {**jax.tree.map(np.asarray, flat), "mean": self.mean, "scale": self.scale}


def fit(system: PrototypeSystem, data: Dataset, state: TrainState, seed: int) -> Member:
    """Fits the back-end on the training clips' embeddings by a trained encoder."""
    variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
    moments = data.moments(system.encoder.standardization)
    unfitted = Scorer(system.score.backend, {})
    return PrototypeModel(system, variables, *moments, unfitted).fitted(data, seed)


def evaluation_model(system: PrototypeSystem) -> nn.Module:
    """The encoder for one device and calls from the host."""
    return system.network(first_device(), score=system.score)
