import numpy as np
import pytest
from scipy import stats

from asdproto.scoring import thresholds


def test_gamma_threshold_is_scipys_fit():
    scores = np.random.default_rng(0).gamma(4.0, 0.5, size=2000)
    threshold = thresholds.gamma_threshold(scores)
    # Two searches for one optimum, ours on scores brought to unit range.
    direct = stats.gamma.ppf(0.9, *stats.gamma.fit(scores))
    assert threshold == pytest.approx(direct, rel=1e-5)  # the 90th percentile is 5e-4 away
    # 2,000 draws: the 90th percentile is known to about 2 %.
    assert threshold == pytest.approx(stats.gamma.ppf(0.9, 4.0, scale=0.5), rel=0.05)
    assert thresholds.gamma_threshold(scores, quantile=0.5) == pytest.approx(
        stats.gamma.ppf(0.5, 4.0, scale=0.5), rel=0.05
    )


@pytest.mark.parametrize(("scale", "shift"), [(1e-8, 0.0), (1e6, 0.0), (1.0, -50.0)])
def test_gamma_threshold_knows_no_units(scale, shift):
    scores = np.random.default_rng(5).gamma(3.0, 1.0, size=500)
    expected = scale * thresholds.gamma_threshold(scores) + shift
    # The search stops at a relative tolerance of 1e-4.
    assert thresholds.gamma_threshold(scale * scores + shift) == pytest.approx(expected, rel=1e-3)


def test_gamma_threshold_falls_back_in_silence():
    assert thresholds.gamma_threshold(np.full(50, -2.5)) == -2.5
    assert thresholds.gamma_threshold(np.array([3.0])) == 3.0
    # The mirror image of a gamma distribution drives the fit into a corner.
    mirrored = -np.random.default_rng(0).gamma(2.0, 1.0, size=3000)
    assert thresholds.gamma_threshold(mirrored) == np.quantile(mirrored, 0.9)
    with pytest.raises(ValueError, match="1 of them not finite"):
        thresholds.gamma_threshold(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="found 0 scores"):
        thresholds.gamma_threshold(np.array([]))
    with pytest.raises(ValueError, match=r"quantile is 1\.0"):
        thresholds.gamma_threshold(np.ones(3), quantile=1.0)


@pytest.mark.parametrize(
    ("clips", "quantile", "caution"),
    [
        (1, 0.9, "rests on one recording"),
        (9, 0.9, "rests on 9 clips only"),
        (10, 0.9, ""),
        (20, 0.99, "20 clips cannot set a share of 0.01; about 0.05 is least"),
        (100, 0.99, ""),
    ],
)
def test_a_limit_says_what_it_rests_on(clips, quantile, caution):
    scores = np.random.default_rng(0).gamma(4.0, 0.5, size=clips)
    found = thresholds.limit(scores, quantile=quantile)
    assert found.threshold == thresholds.gamma_threshold(scores, quantile=quantile)
    assert found.above == np.mean(scores > found.threshold)
    assert found.clips == clips
    assert caution in found.caution
    assert bool(found.caution) == bool(caution)


def test_decide():
    decisions = thresholds.decide(np.array([0.1, 0.5, 0.9]), 0.5)
    assert decisions.tolist() == [0, 0, 1]
    assert thresholds.decide(np.array([0.1, 0.5]), np.array([0.0, 0.6])).tolist() == [1, 0]


def test_percentiles_are_those_of_the_own_machine_type():
    shares = thresholds.percentiles(
        [0.5, 1.0, 9.0, 9.0, 1.0],
        ["fan", "fan", "fan", "pump", "valve"],
        [1.0, 2.0, 0.0, 10.0],
        ["fan", "fan", "fan", "pump"],
    )
    np.testing.assert_array_equal(shares, [100 / 3, 100 / 3, 100.0, 0.0, np.nan])
