"""One entry per loss: how to call it, how to call its oracle, and what it supports."""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from asdproto import losses
from tests.losses import oracles

CLASSES, DIM, BATCH = 7, 5, 8  # a prime number of classes, so that pieces leave a rest


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
            elif name == "counts":
                arrays[name] = rng.uniform(2, 20, shape)
            else:
                x = rng.normal(size=shape) + (0.1 if letters.endswith("D") else 0)
                unit = letters.endswith("D") and self.raw not in (True, name)
                arrays[name] = x / np.linalg.norm(x, axis=-1, keepdims=True) if unit else x
        labels = rng.integers(0, 3 if self.in_batch else classes, batch)
        return arrays, labels

    def class_axes(self):
        """Axis of classes in each floating argument that has one."""
        return {n: letters.index("C") for n, letters in self.arrays.items() if "C" in letters}

    def __str__(self):
        return self.name


def prototypes(name, hyper, *, several=False, loss=None, oracle=None, more=None, **extra):
    """For losses of embeddings, prototypes, labels and ``more`` arrays."""
    loss = loss or getattr(losses, f"{name}_loss")
    oracle = oracle or getattr(oracles, name)
    letters = {"embeddings": "BD", "prototypes": "CMD" if several else "CD", **(more or {})}

    # By name: transformations of JAX hand dictionaries back with their keys sorted.
    def call(arrays, labels, **keywords):
        z, p, *rest = (arrays[name] for name in letters)
        if "bias" in arrays:
            return loss(z, p, labels, bias=rest[0], **keywords)
        return loss(z, p, labels, *rest, **keywords)

    def call_oracle(arrays, labels, present, **hyper):
        z, p, *rest = (arrays[name] for name in letters)
        return oracle(z, p, labels, present, *rest, **hyper)

    return Case(name, letters, call, call_oracle, hyper, **extra)


def adaptive(name, several):
    """For losses with a scale state, the incoming scale of which is a hyper-parameter here."""
    loss = getattr(losses, f"{name}_loss")

    def call(z, p, labels, *, scale, **keywords):
        return loss(z, p, labels, losses.AdaCosState(jnp.asarray(scale)), **keywords)[0]

    # The renewed scale has no gradient by design, but a finite difference would see it.
    fixed = {"adaptive": False}
    return prototypes(name, {"scale": 3.0}, several=several, loss=call, fixed=fixed)


def pairs(name, hyper, **options):
    """For losses of the pairs of a batch; options are keywords of the loss."""
    loss = functools.partial(getattr(losses, f"{name.removesuffix('_hard')}_loss"), **options)
    oracle = getattr(oracles, name)
    return Case(
        name,
        {"embeddings": "BD"},
        lambda arrays, labels, **keywords: loss(arrays["embeddings"], labels, **keywords),
        lambda arrays, labels, present, **hyper: oracle(arrays["embeddings"], labels, **hyper),
        hyper,
        in_batch=True,
        detached=name == "circle",
    )


def whole(name, arrays, hyper, loss, **extra):
    """For losses that are one number a batch: each example that counts stands for it."""
    oracle = getattr(oracles, name)

    def call(values, labels, *, where=None, **keywords):
        total = loss(*(values[name] for name in arrays), labels, where=where, **keywords)
        total = jnp.broadcast_to(total, labels.shape)
        return total if where is None else jnp.where(where, total, 0)

    def call_oracle(values, labels, present, **hyper):
        return np.broadcast_to(oracle(*values.values(), labels, **hyper), labels.shape)

    options = {"in_batch": True, "pieces": False, "whole": True}
    return Case(name, arrays, call, call_oracle, hyper, **options, **extra)


def vicreg(first, second, labels, **keywords):
    return sum(losses.vicreg_loss(first, second, **keywords))


MIX, BIAS = {"mix": "BC"}, {"bias": "C"}
CASES = [
    prototypes("prototypical", {"temperature": 0.3}),
    prototypes("multi_prototype", {"temperature": 0.3}, several=True),
    prototypes("negative_prototype", {"temperature": 0.3}, more=MIX, raw=True),
    prototypes(
        "negative_prototype_normalized",
        {"temperature": 0.3},
        loss=functools.partial(losses.negative_prototype_loss, normalize_mixed=True),
        oracle=functools.partial(oracles.negative_prototype, normalize=True),
        more=MIX,
        raw=True,
    ),
    prototypes("multi_negative_prototype", {"temperature": 0.3}, several=True, more={"mix": "BCM"}),
    prototypes("angular_prototypical", {"scale": 4.0}),
    prototypes("prototypical_network", {"temperature": 1.5}, raw=True),
    prototypes("center", {}, raw=True, pieces=False),
    prototypes("proxy_softmax", {"temperature": 0.3}, raw=True, more=BIAS),
    prototypes("logit_adjusted", {"temperature": 0.3, "adjustment": 0.8}, more={"counts": "C"}),
    prototypes("focal", {"temperature": 0.3, "focus": 1.5}, more=BIAS),
    prototypes("proxy_nca", {"temperature": 0.4}, oracle=oracles.prototypical_network),
    prototypes("soft_triple", {"temperature": 0.3, "margin": 0.1, "scale": 5.0}, several=True),
    prototypes("arcface", {"margin": 0.4, "scale": 5.0}),
    prototypes("sub_center_arcface", {"margin": 0.4, "scale": 5.0}, several=True),
    prototypes("cosface", {"margin": 0.3, "scale": 5.0}),
    prototypes("sphereface", {"margin": 2.5, "scale": 2.0}, raw="embeddings"),
    prototypes(
        "magface",
        {"scale": 5.0, "length_weight": 0.7},
        loss=functools.partial(losses.magface_loss, margins=(0.2, 0.6), lengths=(1.0, 4.0)),
        raw="embeddings",
    ),
    adaptive("adacos", several=False),
    adaptive("sub_cluster_adacos", several=True),
    adaptive("adaproj", several=True),
    pairs("supervised_contrastive", {"temperature": 0.3}),
    pairs("nt_xent", {"temperature": 0.3}),
    pairs("multi_similarity", {"alpha": 2.0, "beta": 5.0, "base": 0.4}),
    pairs("circle", {"margin": 0.3, "scale": 3.0}),
    pairs("triplet", {"margin": 0.5}),
    pairs("triplet_hard", {"margin": 0.5}, hard=True),
    Case(
        "n_pair",
        {"embeddings": "BD", "positives": "BD"},
        lambda arrays, labels, **more: losses.n_pair_loss(
            arrays["embeddings"], arrays["positives"], **more
        ),
        lambda arrays, labels, present: oracles.n_pair(*arrays.values()),
        {},
        raw=True,
        in_batch=True,
        pieces=False,
    ),
    whole(
        "proxy_anchor",
        {"embeddings": "BD", "prototypes": "CD"},
        {"margin": 0.2, "scale": 3.0},
        lambda *arguments, **more: losses.proxy_anchor_loss(*arguments, **more).mean(),
    ),
    whole("vicreg", {"first": "BD", "second": "BD"}, {"eps": 1e-4}, vicreg, raw=True),
    whole(
        "barlow_twins",
        {"first": "BD", "second": "BD"},
        {"off_diagonal": 0.05},
        lambda first, second, labels, **more: losses.barlow_twins_loss(first, second, **more),
        raw=True,
    ),
]
PROTOTYPE_CASES = [case for case in CASES if not case.in_batch]
