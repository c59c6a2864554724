"""What systems have in common that train one encoder with one loss: labels, training, members.

Such a system says its encoder, its objective, what it tells apart, and how clips are scored; it
trains one network for all machine types, or one for each.
"""

import dataclasses
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from asdproto.config import between, check_fields, strictly_between
from asdproto.data.dataset import ClipArrays, Dataset, section_keys
from asdproto.data.dcase import Clip, assign_classes, class_key
from asdproto.errors import DataError
from asdproto.features import FeatureSettings
from asdproto.models.convolution import Lowering, default_lowering
from asdproto.scoring.backends import fit_scorer, held_out_scores
from asdproto.systems.embedding import embed_clips, window_means
from asdproto.systems.members import Comparison, Fitted, RunOptions, Section
from asdproto.systems.prototype import stage_run
from asdproto.training.devices import AXIS
from asdproto.training.epoch import default_loop
from asdproto.training.loop import train_stage
from asdproto.training.stage import Objective, StageConfig
from asdproto.training.state import Task, TrainState

ALL = "all machine types"


class Part(NamedTuple):
    """A trained network of one machine type, or of all.

    Attributes:
      variables: Parameters and running statistics, NumPy arrays.
      mean: float32, shape ``[columns]``, subtracted from every frame.
      scale: float32, shape ``[columns]``, multiplies every frame then.
      backend: What scores are made with, arrays by name; may be nested.
    """

    variables: Any
    mean: np.ndarray
    scale: np.ndarray
    backend: Mapping[str, Any]


