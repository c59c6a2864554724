"""Damaged files of a run: one line that names the file, or the file is made again.

One tiny run is trained; every fault damages a copy of it and the command line runs on that.
"""

import json
import shutil

import numpy as np
import pytest

from asdproto import cli
from asdproto.files import checked, locked, write_json
from asdproto.results.run_folder import read_config, read_run, write_config
from asdproto.systems.run import LOCK
from tests.test_robustness import damage, tiny_run

pytestmark = pytest.mark.slow


SCORES = "scores/finetune"


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of the run, in the current folder, so that it finds its features."""
    folder = shutil.copytree(trained, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "features": "features"}))
    monkeypatch.chdir(folder)
    return folder


def fails(capsys, *arguments):
    """The one line that a command ends with."""
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("note: ", "Extracting features"))]
    assert len(said) == 1, said
    assert said[0].startswith("error: ")
    assert "this program has a fault" not in said[0]
    return said[0]


def contents(folder):
    """Every file of a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


DAMAGES = [
    ("detector.json", damage.cut, "detector.json: found "),
    ("detector.json", damage.missing, "found no finished detector finetune; there are fused, "),
    ("member_0.npz", damage.missing, "member_0.npz: found "),
    ("training_scores.npz", damage.flip, "training_scores.npz: found "),
    ("scores.csv", damage.flip, "scores.csv: found "),
    (
        "member_0.npz",
        lambda path: shutil.copy("scores/pretrain/member_0.npz", path),
        "member_0.npz: found other content; expected that which detector.json names",
    ),
]


@pytest.mark.parametrize(("name", "fault", "message"), DAMAGES)
def test_a_damaged_detector_scores_nothing(run, data, capsys, name, fault, message):
    fault(run / SCORES / name)
    clip = next(data.rglob("*.wav"))
    assert message in fails(capsys, "score", run, clip, "--detector", "finetune")


def test_files_of_another_run_are_noticed(run, capsys):
    """Whole ones, with the right names and checksums."""
    path = run / "config.json"
    whole = path.read_bytes()
    write_config(run, {**read_config(run), "seeds": [9]})
    said = fails(capsys, "summarize", run)
    assert "results.json: found figures of another config.json than is there" in said
    path.write_bytes(whole)
    shutil.copy(run / "scores/pretrain/training_scores.npz", run / SCORES / "training_scores.npz")
    (note,) = (note for note in read_run(run).notes if "training_scores.npz" in note)
    assert note.startswith("finetune: training scores is left out: ")
    shutil.copytree(run / "scores/pretrain", run / SCORES, dirs_exist_ok=True)
    said = fails(capsys, "summarize", run)
    assert "results.json: found figures of another finetune than is there" in said


def test_a_damaged_configuration(run, data, trained, capsys, tmp_path):
    damage.cut(run / "config.json")
    for command in (
        tiny_run.command(data, run),
        ("rescore", run, tmp_path / "out", "score.kind=knn"),
        ("summarize", trained, run),
    ):
        assert "config.json: found " in fails(capsys, *command)
    assert not (tmp_path / "out").exists()


def test_wrong_shapes_are_one_line_though_their_checksums_are_right(run, data, capsys):
    clip, path = next(data.rglob("*.wav")), run / SCORES / "detector.json"
    whole = json.loads(path.read_text())
    del whole["checksum"]
    for change in (
        {"members": []},
        {"members": [{}]},
        {"dtype": "int8"},
        {"limits": [1]},
        {"kind": "nothing"},
        {"format": 99},
        {"contamination": "x"},
    ):
        write_json(path, checked({**whole, **change}))
        said = fails(capsys, "score", run, clip, "--detector", "finetune")
        assert path.name in said, (change, said)


def test_what_can_be_made_again_is_made_again(run, trained, data, no_pictures, capsys):
    """All but recordings, features and checkpoints."""
    for path in (run / SCORES).iterdir():
        damage.binary(path)
    shutil.rmtree(run / "scores" / "pretrain")
    (run / "metrics.jsonl").write_bytes(bytes(range(256)))
    (run / "config.json").unlink()
    (run / "results.json").write_text('{"systems": ')
    assert cli.main(tiny_run.command(data, run)) == 0
    assert contents(run / "scores") == contents(trained / "scores")
    figures = [json.loads((at / "results.json").read_text())["systems"] for at in (run, trained)]
    assert figures[0] == figures[1]
    capsys.readouterr()
    damage.cut(run / "results.json")
    assert cli.main(tiny_run.command(data, run)) == 0
    said = capsys.readouterr().err
    assert f"note: {run / 'results.json'}: found text that is not json" in said
    assert "it is made again" in said


def test_damaged_features_are_never_trained_on(run, data, capsys):
    (run / "results.json").unlink()
    path = run / "features/features.npy"
    whole = path.read_bytes()
    damage.flip(path)
    said = fails(capsys, *tiny_run.command(data, run))
    assert str(path) in said
    assert "Delete this store and extract it again." in said
    path.write_bytes(whole)
    features = np.lib.format.open_memmap(path, mode="r+")
    features[0, 0, 0] = np.nan  # which no checksum of a file system sees
    features.flush()
    assert "1 of " in fails(capsys, *tiny_run.command(data, run))
    assert np.isnan(features).any()


def test_one_process_at_a_time(run, trained, data, no_pictures, capsys):
    before = (run / "metrics.jsonl").read_bytes()
    with locked(run, LOCK):
        (run / "results.json").unlink()
        said = fails(capsys, *tiny_run.command(data, run))
    assert f"{run}: found another process working in it; expected one at a time" in said
    assert (run / "metrics.jsonl").read_bytes() == before
    assert cli.main(tiny_run.command(data, run)) == 0
    assert not (run / LOCK).exists()
