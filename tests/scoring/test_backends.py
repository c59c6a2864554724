"""Back-ends against SciPy, scikit-learn and loops; batches, saving, held-out scores."""

import dataclasses
import json
from typing import get_args

import numpy as np
import pytest
from scipy.spatial import distance
from sklearn.covariance import ShrunkCovariance

from asdproto.config import ConfigError
from asdproto.errors import DataError
from asdproto.scoring import backends
from asdproto.scoring.backends import BackendConfig, Scorer, fit_scorer, held_out_scores

SECTIONS = [("fan", "00"), ("fan", "01"), ("valve", "00")]
DIM = 12
KINDS = {
    "mahalanobis": BackendConfig(),
    "cosine": BackendConfig("cosine"),
    "knn": BackendConfig("knn", neighbors=3),
    "mahalanobis-knn": BackendConfig("mahalanobis-knn", shrinkage=0.1),
    "mixture": BackendConfig("mixture"),
}
assert {config.kind for config in KINDS.values()} == set(get_args(backends.Kind))


def training_set(seed=0, clips=150, dim=DIM, sections=SECTIONS):
    """Unit vectors about a few directions per section, correlated, classes of unequal size."""
    rng = np.random.default_rng(seed)
    keys, labels, rows = [], [], []
    mixing = rng.normal(size=(dim, dim)) / np.sqrt(dim)
    for number, key in enumerate(sections):
        for label, count in ((0, 0.7), (1, 0.25), (2, 0.05)):
            center = 2.0 * rng.normal(size=dim)
            for _ in range(max(1, int(count * clips))):
                rows.append(center + rng.normal(size=dim) @ mixing)
                labels.append(3 * number + label)
                keys.append(key)
    embeddings = np.array(rows)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    order = rng.permutation(len(rows))
    return embeddings[order], np.array(labels)[order], [keys[index] for index in order]


def unseen_set(seed=1, clips=40, dim=DIM, sections=SECTIONS):
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(clips, dim))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings, [sections[index] for index in rng.integers(len(sections), size=clips)]


def of_section(key, embeddings, labels, keys):
    rows = [index for index, other in enumerate(keys) if other == key]
    return embeddings[rows], labels[rows]


def slow_prototypes(embeddings, labels):
    prototypes = {}
    for label in sorted(set(labels.tolist())):
        total, count = np.zeros(embeddings.shape[1]), 0
        for row, other in zip(embeddings, labels, strict=True):
            if other == label:
                total, count = total + row, count + 1
        prototypes[label] = total / count / np.sqrt(((total / count) ** 2).sum())
    return prototypes


@pytest.mark.parametrize(("dim", "clips"), [(DIM, 150), (64, 20)])
def test_mahalanobis_equals_scipy_and_scikit_learn(dim, clips):
    """Also with fewer clips than dimensions."""
    train, labels, keys = training_set(dim=dim, clips=clips)
    scorer = fit_scorer(train, labels, keys, BackendConfig())
    test, test_keys = unseen_set(dim=dim, clips=10)
    expected, nearest = [], []
    for row, key in zip(test, test_keys, strict=True):
        members, classes = of_section(key, train, labels, keys)
        precision = ShrunkCovariance(shrinkage=0.001).fit(members).precision_
        distances = {
            label: distance.mahalanobis(row, prototype, precision)
            for label, prototype in slow_prototypes(members, classes).items()
        }
        expected.append(min(distances.values()))
        nearest.append(min(distances, key=distances.get))
    scores, found = scorer.compare(test, test_keys)
    assert scores.dtype == np.float64
    # A covariance with condition number 1e3 or so, inverted in two ways.
    np.testing.assert_allclose(scores, expected, rtol=1e-7)
    np.testing.assert_array_equal(found, nearest)


def test_cosine_equals_a_loop():
    train, labels, keys = training_set()
    test, test_keys = unseen_set()
    scorer = fit_scorer(train, labels, keys, KINDS["cosine"])
    expected = [
        min(
            distance.cosine(row, prototype)
            for prototype in slow_prototypes(*of_section(key, train, labels, keys)).values()
        )
        for row, key in zip(test, test_keys, strict=True)
    ]
    np.testing.assert_allclose(scorer.score(test, test_keys), expected, atol=1e-14)
    # Length says nothing, and a silent clip's zero vector is no error.
    np.testing.assert_allclose(scorer.score(7.0 * test, test_keys), expected, atol=1e-14)
    assert scorer.score(np.zeros((1, DIM)), [SECTIONS[0]]) == [1.0]


