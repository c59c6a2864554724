import json
from typing import get_args

import numpy as np
import pytest
from scipy.spatial import distance
from sklearn.covariance import EmpiricalCovariance, LedoitWolf, ShrunkCovariance

from asdproto.scoring import backends as scoring
from asdproto.scoring.thresholds import decide, gamma_threshold

SECTIONS = [("fan", "00"), ("fan", "01"), ("valve", "00")]
DIM = 12


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


def slow_prototypes(embeddings, labels, *, normalize=True):
    prototypes = {}
    for label in sorted(set(labels.tolist())):
        total, count = np.zeros(embeddings.shape[1]), 0
        for row, other in zip(embeddings, labels, strict=True):
            if other == label:
                total, count = total + row, count + 1
        mean = total / count
        prototypes[label] = mean / np.sqrt((mean**2).sum()) if normalize else mean
    return prototypes


def deviations(embeddings, labels, *, center="global", normalize=True):
    if center == "global":
        return embeddings - embeddings.mean(axis=0)
    prototypes = slow_prototypes(embeddings, labels, normalize=normalize)
    return np.array([x - prototypes[c] for x, c in zip(embeddings, labels, strict=True)])


# Of rows that are centered already.
PRECISIONS = {
    "shrinkage": lambda x: (
        ShrunkCovariance(shrinkage=0.001, assume_centered=True).fit(x).precision_
    ),
    "ledoit-wolf": lambda x: LedoitWolf(assume_centered=True).fit(x).precision_,
    "ridge": lambda x: np.linalg.inv(
        EmpiricalCovariance(assume_centered=True).fit(x).covariance_
        + 1e-3 * (x**2).mean() * np.eye(x.shape[1])
    ),
    "pinv": lambda x: np.linalg.pinv(x.T @ x / len(x), hermitian=True),
}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("center", get_args(scoring.Center))
@pytest.mark.parametrize("covariance", get_args(scoring.Covariance))
def test_mahalanobis_equals_scipy_and_scikit_learn(covariance, center, normalize):
    train, labels, keys = training_set()
    options = {} if center == "global" else {"center": center}
    scorer = scoring.fit_scorer(
        train, labels, keys, covariance=covariance, normalize_prototypes=normalize, **options
    )
    test, test_keys = unseen_set()
    expected, nearest = [], []
    for row, key in zip(test, test_keys, strict=True):
        members, classes = of_section(key, train, labels, keys)
        rest = deviations(members, classes, center=center, normalize=normalize)
        precision = PRECISIONS[covariance](rest)
        distances = {
            label: distance.mahalanobis(row, prototype, precision)
            for label, prototype in slow_prototypes(members, classes, normalize=normalize).items()
        }
        expected.append(min(distances.values()))
        nearest.append(min(distances, key=distances.get))
    scores = scorer.score(test, test_keys)
    assert scores.dtype == np.float64
    # A covariance with condition number 1e3 or so, inverted in two ways.
    np.testing.assert_allclose(scores, expected, rtol=1e-9)
    np.testing.assert_array_equal(scorer.nearest(test, test_keys), nearest)


def test_more_dimensions_than_clips():
    train, labels, keys = training_set(clips=20, dim=64, sections=SECTIONS[:1])
    test, test_keys = unseen_set(dim=64, sections=SECTIONS[:1])
    assert np.linalg.matrix_rank(train - train.mean(axis=0)) == len(train) - 1 < 64
    for covariance in get_args(scoring.Covariance):
        scorer = scoring.fit_scorer(train, labels, keys, covariance=covariance)
        precision = PRECISIONS[covariance](deviations(train, labels))
        prototypes = slow_prototypes(train, labels).values()
        expected = [min(distance.mahalanobis(x, p, precision) for p in prototypes) for x in test]
        np.testing.assert_allclose(scorer.score(test, test_keys), expected, rtol=1e-7)
    with pytest.raises(ValueError, match=r"singular with covariance='shrinkage', shrinkage=0\.0"):
        scoring.fit_scorer(train, labels, keys, shrinkage=0.0)


