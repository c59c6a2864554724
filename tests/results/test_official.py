"""Official csv files: what we write is what the challenge's evaluator reads, and the reverse."""

import dataclasses
import itertools
import os
import re
import shutil
import unicodedata

import numpy as np
import pytest

from asdproto.data.dcase import Clip
from asdproto.errors import DataError
from asdproto.results import official
from asdproto.scoring import metrics
from tests.results.rows import scored
from tests.scoring.test_metrics import random_table, slow_auc


def test_published_scores_give_the_published_figures(real_data, tmp_path):
    folder = real_data / "dcase2022" / "dev_scores"
    tables = official.read_official(folder)
    assert sum(len(table.files) for table in tables) == 4200
    official.write_result_csv(tmp_path / "result.csv", metrics.evaluate(tables))
    files = (tmp_path / "result.csv", folder / "result.csv")
    blocks = [file.read_bytes().decode().split("\n\n")[:7] for file in files]
    for pair in zip(*blocks, strict=True):
        # Sections and arithmetic means byte for byte; titles and the last digit of a harmonic
        # mean, which its order of summation decides, are each writer's own.
        (machine, _, *ours, last), (published, _, *theirs, harmonic) = (x.split("\n") for x in pair)
        assert (machine, ours) == (published, theirs)
        name, *figures = harmonic.split(",")
        assert last.startswith(f"{name},")
        found = np.array(last.split(",")[1:], float)
        np.testing.assert_allclose(found, np.array(figures, float), rtol=0, atol=1e-12)


def test_official_ground_truth_of_the_evaluation_set(real_data, tmp_path):
    truth = real_data / "dcase2022"
    states, domains = (
        dict(line.split(",") for line in (truth / kind / name).read_text().split())
        for kind in ("ground_truth_data", "ground_truth_domain")
        for name in ("ground_truth_fan_section_03_test.csv",)
    )
    rng = np.random.default_rng(0)
    scores = {name: float(state) + 2.0 * rng.normal() for name, state in states.items()}
    path = tmp_path / "anomaly_score_fan_section_03_test.csv"
    path.write_text("".join(f"{name},{score!r}\n" for name, score in scores.items()))
    with pytest.raises(DataError, match=r"line 1: found .*does not say whether it is normal"):
        official.read_official(tmp_path)
    with pytest.warns(official.IncompleteScoresWarning, match="20 sections"):
        (table,) = official.read_official(tmp_path, ground_truth=truth)
    result = metrics.section_metrics(table)
    normal = [scores[n] for n in states if (states[n], domains[n]) == ("0", "1")]
    anomalous = [scores[n] for n in states if states[n] == "1"]
    assert result["target_auc"] == pytest.approx(slow_auc(normal, anomalous), abs=1e-14)


def clip(name, *, state="normal", domain="source", section="00", machine="fan", split="test"):
    return Clip(name, machine, section, domain, split, state, "")


def test_scores_written_and_read_back_are_the_same(tmp_path):
    rng = np.random.default_rng(5)
    every = itertools.product(("01", "00"), ("source", "target"), ("normal", "anomaly"), range(3))
    clips = [
        clip(f"section_{n}_{d}_test_{s}_{i:04d}.wav", section=n, domain=d, state=s)
        for n, d, s, i in every
    ]
    scores = rng.normal(size=len(clips)) * 1e-7 / 3.0
    (tmp_path / "anomaly_score_valve_section_00_test.csv").write_text("of an earlier run")
    official.write_official(tmp_path, scored(clips, scores, 0.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{kind}_fan_section_{section}_test.csv"
        for kind in ("anomaly_score", "decision_result")
        for section in ("00", "01")
    ]
    raw = (tmp_path / "anomaly_score_fan_section_00_test.csv").read_bytes()
    assert re.fullmatch(rb"(section_00_\w+\.wav,[-\d.e]+\n){12}", raw)
    decided = (tmp_path / "decision_result_fan_section_00_test.csv").read_bytes()
    assert re.fullmatch(rb"(section_00_\w+\.wav,[01]\n){12}", decided)
    for ours, back in zip(
        metrics.group_scores(clips, scores, scores > 0),
        official.read_official(tmp_path),
        strict=True,
    ):
        assert (ours.machine_type, ours.section) == (back.machine_type, back.section)
        assert ours.files == back.files
        for field in ("scores", "anomaly", "domains", "decisions"):
            np.testing.assert_array_equal(getattr(ours, field), getattr(back, field))


def test_clips_that_share_a_name_are_told_apart_by_their_path(tmp_path):
    clips = [
        clip("normal/00.wav"),
        clip("abnormal/00.wav", state="anomaly"),
        clip("normal/01.wav", domain="target"),
    ]
    official.write_official(tmp_path, scored(clips, [0.0, 1.0, 2.0]))
    (table,) = official.read_official(tmp_path, clips=clips)
    assert table.files == ("normal/00.wav", "abnormal/00.wav", "normal/01.wav")
    assert table.anomaly.tolist() == [False, True, False]
    with pytest.raises(DataError, match="no score for 1 of 4"):
        official.read_official(tmp_path, clips=[*clips, clip("b/01.wav", state="anomaly")])


def test_no_cell_is_a_formula(tmp_path):
    clips = [clip("=1+1.wav"), clip("@x.wav", state="anomaly")]
    official.write_official(tmp_path, scored(clips, [-0.5, 1.0]))
    text = (tmp_path / "anomaly_score_fan_section_00_test.csv").read_text()
    assert text == "'=1+1.wav,-0.5\n'@x.wav,1.0\n"
    (table,) = official.read_official(tmp_path, clips=clips)
    assert table.files == ("=1+1.wav", "@x.wav")
    figures = {**metrics.section_metrics(table), "overall": 1.0}
    result = {**figures, "machines": {"=fan": {"sections": {"00": figures}}}}
    official.write_result_csv(tmp_path / "result.csv", result)
    assert (tmp_path / "result.csv").read_text().startswith("'=fan\n")


GOOD = "section_00_source_test_normal_0000.wav"
SCORE = "anomaly_score_fan_section_00_test.csv"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{GOOD},0.5\n{GOOD},0.6\n", r"line 2: found .* for the second time \(first on line 1\)"),
        (f"{GOOD},0.5,1\n", r"line 1: found 3 columns"),
        ("file,score\n", r"line 1: found 'score'; expected a number; the official files have no"),
        (f"{GOOD},\u0661\u0662\n", r"line 1: found '\u0661\u0662'; expected a number"),
        (f"{GOOD},nan\n", r"line 1: found the score nan; expected a finite number"),
        ("section_01_source_test_normal_0000.wav,1\n", r"line 1: found .* of section 01"),
        ("noise.wav,1\n", r"line 1: found noise.wav, a name of no known form"),
        ("", "found no rows"),
        ('"broken,1\n', "never closed"),
    ],
)
def test_malformed_score_files_are_refused(tmp_path, text, message):
    (tmp_path / SCORE).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        official.read_official(tmp_path)
    assert SCORE in str(caught.value)