@pytest.mark.parametrize("kind", ["knn", "mahalanobis-knn"])
@pytest.mark.parametrize(("neighbors", "clips"), [(1, 700), (3, 700), (10_000, 150)])
def test_nearest_neighbors_equal_a_loop(kind, neighbors, clips):
    """Of 700 clips a section most are never measured exactly."""
    train, labels, keys = training_set(clips=clips)
    test, test_keys = unseen_set(clips=12)
    config = BackendConfig(kind, shrinkage=0.2, neighbors=neighbors)
    expected, nearest = [], []
    for row, key in zip(test, test_keys, strict=True):
        members, classes = of_section(key, train, labels, keys)
        centered = members - members.mean(axis=0)
        sigma = centered.T @ centered / len(members)
        sigma = 0.8 * sigma + 0.2 * np.trace(sigma) / DIM * np.eye(DIM)
        inverse = np.linalg.inv(sigma) if kind == "mahalanobis-knn" else np.eye(DIM)
        found = distance.cdist(row[None], members, "mahalanobis", VI=inverse)[0]
        expected.append(np.sort(found)[:neighbors].mean())
        nearest.append(classes[np.argmin(found)])
    scores, found = fit_scorer(train, labels, keys, config).compare(test, test_keys)
    # An inverse against a triangular solve.
    np.testing.assert_allclose(scores, expected, rtol=1e-9)
    np.testing.assert_array_equal(found, nearest)


def test_standardizing_divides_by_the_deviations_of_the_clips_and_ten_mean_ones():
    train, labels, keys = training_set(sections=SECTIONS[:1])
    train[:, 2] = -100.0  # never moves, and is not divided by zero
    test, test_keys = unseen_set(sections=SECTIONS[:1])
    config = BackendConfig("knn")
    scores = fit_scorer(train, labels, keys, config, standardize=True).score(test, test_keys)
    variances, clips = train.var(axis=0), len(train)
    stds = np.sqrt((clips * variances + 10 * variances.mean()) / (clips + 10))
    expected = fit_scorer(train / stds, labels, keys, config).score(test / stds, test_keys)
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


