"""The paper's system: inverted log-mel, ResNet18 with attention pooling, two stages, Mahalanobis.

Everything it consists of is said in :class:`PrototypeSystem`; the functions below run it on a
feature store and keep what they make in a work folder.
"""

import contextlib
import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from rich.console import Console

from asdproto.config import to_dict
from asdproto.data.dataset import ClipArrays, Dataset, section_keys
from asdproto.features import FeatureSettings
from asdproto.files import write_atomically
from asdproto.models.convolution import default_lowering
from asdproto.models.pooling import Attention
from asdproto.models.resnet import ResNet
from asdproto.results.result_files import write_result_csv, write_results
from asdproto.results.score_files import write_scores
from asdproto.scoring.backends import (
    SHRINKAGE,
    Center,
    Covariance,
    Kind,
    Scorer,
    fit_scorer,
    held_out_scores,
)
from asdproto.scoring.metrics import evaluate, group_scores
from asdproto.scoring.thresholds import decide, gamma_threshold
from asdproto.systems.embedding import embed_clips, training_batch_stats
from asdproto.training.checkpoint import Checkpoints
from asdproto.training.devices import AXIS, Devices
from asdproto.training.epoch import Loop, default_loop
from asdproto.training.loop import StageRun, train_stage
from asdproto.training.stage import Objective, StageConfig, mpe_objective, npe_objective
from asdproto.training.state import Task, TrainState

STAGES = ("pretrain", "finetune")
BATCH_STATS = "batch_stats.npz"


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The encoder.

    Attributes:
      width: Channels of the first stage; 64 is ResNet18.
      attention: Pooling variant.
      dtype: Dtype of the arithmetic; parameters are float32 always.
      crop: Frames of a crop.
      lowering: How convolutions are compiled; ``"auto"`` takes what suits the backend.
      sync_batch_stats: Whether several devices share batch statistics.
    """

    width: int = 64
    attention: Attention = "time-frequency"
    dtype: Literal["float32", "bfloat16"] = "float32"
    crop: int = 64
    lowering: Literal["auto", "native", "patches", "fitting", "mixed"] = "auto"
    sync_batch_stats: bool = True

    def build(self, devices: Devices, loop: Loop) -> ResNet:
        """The encoder for given devices and loop."""
        lowering = self.lowering
        if lowering == "auto":
            lowering = default_lowering(devices.local[0].platform, in_loop=loop == "scan")
        return ResNet(
            width=self.width,
            attention=self.attention,
            lowering=lowering,
            dtype=jnp.dtype(self.dtype),  # type: ignore[arg-type]
            axis_name=AXIS if self.sync_batch_stats and devices.count > 1 else None,
        )


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """The back-end; see :func:`asdproto.scoring.backends.fit_scorer`.

    Attributes:
      kind: ``"mahalanobis"``, ``"cosine"`` or ``"knn"``.
      covariance: Estimator of the Mahalanobis back-end.
      center: What the covariance is taken about.
      shrinkage: Its weight, for ``"shrinkage"``.
      neighbors: Of the k-NN back-end.
      hop: Largest distance between the windows of a clip, in frames.
      full_clip: One window over the whole clip instead.
      batch_stats: ``"running"``: the encoder's statistics as training left them. ``"training"``:
        those of the finished encoder over all training clips alike.
      quantile: For decisions: of the gamma distribution of the training clips' scores by back-ends
        that were fitted without them.
    """

    kind: Kind = "mahalanobis"
    covariance: Covariance = "shrinkage"
    center: Center = "global"
    shrinkage: float = SHRINKAGE
    neighbors: int = 1
    hop: int = 32
    full_clip: bool = False
    batch_stats: Literal["running", "training"] = "running"
    quantile: float = 0.9


def _finetune() -> StageConfig:
    return StageConfig(
        epochs=50,
        sampler="episodes",
        learning_rates=((0.01, 30), (0.001, 20)),
        sub_prototypes=0,
        mix_range=(0.25, 0.5),
    )


@dataclasses.dataclass(frozen=True)
class PrototypeSystem:
    """The paper's system; the defaults are section 4.2 to the letter.

    Attributes:
      features: Feature settings.
      encoder: The encoder.
      pretrain: Stage 1.
      finetune: Stage 2.
      score: The back-end.
    """

    features: FeatureSettings = dataclasses.field(default_factory=FeatureSettings)
    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    pretrain: StageConfig = dataclasses.field(default_factory=StageConfig)
    finetune: StageConfig = dataclasses.field(default_factory=_finetune)
    score: ScoreConfig = dataclasses.field(default_factory=ScoreConfig)

    def objective(self, stage: str) -> Objective:
        """The loss of a stage."""
        if stage == "pretrain":
            return mpe_objective(self.pretrain)
        return npe_objective(self.finetune)


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How a run goes, apart from what it computes.

    Attributes:
      workdir: Folder for checkpoints, metrics and scores.
      devices: Where to train.
      console: Where progress goes; ``None`` for silence.
      loop: Shape of the training loop; what suits the backend when ``None``.
      resident: Whether features live on the devices; by their memory when ``None``.
      save_seconds: Time between checkpoints.
    """

    workdir: Path
    devices: Devices
    console: Console | None = None
    loop: Loop | None = None
    resident: bool | None = None
    save_seconds: float = 60.0


