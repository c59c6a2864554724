"""What the loss benchmark compares the losses with.

``ENTRIES`` names every loss up to four ways: ours; the formula typed into JAX, with optax's cross
entropy (or its NT-Xent) where that is the loss, or with plain operations; and the same loss of
pytorch-metric-learning. All take raw vectors and bring them to unit length themselves where the
loss wants it, so that the same work is timed.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.nn import one_hot

from asdproto import losses
from asdproto.prototypes import l2_normalize as unit
from asdproto.prototypes import sample_mix

SUB_PROTOTYPES = 4
MIX_KEY = jax.random.key(17)
Loss = Callable[..., jax.Array]
TorchLoss = Callable[[dict[str, np.ndarray], np.ndarray], Callable[[], Any]]
ntxent = functools.partial(optax.losses.ntxent, temperature=0.1)


@dataclass(frozen=True, eq=False)
class Entry:
    """A loss and its rivals.

    Attributes:
      name: Of the loss.
      arrays: Its differentiable arguments: "embeddings" [batch, dim], "second" likewise,
        "prototypes" [classes, dim], "several" [classes, SUB_PROTOTYPES, dim].
      ours: From those, labels and keywords to losses.
      optax: From those and labels to losses, the same with one of optax's losses.
      naive: As ``optax``, with plain operations.
      torch: From the numpy arrays and labels to a call of the rival: loss and gradients, which are
        those of ours in the same order.
      group: Examples that share a label, for losses within a batch; 0 for random classes.
      chunk: Whether it can be computed by pieces.
      more: Further differentiable arguments, by name.
    """

    name: str
    arrays: tuple[str, ...]
    ours: Loss
    optax: Loss | None = None
    naive: Loss | None = None
    torch: TorchLoss | None = None
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


def rival(
    name: str, run: Callable[..., Any] = lambda module, *rest: module(*rest), **keywords: Any
) -> TorchLoss:
    """A loss of that library; its weights, where it has some, are our prototypes.

    ``run`` calls it with embeddings, second embeddings if there are some, and labels.
    """

    def make(arrays: dict[str, np.ndarray], labels: np.ndarray) -> Callable[[], Any]:
        import pytorch_metric_learning.losses
        import torch
        from pytorch_metric_learning.reducers import MeanReducer

        on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
        device = "cuda" if on_gpu else "cpu"
        names = [name for name in ("embeddings", "second") if name in arrays]
        vectors = [torch.from_numpy(arrays[name]).to(device).requires_grad_() for name in names]
        target, leaves = torch.from_numpy(labels).to(device), list(vectors)
        kind: Any = getattr(pytorch_metric_learning.losses, name)
        own = arrays.get("prototypes", arrays.get("several"))
        if own is None:
            # Of a mean over those that are not 0, which it has by default, ours is no copy.
            reducer = {"reducer": MeanReducer()} if "Triplet" in name else {}
            module = kind(**keywords, **reducer).to(device)
        else:
            module = kind(num_classes=len(own), embedding_size=own.shape[-1], **keywords)
            (weights,) = module.to(device).parameters()
            rows = own.reshape(-1, own.shape[-1])
            flipped = weights.shape != rows.shape
            weights.data = torch.from_numpy((rows.T if flipped else rows).copy()).to(device)
            leaves.append(weights)

        def call() -> tuple[Any, list[Any]]:
            for leaf in leaves:
                leaf.grad = None
            value = run(module, *vectors, target)
            value.backward()
            if on_gpu:
                torch.cuda.synchronize()
            gradients = [leaf.grad for leaf in leaves]
            if own is not None:
                last = gradients[-1].T if flipped else gradients[-1]
                gradients[-1] = last.reshape(own.shape)
            return value.detach(), gradients

        return call

    return make


def cross_entropy(logits: Callable[..., jax.Array]) -> Loss:
    """Optax's, of logits from embeddings, prototypes and labels."""

    def run(z: jax.Array, p: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits(z, p, y), y)

    return run


