import itertools
import json
import math
import os
import shutil
import warnings

import numpy as np
import pytest

from asdproto.data.dcase import Clip
from asdproto.errors import DataError
from asdproto.results import result_files as results_io
from asdproto.results import score_files as scores_io
from asdproto.scoring import metrics

# Table 1 of Zeng et al., 2023: seven machine types, three metrics, overall; percentages.
TABLE_1 = {
    "AutoEncoder": "51.30 39.77 60.64 58.50 63.07 58.00 50.60 70.55 42.27 54.51 53.40",
    "MobileNetV2": "54.40 51.55 60.64 57.53 60.17 51.68 62.13 64.61 50.98 55.77 56.58",
    "Baseline": "74.67 58.68 67.84 57.20 74.30 80.12 90.45 78.78 69.45 64.04 70.25",
    "STgram-MFN": "68.38 62.25 59.54 63.36 62.75 73.84 60.44 71.21 64.32 57.97 64.05",
    "DG-mix": "79.80 53.70 70.70 76.60 80.28 75.11 79.13 77.55 74.08 66.34 72.35",
    "Disent_Wt": "76.95 59.74 72.07 63.91 81.38 85.14 94.50 86.09 71.65 68.21 74.57",
    "Pre-train": "74.81 62.03 71.32 58.16 74.25 82.69 92.23 84.75 69.70 64.64 72.09",
    "Fine-tune from scratch": "77.40 59.71 67.19 57.75 70.80 83.24 76.02 74.52 71.74 62.52 69.20",
    "Fine-tune": "79.08 62.95 78.53 61.34 76.50 85.34 93.71 85.41 76.03 66.63 75.25",
}


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


@pytest.mark.parametrize("seed", range(5))
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
    assert metrics.section_metrics(table, max_fpr=0.35)["pauc"] == pytest.approx(wider, abs=1e-14)


def test_pauc_is_standardized():
    rng = np.random.default_rng(0)
    anomaly = np.arange(20_000) % 2 == 0
    # Chance is 0.5, whatever the range; 20,000 clips spread by about 0.003.
    assert metrics.partial_auc(rng.random(20_000), anomaly) == pytest.approx(0.5, abs=0.02)
    assert metrics.partial_auc(anomaly.astype(float), anomaly) == 1.0
    # The worst detector reaches 1/2 (1 - p/(2-p)) with p = 0.1, not 0.
    worst = metrics.partial_auc(-anomaly.astype(float), anomaly)
    assert worst == pytest.approx(0.5 * (1.0 - 0.1 / 1.9), abs=1e-12)
    table = random_table(3)
    full = metrics.partial_auc(table.scores, table.anomaly, max_fpr=1.0)
    assert full == metrics.auc(table.scores, table.anomaly)


@pytest.mark.parametrize("seed", range(3))
def test_decisions_use_their_domain_only(seed):
    from sklearn.metrics import precision_recall_fscore_support

    table = random_table(seed, decisions=True)
    result = metrics.section_metrics(table)
    for domain in ("source", "target"):
        chosen = table.domains == domain
        expected = precision_recall_fscore_support(
            table.anomaly[chosen], table.decisions[chosen], average="binary"
        )
        for name, value in zip(("precision", "recall", "f1"), expected[:3], strict=True):
            assert result[f"{name}_{domain}"] == pytest.approx(value, abs=1e-14)


def test_no_alarm_is_precision_zero():
    assert metrics.precision_recall_f1(np.zeros(4, bool), np.array([1, 0, 1, 0])) == (0, 0, 0)
    assert metrics.precision_recall_f1(np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0])) == (
        0.5,
        1.0,
        pytest.approx(2 / 3),
    )
    # One hit of five alarms and four anomalies: the two sum to less than 1.
    called, anomaly = np.arange(8) < 5, np.arange(8) >= 4
    assert metrics.precision_recall_f1(called, anomaly) == (0.2, 0.25, pytest.approx(2 / 9))


def test_harmonic_mean():
    assert metrics.harmonic_mean([0.5, 1.0]) == pytest.approx(2 / 3, abs=1e-15)
    # Three figures, one of them zero: 3 / (1/eps + ...) = 3 eps.
    eps = np.finfo(np.float64).eps
    assert metrics.harmonic_mean([0.0, 1.0, 1.0]) == pytest.approx(3 * eps, rel=1e-12)
    assert metrics.harmonic_mean([0.5, math.nan]) == 0.5
    assert math.isnan(metrics.harmonic_mean([math.nan]))