def test_what_the_covariance_is_centered_on():
    # Two classes far apart. About the common mean the direction between them varies most, so
    # distance along it counts least; about the classes' own prototypes all directions vary alike.
    rng = np.random.default_rng(0)
    train = 0.01 * rng.normal(size=(200, 2))
    train[:100, 0] += 1.0
    labels = np.repeat([0, 1], 100)
    options = {"shrinkage": 0.0, "normalize_prototypes": False}
    test = np.array([[0.5, 0.0], [0.0, 0.5]])
    scorer = scoring.fit_scorer(train, labels, ["s"] * 200, **options)
    along, across = scorer.score(test, ["s", "s"])
    # 0.5 from both means along a direction of standard deviation 0.5, and 0.01 across.
    assert along == pytest.approx(1.0, rel=0.02)
    assert across == pytest.approx(50.0, rel=0.15)
    scorer = scoring.fit_scorer(train, labels, ["s"] * 200, center="class", **options)
    along, across = scorer.score(test, ["s", "s"])
    assert along == pytest.approx(50.0, rel=0.15)
    assert across == pytest.approx(50.0, rel=0.15)


def test_full_shrinkage_is_a_scaled_euclidean_distance():
    train, labels, keys = training_set(sections=SECTIONS[:1])
    test, test_keys = unseen_set(sections=SECTIONS[:1])
    scores = scoring.fit_scorer(train, labels, keys, shrinkage=1.0).score(test, test_keys)
    prototypes = np.array(list(slow_prototypes(train, labels).values()))
    euclidean = distance.cdist(test, prototypes).min(axis=1)
    np.testing.assert_allclose(scores, euclidean / np.sqrt(train.var(axis=0).mean()), rtol=1e-12)


def test_mahalanobis_knows_no_units():
    train, labels, keys = training_set()
    test, test_keys = unseen_set()
    rng = np.random.default_rng(3)
    change = rng.normal(size=(DIM, DIM)) + 3.0 * np.eye(DIM)
    plain, changed = (
        scoring.fit_scorer(
            train @ matrix, labels, keys, shrinkage=0.0, normalize_prototypes=False
        ).score(test @ matrix, test_keys)
        for matrix in (np.eye(DIM), change)
    )
    np.testing.assert_allclose(plain, changed, rtol=1e-8)


@pytest.mark.parametrize("normalize", [True, False])
def test_cosine_equals_a_loop(normalize):
    train, labels, keys = training_set()
    test, test_keys = unseen_set()
    scorer = scoring.fit_scorer(train, labels, keys, kind="cosine", normalize_prototypes=normalize)
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


@pytest.mark.parametrize("neighbors", [1, 3, 10_000])
def test_knn_equals_a_loop(neighbors):
    train, labels, keys = training_set()
    test, test_keys = unseen_set()
    scorer = scoring.fit_scorer(train, labels, keys, kind="knn", neighbors=neighbors)
    expected, nearest = [], []
    for row, key in zip(test, test_keys, strict=True):
        members, classes = of_section(key, train, labels, keys)
        distances = sorted((np.sqrt(((row - x) ** 2).sum()), c)
                           for x, c in zip(members, classes, strict=True))  # fmt: skip
        expected.append(np.mean([d for d, _ in distances[:neighbors]]))
        nearest.append(distances[0][1])
    np.testing.assert_allclose(scorer.score(test, test_keys), expected, rtol=1e-13)
    np.testing.assert_array_equal(scorer.nearest(test, test_keys), nearest)