def cosine(z: jax.Array, p: jax.Array) -> jax.Array:
    """Of every pair: ``[batch, classes]``, or ``[batch, classes, several]``."""
    return jnp.einsum("bd,...d->b...", unit(z), unit(p))


def scaled(factor: float) -> Loss:
    return cross_entropy(lambda z, p, y: factor * cosine(z, p))


def widened(cosines: jax.Array, own: jax.Array) -> jax.Array:
    """ArcFace's logits; of several prototypes, those of the nearest."""
    cosines = cosines if cosines.ndim == 2 else cosines.max(axis=2)
    angle = jnp.arccos(jnp.clip(cosines, -1 + 1e-7, 1 - 1e-7))
    return 64 * jnp.cos(angle + 0.5 * own)


@cross_entropy
def arcface(z: jax.Array, p: jax.Array, y: jax.Array) -> jax.Array:
    return widened(cosine(z, p), one_hot(y, len(p)))


@cross_entropy
def cosface(z: jax.Array, p: jax.Array, y: jax.Array) -> jax.Array:
    return 64 * (cosine(z, p) - 0.35 * one_hot(y, len(p)))


@cross_entropy
def proxy_nca(z: jax.Array, p: jax.Array, y: jax.Array) -> jax.Array:
    return 9 * (2 * cosine(z, p) - jnp.sum(unit(p) ** 2, axis=1))


@cross_entropy
def sphereface(z: jax.Array, p: jax.Array, y: jax.Array) -> jax.Array:
    length = jnp.linalg.norm(z, axis=1, keepdims=True)
    cosines = cosine(z, p)
    angle = 2 * jnp.arccos(jnp.clip(cosines, -1 + 1e-7, 1 - 1e-7))
    turns = jnp.floor(angle / jnp.pi)
    multiplied = (-1) ** turns * jnp.cos(angle) - 2 * turns
    return length * jnp.where(one_hot(y, len(p)) > 0, multiplied, cosines)


@cross_entropy
def soft_triple(z: jax.Array, p: jax.Array, y: jax.Array) -> jax.Array:
    scores = cosine(z, p)
    similarity = jnp.sum(jax.nn.softmax(10 * scores) * scores, axis=2)
    return 20 * (similarity - 0.01 * one_hot(y, len(p)))


@cross_entropy
def prototypical_network(z: jax.Array, p: jax.Array, y: jax.Array) -> jax.Array:
    return (2 * z @ p.T - jnp.sum(p**2, axis=1)) / 64


