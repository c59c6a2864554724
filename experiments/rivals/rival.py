"""What the rivals share: they train one encoder with one loss, for all machine types or for each.

A rival is a :class:`Rival` that says in ``label`` what its networks tell apart, trains one of them
in ``fit`` and scores clips with it in ``score``; the functions here are the parts that it does so
with.
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

from asdproto.config import ConfigError, between, check_fields, strictly_between
from asdproto.data.dataset import Classes, ClipArrays, Dataset, section_keys
from asdproto.data.dcase import Clip, assign_classes, class_key
from asdproto.errors import DataError
from asdproto.features import FeatureSettings
from asdproto.models.convolution import default_lowering
from asdproto.scoring.backends import BackendConfig, fit_scorer, held_out_scores
from asdproto.systems.embedding import embed_clips, window_means
from asdproto.systems.prototype import stage_run
from asdproto.systems.system import Comparison, Member, RunOptions, Section
from asdproto.training.devices import AXIS
from asdproto.training.epoch import default_loop
from asdproto.training.loop import train
from asdproto.training.objectives import Objective
from asdproto.training.stage import RandomBatches, Stage
from asdproto.training.state import TrainState
from asdproto.training.task import Task

ALL = "all machine types"


class Network(NamedTuple):
    """A trained network of one machine type, or of all.

    Attributes:
      variables: Parameters and running statistics, NumPy arrays.
      mean: float32, shape ``[columns]``, subtracted from every frame.
      scale: float32, shape ``[columns]``, multiplies every frame then.
      backend: What scores are made with, NumPy arrays by name; may be nested.
    """

    variables: Any
    mean: np.ndarray
    scale: np.ndarray
    backend: Mapping[str, Any]


class NetworkFit(NamedTuple):
    """A network and what it says of its own training clips.

    Attributes:
      network: The network with its back-end.
      held_out: float64, shape ``[training clips]``; see :class:`asdproto.systems.system.Member`.
      embeddings: float32, shape ``[training clips, dim]``, or ``None``.
    """

    network: Network
    held_out: np.ndarray
    embeddings: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class RandomStage(RandomBatches, Stage):
    """Random batches on a schedule; the rivals' losses have constants of their own."""


@dataclasses.dataclass(frozen=True)
class Rival:
    """A system of other people; each fills in ``kind``, ``name``, ``label``, ``fit`` and ``score``.

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
    stage: RandomStage = dataclasses.field(default_factory=RandomStage)
    crop: int = 64
    hop: int = 32
    per_machine: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantile: float = 0.9

    kind: ClassVar[str]
    name: ClassVar[str]
    classes: ClassVar[Classes] = "attributes"
    reads_waveforms: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(
            self, crop=between(1, 100000), hop=between(1, 100000), quantile=strictly_between(0, 1)
        )

    @staticmethod
    def label(clip: Clip) -> Hashable:
        """The class of a training clip; keys of one rival sort among themselves."""
        return class_key(clip)

    def encoder(self) -> nn.Module:
        """The network, of float32 and one device."""
        raise NotImplementedError

    def fit(self, data: Dataset, options: RunOptions, seed: int, run: str) -> NetworkFit:
        """Trains a network on clips labeled by :meth:`label` and fits its back-end.

        Args:
          data: The clips of one network.
          options: How the run goes.
          seed: Of everything random, together with ``run``.
          run: For files and logs.
        """
        raise NotImplementedError

    def score(self, network: Network, clips: ClipArrays, keys: Sequence[Section]) -> Comparison:
        """Compares clips with the normal ones of their machine types and sections."""
        raise NotImplementedError

    # --- a system, as asdproto.systems describes it

    @property
    def names(self) -> tuple[str, ...]:
        """The one detector that training makes."""
        return (self.name,)

    def plan(self, clips: int) -> str:
        """What training on so many clips does, in a few words."""
        each = "a network a machine type" if self.per_machine else "one network"
        return f"{each}, {self.stage.total_epochs} epochs of {self.stage.batch} clips a step"

    def check_clips(self, clips: Sequence[Clip]) -> None:
        """Refuses training clips that leave a network one class."""
        for rows in rows_of_networks(self, clips).values():
            own = [clips[row] for row in rows]
            if len({self.label(clip) for clip in own}) < 2:
                raise DataError(
                    f"the training clips of {', '.join(sorted({c.machine_type for c in own}))}",
                    "one class to learn",
                    f"at least 2, since {self.name} learns by telling classes apart",
                    "Train one network for all machine types (per_machine=false), or another "
                    "system.",
                )

    def train(
        self, data: Dataset, options: RunOptions, seeds: Sequence[int]
    ) -> dict[str, list[Member]]:
        """Trains the networks of every seed, one after the other; see :mod:`asdproto.systems`."""
        self.check_clips(data.train_clips)
        members = [_fit_networks(self, data, options, seed) for seed in seeds]
        return {self.name: members}

    def refit(self, member: Member, data: Dataset) -> Member:
        """A rival's back-end belongs to it."""
        raise ConfigError(f"a run of the system {self.kind} has no back-end to fit again")

    def restore(self, arrays: Mapping[str, np.ndarray]) -> "RivalModel":
        """The model that :meth:`RivalModel.to_arrays` described."""
        networks = {}
        for name, one in unflatten_dict(dict(arrays), sep="//").items():
            variables = {"params": one["params"], "batch_stats": one.get("batch_stats", {})}
            networks[name] = Network(variables, one["mean"], one["scale"], one["backend"])
        return RivalModel(self, networks)