class PartFit(NamedTuple):
    """What a system makes of a trained network.

    Attributes:
      part: The network with its back-end.
      held_out: float64, shape ``[training clips]``; see :class:`asdproto.systems.members.Fitted`.
      embeddings: float32, shape ``[training clips, dim]``, or ``None``.
    """

    part: Part
    held_out: np.ndarray
    embeddings: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class EncoderSystem:
    """A system with one encoder; each kind fills in what it is.

    Attributes:
      features: Feature settings.
      stage: Numbers of the training.
      crop: Frames of a training crop and of a window at test time; shorter clips are repeated.
      hop: Largest distance between the windows of a clip at test time, in frames.
      per_machine: Whether each machine type gets a network of its own.
      dtype: Of activations.
      quantile: For decisions: of the gamma distribution of the held-out training scores.
    """

    features: FeatureSettings = dataclasses.field(default_factory=FeatureSettings)
    stage: StageConfig = dataclasses.field(default_factory=StageConfig)
    crop: int = 64
    hop: int = 32
    per_machine: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantile: float = 0.9

    kind: ClassVar[str]
    name: ClassVar[str]

    def __post_init__(self) -> None:
        check_fields(
            self, crop=between(1, 100000), hop=between(1, 100000), quantile=strictly_between(0, 1)
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The one detector that training makes."""
        return (self.name,)

    def network(self) -> nn.Module:
        """The encoder; :meth:`module` adds how it is compiled."""
        raise NotImplementedError

    def module(self, lowering: Lowering, axis_name: str | None) -> nn.Module:
        """The encoder, with a lowering, this system's dtype, and an axis of batch statistics."""
        dtype = jnp.dtype(self.dtype)
        return self.network().clone(lowering=lowering, dtype=dtype, axis_name=axis_name)

    def objective(self, classes: Sequence[Any]) -> Objective:
        """The loss that tells these classes apart."""
        raise NotImplementedError

    @staticmethod
    def label(clip: Clip) -> Hashable:
        """The class of a training clip; keys of one system sort among themselves."""
        return class_key(clip)

    def fit(self, part: Part, state: TrainState, data: Dataset) -> PartFit:
        """Fits the back-end of a trained network on its training clips."""
        raise NotImplementedError

    def compare(self, part: Part, clips: ClipArrays, sections: Sequence[Section]) -> Comparison:
        """Compares clips with the normal ones of their sections; see ``Member.compare``."""
        raise NotImplementedError

    def plan(self, clips: int) -> str:
        """What training on so many clips does, in a few words."""
        each = "a network a machine type" if self.per_machine else "one network"
        stage = self.stage
        return f"{each}, {stage.total_epochs} epochs of {stage.batch} clips a step"

    def train(
        self, data: Dataset, options: RunOptions, seeds: Sequence[int]
    ) -> dict[str, list[Fitted]]:
        """Trains the networks of every seed and fits their back-ends.

        Args:
          data: The data set.
          options: How the run goes.
          seeds: One or more, trained one after the other.

        Returns:
          One member a seed; empty in all processes but the first.

        Raises:
          DataError: A network has fewer than two classes to tell apart.
        """
        members = []
        for seed in seeds:
            held_out = np.zeros(len(data.labels))
            embeddings: list[tuple[np.ndarray, np.ndarray]] = []
            parts = {}
            for name, rows in self._parts(data.train_clips).items():
                chosen = self.relabel(data, rows)
                label = f"{self.name}-{seed}" + (f"-{name}" if self.per_machine else "")
                part, state = self.train_part(chosen, options, seed, label)
                if not options.devices.is_main:
                    continue
                fitted = self.fit(part, state, chosen)
                parts[name], held_out[rows] = fitted.part, fitted.held_out
                if fitted.embeddings is not None:
                    embeddings.append((rows, fitted.embeddings))
            member = EncoderMember(self, parts)
            members.append(Fitted(member, held_out, _scattered(embeddings, len(held_out))))
        return {self.name: members} if options.devices.is_main else {}

    def _parts(self, clips: Sequence[Clip]) -> dict[str, np.ndarray]:
        """Rows of the training clips of each network."""
        machines = np.array([clip.machine_type for clip in clips])
        if not self.per_machine:
            return {ALL: np.arange(len(machines))}
        return {str(m): np.flatnonzero(machines == m) for m in np.unique(machines)}

    def check_clips(self, clips: Sequence[Clip]) -> None:
        """Refuses training clips that leave a network one class, before training does."""
        for rows in self._parts(clips).values():
            self._check_classes([clips[row] for row in rows])

    def _check_classes(self, clips: Sequence[Clip]) -> None:
        if len({self.label(clip) for clip in clips}) < 2:
            raise DataError(
                f"the training clips of {', '.join(sorted({c.machine_type for c in clips}))}",
                "one class to learn",
                f"at least 2, since {self.name} learns by telling classes apart",
                "Train one network for all machine types (per_machine=false), or another system.",
            )

    def relabel(self, data: Dataset, rows: np.ndarray) -> Dataset:
        """Some of the training clips, with the classes that this system tells apart."""
        clips = [data.train_clips[row] for row in rows]
        self._check_classes(clips)
        labels, classes = assign_classes(clips, self.label)
        arrays = data.train.take(rows)
        mean, std = data.mean, data.std
        if self.per_machine:
            mean, std = arrays.statistics()
        return dataclasses.replace(
            data,
            train=arrays,
            train_clips=clips,
            labels=labels,
            classes=classes,
            mean=mean,
            std=std,
        )

    def train_part(
        self, data: Dataset, options: RunOptions, seed: int, label: str
    ) -> tuple[Part, TrainState]:
        """Trains a network on relabeled clips, from its latest checkpoint where there is one."""
        state = self.run_stage(self.stage, self.objective(data.classes), data, options, seed, label)
        return part_of(state, data), state

    def run_stage(
        self,
        stage: StageConfig,
        objective: Objective,
        data: Dataset,
        options: RunOptions,
        seed: int,
        label: str,
        *,
        before: TrainState | None = None,
        wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    ) -> TrainState:
        """Trains a stage.

        Args:
          stage: Its numbers.
          objective: Its loss.
          data: Relabeled clips.
          options: How the run goes.
          seed: Of everything random, together with ``label``.
          label: For files and logs.
          before: State of the stage before it; from scratch when ``None``.
          wrap: Makes the module that is trained of the encoder.

        Returns:
          The final state, as NumPy arrays.
        """
        devices = options.devices
        loop = options.loop or default_loop(devices.local[0].platform)
        lowering = default_lowering(devices.local[0].platform, in_loop=loop == "scan")
        model = wrap(self.module(lowering, AXIS if devices.count > 1 else None))
        task = Task.of(
            data,
            model=model,
            stage=stage,
            objective=objective,
            crop=self.crop,
            num_devices=devices.count,
        )
        key = stage_key(seed, label)
        if before is None:
            state = task.init(key, data.train.features.shape[2])
        else:
            state = task.start(before.params["encoder"], before.batch_stats, key)
        with stage_run(label, options, seed=seed) as run:
            return train_stage(task, data, devices, state, jax.random.fold_in(key, 1), run)

    def restore(
        self, arrays: Mapping[str, np.ndarray], classes: Sequence[tuple]
    ) -> "EncoderMember":
        """The member that :meth:`EncoderMember.to_arrays` described."""
        del classes
        parts = {}
        for name, one in unflatten_dict(dict(arrays), sep="//").items():
            variables = {"params": one["params"], "batch_stats": one.get("batch_stats", {})}
            parts[name] = Part(variables, one["mean"], one["scale"], one["backend"])
        return EncoderMember(self, parts)

    # --- for scoring

    def evaluation(self) -> nn.Module:
        """The encoder for calls from the host."""
        return self.module(default_lowering(), None)

    def embed(self, part: Part, clips: ClipArrays) -> np.ndarray:
        """Unit embedding of every clip, the mean over its windows, float32 ``[clips, dim]``."""
        return embed_clips(
            self.evaluation(), part.variables, clips, mean=part.mean, scale=part.scale, hop=self.hop
        )

    def evidence(
        self, part: Part, clips: ClipArrays, sections: Sequence[Section], *, odds: bool
    ) -> np.ndarray:
        """Mean :class:`Evidence` of a clip's windows against its section, float64 ``[clips]``."""
        kernel, bias = part.backend["kernel"], part.backend["bias"]
        model = Evidence(self.evaluation(), len(kernel), odds)
        encoder = {kind: {"encoder": tree} for kind, tree in part.variables.items()}
        variables = {**encoder, "params": {**encoder["params"], "kernel": kernel, "bias": bias}}
        means = window_means(
            model, variables, clips, mean=part.mean, scale=part.scale, hop=self.hop
        )
        index = {tuple(key): number for number, key in enumerate(part.backend["classes"].tolist())}
        return means[np.arange(len(means)), [index[key] for key in sections]]


@dataclasses.dataclass(frozen=True, eq=False)
class EncoderMember:
    """Trained networks of a system.

    Attributes:
      system: The system.
      parts: Machine type, or :data:`ALL` -> network.
    """

    system: EncoderSystem
    parts: Mapping[str, Part]

    def compare(self, clips: ClipArrays, sections: Sequence[Section]) -> Comparison:
        """See :class:`asdproto.systems.members.Member`."""
        names = np.array([s[0] if self.system.per_machine else ALL for s in sections])
        scores = np.zeros(len(sections))
        embeddings = []
        for name in np.unique(names):
            rows = np.flatnonzero(names == name)
            chosen = clips.take(rows)
            comparison = self.system.compare(
                self.parts[str(name)], chosen, [sections[int(row)] for row in rows]
            )
            scores[rows] = comparison.scores
            if comparison.embeddings is not None:
                embeddings.append((rows, comparison.embeddings))
        return Comparison(scores, None, _scattered(embeddings, len(scores)))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """See :class:`asdproto.systems.members.Member`."""
        tree = {}
        for name, part in self.parts.items():
            rest = {"mean": part.mean, "scale": part.scale, "backend": dict(part.backend)}
            tree[name] = {**part.variables, **rest}
        return flatten_dict(tree, sep="//")


class Evidence(nn.Module):
    r"""How much windows speak against each class, by a trained classifier.

    Attributes:
      encoder: The trained encoder.
      classes: Number of classes.
      odds: :math:`\log(1 - p) - \log p` for a class of probability p, else :math:`-\log p`.
    """

    encoder: nn.Module
    classes: int
    odds: bool

    @property
    def embedding_dim(self) -> int:
        """Numbers a window."""
        return self.classes

    @nn.compact
    def __call__(self, crops: jax.Array, *, train: bool) -> jax.Array:
        """Maps ``[batch, frames, columns]`` to float32 ``[batch, classes]``."""
        z = self.encoder(crops, train=train)
        shape = (self.classes, z.shape[-1])
        kernel = self.param("kernel", nn.initializers.zeros, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape[:1], jnp.float32)
        logits = jnp.matmul(z, kernel.T, precision="highest") + bias
        # Of the other classes: 1 - p loses all its digits where p is near 1.
        others = ~jnp.eye(self.classes, dtype=bool) if self.odds else None
        spread = jnp.broadcast_to(logits[:, None, :], (*logits.shape, self.classes))
        return jax.nn.logsumexp(spread, axis=-1, where=others) - logits


def part_of(state: TrainState, data: Dataset) -> Part:
    """A trained network without a back-end."""
    return Part(
        {"params": state.params["encoder"], "batch_stats": state.batch_stats},
        *data.moments(),
        {},
    )


def stage_key(seed: int, label: str) -> jax.Array:
    """Random key of a network's stage: other machine types and stages draw other numbers."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(label.encode()) >> 1)


def with_backend(part: Part, backend: Mapping[str, Any]) -> Part:
    """The network with its back-end, in NumPy arrays."""
    return part._replace(backend=jax.tree.map(np.asarray, dict(backend)))


def section_label(clip: Clip) -> Section:
    """Machine type and section: what systems tell apart that know no attributes."""
    return clip.machine_type, clip.section


def fit_sections(
    system: EncoderSystem, part: Part, kernel: Any, bias: Any, data: Dataset, *, odds: bool
) -> PartFit:
    """The back-end of a classifier of sections, and its scores of the training clips."""
    part = with_backend(
        part, {"kernel": kernel, "bias": bias, "classes": np.array(data.classes, str)}
    )
    sections = section_keys(data.train_clips)
    return PartFit(part, system.evidence(part, data.train, sections, odds=odds))


def fit_nearest(vectors: np.ndarray, data: Dataset) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A back-end that measures how far the nearest training clip of the section is.

    Args:
      vectors: Floating, shape ``[training clips, dim]``.
      data: The data set.

    Returns:
      The back-end's arrays, and the held-out scores of the training clips, float64 ``[clips]``.
    """
    fitted = vectors, np.zeros(len(vectors), int), section_keys(data.train_clips)
    scorer = fit_scorer(*fitted, kind="knn", neighbors=1)
    return scorer.to_arrays(), held_out_scores(*fitted, kind="knn", neighbors=1)


def softmax_layer(key: jax.Array, num_classes: int, dim: int) -> tuple[Any, Any]:
    """First parameters of a layer with bias, for :class:`asdproto.training.stage.Objective`."""
    kernel = nn.initializers.glorot_uniform()(key, (num_classes, dim), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(num_classes)}, {}


def adam_stage(epochs: int, batch_size: int, rate: float = 1e-3) -> StageConfig:
    """Training by Adam at one rate, without weight decay."""
    return StageConfig(
        epochs=epochs,
        batch_size=batch_size,
        learning_rates=((rate, epochs),),
        optimizer="adam",
        weight_decay=0.0,
    )


def partners(batch: int) -> jax.Array:
    """The neighbor of each row of a batch, int32: 1 and 0, 3 and 2, ...; an odd last row its own.

    Rows of a random batch are in random order, so neighbors are random pairs, and no device needs
    another's rows.
    """
    rows = jnp.arange(batch, dtype=jnp.int32)
    return jnp.where(rows ^ 1 < batch, rows ^ 1, rows)


def _scattered(parts: Sequence[tuple[np.ndarray, np.ndarray]], count: int) -> np.ndarray | None:
    """Rows of the networks' embeddings in the order of the clips."""
    if not parts:
        return None
    out = np.zeros((count, parts[0][1].shape[1]), np.float32)
    for rows, embeddings in parts:
        out[rows] = embeddings
    return out
