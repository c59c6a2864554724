"""The Disent_Wt row of Table 1: one part of the embedding tells sections, the others attributes.

Log-mel -> ResNet -> embedding in blocks -> one softmax a block -> nearest training clip, block by
block, as one weighted sum. One network a machine type.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from asdproto.data.dataset import ClipArrays, Dataset
from asdproto.data.dcase import attribute_pairs
from asdproto.models.resnet import ResNet
from asdproto.scoring.backends import Scorer
from asdproto.systems.embedding import unit_rows
from asdproto.systems.system import Comparison, Section
from asdproto.training.devices import RunOptions
from asdproto.training.objectives import Objective
from experiments.rivals.rival import (
    Fitted,
    Network,
    RandomStage,
    Rival,
    adam_stage,
    embed,
    fit_nearest,
    network_of,
    softmax_layer,
    softmax_loss,
    train_encoder,
)

# Of every softmax: parts of unit embeddings hardly differ under a temperature of 1.
TEMPERATURE = 0.05


@dataclasses.dataclass(frozen=True)
class DisentangledSystem(Rival):
    r"""The system; known from its abstract, so all but the idea is inferred.

    Fixed masks cut the embedding into blocks: the first half for the section, which both domains
    share, and an equal part of the other half for each attribute of the machine type (each key of
    its attribute strings), which differ between domains. Each block is classified by a softmax of
    its own, :math:`L = L_{section} + \sum_k w_k L_k`; clips without an attribute do not count in
    its loss. The score is the weighted sum over blocks of the distance of the block, at unit
    length, to the nearest training clip of the section.

    Inferred are the network (this project's ResNet18: 11.2 million parameters, 0.46 billion
    floating-point operations a crop), the sizes of blocks, all weights and the distance.

    Attributes:
      width: Channels of the network's first stage; 64 is ResNet18.
      attribute_weight: w, the weight of the attributes together, in the loss and in the score.

    References:
      Venkatesh et al., Improved Domain Generalization via Disentangled Multi-Task Learning in
      Unsupervised Anomalous Sound Detection, DCASE Workshop 2022.
    """

    stage: RandomStage = dataclasses.field(default_factory=lambda: adam_stage(100, 64))
    per_machine: bool = True
    width: int = 64
    attribute_weight: float = 1.0

    kind: ClassVar[str] = "experiments.rivals.disentangled:DisentangledSystem"
    name: ClassVar[str] = "disentangled"

    def encoder(self) -> nn.Module:
        return ResNet(width=self.width, attention="mean")

    def fit(self, data: Dataset, options: RunOptions, seed: int, run: str) -> Fitted:
        tasks = len(task_labels(data.classes)[1])
        objective = multi_task_objective(data.classes, self.task_weights(tasks))
        state = train_encoder(self, self.stage, objective, data, options, seed, run)
        network = network_of(state, data)
        embeddings = embed(self, network, data.train)
        backend: dict[str, Any] = {"tasks": np.array(tasks)}
        held_out = np.zeros(len(embeddings))
        for task, weight in enumerate(self.task_weights(tasks)):
            backend[f"task{task}"], scores = fit_nearest(unit_block(embeddings, task, tasks), data)
            held_out += weight * scores
        return network._replace(backend=backend), Comparison(held_out, None, embeddings)

    def score(self, network: Network, clips: ClipArrays, keys: Sequence[Section]) -> Comparison:
        embeddings, tasks = embed(self, network, clips), int(network.backend["tasks"])
        scores = np.zeros(len(embeddings))
        for task, weight in enumerate(self.task_weights(tasks)):
            scorer = Scorer.from_arrays(network.backend[f"task{task}"])
            scores += weight * scorer.score(unit_block(embeddings, task, tasks), keys)
        return Comparison(scores, None, embeddings)

    def task_weights(self, tasks: int) -> tuple[float, ...]:
        """1 for the section, the attributes' weight in equal parts for each attribute."""
        return (1.0,) + (self.attribute_weight / max(tasks - 1, 1),) * (tasks - 1)


def multi_task_objective(classes: Sequence[Any], weights: Sequence[float]) -> Objective:
    """The weighted sum of one cross entropy a block of the embedding.

    Its parameters are ``{"task0": {"kernel": [values, block], "bias": [values]}, ...}``.
    """
    values, sizes = task_labels(classes)

    def init(key: jax.Array, num_classes: int, dim: int) -> tuple[Any, Any]:
        del num_classes
        keys = jax.random.split(key, len(sizes))
        layers = map(softmax_layer, keys, sizes, block_sizes(dim, len(sizes)))
        return {f"task{task}": params for task, (params, _) in enumerate(layers)}, {}

    def loss(params, state, embeddings, batch, **_):
        labels = jnp.asarray(values)[batch.labels]
        ends = np.cumsum(block_sizes(embeddings.shape[1], len(sizes)))[:-1]
        blocks = jnp.split(embeddings, ends, axis=1)
        total = jnp.zeros(embeddings.shape[0])
        for task, (weight, block) in enumerate(zip(weights, blocks, strict=True)):
            own = params[f"task{task}"], block, labels[:, task]
            total += weight * softmax_loss(*own, temperature=TEMPERATURE, where=batch.where)
        return total, state.loss_state

    return Objective("disentangled", loss, init)


def task_labels(classes: Sequence[tuple[str, str, str, str]]) -> tuple[np.ndarray, list[int]]:
    """What each attribute class is to each task, int32, shape ``[classes, tasks]``.

    These are the section, then the value of each attribute key in sorted order, -1 where a class
    has no such attribute; beside them, the number of values of each task. Keys of one value tell
    nothing apart and make no task.
    """
    pairs = [dict(attribute_pairs(attributes)) for *_, attributes in classes]
    keys = sorted({key for attributes in pairs for key in attributes})
    columns: list[list[Any]] = [[(machine, section) for machine, section, *_ in classes]]
    columns += [[attributes.get(key) for attributes in pairs] for key in keys]
    labels, sizes = [], []
    for task, column in enumerate(columns):
        values = sorted({value for value in column if value is not None})
        if task == 0 or len(values) > 1:
            labels.append([-1 if value is None else values.index(value) for value in column])
            sizes.append(len(values))
    return np.array(labels, np.int32).T, sizes


def block_sizes(dim: int, tasks: int) -> tuple[int, ...]:
    """Dimensions of each task's block: the first half for the section, the rest in equal parts."""
    if tasks == 1:
        return (dim,)
    rest = dim - dim // 2
    if rest < tasks - 1:
        raise ValueError(f"embeddings of {dim} are too short for {tasks} tasks")
    ends = [round(rest * n / (tasks - 1)) for n in range(tasks)]
    return (dim // 2, *np.diff(ends).tolist())


def unit_block(embeddings: np.ndarray, task: int, tasks: int) -> np.ndarray:
    """A task's block of embeddings ``[clips, dim]`` at unit length, float64 ``[clips, block]``."""
    ends = np.cumsum(block_sizes(embeddings.shape[1], tasks))[:-1]
    return unit_rows(np.split(np.asarray(embeddings, np.float64), ends, axis=1)[task])


# quick and small are for a few hundred clips on a CPU.
PRESETS = {
    "quick": DisentangledSystem(width=16, stage=adam_stage(15, 64)),
    "small": DisentangledSystem(width=16, stage=adam_stage(60, 64)),
    "paper": DisentangledSystem(),
}
