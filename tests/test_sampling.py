import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdproto import sampling

LABELS = np.array([2, 0, 2, 2, 1, 2, 0, 2, 4, 2, 0, 2], np.int32)  # class 3 has no clips
MEMBERS = sampling.class_members(LABELS, 5)


def test_class_members_finds_every_clip_of_every_class():
    for label in range(5):
        first = MEMBERS.offsets[label]
        found = MEMBERS.order[first : first + MEMBERS.counts[label]]
        assert sorted(found) == np.flatnonzero(label == LABELS).tolist()
    assert MEMBERS.largest == 7


@pytest.mark.parametrize("labels", [np.array([0.0, 1.0]), np.array([[0]]), np.array([0, 5])])
def test_class_members_refuses_bad_labels(labels):
    with pytest.raises(ValueError, match="labels must"):
        sampling.class_members(labels, 5)


@pytest.mark.parametrize(("clips", "batch"), [(21, 4), (20, 4), (3, 8)])
def test_permutation_has_every_clip_and_completes_the_last_batch(clips, batch):
    order = np.asarray(sampling.epoch_permutation(jax.random.key(1), clips, batch))
    assert order.shape == (-(-clips // batch), batch)
    counts = np.bincount(order.ravel(), minlength=clips)
    assert counts.min() >= 1
    assert counts.max() - counts.min() <= 1
    other = sampling.epoch_permutation(jax.random.key(2), clips, batch)
    assert (order != other).any()


def test_episodes_are_balanced_and_never_take_an_empty_class():
    draw = jax.jit(lambda key: sampling.episode(key, MEMBERS, 3, 5))
    seen = collections.Counter()
    for seed in range(60):
        clips, classes = map(np.asarray, draw(jax.random.key(seed)))
        assert clips.shape == (3, 5)
        assert len(set(classes)) == 3
        assert 3 not in classes
        for row, label in zip(clips, classes, strict=True):
            assert (LABELS[row] == label).all()
            size = MEMBERS.counts[label]
            uses = np.bincount(np.searchsorted(np.flatnonzero(label == LABELS), row))
            # Without replacement while there are enough clips, else as evenly as can be.
            assert uses.max() == -(-5 // size) if size < 5 else uses.max() == 1
            if size < 5:
                assert len(set(row)) == size
        seen.update(classes.tolist())
    # 60 episodes of 3 out of 4 classes: 45 each expected, standard deviation 3.4.
    assert all(30 <= seen[label] <= 58 for label in (0, 1, 2, 4))


def test_members_of_a_large_class_are_drawn_evenly():
    draw = jax.jit(jax.vmap(lambda key: sampling.episode(key, MEMBERS, 4, 2)))
    clips, classes = draw(jax.random.split(jax.random.key(3), 700))
    rows = np.asarray(clips)[np.asarray(classes) == 2]
    counts = np.bincount(rows.ravel(), minlength=len(LABELS))[LABELS == 2]
    # 700 episodes of 4 classes out of 4: 2 of 7 clips each, 200 expected, deviation 12.
    assert counts.min() > 150
    assert counts.max() < 250
    # Classes draw apart: of equal ones, not the same members.
    equal = sampling.class_members(np.repeat(np.arange(2), 20), 2)
    first, second = np.asarray(sampling.episode(jax.random.key(0), equal, 2, 10)[0]) % 20
    assert set(first) != set(second)


def test_crop_starts_reach_both_ends_and_stay_inside():
    frames = jnp.array([16, 18, 40])
    starts = np.asarray(
        jax.vmap(lambda key: sampling.crop_starts(key, frames, 16))(
            jax.random.split(jax.random.key(0), 500)
        )
    )
    assert (starts[:, 0] == 0).all()
    assert set(starts[:, 1]) == {0, 1, 2}
    assert starts[:, 2].min() == 0
    assert starts[:, 2].max() == 24
    frames = np.array([16, 40, 17, 30, 25], np.int32)
    plan = sampling.plan_permutation(jax.random.key(0), frames, 2, 16)
    assert (np.asarray(plan.starts) <= frames[np.asarray(plan.clips)] - 16).all()


def test_take_crops_equals_slices():
    features = np.random.default_rng(0).standard_normal((4, 30, 6)).astype(np.float16)
    clips, starts = np.array([3, 0, 3]), np.array([14, 2, 0])
    crops = sampling.take_crops(jnp.asarray(features), jnp.asarray(clips), jnp.asarray(starts), 16)
    expected = np.stack([features[c, s : s + 16] for c, s in zip(clips, starts, strict=True)])
    np.testing.assert_array_equal(crops, expected)


def test_plans_follow_from_the_key_alone():
    frames = np.full(len(LABELS), 20, np.int32)

    def plan(key):
        return sampling.plan_episodes(
            key, frames, MEMBERS, steps=40, num_ways=3, num_shots=2, crop=16
        )

    first, again = plan(jax.random.key(5)), jax.jit(plan)(jax.random.key(5))
    np.testing.assert_array_equal(first.clips, again.clips)
    np.testing.assert_array_equal(first.starts, again.starts)
    other = plan(jax.random.key(6))
    assert (np.asarray(first.clips) != np.asarray(other.clips)).any()
    assert first.clips.shape == (40, 6)
    # No two episodes alike: every step folds in its own number.
    assert len({tuple(row) for row in np.asarray(first.clips)}) > 30


def test_a_plan_of_stacks_has_every_crop_of_every_clip():
    frames = np.array([5, 3, 9])
    plan = sampling.plan_stacks(jax.random.key(0), frames, 11, 4, 3)
    assert plan.clips.shape == (3, 4)
    pairs = list(zip(np.ravel(plan.clips).tolist(), np.ravel(plan.starts).tolist(), strict=True))
    every = [(clip, start) for clip, count in enumerate(frames) for start in range(count - 2)]
    assert sorted(set(pairs)) == every
    assert pairs[11:] == pairs[:1]  # the last batch is completed from the first
    assert pairs[:11] != every
