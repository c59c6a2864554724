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

from asdproto.config import ConfigError, at_least, between, check_fields, positive, strictly_between
from asdproto.data.dataset import Classes, ClipArrays, Dataset, section_keys
from asdproto.data.dcase import Clip, assign_classes, class_key
from asdproto.errors import DataError
from asdproto.features import FeatureSettings
from asdproto.losses import proxy_softmax_loss
from asdproto.models.convolution import default_lowering
from asdproto.scoring.backends import BackendConfig, fit_scorer, held_out_scores
from asdproto.scoring.rows import rows_by
from asdproto.systems.embedding import embed_clips, window_means
from asdproto.systems.system import Comparison, Member, Section
from asdproto.training.devices import AXIS, RunOptions, default_loop
from asdproto.training.loop import train
from asdproto.training.objectives import Objective
from asdproto.training.stage import RandomBatches, Stage
from asdproto.training.state import TrainState
from asdproto.training.task import Task

ALL = "all machine types"

_RANGES = {
    "crop": between(1, 100000),
    "hop": between(1, 100000),
    "quantile": strictly_between(0, 1),
    "width": between(1, 4096),
    "alpha": positive(16),
    "stages": between(1, 4096),
    "stem": between(1, 4096),
    "head": between(1, 65536),
    "dim": between(1, 65536),
    "projector": between(1, 65536),
    "momentum": at_least(0, below=1),
    "sub_clusters": between(1, 10000),
    "attribute_weight": between(0, 1000),
    "margin": between(0, 3.14159),
    "margin_scale": positive(1000),
}


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


# A network with its back-end, and what it finds in its own training clips.
Fitted = tuple[Network, Comparison]


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
    is_fused: ClassVar[bool] = True

    def __post_init__(self) -> None:
        fields = {field.name for field in dataclasses.fields(self)}
        check_fields(self, **{name: check for name, check in _RANGES.items() if name in fields})

    @staticmethod
    def label(clip: Clip) -> Hashable:
        """The class of a training clip; keys of one rival sort among themselves."""
        return class_key(clip)

    def encoder(self) -> nn.Module:
        """The network, of float32 and one device."""
        raise NotImplementedError

    def fit(self, data: Dataset, options: RunOptions, seed: int, run: str) -> Fitted:
        """Trains a network on clips labeled by :meth:`label` and fits its back-end.

        ``run`` names it in files and logs. Scores of the training clips are the ``held_out`` of
        :class:`asdproto.systems.system.Member`.
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

    def rows_of_networks(self, machine_types: Sequence[str]) -> dict[str, np.ndarray]:
        """Machine type, or :data:`ALL` -> rows of its clips."""
        return rows_by([name if self.per_machine else ALL for name in machine_types])

    def plan(self, clips: int) -> str:
        """What training on so many clips does, in a few words."""
        each = "a network a machine type" if self.per_machine else "one network"
        return f"{each}, {self.stage.total_epochs} epochs of {self.stage.batch} clips a step"

    def check_clips(self, clips: Sequence[Clip]) -> None:
        """Refuses training clips that leave a network one class."""
        for rows in self.rows_of_networks([clip.machine_type for clip in clips]).values():
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
      networks: By machine type, or :data:`ALL`.
    """

    system: Rival
    networks: Mapping[str, Network]

    def compare(self, clips: ClipArrays, sections: Sequence[Section]) -> Comparison:
        found = []
        for name, rows in self.system.rows_of_networks([key[0] for key in sections]).items():
            keys = [sections[row] for row in rows]
            found.append((rows, self.system.score(self.networks[name], clips.take(rows), keys)))
        return _joined(found)

    def to_arrays(self) -> dict[str, np.ndarray]:
        tree = {}
        for name, network in self.networks.items():
            rest = {"mean": network.mean, "scale": network.scale, "backend": dict(network.backend)}
            tree[name] = {**network.variables, **rest}
        return flatten_dict(tree, sep="//")


# --- training


def relabeled(system: Rival, data: Dataset, rows: np.ndarray) -> Dataset:
    """Some of the training clips, with the classes that a rival tells apart."""
    part = data.take(rows)
    labels, classes = assign_classes(part.train_clips, system.label)
    mean, std = part.train.statistics() if system.per_machine else (data.mean, data.std)
    return dataclasses.replace(part, labels=labels, classes=classes, mean=mean, std=std)


def _fit_networks(system: Rival, data: Dataset, options: RunOptions, seed: int) -> Member:
    networks, found = {}, []
    by_network = system.rows_of_networks([clip.machine_type for clip in data.train_clips])
    for name, rows in by_network.items():
        run = f"{system.name}-{seed}" + (f"-{name}" if system.per_machine else "")
        networks[name], one = system.fit(relabeled(system, data, rows), options, seed, run)
        found.append((rows, one))
    scores, _, embeddings = _joined(found)
    model = RivalModel(system, networks)
    return Member(model, seed, data.classes, scores, embeddings=embeddings)


def _joined(found: Sequence[tuple[np.ndarray, Comparison]]) -> Comparison:
    """What networks find in the rows of their clips, as one."""
    count = sum(len(rows) for rows, _ in found)
    scores, embeddings = np.zeros(count), None
    for rows, one in found:
        scores[rows] = one.scores
        if one.embeddings is not None:
            if embeddings is None:
                embeddings = np.zeros((count, one.embeddings.shape[1]), np.float32)
            embeddings[rows] = one.embeddings
    return Comparison(scores, None, embeddings)


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
    """Trains a rival's encoder for a stage, on clips with the classes of the loss.

    ``run`` names it in files and logs; ``before`` is the state of the stage before it, from scratch
    when ``None``; ``wrap`` makes the module that is trained of the encoder.

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
    # Other machine types and stages draw other numbers.
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(run.encode()) >> 1)
    if before is None:
        state = task.init(key, data.train.features.shape[2])
    else:
        state = task.start(before.params["encoder"], before.batch_stats, key)
    keys = [jax.random.fold_in(key, 1)]
    return train(task, data, options, [state], keys, [stage.hyper()], name=run)[0]


def network_of(state: TrainState, data: Dataset) -> Network:
    """A trained encoder, still without a back-end."""
    variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
    return Network(variables, *data.moments(), {})


def section_label(clip: Clip) -> Section:
    """Machine type and section: what rivals tell apart that know no attributes."""
    return clip.machine_type, clip.section


def softmax_layer(key: jax.Array, num_classes: int, dim: int) -> tuple[Any, Any]:
    """First parameters of a layer with bias, as an objective's ``init``."""
    kernel = nn.initializers.glorot_uniform()(key, (num_classes, dim), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(num_classes)}, {}


def softmax_loss(layer: Any, z: jax.Array, labels: jax.Array, **options: Any) -> jax.Array:
    """Cross entropy behind such a layer, as :func:`asdproto.losses.proxy_softmax_loss`."""
    return proxy_softmax_loss(z, layer["kernel"], labels, bias=layer["bias"], **options)


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

    Returns its arrays for vectors ``[training clips, dim]``, and the held-out scores of these
    clips, float64 ``[clips]``.
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
) -> Fitted:
    """A classifier of sections with its layer, and its scores of the training clips."""
    layer = {"kernel": kernel, "bias": bias, "classes": np.array(data.classes, str)}
    network = network_of(state, data)._replace(backend=jax.tree.map(np.asarray, layer))
    keys = section_keys(data.train_clips)
    return network, Comparison(evidence(system, network, data.train, keys, odds=odds))
