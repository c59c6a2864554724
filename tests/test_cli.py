import importlib
import itertools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from asdproto import __version__, cli
from asdproto.data.dcase import Clip
from asdproto.data.store import open_store
from asdproto.data.table import write_table
from asdproto.results.official import write_official
from asdproto.results.run_folder import (
    read_figures,
    write_config,
    write_results,
    write_scores,
)
from asdproto.scoring import metrics
from tests.experiments.collection import write_collection
from tests.results.rows import scored


@pytest.fixture
def scores(tmp_path):
    """A folder of scores of two machine types, with decisions, and its figures."""
    states = itertools.product(("source", "target"), ("normal", "anomaly"), range(6))
    clips = [
        Clip(f"section_00_{d}_test_{s}_{i:04d}.wav", machine, "00", d, "test", s, "")
        for (d, s, i), machine in itertools.product(states, ("fan", "valve"))
    ]
    values = np.random.default_rng(0).normal(size=len(clips))
    values += [clip.state == "anomaly" for clip in clips]
    (tmp_path / "scores").mkdir()
    write_official(tmp_path / "scores", scored(clips, values))
    return tmp_path / "scores", metrics.evaluate(metrics.group_scores(clips, values, values > 1.0))


def test_evaluate_prints_and_writes(call, scores):
    folder, expected = scores
    code, out, err = call("evaluate", folder)
    assert (code, err) == (0, "")
    assert read_figures(folder / "results.json") == expected
    assert f"{100 * expected['overall']:.2f}" in out
    assert f"{100 * expected['machines']['valve']['overall']:.2f}" in out
    # One that is there stays, unless it is asked to go.
    (folder / "result.csv").write_text("mine")
    code, out, _ = call("evaluate", folder)
    assert code == 0
    assert "is there already and kept" in out
    assert (folder / "result.csv").read_text() == "mine"
    assert call("evaluate", folder, "--overwrite")[0] == 0
    assert (folder / "result.csv").read_text().startswith("fan\n")


def test_evaluate_writes_over_its_own_figures_only(call, scores, tmp_path):
    of_run = _finished_run(tmp_path / "run", 0, 0.6) / "results.json"
    foreign = scores[0] / "results.json"
    foreign.write_text('{"overall": "mine"}')
    for path, found in (
        (of_run, f"{of_run.parent}: found the folder of a run"),
        (foreign, f"{foreign}: found a file of another kind"),
    ):
        before = path.read_bytes()
        code, _, err = call("evaluate", scores[0], "--out", path.parent)
        assert code == 1
        assert found in err
        assert path.read_bytes() == before


def test_evaluate_a_folder_that_cannot_be_written(call, scores, monkeypatch):
    folder, _ = scores

    def refuse(path, content):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("asdproto.files.write_output", refuse)
    code, out, _ = call("evaluate", folder)
    assert code == 0
    assert "nothing written" in out
    assert "--out" in out
    code, _, err = call("evaluate", folder, "--out", folder)
    assert (code, err) == (1, f"error: {folder / 'results.json'}: Permission denied\n")


PUMPS = [
    Clip(f"{state}/{index}.wav", "pump", "00", "", "test", state, "")
    for state in ("normal", "anomaly")
    for index in range(3)
]


def test_evaluate_with_other_ground_truth(call, tmp_path):
    folder, table = tmp_path / "scores", tmp_path / "clips.csv"
    folder.mkdir()
    write_official(folder, scored(PUMPS, np.arange(6.0), 9.0))
    write_table(table, PUMPS)
    for kind, flags in (("data", "000111"), ("domain", "000000")):
        file = tmp_path / f"ground_truth_{kind}" / "ground_truth_pump_section_00_test.csv"
        file.parent.mkdir()
        file.write_text("".join(f"{one.path},{f}\n" for one, f in zip(PUMPS, flags, strict=True)))
    for truth in (table, tmp_path / "ground_truth_data"):
        code, out, err = call("evaluate", folder, "--ground-truth", truth)
        assert code == 0
        assert re.search(r"pump +00 +100\.00 +– +100\.00", out)
        assert err.startswith("note: undefined figures are left out of the means: pump section 00")


@pytest.mark.filterwarnings("ignore:undefined figures")
def test_evaluate_a_run(call, tmp_path):
    """Names that say nothing: the run knows what its clips are."""
    root = tmp_path / "run"
    write_config(root, {"kind": "gmm", "system": {}, "names": ["mine"]})
    code, _, err = call("evaluate", root)
    assert code == 1
    assert "found no scores of such clips" in err
    for name, order in (("mine", [0, 1, 2, 3, 4, 5]), ("other", [0, 1, 3, 2, 4, 5])):
        write_scores(root / "scores" / name, scored(PUMPS, order))
    code, out, _ = call("evaluate", root, "--out", tmp_path / "out")
    assert code == 0
    assert re.search(r"mine +100\.00 +– ", out)
    assert re.search(r"other +88\.89 +– ", out)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(found["systems"]) == {"mine", "other"}
    code, out, _ = call("evaluate", root / "scores" / "other")
    assert code == 0
    assert re.search(r"pump +00 +88\.89", out)
    # No system leaves the table without a word.
    (root / "scores" / "other" / "scores.csv").write_text("file,score")
    code, _, err = call("evaluate", root)
    assert code == 1
    assert "other/scores.csv: found other scores than were saved" in err


