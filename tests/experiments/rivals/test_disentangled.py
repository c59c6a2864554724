"""Disentangled multi-task learning: what tasks there are, their loss and their scores."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from asdproto.data.dataset import section_keys
from experiments.rivals import disentangled
from experiments.rivals.encoders import Part
from tests.experiments.rivals import tiny

CLASSES = [
    ("fan", "00", "source", "spd_1_n_a"),
    ("fan", "00", "target", "spd_2_n_b"),
    ("fan", "01", "source", "n_c_mic_1"),
    ("fan", "01", "target", ""),
]


def test_every_attribute_of_several_values_is_a_task():
    labels, sizes = disentangled.task_labels(CLASSES)
    # Section, then n and spd; mic has one value.
    assert sizes == [2, 3, 2]
    np.testing.assert_array_equal(labels, [[0, 0, 0], [0, 1, 1], [1, 2, -1], [1, -1, -1]])


@pytest.mark.parametrize(
    ("dim", "tasks", "expected"),
    [(16, 1, (16,)), (16, 2, (8, 8)), (17, 3, (8, 4, 5)), (16, 4, (8, 3, 2, 3))],
)
def test_blocks_cover_the_embedding(dim, tasks, expected):
    assert disentangled.block_sizes(dim, tasks) == expected
    assert sum(expected) == dim


def test_too_many_tasks_for_an_embedding_are_an_error():
    with pytest.raises(ValueError, match="embeddings of 4 are too short for 4 tasks"):
        disentangled.block_sizes(4, 4)


def test_the_loss_is_a_weighted_sum_of_cross_entropies():
    rng = np.random.default_rng(0)
    embeddings = 0.3 * rng.standard_normal((4, 7))
    dims, sizes, weights = (3, 2, 2), (2, 3, 2), (1.0, 0.25, 0.5)
    params = {
        f"task{t}": {"kernel": rng.standard_normal((n, d)), "bias": rng.standard_normal(n)}
        for t, (n, d) in enumerate(zip(sizes, dims, strict=True))
    }
    labels, _ = disentangled.task_labels(CLASSES)
    where = np.array([True, True, True, False])
    found = disentangled.multi_task_loss(
        jnp.asarray(embeddings), params, jnp.asarray(labels), weights, dims, where=where
    )
    for row in range(4):
        expected, start = 0.0, 0
        for task, (dim, weight) in enumerate(zip(dims, weights, strict=True)):
            head, block = params[f"task{task}"], embeddings[row, start : start + dim]
            start += dim
            if labels[row, task] >= 0 and where[row]:
                logits = head["kernel"] @ block / 0.05 + head["bias"]
                expected += weight * (np.log(np.exp(logits).sum()) - logits[labels[row, task]])
        np.testing.assert_allclose(found[row], expected, rtol=1e-5)


def test_the_score_is_the_weighted_sum_of_the_blocks_distances(monkeypatch):
    train = [clip for clip in tiny.clips() if clip.split == "train" and clip.machine_type == "fan"]
    rng = np.random.default_rng(0)
    embeddings = {False: rng.standard_normal((len(train), 8)), True: rng.standard_normal((5, 8))}
    monkeypatch.setattr(
        disentangled.DisentangledSystem, "embed", lambda self, part, of: embeddings[of]
    )
    classes = sorted({(c.machine_type, c.section, c.domain, c.attributes) for c in train})
    data = types.SimpleNamespace(train=False, train_clips=train, classes=classes)
    system = tiny.system("disentangled", attribute_weight=0.6)
    fitted = system.fit(Part({}, np.zeros(1), np.ones(1), {}), None, data)
    keys = section_keys(train)
    sections = [keys[0], keys[-1], keys[-1], keys[0], keys[0]]
    found = system.compare(fitted.part, True, sections).scores
    # Section, n and spd.
    blocks, weights = (slice(0, 4), slice(4, 6), slice(6, 8)), (1.0, 0.3, 0.3)

    def unit(x):
        return x / np.linalg.norm(x)

    for row, (z, section) in enumerate(zip(embeddings[True], sections, strict=True)):
        expected = sum(
            weight
            * min(
                np.linalg.norm(unit(z[block]) - unit(other[block]))
                for other, key in zip(embeddings[False], keys, strict=True)
                if key == section
            )
            for block, weight in zip(blocks, weights, strict=True)
        )
        np.testing.assert_allclose(found[row], expected, rtol=1e-10)
    assert (fitted.held_out > 0.1).any()
