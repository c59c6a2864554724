"""What the loss benchmark compares the losses with.

``ENTRIES`` names every loss three ways: ours; the naive form, which is what the formula says when
it is typed in; and, where there is one, the same loss of pytorch-metric-learning. For Eq. 6 the
formula may be typed in with mixed vectors, or in closed form. All take raw vectors and bring them
to unit length themselves where the loss wants it, so that the same work is timed.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asdproto import losses
from asdproto.prototypes import l2_normalize as unit
from asdproto.prototypes import mix_negatives, sample_mix

SUB_PROTOTYPES = 4
MIX_KEY = jax.random.key(17)


@dataclass(frozen=True, eq=False)
class Entry:
    """A loss and its rivals.

    Attributes:
      name: Of the loss.
      arrays: Its differentiable arguments: "embeddings" [batch, dim], "second" likewise,
        "prototypes" [classes, dim], "several" [classes, SUB_PROTOTYPES, dim].
      ours: From those, labels and keywords to losses.
      naive: From those and labels to losses; None if nothing simpler can be written.
      closed: As ``naive``, of a formula that is simplified first.
      rival: From the numpy arrays and torch's module to a pytorch-metric-learning loss, called
        with embeddings and labels (or the second view); None if it has none.
      group: Examples that share a label, for losses within a batch; 0 for random classes.
      chunk: Whether it can be computed by pieces.
      more: Further differentiable arguments, by name.
    """

    name: str
    arrays: tuple[str, ...]
    ours: Callable[..., jax.Array]
    naive: Callable[..., jax.Array] | None = None
    rival: Callable[[dict[str, np.ndarray]], Any] | None = None
    closed: Callable[..., jax.Array] | None = None
    group: int = 0
    chunk: bool = True
    more: Mapping[str, np.ndarray] = field(default_factory=dict)

    def labels(self, batch: int, classes: int) -> np.ndarray:
        """Labels that every implementation is given."""
        if self.group:
            return np.arange(batch) // self.group
        return np.random.default_rng(1).integers(0, classes, batch)

    def make(self, batch: int, classes: int, dim: int) -> dict[str, np.ndarray]:
        """Random arguments."""
        rng = np.random.default_rng(0)
        shapes = {
            "embeddings": (batch, dim),
            "second": (batch, dim),
            "prototypes": (classes, dim),
            "several": (classes, SUB_PROTOTYPES, dim),
        }
        made = {n: rng.standard_normal(shapes[n], np.float32) for n in self.arrays}
        return {**made, **self.more}


def pick(log_probabilities: jax.Array, y: jax.Array) -> jax.Array:
    return -jnp.take_along_axis(log_probabilities, y[:, None], axis=1)[:, 0]


def naive_softmax(z: jax.Array, p: jax.Array, y: jax.Array, temperature: float) -> jax.Array:
    return pick(jax.nn.log_softmax(unit(z) @ unit(p).T / temperature), y)


def naive_multi_prototype(z: jax.Array, p: jax.Array, y: jax.Array) -> jax.Array:
    logits = jnp.einsum("bd,cmd->bcm", unit(z), unit(p)) / 0.07
    own = jnp.take_along_axis(logits, y[:, None, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=(1, 2))[:, None] - own, axis=1)


def ours_negative(z: jax.Array, p: jax.Array, y: jax.Array, **keywords: Any) -> jax.Array:
    mix = sample_mix(MIX_KEY, (len(z), len(p)))
    return losses.negative_prototype_loss(unit(z), unit(p), y, mix, **keywords)


def naive_negative(z: jax.Array, p: jax.Array, y: jax.Array) -> jax.Array:
    """Eq. 6 with every mixed negative made as a vector."""
    z, p = unit(z), unit(p)
    mix = sample_mix(MIX_KEY, (len(z), len(p)))
    mixed = jax.vmap(mix_negatives, (0, None, 0))(z, p, mix)
    return naive_eq6(z @ p.T, jnp.einsum("bd,bcd->bc", z, mixed), y)


def closed_negative(z: jax.Array, p: jax.Array, y: jax.Array) -> jax.Array:
    """Eq. 6 in closed form, and plain autodiff."""
    z, p = unit(z), unit(p)
    mix = sample_mix(MIX_KEY, (len(z), len(p)))
    scores = z @ p.T
    mixed = mix * jnp.sum(z * z, axis=1, keepdims=True) + (1 - mix) * scores
    return naive_eq6(scores, mixed, y)


def naive_eq6(scores: jax.Array, mixed: jax.Array, y: jax.Array) -> jax.Array:
    own = jax.nn.one_hot(y, scores.shape[1], dtype=bool)
    logits = jnp.concatenate([scores, jnp.where(own, -jnp.inf, mixed)], axis=1) / 0.07
    return pick(jax.nn.log_softmax(logits), y)


def naive_arcface(z: jax.Array, p: jax.Array, y: jax.Array) -> jax.Array:
    cosine = unit(z) @ unit(p).T
    own = jax.nn.one_hot(y, p.shape[0])
    angle = jnp.arccos(jnp.clip(cosine, -1 + 1e-7, 1 - 1e-7))
    return pick(jax.nn.log_softmax(64 * jnp.cos(angle + 0.5 * own)), y)


def naive_cosface(z: jax.Array, p: jax.Array, y: jax.Array) -> jax.Array:
    cosine = unit(z) @ unit(p).T
    return pick(jax.nn.log_softmax(64 * (cosine - 0.35 * jax.nn.one_hot(y, p.shape[0]))), y)


def adaptive(loss: Callable[..., Any], sub_clusters: int) -> Callable[..., jax.Array]:
    def run(z: jax.Array, p: jax.Array, y: jax.Array, **keywords: Any) -> jax.Array:
        state = losses.adacos_init(p.shape[0], sub_clusters)
        return loss(unit(z), unit(p), y, state, **keywords)[0]

    return run


def naive_scale(logits: jax.Array, own: jax.Array, y: jax.Array, scale: jax.Array) -> jax.Array:
    others = jnp.where(jax.nn.one_hot(y, logits.shape[1], dtype=bool), 0, jnp.exp(scale * logits))
    median = jnp.median(jnp.arccos(jnp.clip(own, -1, 1)))
    renewed = jnp.log(jnp.mean(jnp.sum(others, axis=1))) / jnp.cos(jnp.minimum(jnp.pi / 4, median))
    return jax.lax.stop_gradient(jnp.maximum(renewed, 1))


def naive_adacos(z: jax.Array, p: jax.Array, y: jax.Array) -> jax.Array:
    logits = unit(z) @ unit(p).T
    own = -pick(logits, y)
    scale = naive_scale(logits, own, y, losses.adacos_init(p.shape[0]).scale)
    return pick(jax.nn.log_softmax(scale * logits), y)


def naive_sub_cluster(z: jax.Array, p: jax.Array, y: jax.Array) -> jax.Array:
    logits = jnp.einsum("bd,cmd->bcm", unit(z), unit(p))
    own = jnp.take_along_axis(logits, y[:, None, None], axis=1)[:, 0].max(axis=1)
    scale = losses.adacos_init(*p.shape[:2]).scale
    mean = jnp.mean(jnp.sum(jnp.exp(scale * logits), axis=(1, 2)))
    angle = jnp.minimum(jnp.pi / 4, jnp.median(jnp.arccos(jnp.clip(own, -1, 1))))
    scale = jax.lax.stop_gradient(jnp.maximum(jnp.log(mean) / jnp.cos(angle), 1))
    probabilities = jax.nn.softmax(scale * logits, axis=(1, 2)).sum(axis=2)
    return pick(jnp.log(probabilities), y)


def naive_adaproj(z: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
    z, w = unit(z), unit(w)
    projected = unit(jnp.einsum("bcm,cmd->bcd", jnp.einsum("bd,cmd->bcm", z, w), w))
    logits = jnp.einsum("bd,bcd->bc", z, projected)
    scale = naive_scale(logits, -pick(logits, y), y, losses.adacos_init(w.shape[0]).scale)
    return pick(jax.nn.log_softmax(scale * logits), y)


def naive_prototypical_network(z: jax.Array, p: jax.Array, y: jax.Array) -> jax.Array:
    return pick(jax.nn.log_softmax(-jnp.sum((z[:, None] - p) ** 2, axis=2) / 64), y)


def naive_pairs(z: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cosines, and which are of positives and which of an anchor with itself."""
    itself = jnp.eye(len(y), dtype=bool)
    return unit(z) @ unit(z).T, (y[:, None] == y) & ~itself, itself


