"""Sub-cluster AdaCos: mixed crops, the loss of mixed labels, and scores, against their formulas."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdproto.data.dataset import section_keys
from asdproto.losses import AdaCosState
from asdproto.training.devices import use_devices
from asdproto.training.loop import StageRun, train_stage
from asdproto.training.stage import Hyper
from asdproto.training.state import Batch
from experiments.rivals import adacos
from experiments.rivals.encoders import Part
from tests.experiments.rivals import tiny as clips
from tests.training import tiny

HYPER = Hyper(mix_low=0.0, mix_high=1.0)
KEYWORDS = {"key": jax.random.key(3), "hyper": HYPER, "axis_name": None}


def _units(*shape, seed=0):
    x = np.random.default_rng(seed).standard_normal(shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _batch(where=None):
    crops = np.random.default_rng(1).standard_normal((4, 3, 2))
    labels = jnp.array([0, 2, 1, 1])
    return Batch(jnp.arange(4), jnp.asarray(crops, jnp.float32), labels, where)


def test_crops_are_mixed_with_their_neighbors():
    batch = _batch()
    found, where = adacos.mix_crops(batch, **KEYWORDS)
    assert where is None
    mix = np.asarray(adacos._mix(batch, KEYWORDS["key"], HYPER, None))
    assert len(np.unique(mix)) == 4
    assert ((mix > 0) & (mix < 1)).all()
    for row, other in enumerate([1, 0, 3, 2]):
        expected = mix[row] * batch.crops[row] + (1 - mix[row]) * batch.crops[other]
        np.testing.assert_allclose(found[row], expected, atol=1e-6)


def test_nothing_is_mixed_with_padding():
    batch = _batch(where=jnp.array([True, True, True, False]))
    found, where = adacos.mix_crops(batch, **KEYWORDS)
    np.testing.assert_array_equal(where, batch.where)
    np.testing.assert_array_equal(found[2], batch.crops[2])
    assert np.abs(found[0] - batch.crops[0]).max() > 1e-3


def test_the_loss_is_the_cross_entropy_of_mixed_labels():
    batch = _batch()
    embeddings, centers = _units(4, 5), 3 * _units(3, 2, 5, seed=2)
    state = types.SimpleNamespace(loss_state=AdaCosState(jnp.float32(2.0)))
    losses, adapted = adacos.mixed_loss(
        {"prototypes": jnp.asarray(centers)}, state, jnp.asarray(embeddings), batch, **KEYWORDS
    )
    scale = float(adapted.scale)
    assert scale != 2.0
    cosines = np.einsum("bd,ckd->bck", embeddings, centers / 3)
    p = np.exp(scale * cosines)
    log_p = np.log(p.sum(axis=2) / p.sum(axis=(1, 2))[:, None])
    mix = np.asarray(adacos._mix(batch, KEYWORDS["key"], HYPER, None), np.float64)
    labels = np.asarray(batch.labels)
    expected = [
        -mix[i] * log_p[i, labels[i]] - (1 - mix[i]) * log_p[i, labels[i ^ 1]] for i in range(4)
    ]
    np.testing.assert_allclose(losses, expected, rtol=2e-5)


@pytest.mark.parametrize("system", [clips.system("adacos"), clips.system("dgmix")])
def test_mixing_is_the_same_on_four_devices(system):
    """Batches of six over four devices: the last holds padding only."""
    found = []
    for count in (1, 4):
        data = tiny.make_data(clips=24)
        devices = use_devices(count)
        changes = {"batch_size": 6, "mix_range": (0.0, 1.0), "epochs": 1, "steps_per_epoch": 2}
        task = tiny.make_task(data, "pretrain", devices, **changes)
        task = dataclasses.replace(task, objective=system.objective(data.classes))
        state = task.init(jax.random.key(0), tiny.MELS)
        run = StageRun("pretrain", loop="scan")
        found.append(train_stage(task, data, devices, state, jax.random.key(5), run))
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        # Sums over devices in another order, twice.
        np.testing.assert_allclose(one, other, atol=2e-4, rtol=2e-4)


def test_references_are_centers_of_the_source_and_all_target_clips():
    groups = _units(3, 6)
    source = np.repeat(groups, 4, axis=0) + 1e-3 * _units(12, 6, seed=1)
    source /= np.linalg.norm(source, axis=1, keepdims=True)
    target = _units(2, 6, seed=2)
    embeddings = np.concatenate([source[:6], target, source[6:]])
    is_target = np.zeros(14, bool)
    is_target[6:8] = True
    found = adacos.section_references(embeddings, is_target, 3)
    np.testing.assert_array_equal(found[3:], target)
    np.testing.assert_allclose(np.linalg.norm(found[:3], axis=1), 1)
    nearest = (found[:3] @ groups.T).max(axis=0)
    assert (nearest > 0.999).all()
    # No more clusters than there are different clips; a section without source clips has none.
    same = np.repeat(groups[:1], 4, axis=0)
    assert len(adacos.section_references(same, np.zeros(4, bool), 16)) == 1
    assert len(adacos.section_references(target, np.ones(2, bool), 16)) == 2


def test_scores_are_cosine_distances_and_target_clips_are_no_references_of_their_own(monkeypatch):
    train = [clip for clip in clips.clips() if clip.split == "train"]
    embeddings = {False: _units(len(train), 5), True: _units(6, 5, seed=1)}
    data = types.SimpleNamespace(train=False, train_clips=train)
    monkeypatch.setattr(
        adacos.AdaCosSystem, "embed", lambda self, part, of: embeddings[of].astype(np.float32)
    )
    system = clips.system("adacos", sub_clusters=2)
    fitted = system.fit(Part({}, np.zeros(1), np.ones(1), {}), None, data)
    keys = section_keys(train)
    sections = [keys[0], keys[-1], keys[0], keys[-1], keys[0], keys[0]]
    found = system.compare(fitted.part, True, sections)
    targets = np.array([clip.domain == "target" for clip in train])
    references = {}
    for key in set(keys):
        rows = np.array([k == key for k in keys])
        references[key] = adacos.section_references(embeddings[False][rows], targets[rows], 2)
    expected = [
        min(1 - r @ z for r in references[key])
        for z, key in zip(embeddings[True], sections, strict=True)
    ]
    # float32 embeddings.
    np.testing.assert_allclose(found.scores, expected, atol=1e-6)
    for row, clip in enumerate(train):
        others = references[keys[row]]
        if clip.domain == "target":
            others = [r for r in others if not np.allclose(r, embeddings[False][row])]
        nearest = min(1 - r @ embeddings[False][row] for r in others)
        np.testing.assert_allclose(fitted.held_out[row], nearest, atol=1e-6)