@pytest.mark.parametrize("system", TABLE_1)
def test_table_1_of_the_paper_is_made_of_harmonic_means(system):
    figures = [float(figure) for figure in TABLE_1[system].split()]
    machines, columns, overall = figures[:7], figures[7:10], figures[10]
    # The table's figures are rounded to 0.01, and a mean of rounded ones is no further off.
    assert metrics.harmonic_mean(machines) == pytest.approx(overall, abs=0.0101)
    assert metrics.harmonic_mean(columns) == pytest.approx(overall, abs=0.0101)


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
    values = [tables_["f1_target"] for tables_ in result["machines"]["fan"]["sections"].values()]
    assert result["f1_target"] == metrics.harmonic_mean(values)
    undecided = metrics.evaluate([random_table(seed, section=f"0{seed}") for seed in range(2)])
    assert result["overall"] == undecided["overall"]
    partly = metrics.evaluate([tables[0], random_table(1, section="01")])
    assert "f1_target" not in partly
    assert "f1_target" in partly["machines"]["fan"]["sections"]["00"]


def test_undefined_figures_are_named_and_left_out():
    whole = random_table(1)
    keep = ~((whole.domains == "target") & ~whole.anomaly)
    lacking = metrics.SectionScores(
        "fan",
        "01",
        tuple(np.array(whole.files)[keep]),
        whole.scores[keep],
        whole.anomaly[keep],
        whole.domains[keep],
    )
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
    normal = metrics.SectionScores("fan", "00", ("a", "b"), [0.1, 0.2], [0, 0], ["source"] * 2)
    with pytest.warns(metrics.UndefinedMetricWarning, match="has no anomalies"):
        assert math.isnan(metrics.evaluate([normal])["overall"])


def test_a_collection_without_domains_counts_as_source():
    table = random_table(4)
    bare = metrics.SectionScores(
        "fan", "00", table.files, table.scores, table.anomaly, [""] * len(table.files)
    )
    with pytest.warns(metrics.UndefinedMetricWarning):
        result = metrics.evaluate([bare])
    # A mean of one figure goes through its reciprocal: the last digit may differ.
    expected = metrics.auc(table.scores, table.anomaly)
    assert result["source_auc"] == pytest.approx(expected, abs=1e-15)
    assert math.isnan(result["target_auc"])


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


def test_published_scores_give_the_published_figures(real_data, tmp_path):
    folder = real_data / "dcase2022" / "dev_scores"
    tables = scores_io.read_scores(folder)
    assert sum(len(table.files) for table in tables) == 4200
    result = metrics.evaluate(tables)
    published = results_io.read_result_csv(folder / "result.csv")
    assert len(published) == 7
    assert results_io.largest_difference(result, published)[0] <= 1e-12
    ours = results_io.read_result_csv(results_io.write_result_csv(tmp_path / "result.csv", result))
    for machine, rows in published.items():
        assert set(ours[machine]) == set(rows) >= {"00", "arithmetic mean", "harmonic mean"}
        for row, figures in rows.items():
            for name, figure in figures.items():
                assert ours[machine][row][name] == pytest.approx(figure, abs=1e-12), (machine, row)
    # Sections and arithmetic means byte for byte; titles and the last digit of a harmonic mean,
    # which its order of summation decides, are each writer's own.
    files = (tmp_path / "result.csv", folder / "result.csv")
    blocks = [file.read_bytes().split(b"\n\n")[:7] for file in files]
    for ours, theirs in zip(*blocks, strict=True):
        kept = [[*block.splitlines()[:1], *block.splitlines()[2:-1]] for block in (ours, theirs)]
        assert kept[0] == kept[1]


def test_official_ground_truth_of_the_evaluation_set(real_data, tmp_path):
    truth = real_data / "dcase2022"
    rows = (truth / "ground_truth_data" / "ground_truth_fan_section_03_test.csv").read_text()
    domains = dict(
        line.split(",")
        for line in (truth / "ground_truth_domain" / "ground_truth_fan_section_03_test.csv")
        .read_text()
        .split()
    )
    rng = np.random.default_rng(0)
    lines = [line.split(",") for line in rows.split()]
    scores = [float(state) + 2.0 * rng.normal() for _, state in lines]
    path = tmp_path / "anomaly_score_fan_section_03_test.csv"
    written = [f"{name},{score!r}" for (name, _), score in zip(lines, scores, strict=True)]
    path.write_text("\n".join(written) + "\n")
    with pytest.raises(DataError, match=r"line 1: found .*does not say whether it is normal"):
        scores_io.read_scores(tmp_path)
    with pytest.warns(scores_io.IncompleteScoresWarning, match="20 sections"):
        (table,) = scores_io.read_scores(tmp_path, ground_truth=truth)
    result = metrics.section_metrics(table)
    normal = [
        score
        for (name, state), score in zip(lines, scores, strict=True)
        if state == "0" and domains[name] == "1"
    ]
    anomalous = [s for (_, state), s in zip(lines, scores, strict=True) if state == "1"]
    assert result["target_auc"] == pytest.approx(slow_auc(normal, anomalous), abs=1e-14)
    path.write_text("\n".join(written[:-1]) + "\n")
    with pytest.raises(DataError, match="no score for 1 of 200 clips"):
        scores_io.read_scores(tmp_path, ground_truth=truth / "ground_truth_data")