@dataclasses.dataclass(frozen=True, eq=False)
class RivalModel:
    """Trained networks of a rival.

    Attributes:
      system: The rival.
      networks: Machine type, or :data:`ALL` -> network.
    """

    system: Rival
    networks: Mapping[str, Network]

    def compare(self, clips: ClipArrays, sections: Sequence[Section]) -> Comparison:
        """See :class:`asdproto.systems.system.Model`."""
        names = np.array([s[0] if self.system.per_machine else ALL for s in sections])
        scores, embeddings = np.zeros(len(sections)), None
        for name in np.unique(names):
            rows = np.flatnonzero(names == name)
            keys = [sections[int(row)] for row in rows]
            one = self.system.score(self.networks[str(name)], clips.take(rows), keys)
            scores[rows] = one.scores
            embeddings = _placed(embeddings, rows, one.embeddings, len(scores))
        return Comparison(scores, None, embeddings)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """See :class:`asdproto.systems.system.Model`."""
        tree = {}
        for name, network in self.networks.items():
            rest = {"mean": network.mean, "scale": network.scale, "backend": dict(network.backend)}
            tree[name] = {**network.variables, **rest}
        return flatten_dict(tree, sep="//")


# --- training


def rows_of_networks(system: Rival, clips: Sequence[Clip]) -> dict[str, np.ndarray]:
    """Rows of the training clips of each network."""
    machines = np.array([clip.machine_type for clip in clips])
    if not system.per_machine:
        return {ALL: np.arange(len(machines))}
    return {str(m): np.flatnonzero(machines == m) for m in np.unique(machines)}


def relabeled(system: Rival, data: Dataset, rows: np.ndarray) -> Dataset:
    """Some of the training clips, with the classes that a rival tells apart."""
    clips = [data.train_clips[row] for row in rows]
    labels, classes = assign_classes(clips, system.label)
    train = data.train.take(rows)
    mean, std = train.statistics() if system.per_machine else (data.mean, data.std)
    return dataclasses.replace(
        data, train=train, train_clips=clips, labels=labels, classes=classes, mean=mean, std=std
    )


def _fit_networks(system: Rival, data: Dataset, options: RunOptions, seed: int) -> Member:
    held_out, embeddings = np.zeros(len(data.labels)), None
    networks = {}
    for name, rows in rows_of_networks(system, data.train_clips).items():
        run = f"{system.name}-{seed}" + (f"-{name}" if system.per_machine else "")
        networks[name], held_out[rows], own = system.fit(
            relabeled(system, data, rows), options, seed, run
        )
        embeddings = _placed(embeddings, rows, own, len(held_out))
    model = RivalModel(system, networks)
    return Member(model, seed, data.classes, held_out, embeddings=embeddings)


def _placed(
    together: np.ndarray | None, rows: np.ndarray, own: np.ndarray | None, count: int
) -> np.ndarray | None:
    """Embeddings of all clips, with those of one network in their rows."""
    if own is None:
        return together
    together = np.zeros((count, own.shape[1]), np.float32) if together is None else together
    together[rows] = own
    return together


