"""Sub-cluster AdaCos, the field's usual strong baseline; it is not in Table 1.

Log-mel -> ResNet -> unit embedding -> cosine distance to cluster centers of the section's source
clips, or to any of its target clips. Every training crop is mixed with another, its label too.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from asdproto.data.dataset import ClipArrays, Dataset, section_keys
from asdproto.losses import adacos_init, sub_cluster_adacos_loss
from asdproto.models.resnet import ResNet
from asdproto.prototypes import l2_normalize
from asdproto.scoring.backends import BackendConfig, Scorer, fit_scorer
from asdproto.scoring.rows import rows_by
from asdproto.systems.embedding import unit_rows
from asdproto.systems.system import Comparison, Section
from asdproto.training.devices import RunOptions
from asdproto.training.objectives import Objective, draw_mix
from experiments.rivals.rival import (
    Fitted,
    Network,
    RandomStage,
    Rival,
    adam_stage,
    embed,
    network_of,
    train_encoder,
)


@dataclasses.dataclass(frozen=True)
class AdaCosSystem(Rival):
    """The system.

    Attribute classes of all machine types are told apart by the sub-cluster AdaCos loss; each class
    has 16 learned centers. The score is the smallest cosine distance to the centers of a k-means
    clustering of the section's source embeddings, or to any of its target training embeddings.

    The loss, mixup and score are the published ones. The network is not: the authors join one over
    spectrograms and one over the spectrum of the whole clip; here it is this project's ResNet18
    (11.2 million parameters, 0.46 billion floating-point operations a crop of 64 frames), over
    crops, with plain average pooling.

    Attributes:
      width: Channels of the network's first stage; 64 is ResNet18.
      sub_clusters: Learned centers of a class, and clusters of a section.

    References:
      Wilkinghoff, Sub-Cluster AdaCos: Learning Representations for Anomalous Sound Detection,
      IJCNN 2021. Wilkinghoff, Design Choices for Learning Embeddings from Auxiliary Tasks for
      Domain Generalization in Anomalous Sound Detection, ICASSP 2023.
    """

    stage: RandomStage = dataclasses.field(default_factory=lambda: adam_stage(100, 64))
    width: int = 64
    sub_clusters: int = 16

    kind: ClassVar[str] = "experiments.rivals.adacos:AdaCosSystem"
    name: ClassVar[str] = "adacos"

    def encoder(self) -> nn.Module:
        return ResNet(width=self.width, attention="mean")

    def fit(self, data: Dataset, options: RunOptions, seed: int, run: str) -> Fitted:
        objective = adacos_objective(self.sub_clusters)
        state = train_encoder(self, self.stage, objective, data, options, seed, run)
        network = network_of(state, data)
        embeddings = embed(self, network, data.train)
        scorer, held_out = fit_references(embeddings, data, self.sub_clusters)
        found = Comparison(held_out, None, embeddings)
        return network._replace(backend=scorer.to_arrays()), found

    def score(self, network: Network, clips: ClipArrays, keys: Sequence[Section]) -> Comparison:
        embeddings = embed(self, network, clips)
        scores = Scorer.from_arrays(network.backend).score(embeddings, keys)
        return Comparison(_cosine_distance(scores), None, embeddings)


def adacos_objective(sub_clusters: int) -> Objective:
    """Sub-cluster AdaCos of mixed crops."""

    def init(key: jax.Array, num_classes: int, dim: int) -> tuple[Any, Any]:
        centers = jax.random.normal(key, (num_classes, sub_clusters, dim), jnp.float32)
        return {"prototypes": l2_normalize(centers)}, adacos_init(num_classes, sub_clusters)

    return Objective("mixed_sub_cluster_adacos", mixed_loss, init, augment=mix_crops)


def mix_crops(batch, *, key, axis_name, **_):
    """Every crop, mixed with its neighbor's: ``[batch, crop, columns]``, and which are real."""
    mix = _mix(batch, key, axis_name)[:, None, None]
    return mix * batch.crops + (1 - mix) * batch.crops[partners(len(batch.crops))], batch.where


