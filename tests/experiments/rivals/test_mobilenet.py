"""The classifiers of sections, MobileNetV2 and STgram-MFN: loss and score against formulas."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdproto.data.dataset import ClipArrays, section_keys
from asdproto.systems.embedding import window_starts
from asdproto.training.state import Batch
from experiments.rivals import mobilenet, stgram
from experiments.rivals.encoders import Part
from tests.experiments.rivals import tiny
from tests.experiments.rivals.tiny import one_block

__all__ = ["one_block"]

STATE = types.SimpleNamespace(loss_state={})


def _batch(labels, where=None):
    return Batch(jnp.arange(len(labels)), jnp.zeros(0), jnp.asarray(labels), where)


def test_the_loss_is_a_softmax_with_bias():
    rng = np.random.default_rng(0)
    z, kernel, bias = (
        rng.standard_normal((4, 5)),
        rng.standard_normal((3, 5)),
        rng.standard_normal(3),
    )
    labels, where = np.array([0, 2, 1, 1]), jnp.array([True, True, True, False])
    params = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    found, _ = mobilenet._loss(params, STATE, jnp.asarray(z), _batch(labels, where))
    logits = z @ kernel.T + bias
    expected = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(4), labels]
    np.testing.assert_allclose(found, np.where(where, expected, 0), rtol=1e-5)


def test_arcface_widens_the_own_angle():
    rng = np.random.default_rng(0)
    z, centers = (rng.standard_normal(shape) for shape in ((4, 5), (3, 5)))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    labels = np.array([0, 2, 1, 1])
    objective = stgram.STgramSystem().objective([])
    params = {"centers": jnp.asarray(7 * centers)}
    found, _ = objective.loss(params, STATE, jnp.asarray(z), _batch(labels))
    angles = np.arccos(z @ (centers / np.linalg.norm(centers, axis=1, keepdims=True)).T)
    assert (angles + 0.7 < np.pi).all()
    angles[np.arange(4), labels] += 0.7
    logits = 30 * np.cos(angles)
    expected = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(4), labels]
    # Exponents of up to 30, in float32.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("one_block")
@pytest.mark.parametrize("kind", ["mobilenet", "stgram"])
def test_the_score_is_the_mean_over_windows_of_the_own_class(kind):
    system = tiny.system(kind)
    train = [c for c in tiny.clips() if c.split == "train" and c.machine_type == "fan"]
    rng = np.random.default_rng(0)
    columns = system.features.columns
    features = rng.standard_normal((len(train), tiny.FRAMES + 6, columns)).astype(np.float32)
    clips = ClipArrays(
        features, np.arange(len(train)), np.full(len(train), tiny.FRAMES + 6), system.crop
    )
    model = system.evaluation()
    crops = jnp.zeros((1, system.crop, columns))
    variables = jax.jit(lambda k: model.init(k, crops, train=False))(jax.random.key(1))
    classes = [("fan", "00"), ("fan", "01")]
    data = types.SimpleNamespace(train=clips, train_clips=train, classes=classes)
    dim = model.embedding_dim
    kernel, bias = rng.standard_normal((2, dim)), rng.standard_normal(2)
    head = {"kernel": kernel, "bias": bias} if kind == "mobilenet" else {"centers": kernel}
    state = types.SimpleNamespace(params={"loss": head})
    part = Part(variables, np.zeros(columns, np.float32), np.ones(columns, np.float32), {})
    fitted = system.fit(part, state, data)
    if kind == "stgram":
        kernel, bias = 30 * kernel / np.linalg.norm(kernel, axis=1, keepdims=True), 0
    starts = window_starts(tiny.FRAMES + 6, system.crop, system.hop)
    assert len(starts) > 1
    apply = jax.jit(lambda crops: model.apply(variables, crops, train=False))
    windows = np.stack([features[:, start : start + system.crop] for start in starts], axis=1)
    z = apply(windows.reshape(-1, system.crop, columns))
    logits = np.asarray(z, np.float64) @ kernel.T + bias
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    values = -np.log(p) + (np.log(1 - p) if kind == "mobilenet" else 0)
    means = values.reshape(len(train), len(starts), 2).mean(axis=1)
    own = [classes.index(key) for key in section_keys(train)]
    expected = means[np.arange(len(train)), own]
    np.testing.assert_allclose(fitted.held_out, expected, atol=1e-4)
    found = system.compare(fitted.part, clips, section_keys(train)[::-1])
    np.testing.assert_allclose(found.scores, means[np.arange(len(train)), own[::-1]], atol=1e-4)