def clip(name, *, state="normal", domain="source", section="00", machine="fan", split="test"):
    return Clip(name, machine, section, domain, split, state, "")


def test_scores_written_and_read_back_are_the_same(tmp_path):
    rng = np.random.default_rng(5)
    clips = [
        clip(
            f"fan/test/section_0{section}_{domain}_test_{state}_{index:04d}.wav",
            state=state,
            domain=domain,
            section=f"0{section}",
        )
        for section in (1, 0)
        for domain in ("source", "target")
        for state in ("normal", "anomaly")
        for index in range(3)
    ]
    scores = rng.normal(size=len(clips)) * 1e-7 / 3.0
    decisions = (scores > 0).astype(int)
    files = scores_io.write_scores(tmp_path, clips, scores, decisions)
    assert [file.name for file in files[:2]] == [
        "anomaly_score_fan_section_00_test.csv",
        "decision_result_fan_section_00_test.csv",
    ]
    raw = files[0].read_bytes()
    assert raw.startswith(b"section_00_source_test_normal_0000.wav,")
    assert raw.endswith(b"\n")
    assert b"\r" not in raw
    assert raw.count(b"\n") == 12
    assert {line[-2:] for line in files[1].read_bytes().splitlines()} == {b",0", b",1"}
    for ours, back in zip(
        metrics.group_scores(clips, scores, decisions),
        scores_io.read_scores(tmp_path),
        strict=True,
    ):
        assert (ours.machine_type, ours.section, ours.files) == (
            back.machine_type,
            back.section,
            back.files,
        )
        for field in ("scores", "anomaly", "domains", "decisions"):
            np.testing.assert_array_equal(getattr(ours, field), getattr(back, field))
    # New scores without decisions leave no decisions of the old ones behind.
    scores_io.write_scores(tmp_path, clips, scores)
    assert not list(tmp_path.glob("decision_result*"))
    assert not list(tmp_path.glob(".*"))


def test_clips_that_share_a_name_are_told_apart_by_their_path(tmp_path):
    clips = [
        clip("normal/00.wav"),
        clip("abnormal/00.wav", state="anomaly"),
        clip("normal/01.wav", domain="target"),
    ]
    scores_io.write_scores(tmp_path, clips, np.array([0.0, 1.0, 2.0]))
    with pytest.raises(DataError, match="line 1"):
        scores_io.read_scores(tmp_path)
    (table,) = scores_io.read_scores(tmp_path, clips=clips)
    assert table.files == ("normal/00.wav", "abnormal/00.wav", "normal/01.wav")
    assert table.anomaly.tolist() == [False, True, False]
    with pytest.raises(DataError, match="no score for 1 of 4"):
        scores_io.read_scores(tmp_path, clips=[*clips, clip("abnormal/01.wav", state="anomaly")])