def mixed_loss(params, state, embeddings, batch, *, key, axis_name, **_):
    """Cross entropy of both labels, weighed as the crops were mixed."""
    prototypes = l2_normalize(params["prototypes"])
    mix = _mix(batch, key, axis_name)

    def loss(labels, state, *, adaptive):
        return sub_cluster_adacos_loss(
            embeddings,
            prototypes,
            labels,
            state,
            adaptive=adaptive,
            where=batch.where,
            axis_name=axis_name,
        )

    first, adapted = loss(batch.labels, state.loss_state, adaptive=True)
    second, _ = loss(batch.labels[partners(len(batch.labels))], adapted, adaptive=False)
    return mix * first + (1 - mix) * second, adapted


def _mix(batch, key, axis_name):
    """Each crop's own share, float32 ``[batch]``; 1 beside padding."""
    size = len(batch.labels)
    mix = draw_mix(key, (size, 1), 0.0, 1.0, axis_name)[:, 0]
    return mix if batch.where is None else jnp.where(batch.where[partners(size)], mix, 1)


def partners(batch: int) -> jax.Array:
    """The neighbor of each row of a batch, int32: 1 and 0, 3 and 2, ...; an odd last row its own.

    Rows of a random batch are in random order, so neighbors are random pairs, and no device needs
    another's rows.
    """
    rows = jnp.arange(batch, dtype=jnp.int32)
    return jnp.where(rows ^ 1 < batch, rows ^ 1, rows)


def fit_references(
    embeddings: np.ndarray, data: Dataset, clusters: int
) -> tuple[Scorer, np.ndarray]:
    """The back-end on the training clips' embeddings, and their own scores, float64 ``[clips]``."""
    sections = section_keys(data.train_clips)
    targets = np.array([clip.domain == "target" for clip in data.train_clips])
    by_section = rows_by(sections)
    references = {
        key: section_references(embeddings[rows], targets[rows], clusters)
        for key, rows in by_section.items()
    }
    vectors = np.concatenate(list(references.values()))
    keys = [key for key, own in references.items() for _ in own]
    scorer = fit_scorer(vectors, np.zeros(len(keys), int), keys, BackendConfig("knn"))
    held_out = _cosine_distance(scorer.score(embeddings, sections))
    # A target clip is a reference itself, at distance 0: it is compared with the others.
    others = _cosine_distance(scorer.score(vectors, keys, training=True))
    for key, of_section in rows_by(keys).items():
        rows = by_section[key]
        rows = rows[targets[rows]]
        held_out[rows] = others[of_section[len(of_section) - len(rows) :]]
    return scorer, held_out


def section_references(embeddings: np.ndarray, target: np.ndarray, clusters: int) -> np.ndarray:
    """What a section's clips are compared with, float64, shape ``[references, dim]``.

    Of its unit embeddings ``[clips, dim]``: the cluster centers, at unit length, of those that are
    not of the target domain, then those that are.
    """
    from sklearn.cluster import KMeans

    source = np.asarray(embeddings[~target], np.float64)
    centers = source[:0]
    if len(source):
        count = min(clusters, len(np.unique(source, axis=0)))
        centers = KMeans(count, n_init=10, random_state=0).fit(source).cluster_centers_
    return np.concatenate([unit_rows(centers), np.asarray(embeddings[target], np.float64)])


def _cosine_distance(euclidean: np.ndarray) -> np.ndarray:
    """One minus the cosine of unit vectors at a distance."""
    return np.square(euclidean) / 2


# quick and small are for a few hundred clips on a CPU.
PRESETS = {
    "quick": AdaCosSystem(width=16, stage=adam_stage(15, 64)),
    "small": AdaCosSystem(width=16, stage=adam_stage(60, 64)),
    "paper": AdaCosSystem(),
}