def train_encoder(
    system: Rival,
    stage: RandomStage,
    objective: Objective,
    data: Dataset,
    options: RunOptions,
    seed: int,
    run: str,
    *,
    before: TrainState | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda encoder: encoder,
) -> TrainState:
    """Trains a rival's encoder for a stage.

    Args:
      system: The rival.
      stage: Numbers of the stage.
      objective: Its loss.
      data: Clips with the classes of the loss.
      options: How the run goes.
      seed: Of everything random, together with ``run``.
      run: For files and logs.
      before: State of the stage before it; from scratch when ``None``.
      wrap: Makes the module that is trained of the encoder.

    Returns:
      The final state, as NumPy arrays.
    """
    devices = options.devices
    loop = options.loop or default_loop(devices.local[0].platform)
    encoder = system.encoder().clone(
        lowering=default_lowering(devices.local[0].platform, in_loop=loop == "scan"),
        dtype=jnp.dtype(system.dtype),
        axis_name=AXIS if devices.count > 1 else None,
    )
    task = Task.of(
        data,
        model=wrap(encoder),
        stage=stage,
        objective=objective,
        crop=system.crop,
        num_devices=devices.count,
    )
    key = run_key(seed, run)
    if before is None:
        state = task.init(key, data.train.features.shape[2])
    else:
        state = task.start(before.params["encoder"], before.batch_stats, key)
    with stage_run(run, options) as how:
        keys = [jax.random.fold_in(key, 1)]
        return train(task, data, devices, [state], keys, [stage.hyper()], how)[0]


def run_key(seed: int, run: str) -> jax.Array:
    """Random key of a network's stage: other machine types and stages draw other numbers."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(run.encode()) >> 1)


def network_of(state: TrainState, data: Dataset, backend: Mapping[str, Any]) -> Network:
    """A trained encoder with a back-end."""
    variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
    return Network(variables, *data.moments(), jax.tree.map(np.asarray, dict(backend)))


def section_label(clip: Clip) -> Section:
    """Machine type and section: what rivals tell apart that know no attributes."""
    return clip.machine_type, clip.section


def softmax_layer(key: jax.Array, num_classes: int, dim: int) -> tuple[Any, Any]:
    """First parameters of a layer with bias, as an objective's ``init``."""
    kernel = nn.initializers.glorot_uniform()(key, (num_classes, dim), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(num_classes)}, {}


def adam_stage(epochs: int, batch_size: int, rate: float = 1e-3) -> RandomStage:
    """Training by Adam at one rate, without weight decay."""
    return RandomStage(
        epochs=epochs,
        batch_size=batch_size,
        learning_rates=((rate, epochs),),
        optimizer="adam",
        weight_decay=0.0,
    )


# --- scoring


def embed(system: Rival, network: Network, clips: ClipArrays) -> np.ndarray:
    """Unit embedding of every clip, the mean over its windows, float32 ``[clips, dim]``."""
    return embed_clips(_evaluated(system), network.variables, clips, **_windows(system, network))


def _evaluated(system: Rival) -> nn.Module:
    """The encoder for calls from the host."""
    return system.encoder().clone(lowering=default_lowering(), dtype=jnp.dtype(system.dtype))


def _windows(system: Rival, network: Network) -> dict[str, Any]:
    return {"mean": network.mean, "scale": network.scale, "hop": system.hop}


def fit_nearest(vectors: np.ndarray, data: Dataset) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A back-end that measures how far the nearest training clip of the section is.

    Args:
      vectors: Floating, shape ``[training clips, dim]``.
      data: The data set.

    Returns:
      The back-end's arrays, and the held-out scores of the training clips, float64 ``[clips]``.
    """
    keys, config = section_keys(data.train_clips), BackendConfig("knn")
    fitted = vectors, np.zeros(len(vectors), int), keys, config
    return fit_scorer(*fitted).to_arrays(), held_out_scores(*fitted)


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


def evidence(
    system: Rival, network: Network, clips: ClipArrays, keys: Sequence[Section], *, odds: bool
) -> np.ndarray:
    """Mean :class:`Evidence` of a clip's windows against its section, float64 ``[clips]``."""
    kernel, bias = network.backend["kernel"], network.backend["bias"]
    model = Evidence(_evaluated(system), len(kernel), odds)
    encoder = {kind: {"encoder": tree} for kind, tree in network.variables.items()}
    variables = {**encoder, "params": {**encoder["params"], "kernel": kernel, "bias": bias}}
    means = window_means(model, variables, clips, **_windows(system, network))
    index = {tuple(key): number for number, key in enumerate(network.backend["classes"].tolist())}
    return means[np.arange(len(means)), [index[key] for key in keys]]


def fit_evidence(
    system: Rival, state: TrainState, data: Dataset, kernel: Any, bias: Any, *, odds: bool
) -> NetworkFit:
    """A classifier of sections with its layer, and its scores of the training clips."""
    layer = {"kernel": kernel, "bias": bias, "classes": np.array(data.classes, str)}
    network = network_of(state, data, layer)
    keys = section_keys(data.train_clips)
    return NetworkFit(network, evidence(system, network, data.train, keys, odds=odds))