def test_density_evens_out_a_sparse_class():
    train, labels, keys = training_set(sections=SECTIONS[:1])
    test, test_keys = unseen_set(sections=SECTIONS[:1])
    scorer = scoring.fit_scorer(train, labels, keys, kind="knn", density_neighbors=4)
    density = [np.sort(np.linalg.norm(train - row, axis=1))[1:5].mean() for row in train]
    expected = [min(np.linalg.norm(train - row, axis=1) / density) for row in test]
    np.testing.assert_allclose(scorer.score(test, test_keys), expected, rtol=1e-12)
    # A dense and a sparse cloud of one shape: a clip as far out of each, in units of the cloud,
    # is equally anomalous.
    rng = np.random.default_rng(2)
    cloud = rng.normal(size=(30, 3))
    both = np.concatenate([0.01 * cloud, 10.0 + cloud])
    outside = np.array([4.0, -3.0, 2.0])
    scorer = scoring.fit_scorer(
        both, np.repeat([0, 1], 30), ["s"] * 60, kind="knn", density_neighbors=2
    )
    dense, sparse = scorer.score(np.array([0.01 * outside, 10.0 + outside]), ["s", "s"])
    assert dense == pytest.approx(sparse, rel=1e-9)


@pytest.mark.parametrize("density_neighbors", [0, 3])
def test_mahalanobis_knn_equals_its_formula(density_neighbors):
    train, labels, keys = training_set()
    test, test_keys = unseen_set()
    scorer = scoring.fit_scorer(
        train, labels, keys, kind="mahalanobis-knn", shrinkage=0.2, neighbors=2,
        density_neighbors=density_neighbors,
    )  # fmt: skip
    expected, nearest = [], []
    for row, key in zip(test, test_keys, strict=True):
        members, classes = of_section(key, train, labels, keys)
        members = np.array(members)
        centered = members - members.mean(axis=0)
        sigma = centered.T @ centered / len(members)
        sigma = 0.8 * sigma + 0.2 * np.trace(sigma) / len(sigma) * np.eye(len(sigma))
        inverse = np.linalg.inv(sigma)

        def distance(a, b, inverse=inverse):
            return np.sqrt((a - b) @ inverse @ (a - b))

        density = [
            np.mean(sorted(distance(a, b) for b in members)[1 : 1 + density_neighbors] or [1.0])
            for a in members
        ]
        found = [distance(row, a) / d for a, d in zip(members, density, strict=True)]
        expected.append(np.mean(sorted(found)[:2]))
        nearest.append(classes[np.argmin(found)])
    # An inverse against a triangular solve.
    np.testing.assert_allclose(scorer.score(test, test_keys), expected, rtol=1e-9)
    np.testing.assert_array_equal(scorer.nearest(test, test_keys), nearest)


def test_training_clips_are_not_their_own_neighbors():
    train, labels, keys = training_set(clips=40)
    scorer = scoring.fit_scorer(train, labels, keys, kind="knn", neighbors=2)
    scores = scorer.score(train, keys, training=True)
    for index in (0, 17, len(train) - 1):
        rest = [i for i, key in enumerate(keys) if key == keys[index] and i != index]
        distances = np.sort(np.linalg.norm(train[rest] - train[index], axis=1))
        assert scores[index] == pytest.approx(distances[:2].mean(), rel=1e-12)
    mahalanobis = scoring.fit_scorer(train, labels, keys)
    np.testing.assert_array_equal(
        mahalanobis.score(train, keys, training=True), mahalanobis.score(train, keys)
    )
    alone = scoring.fit_scorer(train[:1], labels[:1], keys[:1], kind="knn", neighbors=5)
    assert alone.score(train[:1], keys[:1], training=True) == [0.0]
    # Of two clips each has the other for a neighbor, however many are asked for.
    pair, where = train[:2], [keys[0]] * 2
    two = scoring.fit_scorer(pair, labels[:2], where, kind="knn", neighbors=5)
    np.testing.assert_allclose(
        two.score(pair, where, training=True), [np.linalg.norm(pair[0] - pair[1])] * 2
    )


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "mahalanobis"},
        {"kind": "mahalanobis", "covariance": "pinv"},
        {"kind": "cosine"},
        {"kind": "knn", "neighbors": 3, "density_neighbors": 2},
        {"kind": "mahalanobis-knn", "neighbors": 2, "density_neighbors": 3, "shrinkage": 0.1},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_a_clip_scores_alike_alone_and_in_any_batch_bit_for_bit(options, tmp_path):
    # 129 dimensions: not a multiple of any vector width.
    train, labels, keys = training_set(dim=129, clips=60)
    test, test_keys = unseen_set(dim=129, clips=61)
    scorer = scoring.fit_scorer(train.astype(np.float32), labels, keys, **options)
    batch = scorer.score(test, test_keys)
    alone = [scorer.score(test[i : i + 1], test_keys[i : i + 1])[0] for i in range(len(test))]
    np.testing.assert_array_equal(batch, alone)
    order = np.random.default_rng(0).permutation(len(test))
    shuffled = scorer.score(test[order], [test_keys[i] for i in order])
    np.testing.assert_array_equal(batch[order], shuffled)
    np.savez(tmp_path / "scorer.npz", **scorer.to_arrays())
    with np.load(tmp_path / "scorer.npz", allow_pickle=False) as arrays:
        restored = scoring.Scorer.from_arrays(arrays)
    np.testing.assert_array_equal(batch, restored.score(test, test_keys))
    np.testing.assert_array_equal(
        scorer.nearest(test, test_keys), restored.nearest(test, test_keys)
    )