def test_training_clips_are_not_their_own_neighbors():
    train, labels, keys = training_set(clips=40)
    knn = BackendConfig("knn", neighbors=2)
    scores = fit_scorer(train, labels, keys, knn).score(train, keys, training=True)
    for index in (0, 17, len(train) - 1):
        rest = [i for i, key in enumerate(keys) if key == keys[index] and i != index]
        distances = np.sort(np.linalg.norm(train[rest] - train[index], axis=1))
        assert scores[index] == pytest.approx(distances[:2].mean(), rel=1e-12)
    mahalanobis = fit_scorer(train, labels, keys, BackendConfig())
    np.testing.assert_array_equal(
        mahalanobis.score(train, keys, training=True), mahalanobis.score(train, keys)
    )
    # One clip has nothing but itself, and of two each has the other, however many are asked for.
    many = BackendConfig("knn", neighbors=5)
    alone = fit_scorer(train[:1], labels[:1], keys[:1], many)
    assert alone.score(train[:1], keys[:1], training=True) == [0.0]
    pair, where = train[:2], [keys[0]] * 2
    two = fit_scorer(pair, labels[:2], where, many).score(pair, where, training=True)
    np.testing.assert_allclose(two, [np.linalg.norm(pair[0] - pair[1])] * 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_scores_alike_alone_and_in_any_batch_bit_for_bit(kind, tmp_path):
    # 129 dimensions: not a multiple of any vector width.
    train, labels, keys = training_set(dim=129, clips=500)
    test, test_keys = unseen_set(dim=129, clips=31)
    test[5] = train[7] + 1e-14  # differs from a training clip in its last bits
    scorer = fit_scorer(
        train.astype(np.float32), labels % 2, keys, KINDS[kind], standardize=kind == "knn"
    )
    batch, nearest = scorer.compare(test, test_keys)
    alone = [scorer.score(test[i : i + 1], test_keys[i : i + 1])[0] for i in range(len(test))]
    np.testing.assert_array_equal(batch, alone)
    np.savez(tmp_path / "scorer.npz", **scorer.to_arrays())
    with np.load(tmp_path / "scorer.npz", allow_pickle=False) as arrays:
        restored = Scorer.from_arrays(arrays)
    again, labels_again = restored.compare(test, test_keys)
    np.testing.assert_array_equal(batch, again)
    np.testing.assert_array_equal(nearest, labels_again)


def test_keys_survive_saving():
    train, labels, _ = training_set(sections=SECTIONS[:1])
    for key in ("plain", ("fan", "00"), 7):
        scorer = fit_scorer(train, labels, [key] * len(train), KINDS["cosine"])
        assert list(Scorer.from_arrays(scorer.to_arrays()).sections) == [key]
    scorer = fit_scorer(train, labels, [frozenset()] * len(train), KINDS["cosine"])
    with pytest.raises(TypeError, match="frozenset"):
        scorer.to_arrays()
    arrays = fit_scorer(train, labels, ["s"] * len(train), BackendConfig()).to_arrays()
    assert json.loads(str(arrays["header"]))["config"]["kind"] == "mahalanobis"
    del arrays["whitening_0"]
    with pytest.raises(ValueError, match="whitening_0 is missing"):
        Scorer.from_arrays(arrays)


def test_errors_name_what_is_wrong():
    train, labels, keys = training_set(clips=20)
    config, test = BackendConfig(), unseen_set()[0]
    scorer = fit_scorer(train, labels, keys, config)
    with pytest.raises(ValueError, match=r"\('pump', '00'\) was not seen in training; known: "):
        scorer.score(test[:1], [("pump", "00")])
    with pytest.raises(ValueError, match=r"shape \(1, 5\), expected \[n, 12\]"):
        scorer.score(test[:1, :5], keys[:1])
    with pytest.raises(ValueError, match="sections length 2"):
        scorer.score(test[:1], keys[:2])
    broken = np.where(np.arange(60)[:, None] == 3, np.nan, train[:60])
    with pytest.raises(ValueError, match="1 of 60 rows are not finite, the first is row 3"):
        fit_scorer(broken, labels[:60], keys[:60], config)
    with pytest.raises(ValueError, match="labels have shape"):
        fit_scorer(train, labels[1:], keys, config)
    with pytest.raises(ValueError, match="no embeddings to fit on"):
        fit_scorer(train[:0], labels[:0], [], config)
    same = np.ones((4, 3))
    with pytest.raises(ValueError, match=r"'s': its 4 training embeddings are all the same, so"):
        fit_scorer(same, np.zeros(4, int), ["s"] * 4, config)
    few = training_set(clips=20, dim=64)
    with pytest.raises(ValueError, match=r"singular with shrinkage=0\.0"):
        fit_scorer(*few, dataclasses.replace(config, shrinkage=0.0))
    four = BackendConfig("mixture", components=4)
    with pytest.raises(DataError, match=r"section s: found 3 training clips; expected at least 4"):
        fit_scorer(train[:3], labels[:3], ["s"] * 3, four)
    for field, value in (("kind", "svm"), ("shrinkage", 1.5), ("neighbors", 0), ("components", 0)):
        with pytest.raises(ConfigError, match=f"{field}="):
            BackendConfig(**{field: value})


@pytest.mark.parametrize("kind", ["mahalanobis", "knn"])
def test_held_out_clips_are_scored_by_the_others(kind):
    rng = np.random.default_rng(3)
    embeddings = rng.standard_normal((19, 4))
    labels = np.repeat([0, 1, 2], (7, 3, 9))
    labels[:10] = [0, 1] * 5
    sections = ["00"] * 10 + ["01"] * 9
    config = BackendConfig(kind)
    found = held_out_scores(embeddings, labels, sections, config, folds=5)
    everything = fit_scorer(embeddings, labels, sections, config)
    # Section 01 is too small to be parted; the first part holds the first clip of each class.
    own = everything.score(embeddings, sections, training=True)
    np.testing.assert_array_equal(found[10:], own[10:])
    assert found.min() > 0.0  # no distance of a clip to itself
    kept = [row for row in range(19) if row not in (0, 1)]
    without = fit_scorer(embeddings[kept], labels[kept], [sections[r] for r in kept], config)
    np.testing.assert_array_equal(found[:2], without.score(embeddings[:2], sections[:2]))
    with pytest.raises(ValueError, match="folds is 1"):
        held_out_scores(embeddings, labels, sections, config, folds=1)