def naive_supervised_contrastive(z: jax.Array, y: jax.Array) -> jax.Array:
    cosine, positive, itself = naive_pairs(z, y)
    log_probability = jax.nn.log_softmax(jnp.where(itself, -jnp.inf, cosine / 0.1))
    return -jnp.sum(jnp.where(positive, log_probability, 0), axis=1) / positive.sum(axis=1)


def naive_nt_xent(z: jax.Array, y: jax.Array) -> jax.Array:
    cosine, positive, itself = naive_pairs(z, y)
    exponential = jnp.exp(cosine / 0.1)
    negatives = jnp.sum(jnp.where(positive | itself, 0, exponential), axis=1, keepdims=True)
    each = -jnp.log(exponential / (exponential + negatives))
    return jnp.sum(jnp.where(positive, each, 0), axis=1) / positive.sum(axis=1)


def ours_vicreg(first: jax.Array, second: jax.Array, y: jax.Array) -> jax.Array:
    terms = losses.vicreg_loss(first, second)
    return terms.invariance + terms.variance + terms.covariance


def naive_vicreg(first: jax.Array, second: jax.Array, y: jax.Array) -> jax.Array:
    total = 25 * jnp.mean((first - second) ** 2, axis=1)
    for x in (first, second):
        covariance = jnp.cov(x.T)
        off = jnp.where(jnp.eye(x.shape[1], dtype=bool), 0, covariance)
        spread = jnp.sqrt(jnp.var(x, axis=0, ddof=1) + 1e-4)
        total += 12.5 * jnp.mean(jax.nn.relu(1 - spread)) + jnp.sum(off**2) / x.shape[1]
    return total


