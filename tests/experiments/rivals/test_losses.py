"""What the rivals train with, against formulas in float64."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdproto.losses import AdaCosState
from asdproto.training.stage import Hyper
from asdproto.training.state import Batch
from experiments.rivals import adacos, dgmix, disentangled
from tests.losses import oracles

KEYWORDS = {"key": jax.random.key(3), "hyper": Hyper(), "axis_name": None}


def _random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def _batch(size, where=None):
    crops = jnp.asarray(_random(size, 3, 2), jnp.float32)
    return Batch(jnp.arange(size), crops, jnp.arange(size) % 3, where)


@pytest.mark.parametrize("masked", [False, True])
def test_vicreg_of_mixed_pairs(masked):
    batch = _batch(14, where=jnp.arange(14) < 10 if masked else None)
    mix = np.asarray(dgmix.pair_mix(batch, KEYWORDS["key"], None), np.float64)
    where = np.arange(7) < 5 if masked else np.ones(7, bool)
    x, y, z = _random(3, 7, 4) * [0.5, 1, 2, 0.3]
    embeddings = np.concatenate([np.stack([x, y], axis=1).reshape(14, 4), z])
    real = np.concatenate([np.repeat(where, 2), where])
    spoiled = jnp.where(real[:, None], embeddings, jnp.nan)
    state = types.SimpleNamespace(loss_state={})
    loss = jax.jit(lambda z: dgmix.mixup_vicreg({}, state, z, batch, **KEYWORDS)[0])
    found = jax.device_get(loss(spoiled))
    np.testing.assert_array_equal(found[::2], found[1::2])
    np.testing.assert_array_equal(found[::2][~where], 0)
    x, y, z, mix = x[where], y[where], z[where], mix[where]
    # The mixed pairs' distances stand where VICReg has those within the pairs.
    distances = ((z - mix[:, None] * x - (1 - mix[:, None]) * y) ** 2 - (x - y) ** 2).mean(axis=1)
    expected = oracles.vicreg(x, y, None, eps=1e-4) + 25 * distances
    np.testing.assert_allclose(found[::2][where], expected, rtol=1e-5)


def test_each_pair_is_mixed_once():
    batch = _batch(6, where=jnp.array([True] * 5 + [False]))
    crops, where = dgmix.add_mixed(batch, **KEYWORDS)
    np.testing.assert_array_equal(crops[:6], batch.crops)
    np.testing.assert_array_equal(where[6:], [True, True, False])
    mix = np.asarray(dgmix.pair_mix(batch, KEYWORDS["key"], None))
    for pair in range(3):
        x, y = batch.crops[2 * pair], batch.crops[2 * pair + 1]
        np.testing.assert_allclose(crops[6 + pair], mix[pair] * x + (1 - mix[pair]) * y, atol=1e-6)
    with pytest.raises(ValueError, match="found 5 crops a device"):
        dgmix.add_mixed(_batch(5), **KEYWORDS)


def test_shares_of_pairs_follow_the_beta_distribution():
    batch = types.SimpleNamespace(labels=np.zeros(40_000))
    mix = np.sort(dgmix.pair_mix(batch, KEYWORDS["key"], None))
    # Beta(1/2, 1/2) is the arcsine distribution; 20,000 draws are within 0.014 of it (1.95 / root
    # of the number) but once in a thousand times.
    expected = 2 / np.pi * np.arcsin(np.sqrt(mix))
    assert np.abs(expected - np.arange(20_000) / 20_000).max() < 0.014


def test_cross_entropy_of_mixed_sections():
    batch, embeddings = _batch(6), _random(9, 4)
    kernel, bias = _random(3, 4, seed=2), _random(3, seed=3)
    params = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    state = types.SimpleNamespace(loss_state={})
    loss = jax.jit(lambda z: dgmix.mixed_sections(params, state, z, batch, **KEYWORDS)[0])
    found = loss(embeddings)
    mix = np.asarray(dgmix.pair_mix(batch, KEYWORDS["key"], None), np.float64)
    logits = embeddings[6:] @ kernel.T + bias
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for pair in range(3):
        first, second = np.asarray(batch.labels)[2 * pair : 2 * pair + 2]
        x, y, z = embeddings[2 * pair], embeddings[2 * pair + 1], embeddings[6 + pair]
        expected = -mix[pair] * log_p[pair, first] - (1 - mix[pair]) * log_p[pair, second]
        expected += ((z - mix[pair] * x - (1 - mix[pair]) * y) ** 2).mean()
        np.testing.assert_allclose(found[2 * pair : 2 * pair + 2], expected, rtol=1e-5)


@pytest.mark.parametrize(("batch", "expected"), [(4, [1, 0, 3, 2]), (5, [1, 0, 3, 2, 4])])
def test_neighbors_are_partners(batch, expected):
    np.testing.assert_array_equal(adacos.partners(batch), expected)


def test_adacos_of_mixed_crops_and_labels():
    batch = _batch(4, where=jnp.array([True, True, True, False]))
    mix = np.asarray(adacos._mix(batch, KEYWORDS["key"], None), np.float64)
    assert ((mix[[0, 1]] > 0) & (mix[[0, 1]] < 1)).all()
    assert mix[2] == 1  # nothing is mixed with padding
    crops, where = adacos.mix_crops(batch, **KEYWORDS)
    np.testing.assert_array_equal(where, batch.where)
    for row, other in ((0, 1), (1, 0), (2, 3)):
        expected = mix[row] * batch.crops[row] + (1 - mix[row]) * batch.crops[other]
        np.testing.assert_allclose(crops[row], expected, atol=1e-6)

    embeddings, centers = (_random(*shape, seed=2) for shape in ((4, 5), (3, 2, 5)))
    embeddings, centers = (
        x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (embeddings, centers)
    )
    state = types.SimpleNamespace(loss_state=AdaCosState(jnp.float32(2.0)))
    losses, adapted = adacos.mixed_loss(
        {"prototypes": jnp.asarray(3 * centers)}, state, jnp.asarray(embeddings), batch, **KEYWORDS
    )
    assert float(adapted.scale) != 2.0
    p = np.exp(float(adapted.scale) * np.einsum("bd,ckd->bck", embeddings, centers))
    log_p = np.log(p.sum(axis=2) / p.sum(axis=(1, 2))[:, None])
    labels = np.asarray(batch.labels)
    for row, other in ((0, 1), (1, 0), (2, 3)):
        expected = -mix[row] * log_p[row, labels[row]] - (1 - mix[row]) * log_p[row, labels[other]]
        np.testing.assert_allclose(losses[row], expected, rtol=1e-5)


CLASSES = [
    ("fan", "00", "source", "spd_1_n_a"),
    ("fan", "00", "target", "spd_2_n_b"),
    ("fan", "01", "source", "n_c_mic_1"),
    ("fan", "01", "target", ""),
]


def test_every_attribute_of_several_values_is_a_task_with_a_block():
    labels, sizes = disentangled.task_labels(CLASSES)
    # Section, then n and spd; mic has one value.
    assert sizes == [2, 3, 2]
    np.testing.assert_array_equal(labels, [[0, 0, 0], [0, 1, 1], [1, 2, -1], [1, -1, -1]])
    assert disentangled.block_sizes(16, 1) == (16,)
    assert disentangled.block_sizes(17, 3) == (8, 4, 5)
    assert disentangled.block_sizes(16, 4) == (8, 3, 2, 3)
    with pytest.raises(ValueError, match="embeddings of 4 are too short for 4 tasks"):
        disentangled.block_sizes(4, 4)


def test_the_loss_of_tasks_is_a_weighted_sum_of_cross_entropies():
    embeddings, weights = 0.3 * _random(4, 7), (1.0, 0.25, 0.5)
    blocks, sizes = np.split(embeddings, [3, 5], axis=1), (2, 3, 2)
    params = {
        f"task{t}": {"kernel": _random(n, block.shape[1], seed=t), "bias": _random(n, seed=9)}
        for t, (n, block) in enumerate(zip(sizes, blocks, strict=True))
    }
    objective = disentangled.multi_task_objective(CLASSES, weights)
    made, _ = objective.init(jax.random.key(0), len(CLASSES), 7)
    assert jax.tree.map(np.shape, made) == jax.tree.map(np.shape, params)
    batch = types.SimpleNamespace(labels=np.arange(4), where=np.array([True, True, True, False]))
    state = types.SimpleNamespace(loss_state={})
    found = jax.jit(lambda z: objective.loss(params, state, z, batch, **KEYWORDS)[0])(embeddings)
    labels, _ = disentangled.task_labels(CLASSES)
    for row in range(4):
        expected = 0.0
        for task, (block, weight) in enumerate(zip(blocks, weights, strict=True)):
            layer = params[f"task{task}"]
            if labels[row, task] >= 0 and batch.where[row]:
                logits = layer["kernel"] @ block[row] / 0.05 + layer["bias"]
                expected += weight * (np.log(np.exp(logits).sum()) - logits[labels[row, task]])
        np.testing.assert_allclose(found[row], expected, rtol=1e-5)
