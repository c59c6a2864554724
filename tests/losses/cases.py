"""One entry per loss: how to call it, how to call its oracle, and what it supports."""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from asdproto import losses
from tests.losses import oracles

CLASSES, DIM, BATCH = 6, 5, 7


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A loss.

    Attributes:
      name: Of the test.
      arrays: Floating arguments: name to shape, in terms of B, C, M, D; unit vectors where the
        last letter is D.
      loss: From floating arguments, labels and keywords to losses per example.
      oracle: From float64 arguments, labels, classes present and hyper-parameters to the same.
      hyper: Hyper-parameters, all of which may be traced.
      raw: Whether vectors have any length; a name, if only those of one argument.
      in_batch: Whether examples are compared with each other instead of with prototypes.
      pieces: Whether it takes chunk_size.
      fixed: Keywords under which the value is differentiable in every respect.
      detached: Whether the gradient is by design not that of the value.
      whole: Whether it is one number a batch, which each example that counts stands for here.
    """

    name: str
    arrays: dict[str, str]
    loss: Callable
    oracle: Callable
    hyper: dict[str, float]
    raw: bool | str = False
    in_batch: bool = False
    pieces: bool = True
    fixed: dict = dataclasses.field(default_factory=dict)
    detached: bool = False
    whole: bool = False

    def make(self, seed=0, batch=BATCH, classes=CLASSES):
        """Asymmetric inputs: floating arguments in float64, and labels."""
        rng = np.random.default_rng(seed)
        sizes = {"B": batch, "C": classes, "M": 3, "D": DIM}
        arrays = {}
        for name, letters in self.arrays.items():
            shape = [sizes[letter] for letter in letters]
            if name == "mix":
                arrays[name] = rng.uniform(0.1, 0.7, shape)
            elif letters.endswith("D"):
                x = rng.normal(size=shape) + 0.1
                arrays[name] = (
                    x if self.raw in (True, name) else x / np.linalg.norm(x, axis=-1, keepdims=True)
                )
            elif name == "counts":
                arrays[name] = rng.uniform(2, 20, shape)
            else:
                arrays[name] = rng.normal(size=shape)
        labels = rng.integers(0, 3 if self.in_batch else classes, batch)
        return arrays, labels

    def class_axes(self):
        """Axis of classes in each floating argument that has one."""
        return {n: letters.index("C") for n, letters in self.arrays.items() if "C" in letters}

    def __str__(self):
        return self.name


def _prototypes(loss, oracle, *, arrays=None, **extra):
    """For losses of embeddings, prototypes, labels and at most one more array."""
    letters = {"embeddings": "BD", "prototypes": "CD"} | (arrays or {})

    # By name: transformations of JAX hand dictionaries back with their keys sorted.
    def call(arrays, labels, **keywords):
        z, p, *rest = (arrays[name] for name in letters)
        if "bias" in arrays:
            return loss(z, p, labels, bias=rest[0], **keywords)
        return loss(z, p, labels, *rest, **keywords)

    def call_oracle(arrays, labels, present, **hyper):
        z, p, *rest = (arrays[name] for name in letters)
        return oracle(z, p, labels, present, *rest, **hyper)

    return Case(arrays=letters, loss=call, oracle=call_oracle, **extra)


def _adaptive(loss, oracle, *, arrays, **extra):
    """For losses with a scale state, the incoming scale of which is a hyper-parameter here."""

    def call(values, labels, *, scale, **keywords):
        state = losses.AdaCosState(jnp.asarray(scale))
        return loss(*(values[name] for name in arrays), labels, state, **keywords)[0]

    def call_oracle(values, labels, present, **hyper):
        return oracle(*(values[name] for name in arrays), labels, present, **hyper)

    return Case(
        arrays=arrays,
        loss=call,
        oracle=call_oracle,
        hyper={"scale": 3.0},
        # The renewed scale has no gradient by design, but a finite difference would see it.
        fixed={"adaptive": False},
        **extra,
    )


def _whole(loss, oracle, *, arrays, **extra):
    """For losses that are one number a batch: each example that counts stands for it."""

    def call(values, labels, *, where=None, **keywords):
        total = loss(values, labels, where=where, **keywords)
        total = jnp.broadcast_to(total, labels.shape)
        return total if where is None else jnp.where(where, total, 0)

    def call_oracle(values, labels, present, **hyper):
        del present
        return np.broadcast_to(oracle(values, labels, **hyper), labels.shape)

    return Case(
        arrays=arrays,
        loss=call,
        oracle=call_oracle,
        in_batch=True,
        pieces=False,
        whole=True,
        **extra,
    )


def _vicreg(arrays, labels, **keywords):
    del labels
    terms = losses.vicreg_loss(arrays["first"], arrays["second"], **keywords)
    return terms.invariance + terms.variance + terms.covariance


def _contrastive(loss):
    return lambda arrays, labels, **keywords: loss(arrays["embeddings"], labels, **keywords)


def _contrastive_oracle(oracle):
    return lambda arrays, labels, present, **hyper: oracle(arrays["embeddings"], labels, **hyper)


def _normalized(oracle):
    return lambda *args, **hyper: oracle(*args, normalize=True, **hyper)


CASES = [
    _prototypes(
        losses.prototypical_loss,
        oracles.prototypical,
        name="prototypical",
        hyper={"temperature": 0.3},
    ),
    _prototypes(
        losses.multi_prototype_loss,
        oracles.multi_prototype,
        name="multi_prototype",
        arrays={"prototypes": "CMD"},
        hyper={"temperature": 0.3},
    ),
    _prototypes(
        losses.negative_prototype_loss,
        oracles.negative_prototype,
        name="negative_prototype",
        arrays={"mix": "BC"},
        hyper={"temperature": 0.3},
    ),
    _prototypes(
        lambda *args, **keywords: losses.negative_prototype_loss(
            *args, normalize_mixed=True, **keywords
        ),
        _normalized(oracles.negative_prototype),
        name="negative_prototype_normalized",
        arrays={"mix": "BC"},
        hyper={"temperature": 0.3},
    ),
    _prototypes(
        losses.multi_negative_prototype_loss,
        oracles.multi_negative_prototype,
        name="multi_negative_prototype",
        arrays={"prototypes": "CMD", "mix": "BCM"},
        hyper={"temperature": 0.3},
    ),
    _prototypes(
        losses.proxy_softmax_loss,
        oracles.softmax,
        name="proxy_softmax",
        arrays={"bias": "C"},
        hyper={"temperature": 0.3},
        raw=True,
    ),
    _prototypes(
        losses.arcface_loss,
        oracles.arcface,
        name="arcface",
        hyper={"margin": 0.4, "scale": 5.0},
    ),
    _prototypes(
        losses.cosface_loss,
        oracles.cosface,
        name="cosface",
        hyper={"margin": 0.3, "scale": 5.0},
    ),
    _adaptive(
        losses.adacos_loss,
        oracles.adacos,
        name="adacos",
        arrays={"embeddings": "BD", "prototypes": "CD"},
    ),
    _adaptive(
        losses.sub_cluster_adacos_loss,
        oracles.sub_cluster_adacos,
        name="sub_cluster_adacos",
        arrays={"embeddings": "BD", "prototypes": "CMD"},
    ),
    _adaptive(
        losses.adaproj_loss,
        oracles.adaproj,
        name="adaproj",
        arrays={"embeddings": "BD", "bases": "CMD"},
    ),
    _prototypes(
        losses.prototypical_network_loss,
        oracles.prototypical_network,
        name="prototypical_network",
        hyper={"temperature": 1.5},
        raw=True,
    ),
    _prototypes(
        losses.center_loss,
        oracles.center,
        name="center",
        hyper={},
        raw=True,
        pieces=False,
    ),
    _prototypes(
        losses.angular_prototypical_loss,
        oracles.angular_prototypical,
        name="angular_prototypical",
        hyper={"scale": 4.0},
    ),
    _prototypes(
        losses.sub_center_arcface_loss,
        oracles.sub_center_arcface,
        name="sub_center_arcface",
        arrays={"prototypes": "CMD"},
        hyper={"margin": 0.4, "scale": 5.0},
    ),
    _prototypes(
        losses.sphereface_loss,
        oracles.sphereface,
        name="sphereface",
        hyper={"margin": 2.5, "scale": 2.0},
        raw="embeddings",
    ),
    _prototypes(
        functools.partial(losses.magface_loss, margins=(0.2, 0.6), lengths=(1.0, 4.0)),
        oracles.magface,
        name="magface",
        hyper={"scale": 5.0, "length_weight": 0.7},
        raw="embeddings",
    ),
    _prototypes(
        losses.logit_adjusted_loss,
        oracles.logit_adjusted,
        name="logit_adjusted",
        arrays={"counts": "C"},
        hyper={"temperature": 0.3, "adjustment": 0.8},
    ),
    _prototypes(
        losses.focal_loss,
        oracles.focal,
        name="focal",
        arrays={"bias": "C"},
        hyper={"temperature": 0.3, "focus": 1.5},
    ),
    _prototypes(
        losses.proxy_nca_loss,
        oracles.prototypical_network,
        name="proxy_nca",
        hyper={"temperature": 0.4},
    ),
    _prototypes(
        losses.soft_triple_loss,
        oracles.soft_triple,
        name="soft_triple",
        arrays={"prototypes": "CMD"},
        hyper={"temperature": 0.3, "margin": 0.1, "scale": 5.0},
    ),
    *(
        Case(
            name=name,
            arrays={"embeddings": "BD"},
            loss=_contrastive(loss),
            oracle=_contrastive_oracle(oracle),
            hyper=hyper,
            in_batch=True,
            detached=name == "circle",
        )
        for name, loss, oracle, hyper in (
            (
                "supervised_contrastive",
                losses.supervised_contrastive_loss,
                oracles.supervised_contrastive,
                {"temperature": 0.3},
            ),
            ("nt_xent", losses.nt_xent_loss, oracles.nt_xent, {"temperature": 0.3}),
            (
                "multi_similarity",
                losses.multi_similarity_loss,
                oracles.multi_similarity,
                {"alpha": 2.0, "beta": 5.0, "base": 0.4},
            ),
            ("circle", losses.circle_loss, oracles.circle, {"margin": 0.3, "scale": 3.0}),
            ("triplet", losses.triplet_loss, oracles.triplet, {"margin": 0.5}),
            (
                "triplet_hard",
                functools.partial(losses.triplet_loss, hard=True),
                oracles.triplet_hard,
                {"margin": 0.5},
            ),
        )
    ),
    Case(
        name="n_pair",
        arrays={"embeddings": "BD", "positives": "BD"},
        loss=lambda arrays, labels, **more: losses.n_pair_loss(
            arrays["embeddings"], arrays["positives"], **more
        ),
        oracle=lambda arrays, labels, present: oracles.n_pair(*arrays.values()),
        hyper={},
        raw=True,
        in_batch=True,
        pieces=False,
    ),
    _whole(
        lambda arrays, labels, **more: losses.proxy_anchor_loss(
            arrays["embeddings"], arrays["prototypes"], labels, **more
        ).mean(),
        lambda arrays, labels, **hyper: oracles.proxy_anchor(*arrays.values(), labels, **hyper),
        name="proxy_anchor",
        arrays={"embeddings": "BD", "prototypes": "CD"},
        hyper={"margin": 0.2, "scale": 3.0},
    ),
    _whole(
        _vicreg,
        lambda arrays, labels, **hyper: sum(oracles.vicreg(*arrays.values(), **hyper)),
        name="vicreg",
        arrays={"first": "BD", "second": "BD"},
        hyper={"eps": 1e-4},
        raw=True,
    ),
    _whole(
        lambda arrays, labels, **more: losses.barlow_twins_loss(
            arrays["first"], arrays["second"], **more
        ),
        lambda arrays, labels, **hyper: oracles.barlow_twins(*arrays.values(), **hyper),
        name="barlow_twins",
        arrays={"first": "BD", "second": "BD"},
        hyper={"off_diagonal": 0.05},
        raw=True,
    ),
]
PROTOTYPE_CASES = [case for case in CASES if not case.in_batch]