def test_a_missing_library_is_named(call, scores, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    code, _, err = call("evaluate", scores[0])
    assert code == 1
    assert err == (
        "error: this command needs sklearn, which is not installed: pip install 'asdproto[train]'\n"
    )


def test_version_and_help(capsys):
    for arguments in (["--version"], ["--help"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 0
    out = capsys.readouterr().out
    assert f"asdproto {__version__}\n" in out
    assert all(f"\n  {name} " in out for name in cli.command_parsers())


def test_experiments_list_their_fields(capsys):
    with pytest.raises(SystemExit) as caught:
        importlib.import_module("experiments.two_stage").main(["--help-fields"])
    assert caught.value.code == 0
    assert "  finetune.mix_range=(0.25, 0.5)" in capsys.readouterr().out.splitlines()


def test_validate_and_features(call, tmp_path):
    root, store = tmp_path / "data", tmp_path / "store"
    write_collection(root)
    code, out, _ = call("validate", root)
    assert code == 0
    found, trainable = out.splitlines()[-2:]
    assert trainable.startswith("can be trained: ")
    assert "prototype learns prototypes of the classes" in trainable
    assert found.startswith("no errors")
    assert "fan: 8 to train on" in out
    command = ("features", root, store, "features.n_mels=32", "--dtype", "float32")
    code, out, _ = call(*command)
    assert code == 0
    assert f"{store}: 24 clips of up to 63 frames x 32 mels, float32" in out
    assert open_store(store).settings["n_mels"] == 32


def test_a_reader_that_has_seen_enough_ends_the_command_quietly():
    code = "import sys; from asdproto import cli; sys.exit(cli.run('', lambda: print('seen')))"
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=closed, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (141, b"")


def _finished_run(folder, seed, overall, alone=(), **config):
    """Of two systems, and what each of its seeds gives alone."""
    figures = {"source_auc": 0.8, "target_auc": 0.6, "pauc": 0.5, "overall": overall}
    figures["machines"] = {"fan": {"overall": overall}}
    tuned = {**figures, "pauc": 0.5 + overall / 10, "overall": 2 * overall - 0.65}
    systems = {"pretrain": figures, "finetune": tuned}
    members = {
        name: [{**figures, "seed": 0, "overall": one + more} for one in alone]
        for name, more in (("pretrain", 0.0), ("finetune", 0.01))
    }
    write_results(folder, {"seeds": [seed], "systems": systems, "members": members})
    about = {"kind": "prototype", "system": {"width": 16}, "names": [], "seeds": [seed]}
    write_config(folder, {**about, **config})
    return folder


def test_summarize(call, tmp_path):
    folders = [
        _finished_run(tmp_path / f"{s}", s, o, (o - 0.1, o), features=f"{tmp_path}/{s}/features")
        for s, o in ((0, 0.6), (1, 0.7), (5, 0.8))
    ]
    out = tmp_path / "all.json"
    code, text, _ = call("summarize", *folders, "--out", out)
    assert code == 0
    for said in (
        "70.00 ± 10.00",
        "3 runs: seeds 0 1 5",
        "finetune - pretrain, within runs: overall +5.00 ± 10.00, higher in 2 of 3",
        "65.00 ± 10.49",  # of .5 .6 .6 .7 .7 .8
        "finetune, one seed - pretrain, one seed, within runs: overall +1.00 ± 0.00",
    ):
        assert said in re.sub(r"\s+", " ", text)
    found = json.loads(out.read_text())
    assert found["seeds"] == ["0", "1", "5"]
    assert found["systems"]["pretrain"]["overall"]["mean"] == pytest.approx(0.7)
    assert found["systems"]["pretrain, one seed"]["overall"]["count"] == 6
    assert found["differences"]["finetune - pretrain"]["higher"] == 2
    assert [r["pauc"] for r in found["runs"]["finetune"]] == pytest.approx([0.56, 0.57, 0.58])
    assert len(found["runs"]["finetune, one seed"]) == 6

    # What must not be averaged is named.
    other = _finished_run(tmp_path / "other", 2, 0.5, system={"width": 32})
    code, text, _ = call("summarize", other)
    assert (code, "one seed" in text) == (0, False)
    code, _, err = call("summarize", *folders, other)
    assert code == 1
    assert "other/config.json" in err
    assert "another system" in err
    code, _, err = call("summarize", *folders, folders[1])
    assert code == 1
    assert "seed 1 more than once" in err
