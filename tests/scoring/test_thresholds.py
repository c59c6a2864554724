import numpy as np
import pytest
from scipy import stats

from asdproto.scoring import thresholds


@pytest.mark.parametrize("seed", range(3))
def test_gamma_threshold_is_scipys_fit(seed):
    scores = np.random.default_rng(seed).gamma(4.0, 0.5, size=2000)
    threshold = thresholds.gamma_threshold(scores)
    # Two searches for one optimum, ours on scores brought to unit range.
    direct = stats.gamma.ppf(0.9, *stats.gamma.fit(scores))
    assert threshold == pytest.approx(direct, rel=5e-3)
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


def test_gamma_threshold_falls_back_and_says_so():
    with pytest.warns(thresholds.ThresholdWarning, match="they are all the same"):
        assert thresholds.gamma_threshold(np.full(50, -2.5)) == -2.5
    with pytest.warns(thresholds.ThresholdWarning, match="all the same"):
        assert thresholds.gamma_threshold(np.array([3.0])) == 3.0
    # The mirror image of a gamma distribution drives the fit into a corner.
    mirrored = -np.random.default_rng(0).gamma(2.0, 1.0, size=3000)
    with pytest.warns(thresholds.ThresholdWarning, match="exceed the fitted 90% quantile"):
        assert thresholds.gamma_threshold(mirrored) == np.quantile(mirrored, 0.9)
    with pytest.raises(ValueError, match="1 of them not finite"):
        thresholds.gamma_threshold(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="holds 0 values"):
        thresholds.gamma_threshold(np.array([]))
    with pytest.raises(ValueError, match=r"quantile is 1\.0"):
        thresholds.gamma_threshold(np.ones(3), quantile=1.0)


def test_decide():
    decisions = thresholds.decide(np.array([0.1, 0.5, 0.9]), 0.5)
    assert decisions.tolist() == [0, 0, 1]
    assert thresholds.decide(np.array([0.1, 0.5]), np.array([0.0, 0.6])).tolist() == [1, 0]