def rival(name: str, **keywords: Any) -> Callable[[dict[str, np.ndarray]], Any]:
    """A pytorch-metric-learning loss; its weights, where it has some, are our prototypes."""

    def make(arrays: dict[str, np.ndarray]) -> Any:
        import pytorch_metric_learning.losses
        import torch

        kind = getattr(pytorch_metric_learning.losses, name)
        if "prototypes" not in arrays:
            return kind(**keywords)
        classes, dim = arrays["prototypes"].shape
        module = kind(num_classes=classes, embedding_size=dim, **keywords)
        module.W.data = torch.from_numpy(arrays["prototypes"].T.copy())
        return module

    return make


def normalized(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A loss of unit vectors as one of raw vectors: all arguments but the labels."""

    def run(*arguments: Any, **keywords: Any) -> jax.Array:
        return loss(*map(unit, arguments[:-1]), arguments[-1], **keywords)

    return run


ONE, SEVERAL = ("embeddings", "prototypes"), ("embeddings", "several")
ENTRIES: Sequence[Entry] = (
    Entry(
        "prototypical",
        ONE,
        normalized(losses.prototypical_loss),
        functools.partial(naive_softmax, temperature=0.07),
    ),
    Entry(
        "multi_prototype", SEVERAL, normalized(losses.multi_prototype_loss), naive_multi_prototype
    ),
    Entry("negative_prototype", ONE, ours_negative, naive_negative, closed=closed_negative),
    Entry(
        "softmax",
        ONE,
        normalized(losses.proxy_softmax_loss),
        functools.partial(naive_softmax, temperature=0.05),
        rival("NormalizedSoftmaxLoss", temperature=0.05),
    ),
    Entry(
        "arcface",
        ONE,
        normalized(losses.arcface_loss),
        naive_arcface,
        rival("ArcFaceLoss", margin=float(np.degrees(0.5)), scale=64),
    ),
    Entry(
        "cosface",
        ONE,
        normalized(losses.cosface_loss),
        naive_cosface,
        rival("CosFaceLoss", margin=0.35, scale=64),
    ),
    Entry("adacos", ONE, adaptive(losses.adacos_loss, 1), naive_adacos),
    Entry(
        "sub_cluster_adacos",
        SEVERAL,
        adaptive(losses.sub_cluster_adacos_loss, SUB_PROTOTYPES),
        naive_sub_cluster,
    ),
    Entry("adaproj", SEVERAL, adaptive(losses.adaproj_loss, 1), naive_adaproj),
    Entry(
        "prototypical_network",
        ONE,
        # Raw vectors are far apart: at temperature 1 the softmax would be 0 and 1.
        functools.partial(losses.prototypical_network_loss, temperature=64.0),
        naive_prototypical_network,
    ),
    Entry("center", ONE, losses.center_loss, chunk=False),
    Entry(
        "supervised_contrastive",
        ("embeddings",),
        normalized(losses.supervised_contrastive_loss),
        naive_supervised_contrastive,
        rival("SupConLoss", temperature=0.1),
        group=8,
    ),
    Entry(
        "nt_xent",
        ("embeddings",),
        normalized(losses.nt_xent_loss),
        naive_nt_xent,
        rival("NTXentLoss", temperature=0.1),
        group=2,
    ),
    Entry(
        "vicreg",
        ("embeddings", "second"),
        ours_vicreg,
        naive_vicreg,
        rival("VICRegLoss"),
        group=1,
        chunk=False,
    ),
)
