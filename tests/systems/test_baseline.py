"""Attribute classification: its loss against float64, and tiny runs of it."""

import dataclasses
import types

import jax
import numpy as np

from asdproto.config import from_dict, to_dict
from asdproto.data.dataset import section_keys
from asdproto.data.dcase import Clip
from asdproto.systems import baseline
from asdproto.systems.prototype import EncoderConfig
from asdproto.training.devices import RunOptions, use_devices
from asdproto.training.stage import Hyper, Pretraining
from tests.training import tiny

DIM, TEMPERATURE = 6, 0.2
IMPRINTED = (False, True, False, True)
CLASSES = [("fan", "00", domain, f"n_{n}") for n in range(2) for domain in ("source", "target")]


def units(shape, seed):
    vectors = np.random.default_rng(seed).normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def slow(embeddings, raw, labels, means):
    """Loss per example, and the gradients of their sum by embeddings and by raw weights."""
    losses, by_embedding = [], np.zeros_like(embeddings)
    by_raw = np.zeros_like(raw)
    lengths = np.sqrt((raw**2).sum(axis=1))
    weights = [means[c] if fixed else raw[c] / lengths[c] for c, fixed in enumerate(IMPRINTED)]
    for row, (z, label) in enumerate(zip(embeddings, labels, strict=True)):
        exponentials = [np.exp(z @ w / TEMPERATURE) for w in weights]
        shares = [e / sum(exponentials) for e in exponentials]
        losses.append(-np.log(shares[label]))
        for c, w in enumerate(weights):
            slope = (shares[c] - (c == label)) / TEMPERATURE
            by_embedding[row] += slope * w
            if not IMPRINTED[c]:
                by_raw[c] += slope * (z - (z @ w) * w) / lengths[c]
    return np.array(losses), by_embedding, by_raw


def test_loss_and_gradient_of_imprinted_classes_equal_float64():
    embeddings, means = units((9, DIM), 0), units((4, DIM), 1)
    raw = np.random.default_rng(2).normal(size=(4, DIM))
    labels = np.random.default_rng(3).integers(0, 4, 9)
    objective = baseline.softmax_objective(Pretraining(), imprinted=IMPRINTED)
    assert objective.epoch_prototypes
    state = types.SimpleNamespace(prototypes=np.float32(means)[:, None], loss_state={})
    batch = types.SimpleNamespace(labels=labels, where=None)
    hyper = Hyper(temperature=np.float32(TEMPERATURE))

    def total(embeddings, raw):
        losses, _ = objective.loss({"prototypes": raw}, state, embeddings, batch, hyper=hyper)
        return losses.sum(), losses

    arguments = (np.float32(embeddings), np.float32(raw))
    gradients, losses = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(*arguments)
    expected = slow(embeddings, raw, labels, means)
    # float32 of numbers up to 5.
    for found, wanted in zip((losses, *gradients), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=5e-6)


def test_only_target_classes_are_imprinted():
    plain = baseline.BaselineSystem()
    assert plain.objective("pretrain", CLASSES).name == "softmax"
    imprinting = dataclasses.replace(plain, imprint=True)
    assert imprinting.objective("pretrain", CLASSES).name == "softmax_imprinted"
    assert imprinting.objective("pretrain", CLASSES[::2]).name == "softmax"
    assert imprinting.objective("finetune", CLASSES).name == "npe"


class Small(baseline.BaselineSystem):
    """With the tiny encoder."""

    network = tiny.System.network


def test_both_stages_run_and_score():
    system = Small(
        encoder=EncoderConfig(crop=tiny.CROP),
        pretrain=dataclasses.replace(tiny.PRETRAIN, epochs=6),
        finetune=dataclasses.replace(tiny.FINETUNE, epochs=2),
        imprint=True,
        stages=("pretrain", "finetune"),
    )
    data = tiny.make_data()
    classes = [("fan", "00", "source", f"n_{n}") for n in range(tiny.CLASSES - 1)]
    classes.append(("fan", "00", "target", "n_0"))
    clips = [
        Clip(f"{row}.wav", *classes[label][:3], "train", "normal", classes[label][3])
        for row, label in enumerate(data.labels)
    ]
    data = dataclasses.replace(data, train_clips=clips, classes=classes)
    found = system.train(data, RunOptions(None, use_devices(1)), [0])
    assert tuple(found) == system.names == ("baseline", "finetune")
    keys = section_keys(data.train_clips)
    first, second = (fitted[0].model.compare(data.train, keys).scores for fitted in found.values())
    assert np.isfinite(first).all()
    assert np.abs(first - second).max() > 1e-3
    # Classification parts the classes.
    (fitted,) = found["baseline"]
    cosines = fitted.embeddings @ fitted.embeddings.T
    own = data.labels[:, None] == data.labels
    assert cosines[own].mean() > cosines[~own].mean() + 0.3
    restored = from_dict(Small, to_dict(system)).restore(fitted.model.to_arrays())
    np.testing.assert_array_equal(restored.compare(data.train, keys).scores, first)
