"""Every loss of the library as an objective of training, by name.

    task = dataclasses.replace(task, objective=make_objective("arcface", task.stage))

The stage's temperature stands for all: margin losses take its inverse as their scale, distances
twice it (between unit vectors, half the squared distance is one minus the cosine). Adaptive losses
set their own. Learned prototypes begin as random unit vectors and are brought to unit length at
every step; prototypes of the paper's losses are means of embeddings.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from asdproto import losses
from asdproto import prototypes as proto
from asdproto.training.stage import (
    Objective,
    StageConfig,
    batch_sums,
    draw_mix,
    mpe_objective,
    npe_objective,
)

# Sub-clusters and subspace dimensions a class, as their authors use them.
SUB_CLUSTERS = 16
SUBSPACE = 16
# Center loss only pulls; on unit vectors its gradient is of the order of the softmax's at 1.
CENTER_WEIGHT = 0.1

Loss = Callable[..., tuple[jax.Array, Any]]


def make_objective(name: str, stage: StageConfig) -> Objective:
    """A loss as an objective.

    Args:
      name: One of :data:`OBJECTIVES`.
      stage: Numbers of the stage that it serves: sub-prototypes, mixing range, sampler.

    Returns:
      The objective.

    Raises:
      ValueError: There is no such loss, or the stage's batches do not suit it.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"there is no loss {name!r}; expected one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name](stage)


