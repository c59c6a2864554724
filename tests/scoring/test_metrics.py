import dataclasses
import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from asdproto.data.dcase import Clip
from asdproto.scoring import metrics

COLUMNS = ("files", "scores", "anomaly", "domains")


def random_table(seed, machine="fan", section="00", clips=37, decisions=False):
    """Asymmetric in everything: domains, states, ties."""
    rng = np.random.default_rng(seed)
    anomaly = rng.random(clips) < 0.4
    domains = np.where(rng.random(clips) < 0.7, "source", "target")
    scores = np.round(rng.normal(size=clips) + 0.8 * anomaly - 0.5 * (domains == "target"), 1)
    return metrics.SectionScores(
        machine_type=machine,
        section=section,
        files=tuple(f"{index}.wav" for index in range(clips)),
        scores=scores,
        anomaly=anomaly,
        domains=domains,
        decisions=scores > 0.3 if decisions else None,
    )


def slow_auc(normal, anomalous):
    """Fraction of (normal, anomalous) pairs in the right order; ties count half."""
    wins = 0.0
    for low in normal:
        for high in anomalous:
            wins += 1.0 if high > low else 0.5 if high == low else 0.0
    return wins / (len(normal) * len(anomalous))


def slow_pauc(scores, anomaly, max_fpr):
    """The ROC curve threshold by threshold, trapezia up to max_fpr, then McClish's formula."""
    points = [(0.0, 0.0)]
    for threshold in sorted(set(scores), reverse=True):
        called = [score >= threshold for score in scores]
        hits = sum(c and a for c, a in zip(called, anomaly, strict=True))
        alarms = sum(c and not a for c, a in zip(called, anomaly, strict=True))
        points.append((alarms / sum(~anomaly), hits / sum(anomaly)))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        end = min(x1, max_fpr)
        if end <= x0:
            continue
        y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
        area += (end - x0) * (y0 + y_end) / 2.0
    worst, best = max_fpr**2 / 2.0, max_fpr
    return 0.5 * (1.0 + (area - worst) / (best - worst))


@pytest.mark.parametrize("seed", range(2))
def test_section_metrics_equal_slow_references(seed):
    table = random_table(seed)
    result = metrics.section_metrics(table)
    anomalous = table.scores[table.anomaly]
    for domain in ("source", "target"):
        normal = table.scores[~table.anomaly & (table.domains == domain)]
        # Sums of at most 37^2 halves: exact but for the last division.
        assert result[f"{domain}_auc"] == pytest.approx(slow_auc(normal, anomalous), abs=1e-14)
    expected = slow_pauc(table.scores, table.anomaly, 0.1)
    assert result["pauc"] == pytest.approx(expected, abs=1e-14)
    wider = slow_pauc(table.scores, table.anomaly, 0.35)
    found = metrics.partial_auc(table.scores, table.anomaly, max_fpr=0.35)
    assert found == pytest.approx(wider, abs=1e-14)


def test_decisions_use_their_domain_only():
    table = random_table(0, decisions=True)
    result = metrics.section_metrics(table)
    for domain in ("source", "target"):
        chosen = table.domains == domain
        expected = precision_recall_fscore_support(
            table.anomaly[chosen], table.decisions[chosen], average="binary"
        )
        for name, value in zip(("precision", "recall", "f1"), expected[:3], strict=True):
            assert result[f"{name}_{domain}"] == pytest.approx(value, abs=1e-14)
    assert metrics.precision_recall_f1(np.zeros(4, bool), np.array([1, 0, 1, 0])) == (0, 0, 0)
    assert np.isnan(metrics.precision_recall_f1(np.ones(4, bool), np.zeros(4))).all()


def test_harmonic_mean():
    assert metrics.harmonic_mean([0.5, 1.0]) == pytest.approx(2 / 3, abs=1e-15)
    # Three figures, one of them zero: 3 / (1/eps + ...) = 3 eps.
    eps = np.finfo(np.float64).eps
    assert metrics.harmonic_mean([0.0, 1.0, 1.0]) == pytest.approx(3 * eps, rel=1e-12)
    assert metrics.harmonic_mean([0.5, math.nan]) == 0.5
    assert math.isnan(metrics.harmonic_mean([math.nan]))


def test_evaluate_aggregates():
    tables = [
        random_table(10 * number + section, machine, f"0{section}")
        for number, machine in enumerate(("valve", "fan", "ToyCar"))
        for section in range(3)
    ]
    result = metrics.evaluate(tables)
    assert list(result["machines"]) == ["ToyCar", "fan", "valve"]
    by_machine = [machine["overall"] for machine in result["machines"].values()]
    by_metric = [result[name] for name in metrics.AUC_METRICS]
    # Equal numbers of sections: both orders of averaging give the same, as in Table 1.
    assert result["overall"] == pytest.approx(metrics.harmonic_mean(by_machine), abs=1e-14)
    assert result["overall"] == pytest.approx(metrics.harmonic_mean(by_metric), abs=1e-14)
    fan = result["machines"]["fan"]
    nine = [1.0 / fan["sections"][s][m] for s in fan["sections"] for m in metrics.AUC_METRICS]
    assert fan["overall"] == pytest.approx(len(nine) / sum(nine), abs=1e-14)
    three = [1.0 / fan["sections"][s]["target_auc"] for s in fan["sections"]]
    assert fan["target_auc"] == pytest.approx(3 / sum(three), abs=1e-14)
    assert "f1_source" not in result
    assert result["undefined"] == []