def test_keys_survive_saving():
    train, labels, _ = training_set(sections=SECTIONS[:1])
    for key in ("plain", ("fan", "00"), (1, ("a", np.int64(2))), 7):
        scorer = scoring.fit_scorer(train, labels, [key] * len(train), kind="cosine")
        assert list(scoring.Scorer.from_arrays(scorer.to_arrays()).sections) == [key]
    scorer = scoring.fit_scorer(train, labels, [frozenset()] * len(train), kind="cosine")
    with pytest.raises(TypeError, match="frozenset"):
        scorer.to_arrays()
    arrays = scoring.fit_scorer(train, labels, ["s"] * len(train)).to_arrays()
    assert json.loads(str(arrays["header"]))["kind"] == "mahalanobis"
    del arrays["whitening_0"]
    with pytest.raises(ValueError, match="whitening_0 is missing"):
        scoring.Scorer.from_arrays(arrays)


def test_errors_name_what_is_wrong():
    train, labels, keys = training_set()
    test, test_keys = unseen_set()
    scorer = scoring.fit_scorer(train, labels, keys)
    with pytest.raises(ValueError, match=r"section \('fan', '07'\) was not seen in training.*'00'"):
        scorer.score(test[:1], [("fan", "07")])
    with pytest.raises(ValueError, match=r"\[n, 12\] as in training"):
        scorer.score(test[:, :5], test_keys)
    with pytest.raises(ValueError, match="sections has length 1, expected 40"):
        scorer.score(test, test_keys[:1])
    with pytest.raises(ValueError, match="the first is row 3"):
        scorer.score(np.where(np.arange(40)[:, None] == 3, np.nan, test), test_keys)
    fit = scoring.fit_scorer
    with pytest.raises(ValueError, match=r"expected \[clips, dim\]"):
        fit(train[0], labels, keys)
    with pytest.raises(ValueError, match=r"labels has shape \(3,\)"):
        fit(train, labels[:3], keys)
    with pytest.raises(ValueError, match="dtype float64"):
        fit(train, labels.astype(float), keys)
    with pytest.raises(ValueError, match="sections has length 0"):
        fit(train, labels, [])
    with pytest.raises(ValueError, match="at least one training clip"):
        fit(train[:0], labels[:0], [])
    with pytest.raises(ValueError, match="kind is 'cosin', expected one of mahalanobis, cosine"):
        fit(train, labels, keys, kind="cosin")
    with pytest.raises(ValueError, match="covariance is 'lw'"):
        fit(train, labels, keys, covariance="lw")
    with pytest.raises(ValueError, match=r"shrinkage is 1\.5"):
        fit(train, labels, keys, shrinkage=1.5)
    with pytest.raises(ValueError, match="ridge is 0"):
        fit(train, labels, keys, ridge=0)
    with pytest.raises(ValueError, match="neighbors is 0"):
        fit(train, labels, keys, neighbors=0)
    with pytest.raises(ValueError, match="center is 'median', expected one of global, class"):
        fit(train, labels, keys, center="median")
    # Thirds: their mean is off in the last bit.
    third = np.full((3, 3), 1 / 3)
    with pytest.raises(ValueError, match="'s': its 3 training embeddings are all the same, so"):
        fit(third, np.zeros(3, int), ["s"] * 3)
    # One clip a class: each is its own prototype, up to rounding.
    with pytest.raises(ValueError, match="all the same within each class"):
        fit(train[:5], np.arange(5), ["s"] * 5, center="class")