def make_task(
    system: PrototypeSystem, stage: str, data: Dataset, devices: Devices, loop: Loop
) -> Task:
    """Static description of a stage of the system on a data set.

    Episodes take all classes where there are fewer than the configured N.
    """
    config: StageConfig = getattr(system, stage)
    num_classes = len(data.classes)
    if config.sampler == "episodes":
        config = dataclasses.replace(config, ways=min(config.ways, num_classes))
    return Task(
        model=system.encoder.build(devices, loop),
        stage=config,
        objective=system.objective(stage),
        num_classes=num_classes,
        num_clips=len(data.labels),
        largest_class=int(np.bincount(data.labels).max()),
        crop=system.encoder.crop,
        chunk=128 if devices.local[0].platform == "cpu" else 512,
        num_devices=devices.count,
    )


def train(
    system: PrototypeSystem,
    data: Dataset,
    options: RunOptions,
    *,
    seed: int,
    stages: Sequence[str] = STAGES,
) -> dict[str, TrainState]:
    """Trains the stages in order, each from its latest checkpoint where there is one.

    Args:
      system: The system.
      data: The data set.
      options: How the run goes.
      seed: Of everything random; the same seed gives the same result on the same machine.
      stages: Some of ``"pretrain"`` and ``"finetune"``. Fine-tuning starts from the pre-trained
        encoder when both are given, else from scratch.

    Returns:
      Final state of each stage, as NumPy arrays.
    """
    key = jax.random.key(seed)
    loop = options.loop or default_loop(options.devices.local[0].platform)
    final: dict[str, TrainState] = {}
    training = data.training_data(options.resident)
    for number, name in enumerate(STAGES):
        if name not in stages:
            continue
        task = make_task(system, name, data, options.devices, loop)
        if "pretrain" in final:
            before = final["pretrain"]
            state = task.start(before.params["encoder"], before.batch_stats, key)
        else:
            state = task.init(jax.random.fold_in(key, 0), data.train.features.shape[2])
        with open_checkpoints(options.workdir, name) as checkpoints:
            run = StageRun(
                name=name,
                checkpoints=checkpoints,
                about={"seed": seed, "devices": options.devices.count},
                metrics=options.workdir / "metrics.jsonl",
                save_seconds=options.save_seconds,
                console=options.console,
                loop=options.loop,
            )
            stage_key = jax.random.fold_in(key, 1 + number)
            final[name] = train_stage(task, training, options.devices, state, stage_key, run)
    return final


@contextlib.contextmanager
def open_checkpoints(workdir: Path, stage: str) -> Iterator[Checkpoints]:
    """Checkpoints of a stage in a work folder, closed in the end."""
    checkpoints = Checkpoints(workdir / "checkpoints" / stage)
    try:
        yield checkpoints
    finally:
        checkpoints.close()


