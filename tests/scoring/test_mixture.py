"""Gaussian mixtures against SciPy's densities and scikit-learn's fit."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from asdproto.scoring.mixture import fit_mixture

DIM = 6
OPTIONS = {"components": 2, "target_ratio": 0.2, "regularization": 1.0, "seed": 0}


def spectra(seed=0, clips=30):
    """Two clouds of correlated bands; every fifth clip is of the target domain."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(clips, DIM)) @ rng.normal(size=(DIM, DIM)) - 40.0
    target = np.arange(clips) % 5 == 0
    values[target] += 15.0
    return values, target


def fit(values, target, **changes):
    return fit_mixture(values, target, **{**OPTIONS, **changes})


def test_the_score_is_the_nearest_components_above_its_least():
    values, target = spectra()
    mixture, new = fit(values, target, target_ratio=0.0, seed=3), spectra(1, clips=9)[0]
    order = np.concatenate([values[~target], values[target]])
    theirs = GaussianMixture(2, reg_covar=1.0, tol=1e-6, max_iter=1000, random_state=3).fit(order)
    parts = [
        multivariate_normal(mean, covariance)
        for mean, covariance in zip(theirs.means_, theirs.covariances_, strict=True)
    ]
    logs = np.log(theirs.weights_)
    peak = max(w + part.logpdf(part.mean) for w, part in zip(logs, parts, strict=True))
    found = mixture.compare(new)
    for row, score in zip(new, found, strict=True):
        nearest = max(w + part.logpdf(row) for w, part in zip(logs, parts, strict=True))
        assert score == pytest.approx(peak - nearest, rel=1e-9)
    assert found.min() >= 0.0


def test_one_component_is_half_the_squared_mahalanobis_distance():
    values, target = spectra()
    options = {"components": 1, "target_ratio": 0.0, "regularization": 0.0}
    centered = values - values.mean(axis=0)
    precision = np.linalg.inv(centered.T @ centered / len(values))
    expected = 0.5 * np.einsum("nd,de,ne->n", centered, precision, centered)
    for unit in (1.0, 9.0):  # in other units the same
        found = fit(unit * values, target, **options).compare(unit * values)
        np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_target_clips_are_repeated_to_their_share():
    values, target = spectra()
    source, few = values[~target], values[target]
    assert (len(source), len(few)) == (24, 6)
    mixture = fit(values, target, components=1, target_ratio=0.5)  # 12 target clips, each twice
    expected = np.concatenate([source, few, few]).mean(axis=0)
    np.testing.assert_allclose(mixture.means[0], expected, rtol=1e-12)
    # Never fewer than there are, and a section without any is no error.
    for ratio, flags in ((0.1, target), (0.5, np.zeros(30, bool)), (0.5, np.ones(30, bool))):
        mixture = fit(values, flags, components=1, target_ratio=ratio)
        np.testing.assert_allclose(mixture.means[0], values.mean(axis=0), rtol=1e-12)


def test_the_seed_decides_where_the_search_begins():
    noise = np.random.default_rng(0).normal(size=(60, DIM))  # has no two clouds
    target = np.zeros(60, bool)
    one, same, other = (fit(noise, target, seed=seed).compare(noise) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3


def test_fourteen_clips_of_many_bands():
    values = np.random.default_rng(0).normal(size=(14, 128))
    scores = fit(values, np.zeros(14, bool)).compare(np.concatenate([values, values + 9.0]))
    assert np.isfinite(scores).all()
    assert scores[:14].max() < scores[14:].min()
