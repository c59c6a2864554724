import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from asdproto.data.dataset import prepare, section_keys
from asdproto.errors import DataError
from asdproto.systems import gmm
from asdproto.systems.members import RunOptions
from asdproto.training.devices import use_devices
from tests.experiments.rivals import tiny

MELS = 6


def spectra(seed=0, clips=60):
    """Two clouds of correlated bands in two sections; every fifth clip is of the target domain."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(MELS, MELS))
    values = rng.normal(size=(clips, MELS)) @ mixing - 40.0
    target = np.arange(clips) % 5 == 0
    values[target] += 15.0
    return values, target, [("fan", f"0{index % 2}") for index in range(clips)]


@pytest.mark.parametrize("r", [0.0, 0.7, 1.0])
def test_time_weighting_equals_a_loop(r):
    frames = np.random.default_rng(0).normal(size=(7, MELS)).astype(np.float16)
    found = gmm.time_weighted(frames, r)
    for band in range(MELS):
        levels = sorted((float(x) for x in frames[:, band]), reverse=True)
        weights = [r**i for i in range(7)]
        expected = sum(w * x for w, x in zip(weights, levels, strict=True)) / sum(weights)
        assert found[band] == pytest.approx(expected, rel=1e-12)
    if r in (0.0, 1.0):
        simple = frames.astype(float).max(0) if r == 0 else frames.astype(float).mean(0)
        np.testing.assert_allclose(found, simple, rtol=1e-12)


def test_densities_equal_scikit_learns_and_scipys():
    values, target, keys = spectra()
    own = np.array([key == keys[1] for key in keys])
    mixtures = gmm.fit_mixtures(values, target, keys, target_ratio=0.0, regularization=0.1, seed=3)
    mixture = mixtures.sections[keys[1]]
    order = np.concatenate([values[own & ~target], values[own & target]])
    theirs = GaussianMixture(2, reg_covar=0.1, tol=1e-6, max_iter=1000, random_state=3).fit(order)
    found = mixture.log_densities(values[own])
    np.testing.assert_allclose(
        np.logaddexp.reduce(found, axis=1), theirs.score_samples(values[own]), rtol=1e-9
    )
    for k, (mean, covariance) in enumerate(zip(theirs.means_, theirs.covariances_, strict=True)):
        density = multivariate_normal(mean, covariance).logpdf(values[own])
        expected = np.log(theirs.weights_[k]) + density
        np.testing.assert_allclose(found[:, k], expected, rtol=1e-9)


def test_the_score_is_the_nearest_components_above_its_least():
    values, target, keys = spectra()
    mixtures = gmm.fit_mixtures(values, target, keys)
    new, _, new_keys = spectra(1, clips=9)
    found = mixtures.score(new, new_keys)
    for row, key in enumerate(new_keys):
        mixture = mixtures.sections[key]
        parts = [
            multivariate_normal(mean, np.linalg.inv(factor @ factor.T))
            for mean, factor in zip(mixture.means, mixture.factors, strict=True)
        ]
        logs = np.log(mixture.weights)
        nearest = max(w + part.logpdf(new[row]) for w, part in zip(logs, parts, strict=True))
        peak = max(w + part.logpdf(part.mean) for w, part in zip(logs, parts, strict=True))
        assert found[row] == pytest.approx(peak - nearest, rel=1e-9)
    alone = [mixtures.score(new[[i]], [new_keys[i]])[0] for i in range(len(new))]
    np.testing.assert_array_equal(found, alone)
    assert found.min() >= 0.0


def test_one_component_is_half_the_squared_mahalanobis_distance():
    values, target, keys = spectra()
    mixtures = gmm.fit_mixtures(
        values, target, keys, components=1, target_ratio=0.0, regularization=0.0
    )
    own = np.array([key == keys[0] for key in keys])
    centered = values[own] - values[own].mean(axis=0)
    precision = np.linalg.inv(centered.T @ centered / own.sum())
    expected = 0.5 * np.einsum("nd,de,ne->n", centered, precision, centered)
    np.testing.assert_allclose(mixtures.score(values, keys)[own], expected, rtol=1e-8)
    # In other units the same.
    scaled = gmm.fit_mixtures(
        9 * values, target, keys, components=1, target_ratio=0.0, regularization=0.0
    )
    np.testing.assert_allclose(scaled.score(9 * values, keys)[own], expected, rtol=1e-8)


def test_target_clips_are_repeated_to_their_share():
    values, target, keys = spectra()
    own = np.array([key == keys[0] for key in keys])
    source, few = values[own & ~target], values[own & target]
    assert (len(source), len(few)) == (24, 6)
    # 12 target clips, each twice.
    mixtures = gmm.fit_mixtures(values, target, keys, components=1, target_ratio=0.5)
    expected = np.concatenate([source, few, few]).mean(axis=0)
    np.testing.assert_allclose(mixtures.sections[keys[0]].means[0], expected, rtol=1e-12)
    # Never fewer than there are, and a section without any is no error.
    for ratio, flags in ((0.1, target), (0.5, np.zeros(60, bool)), (0.5, np.ones(60, bool))):
        mixtures = gmm.fit_mixtures(values, flags, keys, components=1, target_ratio=ratio)
        np.testing.assert_allclose(
            mixtures.sections[keys[0]].means[0], values[own].mean(axis=0), rtol=1e-12
        )


def test_the_system_repeats_clips_of_the_target_domain(tmp_path):
    data = prepare(tiny.make_store(tmp_path / "features"), 1)
    system = gmm.GmmSystem(features=tiny.FEATURES, components=1, target_ratio=0.9)
    (fitted,) = system.train(data, RunOptions(None, use_devices(1)), [0])["gmm"]
    target = [clip.domain == "target" for clip in data.train_clips]
    expected = gmm.fit_mixtures(
        system.pool(data.train),
        np.array(target, np.int64),
        section_keys(data.train_clips),
        components=1,
        target_ratio=0.9,
        regularization=system.regularization,
    )
    for key, mixture in expected.sections.items():
        np.testing.assert_array_equal(fitted.member.mixtures.sections[key].means, mixture.means)


def test_a_seed_and_a_sections_own_clips_decide():
    values, target, keys = spectra()
    one, two = (gmm.fit_mixtures(values, target, keys, seed=5) for _ in range(2))
    own = np.array([key == keys[0] for key in keys])
    alone = gmm.fit_mixtures(values[own], target[own], [keys[0]] * own.sum(), seed=5)
    for other in (two, alone):
        for name in ("weights", "means", "factors"):
            np.testing.assert_array_equal(
                getattr(one.sections[keys[0]], name), getattr(other.sections[keys[0]], name)
            )
    # Noise has no two clouds, so the result depends on where the search begins.
    noise = np.random.default_rng(0).normal(size=(60, MELS))
    first, second = (gmm.fit_mixtures(noise, target, keys, seed=seed) for seed in (0, 1))
    assert np.abs(first.score(noise, keys) - second.score(noise, keys)).max() > 1e-3


def test_fourteen_clips_of_many_bands():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(14, 128))
    mixtures = gmm.fit_mixtures(values, np.zeros(14, bool), ["00"] * 14)
    scores = mixtures.score(np.concatenate([values, values + 9.0]), ["00"] * 28)
    assert np.isfinite(scores).all()
    assert scores[:14].max() < scores[14:].min()


def test_errors_name_what_is_wrong():
    values, target, keys = spectra(clips=5)
    with pytest.raises(DataError, match=r"'00'\): found 1 training clip; expected at least 2"):
        gmm.fit_mixtures(values[:1], target[:1], keys[:1], components=1)
    with pytest.raises(DataError, match="found 3 training clips; expected at least 4"):
        gmm.fit_mixtures(values[::2], target[::2], keys[::2], components=4)
    mixtures = gmm.fit_mixtures(values[::2], target[::2], keys[::2])
    with pytest.raises(ValueError, match=r"'01'\) was not seen in training, so it has no mixture"):
        mixtures.score(values, keys)
    with pytest.raises(ValueError, match=r"expected \[n, 6\] as in training"):
        mixtures.score(values[::2, :3], keys[::2])
    for field, message in (
        ({"r": 1.5}, r"r=1\.5: expected"),
        ({"components": 0}, "components=0: expected"),
        ({"target_ratio": -1.0}, r"target_ratio=-1\.0"),
        ({"regularization": float("nan")}, "regularization=nan"),
    ):
        with pytest.raises(ValueError, match=message):
            gmm.GmmSystem(**field)