def test_decision_figures_stand_at_every_level_only_when_complete():
    tables = [random_table(seed, section=f"0{seed}", decisions=True) for seed in range(2)]
    result = metrics.evaluate(tables)
    sections = result["machines"]["fan"]["sections"]
    values = [figures["f1_target"] for figures in sections.values()]
    assert result["f1_target"] == metrics.harmonic_mean(values)
    partly = metrics.evaluate([tables[0], random_table(1, section="01")])
    assert partly["overall"] == result["overall"]
    assert "f1_target" not in partly
    assert "f1_target" in partly["machines"]["fan"]["sections"]["00"]


def test_undefined_figures_are_named_and_left_out():
    whole = random_table(1)
    keep = ~((whole.domains == "target") & ~whole.anomaly)
    arrays = {name: np.array(getattr(whole, name))[keep] for name in COLUMNS}
    lacking = metrics.SectionScores("fan", "01", **arrays)
    with pytest.warns(metrics.UndefinedMetricWarning, match="normal clips of the target domain"):
        result = metrics.evaluate([whole, lacking])
    sections = result["machines"]["fan"]["sections"]
    assert math.isnan(sections["01"]["target_auc"])
    assert result["target_auc"] == pytest.approx(sections["00"]["target_auc"], abs=1e-15)
    assert result["undefined"] == [
        "fan section 01 has no normal clips of the target domain (target_auc)"
    ]
    five = [v for s in sections.values() for v in s.values() if not math.isnan(v)]
    assert len(five) == 5
    assert result["overall"] == metrics.harmonic_mean(five)
    # Of a collection without domains, all clips count as source.
    bare = dataclasses.replace(whole, domains=[""] * len(whole.files))
    with pytest.warns(metrics.UndefinedMetricWarning):
        result = metrics.evaluate([bare])
    # A mean of one figure goes through its reciprocal: the last digit may differ.
    assert result["source_auc"] == pytest.approx(
        metrics.auc(whole.scores, whole.anomaly), abs=1e-15
    )
    assert math.isnan(result["target_auc"])
    normal = metrics.SectionScores("fan", "00", ("a", "b"), [0.1, 0.2], [0, 0], ["source"] * 2)
    with pytest.warns(metrics.UndefinedMetricWarning, match="has no anomalies"):
        assert math.isnan(metrics.evaluate([normal])["overall"])


def test_bad_tables_are_refused():
    with pytest.raises(ValueError, match="scores has shape"):
        metrics.SectionScores("fan", "00", ("a",), [1.0, 2.0], [0], ["source"])
    with pytest.raises(ValueError, match=r"nan of b\.wav"):
        metrics.SectionScores("fan", "00", ("a.wav", "b.wav"), [1.0, np.nan], [0, 1], ["", ""])
    with pytest.raises(ValueError, match="domain 'sauce'"):
        metrics.SectionScores("fan", "00", ("a",), [1.0], [0], ["sauce"])
    with pytest.raises(ValueError, match="given twice"):
        metrics.evaluate([random_table(0), random_table(1)])
    with pytest.raises(ValueError, match="no scores"):
        metrics.evaluate([])
    with pytest.raises(ValueError, match="can be scored but not evaluated"):
        metrics.group_scores([Clip("x.wav", "fan", "00", "", "test", "", "")], np.zeros(1))


def test_summarize_over_seeds():
    runs = [metrics.evaluate([random_table(seed)]) for seed in range(3)]
    summary = metrics.summarize(runs)
    values = np.array([run["machines"]["fan"]["sections"]["00"]["pauc"] for run in runs])
    leaf = summary["machines"]["fan"]["sections"]["00"]["pauc"]
    assert leaf == {
        "mean": pytest.approx(values.sum() / 3),
        # ddof=1: divisor 2.
        "std": pytest.approx(math.sqrt(((values - values.mean()) ** 2).sum() / 2)),
        "count": 3,
    }
    assert math.isnan(metrics.summarize(runs[:1])["overall"]["std"])
    with pytest.raises(ValueError, match=r"results\.machines: result 1"):
        metrics.summarize([runs[0], metrics.evaluate([random_table(0, machine="valve")])])
    with pytest.raises(ValueError, match="no results"):
        metrics.summarize([])


def test_paired_differences_are_taken_within_runs():
    found = metrics.paired_difference([0.5, 0.9, 0.7, 0.5], [0.6, 0.8, 0.9, 0.5])
    gains = np.array([0.1, -0.1, 0.2, 0.0])
    assert found == {
        "mean": pytest.approx(gains.mean()),
        "std": pytest.approx(gains.std(ddof=1)),
        "count": 4,
        "higher": 2,
    }
    with pytest.raises(ValueError, match="found 2 and 1"):
        metrics.paired_difference([0.1, 0.2], [0.3])
