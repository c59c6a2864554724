"""Files of a run: what is written comes back, and no changed byte goes unnoticed."""

import contextlib
import json
import math

import numpy as np
import pytest

from asdproto.data.dcase import Clip
from asdproto.errors import DataError
from asdproto.results import run_folder
from tests.results.rows import scored

CLIPS = [
    Clip(f"fan/test/{domain} {state}, {index}.wav", "fan", section, domain, "test", state, "")
    for section in ("00", "01")
    for domain in ("source", "target")
    for state in ("normal", "anomaly")
    for index in range(3)
]
CONFIG = {"kind": "gmm", "system": {"a": 1.5}, "seeds": [0], "machines": None, "names": ["gmm"]}


def test_scores_come_back_and_their_figures_with_them(tmp_path):
    rng = np.random.default_rng(0)
    rows = scored(CLIPS, rng.normal(size=24) / 3e7, 0.0, note='dead "left", 8 kHz')
    rows[0] = run_folder.dataclasses.replace(
        rows[0], file=" =1+1\n.wav", nearest_class="-1", percentile=math.inf
    )
    figures = run_folder.write_scores(tmp_path / "a", rows)
    assert run_folder.read_scores(tmp_path / "a") == rows
    assert run_folder.read_figures(tmp_path / "a" / "results.json") == figures
    assert len(list((tmp_path / "a").glob("anomaly_score_fan_section_0?_test.csv"))) == 2
    assert (tmp_path / "a" / "result.csv").read_text().startswith("fan\nsection,AUC (source)")
    first = (tmp_path / "a" / "scores.csv").read_text().splitlines()[0]
    assert first.split(",") == list(run_folder.COLUMNS)
    unknown = [run_folder.dataclasses.replace(row, state="") for row in rows[:2]]
    assert run_folder.write_scores(tmp_path / "b", unknown) is None
    assert run_folder.read_figures(tmp_path / "b" / "results.json") == {}
    assert not (tmp_path / "b" / "result.csv").exists()
    with pytest.raises(DataError, match="found the score inf"):
        run_folder.write_scores(tmp_path / "c", scored(CLIPS[:1], [np.inf]))


def test_every_flipped_bit_is_noticed(tmp_path):
    rng = np.random.default_rng(1)
    run_folder.write_scores(tmp_path, scored(CLIPS, range(24), 12))
    run_folder.write_results(tmp_path / "run", {"seeds": [0], "systems": {}, "preset": "quick"})
    run_folder.write_config(tmp_path / "run", CONFIG)
    for path, read in (
        (tmp_path / "scores.csv", lambda: run_folder.read_scores(tmp_path)),
        (tmp_path / "results.json", lambda: run_folder.read_scores(tmp_path)),
        (tmp_path / "run" / "results.json", lambda: run_folder.read_results(tmp_path / "run")),
        (tmp_path / "run" / "config.json", lambda: run_folder.read_config(tmp_path / "run")),
    ):
        before, whole = read(), path.read_bytes()
        for position in rng.integers(0, len(whole), 30):
            content = bytearray(whole)
            content[position] ^= 1 << rng.integers(0, 8)
            path.write_bytes(content)
            # Blanks between the fields of json are all that may change.
            with contextlib.suppress(DataError):
                assert read() == before, position
                assert path.suffix == ".json"
                assert content[position] in b" \n\t\r"
        path.write_bytes(whole)


def test_settings_and_figures_come_back(tmp_path):
    config = {**CONFIG, "features": "there", "collection": {"a.wav": [1, 2, 3]}}
    run_folder.write_config(tmp_path, config)
    assert run_folder.read_config(tmp_path) == {**config, "classes": None, "data": None}
    # Folders may be moved.
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("there", "elsewhere"))
    assert run_folder.read_config(tmp_path)["features"] == "elsewhere"
    figures = {"overall": math.nan, "source_auc": 0.1, "target_auc": math.nan, "pauc": 0.5}
    run_folder.write_results(tmp_path, {"seeds": [3], "systems": {"gmm": figures}})
    text = (tmp_path / "results.json").read_text()
    assert json.loads(text)["systems"]["gmm"]["overall"] is None
    np.testing.assert_equal(run_folder.read_results(tmp_path)["systems"]["gmm"], figures)


def test_wrong_shapes_are_one_line(tmp_path):
    for wrong in (
        {"names": [[1]]},
        {"machines": "fan"},
        {"system": None},
        {"collection": {"a.wav": [1, "2", 3]}},
        {"features": 5},
    ):
        run_folder.write_config(tmp_path, CONFIG | wrong)
        with pytest.raises(DataError, match=r"^.*config.json: found (?!other).*\Z"):
            run_folder.read_config(tmp_path)
    run_folder.write_config(tmp_path, CONFIG)
    for wrong in (
        {"seeds": ["0"]},
        {"systems": [1]},
        {"systems": {"gmm": {"overall": "high"}}},
        {"members": {"gmm": [{}]}},
    ):
        run_folder.write_figures(tmp_path / "results.json", {"seeds": [0], "systems": {}} | wrong)
        with pytest.raises(DataError, match=r"^.*results.json: found (?!other).*\Z"):
            run_folder.read_results(tmp_path)