GOOD = "section_00_source_test_normal_0000.wav"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{GOOD},0.5\n{GOOD},0.6\n", r"line 2: found .* for the second time \(first on line 1\)"),
        (f"{GOOD},0.5,1\n", r"line 1: found 3 columns"),
        (f"\n{GOOD}\n", r"line 2: found 1 columns"),
        ("file,score\n", r"line 1: found 'score'; expected a number; the official files have no"),
        (f"{GOOD},nan\n", r"line 1: found the score nan; expected a finite number"),
        (f"{GOOD},\n", r"line 1: found ''"),
        ("section_01_source_test_normal_0000.wav,1\n", r"line 1: found .* of section 01"),
        ("noise.wav,1\n", r"line 1: found the name 'noise.wav'"),
        ("", "found no rows"),
        ('"broken,1\n', "never closed"),
    ],
)
def test_malformed_score_files_are_refused(tmp_path, text, message):
    (tmp_path / "anomaly_score_fan_section_00_test.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        scores_io.read_scores(tmp_path)
    assert "anomaly_score_fan_section_00_test.csv" in str(caught.value)


def test_score_folders_are_checked(tmp_path):
    with pytest.raises(DataError, match="found nothing; expected a folder"):
        scores_io.read_scores(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no score file"):
        scores_io.read_scores(tmp_path)
    good = tmp_path / "anomaly_score_fan_section_00.csv"
    good.write_text(f"{GOOD},0.5\n")
    (tmp_path / "anomaly_score_fan_section_00_train.csv").write_text("passed over")
    assert len(scores_io.read_scores(tmp_path)) == 1
    decisions = tmp_path / "decision_result_fan_section_00.csv"
    decisions.write_text(f"{GOOD},2\n")
    with pytest.raises(DataError, match=r"line 1: found '2'; expected the decision 0 \(normal\)"):
        scores_io.read_scores(tmp_path)
    decisions.write_text("section_00_source_test_normal_0001.wav,1\n")
    with pytest.raises(DataError, match="no decision for 1 of 1 clips"):
        scores_io.read_scores(tmp_path)
    decisions.write_text(f"{GOOD},1\nsection_00_source_test_normal_0001.wav,1\n")
    with pytest.raises(DataError, match="decisions of 1 clips without a score"):
        scores_io.read_scores(tmp_path)
    decisions.unlink()
    shutil.copy(good, tmp_path / "anomaly_score_fan_section_00_test.csv")
    with pytest.raises(DataError, match="here and in"):
        scores_io.read_scores(tmp_path)
    good.unlink()
    (tmp_path / "anomaly_score_of_me.csv").write_text("")
    with pytest.raises(DataError, match="anomaly_score_<machine type>_section_<nn>"):
        scores_io.read_scores(tmp_path)


def test_scores_that_cannot_be_written(tmp_path):
    with pytest.raises(DataError, match="machine type or section 'a/b'"):
        scores_io.write_scores(tmp_path, [clip("x.wav", machine="a/b")], np.zeros(1))
    with pytest.raises(DataError, match="found the score inf"):
        scores_io.write_scores(tmp_path, [clip("x.wav")], np.array([np.inf]))
    with pytest.raises(ValueError, match="one per clip"):
        scores_io.write_scores(tmp_path, [clip("x.wav")], np.zeros(2))
    with pytest.raises(ValueError, match="can be scored but not evaluated"):
        metrics.group_scores([clip("x.wav", state="")], np.zeros(1))
    assert list(tmp_path.iterdir()) == []


def test_result_csv_with_decisions_and_undefined_figures(tmp_path):
    table = random_table(2, decisions=True)
    keep = table.domains == "source"
    half = metrics.SectionScores(
        "fan",
        "00",
        tuple(np.array(table.files)[keep]),
        table.scores[keep],
        table.anomaly[keep],
        table.domains[keep],
        table.decisions[keep],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", metrics.UndefinedMetricWarning)
        result = metrics.evaluate([half])
    path = results_io.write_result_csv(tmp_path / "result.csv", result)
    assert path.read_text().splitlines()[:2] == [
        "fan",
        "section,AUC (source),AUC (target),pAUC,precision (source),precision (target),"
        "recall (source),recall (target),F1 score (source),F1 score (target)",
    ]
    back = results_io.read_result_csv(path)
    assert results_io.largest_difference(result, back) == (0.0, "")
    assert math.isnan(back["fan"]["00"]["f1_target"])
    assert back["fan"]["00"]["f1_source"] == result["f1_source"]
    back["fan"]["00"]["pauc"] += 0.25
    difference, where = results_io.largest_difference(result, back)
    assert (difference, where) == (pytest.approx(0.25), "fan section 00 pauc")
    back["fan"]["00"]["pauc"] -= 0.25
    back["valve"] = back["fan"]
    assert results_io.largest_difference(result, back) == (math.inf, "valve section 00 source_auc")
    del back["valve"], back["fan"]["00"]
    assert results_io.largest_difference(result, back)[0] == math.inf
    path.write_text("nothing,here\n")
    with pytest.raises(DataError, match="no block of a machine type"):
        results_io.read_result_csv(path)


def test_results_json_has_null_for_undefined(tmp_path):
    path = results_io.write_results(tmp_path / "r.json", {"a": [0.1, math.nan], "b": {"c": "x"}})
    assert json.loads(path.read_text()) == {"a": [0.1, None], "b": {"c": "x"}}
    back = results_io.read_results(path)
    assert back["a"][0] == 0.1
    assert math.isnan(back["a"][1])
    path.write_text("[]")
    with pytest.raises(DataError, match="a json list"):
        results_io.read_results(path)
    path.write_text("{")
    with pytest.raises(DataError, match="not json"):
        results_io.read_results(path)


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = results_io.write_text(tmp_path / "kept.txt", "old")

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        results_io.write_text(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["kept.txt"]