def test_class_means():
    train, labels, _ = training_set(sections=SECTIONS[:1])
    means, classes = scoring.class_means(train, labels)
    expected = slow_prototypes(train, labels)
    assert classes.tolist() == list(expected)
    np.testing.assert_allclose(means, list(expected.values()), rtol=1e-13)
    opposite = np.array([[1.0, 0.0], [-1.0, 0.0]])
    np.testing.assert_array_equal(scoring.class_means(opposite, np.zeros(2, int))[0], [[0.0, 0.0]])


def test_training_scores_set_a_threshold_that_few_normal_clips_exceed():
    clips, labels, keys = training_set(clips=800)
    half = len(clips) // 2
    scorer = scoring.fit_scorer(clips[:half], labels[:half], keys[:half])
    threshold = gamma_threshold(scorer.score(clips[:half], keys[:half], training=True))
    # 10 % are meant to; 1,200 clips in 12 dimensions leave little room for optimism.
    exceeding = decide(scorer.score(clips[half:], keys[half:]), threshold).mean()
    assert 0.05 < exceeding < 0.15


def test_held_out_scores_set_thresholds_that_new_clips_keep():
    """60 clips in 40 dimensions: their own scores say nothing of a new clip's."""
    rng = np.random.default_rng(3)
    train, new = rng.standard_normal((60, 40)), rng.standard_normal((400, 40))
    labels, sections = np.repeat([0, 1, 2], 20), ["00"] * 60
    options = {"shrinkage": 0.001, "normalize_prototypes": False}
    scorer = scoring.fit_scorer(train, labels, sections, **options)
    found = scorer.score(new, ["00"] * 400)
    own = scorer.score(train, sections, training=True)
    held_out = scoring.held_out_scores(train, labels, sections, **options)
    assert np.mean(found > np.quantile(own, 0.9)) > 0.5
    # Each back-end of the folds has a fifth less to learn from, so a little too careful.
    assert 0.005 < np.mean(found > np.quantile(held_out, 0.9)) < 0.25


@pytest.mark.parametrize("kind", ["mahalanobis", "mahalanobis-knn"])
def test_held_out_scores_are_those_of_back_ends_without_the_clip(kind):
    rng = np.random.default_rng(4)
    embeddings, labels = rng.standard_normal((19, 3)), np.array([0, 1] * 5 + [2] * 9)
    sections = ["00"] * 10 + ["01"] * 9
    found = scoring.held_out_scores(embeddings, labels, sections, folds=5, kind=kind)
    everything = scoring.fit_scorer(embeddings, labels, sections, kind=kind)
    expected = everything.score(embeddings, sections, training=True)
    # Section 01 is too small to be parted; the first part holds the first clip of each class.
    np.testing.assert_array_equal(found[10:], expected[10:])
    kept = [row for row in range(19) if row not in (0, 1)]
    without = scoring.fit_scorer(
        embeddings[kept], labels[kept], [sections[r] for r in kept], kind=kind
    )
    np.testing.assert_array_equal(found[:2], without.score(embeddings[:2], sections[:2]))


def test_held_out_scores_are_no_distances_to_the_clip_itself():
    rng = np.random.default_rng(4)
    embeddings, labels, sections = rng.standard_normal((9, 3)), np.zeros(9, int), ["00"] * 9
    assert scoring.held_out_scores(embeddings, labels, sections, kind="knn").min() > 0.0
    with pytest.raises(ValueError, match="folds is 1"):
        scoring.held_out_scores(embeddings, labels, sections, folds=1)
