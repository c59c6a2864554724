"""DG-mix: the loss of mixed pairs against its formula in float64."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdproto.training.stage import Hyper
from asdproto.training.state import Batch
from experiments.rivals import dgmix
from experiments.rivals.mobilenet_v2 import MobileNetV2

HYPER = Hyper(mix_low=0.0, mix_high=1.0)
KEYWORDS = {"key": jax.random.key(3), "hyper": HYPER, "axis_name": None}


def _random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def _vicreg(x, y, z, mix):
    dim = x.shape[1]
    mixture = mix[:, None] * x + (1 - mix[:, None]) * y
    loss = 25 * ((z - mixture) ** 2).mean(axis=1)
    for side in (x, y):
        spread = np.sqrt(side.var(axis=0, ddof=1) + 1e-4)
        loss = loss + 25 * 0.5 * np.maximum(0, 1 - spread).mean()
        cov = np.cov(side.T)
        loss = loss + ((cov - np.diag(np.diag(cov))) ** 2).sum() / dim
    return loss


@pytest.mark.parametrize("masked", [False, True])
def test_mixup_vicreg_equals_its_formula(masked):
    x, y, z = _random(3, 7, 4) * [0.5, 1, 2, 0.3]
    mix = np.random.default_rng(1).uniform(size=7)
    where = np.arange(7) < 5 if masked else np.ones(7, bool)
    given = [jnp.where(where[:, None], a, jnp.nan) for a in (x, y, z)]
    found = dgmix.mixup_vicreg_loss(*given, jnp.asarray(mix), where=jnp.asarray(where))
    expected = _vicreg(x[where], y[where], z[where], mix[where])
    np.testing.assert_allclose(found[where], expected, rtol=1e-5)
    np.testing.assert_array_equal(found[~where], 0)


def _batch(size=6, where=None):
    crops = jnp.asarray(_random(size, 3, 2), jnp.float32)
    return Batch(jnp.arange(size), crops, jnp.arange(size) % 3, where)


def test_each_pair_is_mixed_once():
    batch = _batch(where=jnp.array([True] * 5 + [False]))
    crops, where = dgmix.add_mixed(batch, **KEYWORDS)
    np.testing.assert_array_equal(crops[:6], batch.crops)
    np.testing.assert_array_equal(where[6:], [True, True, False])
    mix = np.asarray(dgmix._pair_mix(batch, KEYWORDS["key"], HYPER, None))
    for pair in range(3):
        x, y = batch.crops[2 * pair], batch.crops[2 * pair + 1]
        np.testing.assert_allclose(crops[6 + pair], mix[pair] * x + (1 - mix[pair]) * y, atol=1e-6)
    with pytest.raises(ValueError, match="found 5 crops a device"):
        dgmix.add_mixed(_batch(5), **KEYWORDS)


def test_shares_follow_the_beta_distribution():
    batch = types.SimpleNamespace(labels=np.zeros(40_000))
    mix = np.sort(dgmix._pair_mix(batch, KEYWORDS["key"], HYPER, None))
    # Beta(1/2, 1/2) is the arcsine distribution; 20,000 draws are within 0.014 of it (1.95 / root
    # of the number) but once in a thousand times.
    expected = 2 / np.pi * np.arcsin(np.sqrt(mix))
    assert np.abs(expected - np.arange(20_000) / 20_000).max() < 0.014


def test_fine_tuning_adds_the_cross_entropy_of_mixed_labels():
    batch = _batch()
    embeddings = _random(9, 4)
    params = {"kernel": jnp.asarray(_random(3, 4, seed=2)), "bias": jnp.asarray(_random(3, seed=3))}
    state = types.SimpleNamespace(loss_state={})
    found, _ = dgmix._mixed_sections(params, state, jnp.asarray(embeddings), batch, **KEYWORDS)
    mix = np.asarray(dgmix._pair_mix(batch, KEYWORDS["key"], HYPER, None), np.float64)
    logits = embeddings[6:] @ np.asarray(params["kernel"]).T + np.asarray(params["bias"])
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for pair in range(3):
        first, second = np.asarray(batch.labels)[2 * pair : 2 * pair + 2]
        x, y, z = embeddings[2 * pair], embeddings[2 * pair + 1], embeddings[6 + pair]
        expected = -mix[pair] * log_p[pair, first] - (1 - mix[pair]) * log_p[pair, second]
        expected += ((z - mix[pair] * x - (1 - mix[pair]) * y) ** 2).mean()
        np.testing.assert_allclose(found[2 * pair : 2 * pair + 2], expected, rtol=1e-5)


def test_the_projector_is_for_training_and_the_encoder_keeps_its_name():
    encoder = MobileNetV2(head=6, stages=((1, 8, 1, 1),))
    model = dgmix.Projected(encoder, (5, 4, 3))
    crops = jnp.asarray(_random(4, 8, 8), jnp.float32)
    variables = model.init(jax.random.key(0), crops, train=False)
    assert variables["params"]["dense3"].keys() == {"kernel"}
    assert model.apply(variables, crops, train=False).shape == (4, model.embedding_dim) == (4, 3)
    inner = {kind: tree["encoder"] for kind, tree in variables.items()}
    assert encoder.apply(inner, crops, train=False).shape == (4, 6)