@dataclasses.dataclass(frozen=True)
class Scored:
    """Scores of one system on the test clips.

    Attributes:
      scores: float64, shape ``[test clips]``.
      decisions: 0 or 1, shape ``[test clips]``.
      thresholds: Decision threshold of each machine type.
      scorer: The fitted back-end.
      train_embeddings: float32, shape ``[training clips, dim]``.
      test_embeddings: float32, shape ``[test clips, dim]``.
      batch_stats: The statistics that the encoder was used with; ``None`` for its running ones.
    """

    scores: np.ndarray
    decisions: np.ndarray
    thresholds: dict[str, float]
    scorer: Scorer
    train_embeddings: np.ndarray
    test_embeddings: np.ndarray
    batch_stats: Any = None


def score(system: PrototypeSystem, data: Dataset, state: TrainState, devices: Devices) -> Scored:
    """Embeds all clips, fits the back-end on the training clips and scores the test clips."""
    model = evaluation_model(system, devices)
    variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
    config, batch_stats = system.score, None
    if config.batch_stats == "training":
        batch_stats = training_batch_stats(
            model, variables, data.train, mean=data.mean, scale=data.scale
        )
        variables["batch_stats"] = batch_stats

    def embed(clips: ClipArrays) -> np.ndarray:
        return embed_clips(
            model,
            variables,
            clips,
            mean=data.mean,
            scale=data.scale,
            hop=config.hop,
            full_clip=config.full_clip,
        )

    train_embeddings, test_embeddings = embed(data.train), embed(data.test)
    sections = section_keys(data.train_clips)
    options: dict[str, Any] = {
        "kind": config.kind,
        "covariance": config.covariance,
        "center": config.center,
        "shrinkage": config.shrinkage,
        "neighbors": config.neighbors,
    }
    scorer = fit_scorer(train_embeddings, data.labels, sections, **options)
    train_scores = held_out_scores(train_embeddings, data.labels, sections, **options)
    machines = np.array([clip.machine_type for clip in data.train_clips])
    thresholds = {
        str(machine): gamma_threshold(train_scores[machines == machine], quantile=config.quantile)
        for machine in np.unique(machines)
    }
    scores = scorer.score(test_embeddings, section_keys(data.test_clips))
    limits = np.array([thresholds[clip.machine_type] for clip in data.test_clips])
    return Scored(
        scores,
        decide(scores, limits),
        thresholds,
        scorer,
        train_embeddings,
        test_embeddings,
        batch_stats,
    )


def evaluation_model(system: PrototypeSystem, devices: Devices) -> ResNet:
    """The encoder for one device and calls from the host."""
    return system.encoder.build(devices, "dispatch").clone(axis_name=None)


def save_scored(folder: Path, data: Dataset, scored: Scored) -> dict[str, Any] | None:
    """Writes official csv files, the back-end and the embeddings, and evaluates.

    Args:
      folder: ``WORKDIR/scores/SYSTEM``.
      data: The data set.
      scored: Its scores.

    Returns:
      The figures of :func:`asdproto.scoring.metrics.evaluate`; ``None`` where the test clips carry
      no labels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_scores(folder, data.test_clips, scored.scores, scored.decisions)
    _save_arrays(folder / "scorer.npz", scored.scorer.to_arrays())
    if scored.batch_stats is not None:
        _save_arrays(folder / BATCH_STATS, flatten_dict(scored.batch_stats, sep="/"))
    _save_arrays(
        folder / "embeddings.npz",
        {
            "train": scored.train_embeddings,
            "test": scored.test_embeddings,
            "train_labels": data.labels,
            "train_files": np.array([clip.path for clip in data.train_clips]),
            "test_files": np.array([clip.path for clip in data.test_clips]),
        },
    )
    write_atomically(folder / "thresholds.json", json.dumps(scored.thresholds, indent=2).encode())
    if not data.test_clips or any(clip.state == "" for clip in data.test_clips):
        return None
    figures = evaluate(group_scores(data.test_clips, scored.scores, scored.decisions))
    write_result_csv(folder / "result.csv", figures)
    write_results(folder / "results.json", figures)
    return figures


def _save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


def save_context(workdir: Path, system: PrototypeSystem, data: Dataset, **more: Any) -> None:
    """Writes what scoring a single file needs besides the checkpoint: numbers and classes."""
    _save_arrays(workdir / "standardization.npz", {"mean": data.mean, "scale": data.scale})
    about = {"system": to_dict(system), "classes": [list(name) for name in data.classes], **more}
    write_atomically(workdir / "config.json", json.dumps(about, indent=2).encode())
