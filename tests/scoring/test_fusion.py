import math

import numpy as np
import pytest

from asdproto.scoring import fusion

RNG = np.random.default_rng(0)
REFERENCES = [RNG.gamma(3.0, 2.0, 21), RNG.normal(-40.0, 5.0, 21)]
SCORES = [RNG.gamma(3.0, 4.0, 9), RNG.normal(-30.0, 9.0, 9)]
SECTIONS = ["00", "01", "00", "01", "01", "00", "01", "00", "00"]
REFERENCE_SECTIONS = ["01", "00", "01"] * 7


def slow(score, reference):
    """The formula, one score at a time, from a sorted list."""
    ordered = sorted(reference)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    zero = ordered[0] if ordered[0] < 0 else 0.0
    return math.log(max((score - zero) / (median - zero), 0.001))


@pytest.mark.parametrize("member", [0, 1])
def test_log_normalized_is_its_formula(member):
    found = fusion.log_normalized(SCORES[member], REFERENCES[member])
    expected = [slow(score, REFERENCES[member]) for score in SCORES[member]]
    # A handful of float64 operations.
    np.testing.assert_allclose(found, expected, atol=1e-12)
    median = np.median(REFERENCES[member])
    assert fusion.log_normalized(np.array([median]), REFERENCES[member]) == 0.0


def test_the_measured_form_for_distances():
    found = fusion.log_normalized(SCORES[0], REFERENCES[0])
    np.testing.assert_allclose(found, np.log(SCORES[0] / np.median(REFERENCES[0])), atol=1e-12)


@pytest.mark.parametrize("member", [0, 1])
def test_units_do_not_matter_and_order_stays(member):
    scores = np.sort(SCORES[member])
    found = fusion.log_normalized(scores, REFERENCES[member])
    assert np.all(np.diff(found) >= 0)
    scaled = fusion.log_normalized(1e5 * scores, 1e5 * REFERENCES[member])
    np.testing.assert_allclose(scaled, found, atol=1e-9)


def test_copies_of_training_clips_do_not_outweigh_everything():
    found = fusion.log_normalized(np.array([0.0, 1e-9, 4.0]), np.array([0.0, 2.0, 4.0]))
    np.testing.assert_allclose(found, [math.log(1e-3), math.log(1e-3), math.log(2.0)], atol=1e-15)
    # Below the most normal held-out clip of a score without a zero of its own.
    assert fusion.log_normalized(np.array([-9.0]), np.array([-3.0, 1.0])) == math.log(1e-3)
    with pytest.raises(ValueError, match=r"median of 3 held-out scores is 0\.0"):
        fusion.log_normalized(np.ones(2), np.array([0.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match=r"median of 3 held-out scores is -2\.0"):
        fusion.log_normalized(np.ones(2), np.array([-2.0, -2.0, 1.0]))


def test_combine_is_the_weighted_mean_by_section():
    found = fusion.combine(SCORES, REFERENCES, SECTIONS, REFERENCE_SECTIONS, weights=[3.0, 1.0])
    for row, section in enumerate(SECTIONS):
        parts = [
            slow(
                own[row], [r for r, s in zip(ref, REFERENCE_SECTIONS, strict=True) if s == section]
            )
            for own, ref in zip(SCORES, REFERENCES, strict=True)
        ]
        assert found[row] == pytest.approx(0.75 * parts[0] + 0.25 * parts[1], abs=1e-12)
    equal = fusion.combine(SCORES, REFERENCES, SECTIONS, REFERENCE_SECTIONS)
    same = fusion.combine(SCORES, REFERENCES, SECTIONS, REFERENCE_SECTIONS, weights=[7.0, 7.0])
    np.testing.assert_allclose(equal, same, rtol=1e-14)
    alone = fusion.combine(SCORES, REFERENCES, SECTIONS, REFERENCE_SECTIONS, weights=[0.0, 2.0])
    only = fusion.combine(SCORES[1:], REFERENCES[1:], SECTIONS, REFERENCE_SECTIONS)
    np.testing.assert_array_equal(alone, only)


def _normalized(own):
    return fusion.combine([own], [own], ["00"] * 21, ["00"] * 21)


def test_a_power_of_a_score_counts_as_the_score():
    # An odd number of clips and quartiles that are clips: medians and quartiles map exactly.
    references, keys = [REFERENCES[0], REFERENCES[0] ** 2], ["00"] * 21
    weights = fusion.balancing_weights([_normalized(own) for own in references])
    np.testing.assert_allclose(weights, [2 / 3, 1 / 3], rtol=1e-12)
    both = [SCORES[0], SCORES[0] ** 2]
    found = fusion.combine(both, references, ["00"] * 9, keys, weights=weights)
    alone = fusion.combine(both[:1], references[:1], ["00"] * 9, keys)
    np.testing.assert_allclose(found, 4 / 3 * alone, rtol=1e-12)
    with pytest.raises(ValueError, match=r"interquartile ranges .* are \[0\.0\]"):
        fusion.balancing_weights([np.zeros(21)])


def test_weights_look_at_the_middle_half_of_scores_alone():
    reference = REFERENCES[0]
    outside = (reference > np.quantile(reference, 0.8)) | (reference < np.quantile(reference, 0.2))
    stretched = np.where(outside, np.median(reference) * (reference / np.median(reference)) ** 5,
                         reference)  # fmt: skip
    weights = fusion.balancing_weights([_normalized(reference), _normalized(stretched)])
    np.testing.assert_allclose(weights, [0.5, 0.5], rtol=1e-12)


def test_errors_name_what_is_wrong():
    arguments = (REFERENCES, SECTIONS, REFERENCE_SECTIONS)
    with pytest.raises(ValueError, match="scores of 1 members, references of 2 and 1 weights"):
        fusion.combine(SCORES[:1], *arguments)
    with pytest.raises(ValueError, match="scores of 0 members"):
        fusion.combine([], [], SECTIONS, REFERENCE_SECTIONS)
    for weights in ([1.0, -1.0], [0.0, 0.0], [1.0, math.nan]):
        with pytest.raises(ValueError, match="weights are"):
            fusion.combine(SCORES, *arguments, weights=weights)
    with pytest.raises(ValueError, match="9 scores of 8 clips"):
        fusion.combine(SCORES, REFERENCES, SECTIONS[1:], REFERENCE_SECTIONS)
    with pytest.raises(ValueError, match="21 reference scores of 20"):
        fusion.combine(SCORES, REFERENCES, SECTIONS, REFERENCE_SECTIONS[1:])
    with pytest.raises(ValueError, match=r"section '02' has no held-out .* sections: 01, 00"):
        fusion.combine(SCORES, REFERENCES, ["02"] * 9, REFERENCE_SECTIONS)
    with pytest.raises(ValueError, match="found 0 reference scores"):
        fusion.log_normalized(np.ones(1), np.ones(0))
    with pytest.raises(ValueError, match="scores that are not finite"):
        fusion.log_normalized(np.array([1.0, np.inf]), np.ones(1))