def naive_center(z: jax.Array, p: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sum((z - p[y]) ** 2, axis=1) / 2


def focal(z: jax.Array, p: jax.Array, y: jax.Array) -> jax.Array:
    loss = scaled(20)(z, p, y)
    return (1 - jnp.exp(-loss)) ** 2 * loss


def naive_multi_prototype(z: jax.Array, p: jax.Array, y: jax.Array) -> jax.Array:
    logits = cosine(z, p) / 0.07
    own = jnp.take_along_axis(logits, y[:, None, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=(1, 2))[:, None] - own, axis=1)


def mixed(loss: Loss) -> Loss:
    """A loss with coefficients of mixing, which are drawn."""

    def run(z: jax.Array, p: jax.Array, y: jax.Array, **keywords: Any) -> jax.Array:
        mix = sample_mix(MIX_KEY, (len(z), *p.shape[:-1]))
        return loss(unit(z), unit(p), y, mix, **keywords)

    return run


def naive_negative(z: jax.Array, p: jax.Array, y: jax.Array, mix: jax.Array) -> jax.Array:
    """Eq. 6 in closed form, by class."""
    scores, mix = (x.reshape(len(z), len(p), -1) for x in (cosine(z, p), mix))
    negatives = mix + (1 - mix) * scores
    negatives = jnp.where(one_hot(y, len(p))[..., None] > 0, -jnp.inf, negatives)
    logits = jnp.concatenate([scores, negatives], axis=2) / 0.07
    own = jnp.take_along_axis(scores, y[:, None, None], axis=1)[:, 0] / 0.07
    return jnp.mean(jax.nn.logsumexp(logits, axis=(1, 2))[:, None] - own, axis=1)


def adaptive(loss: Callable[..., Any], sub_clusters: int) -> Loss:
    def run(z: jax.Array, p: jax.Array, y: jax.Array, **keywords: Any) -> jax.Array:
        state = losses.adacos_init(p.shape[0], sub_clusters)
        return loss(unit(z), unit(p), y, state, **keywords)[0]

    return run


def renewed(sums: jax.Array, own: jax.Array) -> jax.Array:
    """AdaCos's scale."""
    angle = jnp.minimum(jnp.pi / 4, jnp.median(jnp.arccos(jnp.clip(own, -1, 1))))
    return jax.lax.stop_gradient(jnp.maximum(jnp.log(jnp.mean(sums)) / jnp.cos(angle), 1))


def adacos_logits(cosines: jax.Array, y: jax.Array) -> jax.Array:
    scale, own = losses.adacos_init(cosines.shape[1]).scale, one_hot(y, cosines.shape[1])
    sums = jnp.sum(jnp.where(own > 0, 0, jnp.exp(scale * cosines)), axis=1)
    return renewed(sums, jnp.sum(own * cosines, axis=1)) * cosines


@cross_entropy
def sub_cluster_adacos(z: jax.Array, p: jax.Array, y: jax.Array) -> jax.Array:
    cosines, scale = cosine(z, p), losses.adacos_init(*p.shape[:2]).scale
    own = jnp.take_along_axis(cosines, y[:, None, None], axis=1)[:, 0].max(axis=1)
    sums = jnp.sum(jnp.exp(scale * cosines), axis=(1, 2))
    return jax.nn.logsumexp(renewed(sums, own) * cosines, axis=2)


@cross_entropy
def adaproj(z: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
    projected = unit(jnp.einsum("bcm,cmd->bcd", cosine(z, w), unit(w)))
    return adacos_logits(jnp.einsum("bd,bcd->bc", unit(z), projected), y)


def within_batch(equation: Callable[..., jax.Array]) -> Loss:
    """A loss from cosines of all pairs, and which are of positives and of negatives."""

    def run(z: jax.Array, y: jax.Array) -> jax.Array:
        same, itself = y[:, None] == y, jnp.eye(len(y), dtype=bool)
        return equation(cosine(z, z), same & ~itself, ~same)

    return run


@within_batch
def naive_supervised_contrastive(cosines: jax.Array, own: jax.Array, others: jax.Array) -> Any:
    log_probability = jax.nn.log_softmax(jnp.where(own | others, cosines / 0.1, -jnp.inf))
    return -jnp.sum(jnp.where(own, log_probability, 0), axis=1) / own.sum(axis=1)


@within_batch
def naive_nt_xent(cosines: jax.Array, own: jax.Array, others: jax.Array) -> jax.Array:
    exponential = jnp.exp(cosines / 0.1)
    negatives = jnp.sum(jnp.where(others, exponential, 0), axis=1, keepdims=True)
    each = -jnp.log(exponential / (exponential + negatives))
    return jnp.sum(jnp.where(own, each, 0), axis=1) / own.sum(axis=1)


def hardest(module: Any, embeddings: Any, labels: Any) -> Any:
    from pytorch_metric_learning.miners import BatchHardMiner

    return module(embeddings, labels, BatchHardMiner()(embeddings, labels))


def two_views(module: Any, first: Any, second: Any, labels: Any) -> Any:
    del labels
    return module(first, ref_emb=second)


def two_of_each_class(module: Any, first: Any, second: Any, labels: Any) -> Any:
    import torch

    module.distance.normalize_embeddings = False
    return module(torch.cat([first, second]), torch.cat([labels, labels]))


@cross_entropy
def n_pair(first: jax.Array, second: jax.Array, y: jax.Array) -> jax.Array:
    return first @ second.T


def of_views(loss: Loss) -> Loss:
    """A loss without labels."""
    return lambda first, second, y: loss(first, second)


def vicreg(first: jax.Array, second: jax.Array, y: jax.Array) -> jax.Array:
    return sum(losses.vicreg_loss(first, second), jnp.zeros(()))


def naive_vicreg(first: jax.Array, second: jax.Array, y: jax.Array) -> jax.Array:
    total = 25 * jnp.mean((first - second) ** 2, axis=1)
    for x in (first, second):
        covariance = jnp.cov(x.T)
        off = jnp.where(jnp.eye(x.shape[1], dtype=bool), 0, covariance)
        spread = jnp.sqrt(jnp.var(x, axis=0, ddof=1) + 1e-4)
        total += 12.5 * jnp.mean(jax.nn.relu(1 - spread)) + jnp.sum(off**2) / x.shape[1]
    return total


def naive_barlow_twins(first: jax.Array, second: jax.Array, y: jax.Array) -> jax.Array:
    a, b = ((x - x.mean(axis=0)) / jnp.sqrt(x.var(axis=0) + 1e-5) for x in (first, second))
    same, correlation = jnp.eye(a.shape[1]), a.T @ b / len(a)
    return jnp.sum(jnp.where(same > 0, (1 - correlation) ** 2, 5e-3 * correlation**2))


def magface(z: jax.Array, p: jax.Array, y: jax.Array) -> jax.Array:
    length = jnp.clip(jnp.linalg.norm(z, axis=1), 10, 110)
    margin = 0.45 + (length - 10) / 100 * 0.35
    logits = widened(cosine(z, p), 2 * margin[:, None] * one_hot(y, len(p)))
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return entropy + 35 * (length / 110**2 + 1 / length)


def normalized(loss: Loss, **hyper: Any) -> Loss:
    """A loss of unit vectors as one of raw vectors: all arguments but the labels."""

    def run(*arguments: Any, **keywords: Any) -> jax.Array:
        return loss(*map(unit, arguments[:-1]), arguments[-1], **hyper, **keywords)

    return run


def unit_prototypes(loss: Loss, **hyper: Any) -> Loss:
    """A loss of embeddings of any length."""
    return lambda z, p, y, **keywords: loss(z, unit(p), y, **hyper, **keywords)


def adjusted(z: jax.Array, p: jax.Array, y: jax.Array, **keywords: Any) -> jax.Array:
    counts = 1 + jnp.arange(len(p), dtype=jnp.float32)
    return losses.logit_adjusted_loss(unit(z), unit(p), y, counts, **keywords)


@cross_entropy
def adjusted_softmax(z: jax.Array, p: jax.Array, y: jax.Array) -> jax.Array:
    return 20 * cosine(z, p) + jnp.log(1 + jnp.arange(len(p), dtype=jnp.float32))


ANGLE: dict[str, Any] = {"margin": float(np.degrees(0.5)), "scale": 64}
# Ours, where it is not that of unit vectors by its defaults.
OURS: Mapping[str, Loss] = {
    "negative_prototype": mixed(losses.negative_prototype_loss),
    "multi_negative_prototype": mixed(losses.multi_negative_prototype_loss),
    # Raw vectors are far apart: at temperature 1 the softmax would be 0 and 1.
    "prototypical_network": functools.partial(losses.prototypical_network_loss, temperature=64.0),
    "center": losses.center_loss,
    "softmax": normalized(losses.proxy_softmax_loss),
    "logit_adjusted": adjusted,
    "sphereface": unit_prototypes(losses.sphereface_loss, margin=2.0),
    "magface": unit_prototypes(losses.magface_loss),
    "adacos": adaptive(losses.adacos_loss, 1),
    "sub_cluster_adacos": adaptive(losses.sub_cluster_adacos_loss, SUB_PROTOTYPES),
    "adaproj": adaptive(losses.adaproj_loss, 1),
    "triplet, hard": normalized(losses.triplet_loss, hard=True),
    "n_pair": of_views(losses.n_pair_loss),
    "vicreg": vicreg,
    "barlow_twins": of_views(losses.barlow_twins_loss),
}
# pytorch-metric-learning's, where it has it.
TORCH: Mapping[str, TorchLoss] = {
    "softmax": rival("NormalizedSoftmaxLoss", temperature=0.05),
    "proxy_nca": rival("ProxyNCALoss", softmax_scale=9),
    "soft_triple": rival("SoftTripleLoss", centers_per_class=SUB_PROTOTYPES),
    "proxy_anchor": rival("ProxyAnchorLoss", margin=0.1, alpha=32),
    "arcface": rival("ArcFaceLoss", **ANGLE),
    "sub_center_arcface": rival("SubCenterArcFaceLoss", sub_centers=SUB_PROTOTYPES, **ANGLE),
    "cosface": rival("CosFaceLoss", margin=0.35, scale=64),
    "sphereface": rival("SphereFaceLoss", margin=2, scale=1),
    "supervised_contrastive": rival("SupConLoss", temperature=0.1),
    "nt_xent": rival("NTXentLoss", temperature=0.1),
    "multi_similarity": rival("MultiSimilarityLoss"),
    "circle": rival("CircleLoss"),
    "triplet": rival("TripletMarginLoss", margin=0.2),
    "triplet, hard": rival("TripletMarginLoss", hardest, margin=0.2),
    "n_pair": rival("NPairsLoss", two_of_each_class),
    "vicreg": rival("VICRegLoss", two_views),
}


def entry(name: str, arrays: tuple[str, ...], **more: Any) -> Entry:
    """A loss with those of :data:`OURS` and :data:`TORCH`, and what else :class:`Entry` says."""
    ours = OURS.get(name) or normalized(getattr(losses, f"{name}_loss"))
    return Entry(name, arrays, ours, torch=TORCH.get(name), **more)


ONE, SEVERAL = ("embeddings", "prototypes"), ("embeddings", "several")
BATCH, VIEWS = ("embeddings",), ("embeddings", "second")
ENTRIES: Sequence[Entry] = (
    entry("prototypical", ONE, optax=scaled(1 / 0.07)),
    entry("multi_prototype", SEVERAL, naive=naive_multi_prototype),
    entry("negative_prototype", ONE, naive=mixed(naive_negative)),
    entry("multi_negative_prototype", SEVERAL, naive=mixed(naive_negative)),
    entry("angular_prototypical", ONE, optax=scaled(10)),
    entry("prototypical_network", ONE, optax=prototypical_network),
    entry("center", ONE, naive=naive_center, chunk=False),
    entry("softmax", ONE, optax=scaled(20)),
    entry("logit_adjusted", ONE, optax=adjusted_softmax),
    entry("focal", ONE, optax=focal),
    entry("proxy_nca", ONE, optax=proxy_nca),
    entry("soft_triple", SEVERAL, optax=soft_triple),
    entry("proxy_anchor", ONE, chunk=False),
    entry("arcface", ONE, optax=arcface),
    entry("sub_center_arcface", SEVERAL, optax=arcface),
    entry("cosface", ONE, optax=cosface),
    entry("sphereface", ONE, optax=sphereface),
    entry("magface", ONE, optax=magface),
    entry("adacos", ONE, optax=cross_entropy(lambda z, p, y: adacos_logits(cosine(z, p), y))),
    entry("sub_cluster_adacos", SEVERAL, optax=sub_cluster_adacos),
    entry("adaproj", SEVERAL, optax=adaproj),
    entry("supervised_contrastive", BATCH, naive=naive_supervised_contrastive, group=8),
    entry("nt_xent", BATCH, optax=ntxent, naive=naive_nt_xent, group=2),
    entry("multi_similarity", BATCH, group=8),
    entry("circle", BATCH, group=8),
    entry("triplet", BATCH, group=8),
    entry("triplet, hard", BATCH, group=8),
    entry("n_pair", VIEWS, optax=n_pair, group=1, chunk=False),
    entry("vicreg", VIEWS, naive=naive_vicreg, group=1, chunk=False),
    entry("barlow_twins", VIEWS, naive=naive_barlow_twins, group=1, chunk=False),
)