def _random_units(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    return proto.l2_normalize(jax.random.normal(key, tuple(shape), jnp.float32))


def _learned(name: str, loss: Loss, *per_class: int, adaptive: bool = False) -> Objective:
    """Against ``params["prototypes"]``, learned, with AdaCos's state if the loss is adaptive."""

    def init(key: jax.Array, num_classes: int, dim: int) -> tuple[Any, Any]:
        params = {"prototypes": _random_units(key, (num_classes, *per_class, dim))}
        # AdaProj's scale goes by classes, however many vectors span a class's subspace.
        clusters = per_class[0] if per_class and name == "sub_cluster_adacos" else 1
        return params, losses.adacos_init(num_classes, clusters) if adaptive else {}

    def normalized(params, state, embeddings, batch, **keywords):
        prototypes = proto.l2_normalize(params["prototypes"])
        return loss(prototypes, state, embeddings, batch, **keywords)

    return Objective(name, normalized, init)


def _fixed_scale(name: str, function: Callable[..., jax.Array], temperature: bool) -> Objective:
    """Softmax, ArcFace, CosFace: learned prototypes, one scale."""

    def loss(prototypes, state, embeddings, batch, *, hyper, **_):
        tau = hyper.temperature
        scale = {"temperature": tau} if temperature else {"scale": 1 / tau}
        values = function(embeddings, prototypes, batch.labels, **scale)
        return values, state.loss_state

    return _learned(name, loss)


def _adaptive(name: str, function: Callable[..., Any], *per_class: int) -> Objective:
    """AdaCos, sub-cluster AdaCos, AdaProj: learned prototypes, a scale that follows training."""

    def loss(prototypes, state, embeddings, batch, *, axis_name, **_):
        return function(
            embeddings,
            prototypes,
            batch.labels,
            state.loss_state,
            where=batch.where,
            axis_name=axis_name,
        )

    return _learned(name, loss, *per_class, adaptive=True)


def _in_batch(name: str, function: Callable[..., jax.Array]) -> Objective:
    """Supervised contrastive and NT-Xent: examples of a class are each other's positives."""

    def loss(params, state, embeddings, batch, *, hyper, axis_name, **_):
        del params
        values = function(
            embeddings,
            batch.labels,
            temperature=hyper.temperature,
            where=batch.where,
            axis_name=axis_name,
        )
        return values, state.loss_state

    return Objective(name, loss)


def _expanded_negatives(stage: StageConfig) -> Objective:
    """MPE and NPE in one: the epoch's prototypes and sub-prototypes, and negatives mixed of all."""
    normalize = _mixing(stage).normalize_mixed

    def loss(params, state, embeddings, batch, *, key, hyper, axis_name, **_):
        del params
        classes, per_class = state.prototypes.shape[:2]
        mix = draw_mix(key, hyper, embeddings.shape[0], classes * per_class, axis_name)
        values = losses.multi_negative_prototype_loss(
            embeddings,
            state.prototypes,
            batch.labels,
            mix.reshape(-1, classes, per_class),
            normalize_mixed=normalize,
            temperature=hyper.temperature,
        )
        return values, state.loss_state

    return Objective(
        "mpe_npe", loss, epoch_prototypes=True, sub_prototypes=max(stage.sub_prototypes, 1)
    )


def _prototypical_network(stage: StageConfig) -> Objective:
    """Episodic: squared distances to the batch's plain class means, the anchor's own included."""

    def loss(params, state, embeddings, batch, *, hyper, num_classes, axis_name, **_):
        del params
        targets, sums, counts = batch_sums(stage, embeddings, batch, num_classes, axis_name)
        values = losses.prototypical_network_loss(
            embeddings,
            sums / jnp.maximum(counts, 1)[:, None],
            targets,
            temperature=2 * hyper.temperature,
            class_where=counts > 0,
        )
        return values, state.loss_state

    return Objective("prototypical_network", loss)


def _softmax_center(stage: StageConfig) -> Objective:
    """Softmax, and center loss to learned centers beside it."""
    del stage

    def init(key: jax.Array, num_classes: int, dim: int) -> tuple[Any, Any]:
        one, other = jax.random.split(key)
        shape = (num_classes, dim)
        return {"prototypes": _random_units(one, shape), "centers": _random_units(other, shape)}, {}

    def loss(params, state, embeddings, batch, *, hyper, **_):
        softmax = losses.proxy_softmax_loss(
            embeddings,
            proto.l2_normalize(params["prototypes"]),
            batch.labels,
            temperature=hyper.temperature,
        )
        center = losses.center_loss(embeddings, params["centers"], batch.labels)
        return softmax + CENTER_WEIGHT * center, state.loss_state

    return Objective("softmax_center", loss, init)


def _vicreg(stage: StageConfig) -> Objective:
    """Neighbors in an episode, clips of one class, are the two views of each other.

    Unit vectors of D dimensions have components of the size of D^-1/2; they are scaled to 1, which
    is the deviation that the variance term asks for.
    """
    if stage.sampler != "episodes" or stage.shots % 2:
        raise ValueError(
            f"vicreg pairs neighbors in an episode: found sampler={stage.sampler!r} and "
            f"shots={stage.shots}; set sampler='episodes' and an even number of shots"
        )

    def loss(params, state, embeddings, batch, *, axis_name, **_):
        del params
        size, dim = embeddings.shape
        if size % 2:
            raise ValueError(
                f"vicreg takes pairs, found {size} examples a device; choose numbers of devices "
                "and shots that leave an even number on each"
            )
        pairs = (embeddings * dim**0.5).reshape(size // 2, 2, dim)
        where = None if batch.where is None else batch.where.reshape(-1, 2).all(axis=1)
        terms = losses.vicreg_loss(pairs[:, 0], pairs[:, 1], where=where, axis_name=axis_name)
        values = terms.invariance + terms.variance + terms.covariance
        return jnp.repeat(values, 2), state.loss_state

    return Objective("vicreg", loss)


def _renamed(name: str, objective: Objective) -> Objective:
    return dataclasses.replace(objective, name=name)


def _mixing(stage: StageConfig, **changes: Any) -> StageConfig:
    if stage.mix_range is None:
        raise ValueError("mix_range=None: losses with mixed negatives need a range, as (0.25, 0.5)")
    return dataclasses.replace(stage, **changes)


OBJECTIVES: dict[str, Callable[[StageConfig], Objective]] = {
    "softmax": lambda stage: _fixed_scale("softmax", losses.proxy_softmax_loss, temperature=True),
    "arcface": lambda stage: _fixed_scale("arcface", losses.arcface_loss, temperature=False),
    "cosface": lambda stage: _fixed_scale("cosface", losses.cosface_loss, temperature=False),
    "adacos": lambda stage: _adaptive("adacos", losses.adacos_loss),
    "sub_cluster_adacos": lambda stage: _adaptive(
        "sub_cluster_adacos", losses.sub_cluster_adacos_loss, SUB_CLUSTERS
    ),
    "adaproj": lambda stage: _adaptive("adaproj", losses.adaproj_loss, SUBSPACE),
    "softmax_center": _softmax_center,
    "supervised_contrastive": lambda stage: _in_batch(
        "supervised_contrastive", losses.supervised_contrastive_loss
    ),
    "nt_xent": lambda stage: _in_batch("nt_xent", losses.nt_xent_loss),
    "vicreg": _vicreg,
    "prototypical_network": _prototypical_network,
    "prototypical": lambda stage: mpe_objective(dataclasses.replace(stage, sub_prototypes=0)),
    "multi_prototype": lambda stage: _renamed(
        "multi_prototype",
        mpe_objective(dataclasses.replace(stage, sub_prototypes=max(stage.sub_prototypes, 1))),
    ),
    "negative_prototype": lambda stage: _renamed(
        "negative_prototype", npe_objective(_mixing(stage, normalize_mixed=False))
    ),
    "negative_prototype_unit": lambda stage: _renamed(
        "negative_prototype_unit", npe_objective(_mixing(stage, normalize_mixed=True))
    ),
    "mpe_npe": _expanded_negatives,
}
