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


def test_copies_of_training_clips_do_not_outweigh_everything():
    found = fusion.log_normalized(np.array([0.0, 1e-9, 4.0]), np.array([0.0, 2.0, 4.0]))
    np.testing.assert_allclose(found, [math.log(1e-3), math.log(1e-3), math.log(2.0)], atol=1e-15)
    # Below the most normal held-out clip of a score without a zero of its own.
    assert fusion.log_normalized(np.array([-9.0]), np.array([-3.0, 1.0])) == math.log(1e-3)
    # Most held-out clips are copies: their mean is the unit; all of them are: 1 is.
    found = fusion.log_normalized(np.array([3.0]), np.array([0.0, 0.0, 3.0]))
    assert found == pytest.approx(math.log(3.0))
    assert fusion.log_normalized(np.array([2.0]), np.zeros(3)) == pytest.approx(math.log(2.0))


def test_members_of_a_part_are_averaged_and_the_furthest_part_decides():
    scores, references = [*SCORES, SCORES[0][::-1]], [*REFERENCES, REFERENCES[0][::-1]]
    arguments = scores, references, SECTIONS, REFERENCE_SECTIONS
    mean, parts = fusion.combine(*arguments), fusion.combine(*arguments, parts=[0, 4, 0])
    weighted = fusion.combine(*arguments, parts=[0, 4, 0], weights=[0.5, 1, 0.5])
    for row, section in enumerate(SECTIONS):
        rows = [n for n, key in enumerate(REFERENCE_SECTIONS) if key == section]
        own = [[r[n] for n in rows] for r in references]
        logs = [slow(s[row], r) for s, r in zip(scores, own, strict=True)]
        assert mean[row] == pytest.approx(sum(logs) / 3, abs=1e-12)
        normal = [[slow(value, r) for value in r] for r in own]
        together = [(a + b) / 2 for a, b in zip(normal[0], normal[2], strict=True)]
        first = (logs[0] + logs[2]) / 2 - np.quantile(together, 0.95)
        second = logs[1] - np.quantile(normal[1], 0.95)
        assert parts[row] == pytest.approx(math.exp(max(first, second)), rel=1e-12)
        assert weighted[row] == pytest.approx(math.exp(max(first / 2, second)), rel=1e-12)
    # Numbers of parts mean nothing but which members are one.
    np.testing.assert_array_equal(parts, fusion.combine(*arguments, parts=[7, 1, 7]))


def test_errors_name_what_is_wrong():
    arguments = (REFERENCES, SECTIONS, REFERENCE_SECTIONS)
    with pytest.raises(ValueError, match="scores of 1 members, references of 2 and 1 parts"):
        fusion.combine(SCORES[:1], *arguments)
    with pytest.raises(ValueError, match="scores of 0 members"):
        fusion.combine([], [], SECTIONS, REFERENCE_SECTIONS)
    with pytest.raises(ValueError, match=r"\[\(9, 21\)\] clips, expected \(8, 21\)"):
        fusion.combine(SCORES, REFERENCES, SECTIONS[1:], REFERENCE_SECTIONS)
    with pytest.raises(ValueError, match=r"expected \(9, 20\)"):
        fusion.combine(SCORES, REFERENCES, SECTIONS, REFERENCE_SECTIONS[1:])
    with pytest.raises(ValueError, match=r"section '02' has no held-out .* sections: 01, 00"):
        fusion.combine(SCORES, REFERENCES, ["02"] * 9, REFERENCE_SECTIONS)
    with pytest.raises(ValueError, match="found 0 reference scores"):
        fusion.log_normalized(np.ones(1), np.ones(0))
    with pytest.raises(ValueError, match="scores that are not finite"):
        fusion.log_normalized(np.array([1.0, np.inf]), np.ones(1))