def test_score_folders_are_checked(tmp_path):
    with pytest.raises(DataError, match="found nothing; expected a folder"):
        official.read_official(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no score file"):
        official.read_official(tmp_path)
    good = tmp_path / "anomaly_score_fan_section_00.csv"
    good.write_text(f"{GOOD},0.5\n")
    (tmp_path / "anomaly_score_fan_section_00_train.csv").write_text("passed over")
    assert len(official.read_official(tmp_path)) == 1
    decisions = tmp_path / "decision_result_fan_section_00.csv"
    for text, message in (
        (f"{GOOD},2\n", r"line 1: found '2'; expected the decision 0 \(normal\)"),
        ("section_00_source_test_normal_0001.wav,1\n", "no decision for 1 of 1 clips"),
        (f"{GOOD},1\nmore.wav,1\n", "no score for 1 of 2 clips"),
    ):
        decisions.write_text(text)
        with pytest.raises(DataError, match=message):
            official.read_official(tmp_path)
    good.unlink()
    os.mkfifo(good)
    with pytest.raises(DataError, match="found a folder, pipe, socket or device"):
        official.read_official(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("anomaly_scorx_fan_section_00_test.csv", "in no figure is anomaly_scorx"),
        ("anomaly_score_fan_section_00_test.CSV", r"found the name .*\.CSV"),
        ("decision_result_fam_section_00_test.csv", "found decisions; expected a score file"),
    ],
)
def test_no_file_vanishes_for_one_letter(tmp_path, name, message):
    official.write_official(tmp_path, scored([clip(GOOD)], [0.5]))
    shutil.copy(tmp_path / SCORE, tmp_path / name)
    # A warning is an error here.
    with pytest.raises((DataError, official.IncompleteScoresWarning), match=message):
        official.read_official(tmp_path)


def test_one_name_in_two_spellings_of_unicode_is_one(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "Lüfter") for form in ("NFC", "NFD"))
    clips = [clip("ä.wav", machine=composed), clip("b.wav", machine=composed, state="anomaly")]
    others = [clip(unicodedata.normalize("NFD", one.path), machine=decomposed) for one in clips]
    official.write_official(tmp_path, scored(others, [1, 2]))
    (table,) = official.read_official(tmp_path, clips=clips)
    assert (table.machine_type, table.files) == (composed, ("ä.wav", "b.wav"))
    shutil.copy(
        tmp_path / f"anomaly_score_{decomposed}_section_00_test.csv",
        tmp_path / f"anomaly_score_{composed}_section_00_test.csv",
    )
    with pytest.raises(DataError, match="here and in"):
        official.read_official(tmp_path, clips=clips)


def test_names_that_no_file_can_have(tmp_path):
    with pytest.raises(DataError, match="machine type or section 'a/b'"):
        official.write_official(tmp_path, scored([clip("x.wav", machine="a/b")], [0.0]))
    assert list(tmp_path.iterdir()) == []


def test_result_csv_with_decisions_and_undefined_figures(tmp_path):
    table = random_table(2, decisions=True)
    half = dataclasses.replace(table, domains=np.full(len(table.files), "source"))
    with pytest.warns(metrics.UndefinedMetricWarning):
        result = metrics.evaluate([half])
    path = tmp_path / "result.csv"
    official.write_result_csv(path, result)
    assert path.read_text().splitlines()[:2] == [
        "fan",
        "section,AUC (source),AUC (target),pAUC,precision (source),precision (target),"
        "recall (source),recall (target),F1 score (source),F1 score (target)",
    ]
    assert path.read_text().splitlines()[2].endswith(f",{result['f1_source']},nan")
