"""Damaged files of a run: one line that names the file, or the file is made again.

One tiny run is trained; every test damages a copy of it and runs the command line on that.
"""

import json
import shutil

import numpy as np
import pytest

from asdproto import cli
from asdproto.data.store import open_store
from asdproto.files import locked
from asdproto.results.run_folder import read_run
from asdproto.systems.run import LOCK
from tests.test_robustness import damage, tiny_run

pytestmark = pytest.mark.slow


def other(path):
    """A whole file of the right format that holds something else."""
    if path.suffix == ".npz":
        np.savez(path, x=np.arange(3))
    elif path.suffix == ".json":
        path.write_text("[1, 2]")
    else:
        path.write_text("something else\n")


def other_fields(path):
    """A json object whose fields are of other kinds than they should be."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps(dict.fromkeys(content, 7) | {"kind": "fan", "format": 1}))


SCORES = "scores/finetune"
DETECTOR = ("detector.json", "member_0.npz", "training_scores.npz")
REPORTED = (
    f"{SCORES}/scores.csv",
    f"{SCORES}/results.json",
    f"{SCORES}/training_scores.npz",
    "config.json",
    "results.json",
    "metrics.jsonl",
    "features/manifest.json",
    "features/features.npy",
    "features/table.csv",
)


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
    assert len(said) == 1
    assert said[0].startswith("error: ")
    # A sentence, or what the system says.
    assert said[0].endswith((".", " missing", " needed", " denied"))
    return said[0]


def contents(folder):
    """Every file of a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("fault", [damage.cut, damage.flip, damage.missing, other])
@pytest.mark.parametrize("name", DETECTOR)
def test_a_damaged_detector_scores_nothing(run, data, capsys, name, fault):
    fault(run / SCORES / name)
    said = fails(capsys, "score", run, next(data.rglob("*.wav")), "--detector", "finetune")
    if (name, fault) == ("detector.json", damage.missing):
        assert f"{run}: found no finished detector finetune; there are" in said
    else:
        both = {run / SCORES / name, run / SCORES / "detector.json"}
        assert any(f"error: {path}: found " in said for path in both)
        assert "Delete the run's results.json and repeat its command" in said


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        *[("score", fault) for fault in (damage.binary, damage.missing, other, other_fields)],
        *[(command, damage.flip) for command in ("score", "train", "rescore", "fuse", "summarize")],
    ],
)
def test_a_damaged_configuration(run, data, trained, capsys, tmp_path, fault, command):
    fault(run / "config.json")
    arguments = {
        "score": ["score", run, next(data.rglob("*.wav"))],
        "train": tiny_run.command(data, run),
        "rescore": ["rescore", run, "score.kind=knn", "--out", tmp_path / "out"],
        "fuse": ["fuse", tmp_path / "out", run, trained],
        "summarize": ["summarize", trained, run],
    }
    said = fails(capsys, *arguments[command])
    if fault is damage.missing:
        assert f"{run}: found no finished detector; there are finetune, gmm" in said
    else:
        assert "config.json: found " in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        *[("summarize", fault) for fault in (damage.cut, damage.missing, other, other_fields)],
        *[(command, damage.flip) for command in ("rescore", "summarize")],
    ],
)
def test_damaged_results(run, capsys, tmp_path, fault, command):
    fault(run / "results.json")
    more = {"rescore": [run, "score.kind=knn", "--out", tmp_path / "out"]}
    said = fails(capsys, command, *more.get(command, [run, run]))
    assert f"{run / 'results.json'}: found " in said


@pytest.mark.parametrize("fault", [damage.cut, damage.binary])
@pytest.mark.parametrize("name", REPORTED)
def test_a_report_shows_the_rest_and_names_what_is_left_out(run, trained, name, fault):
    whole = read_run(trained)
    fault(run / name)
    found = read_run(run)
    assert found.systems.keys() == whole.systems.keys()
    new_notes = [note for note in found.notes if note not in whole.notes]
    if (name, fault) == ("metrics.jsonl", damage.cut):
        assert found.training.keys() < whole.training.keys()  # no trace of what was cut off
        return
    assert new_notes
    assert all("\n" not in note for note in new_notes)
    known = name.rpartition("/")[2], "feature store"
    assert any(part in note for note in new_notes for part in known)


def test_what_can_be_made_again_is_made_again(run, trained, data, no_pictures, capsys):
    """All but recordings, features and checkpoints."""
    for path in (run / SCORES).iterdir():
        damage.binary(path)
    shutil.rmtree(run / "scores" / "pretrain")
    (run / SCORES / ".member_0.npz.15b9e2f8").touch()  # of a process killed in writing
    (run / "metrics.jsonl").write_bytes(bytes(range(256)))
    (run / "config.json").unlink()
    (run / "results.json").write_text('{"systems": ')
    assert cli.main(tiny_run.command(data, run)) == 0
    assert contents(run / "scores") == contents(trained / "scores")
    figures = [json.loads((at / "results.json").read_text())["systems"] for at in (run, trained)]
    assert figures[0] == figures[1]
    # And the finished run is finished.
    assert cli.main(tiny_run.command(data, run)) == 0
    assert "is finished; this only reports" in capsys.readouterr().out


def test_damaged_results_alone(run, trained, data, no_pictures, capsys):
    damage.cut(run / "results.json")
    assert cli.main(tiny_run.command(data, run)) == 0
    said = capsys.readouterr().err
    assert f"note: {run / 'results.json'}: found text that is not json" in said
    assert "it is made again" in said
    assert contents(run / "scores") == contents(trained / "scores")


@pytest.mark.parametrize("name", ["features.npy", "table.csv", "manifest.json"])
@pytest.mark.parametrize("fault", [damage.cut, damage.flip])
def test_damaged_features_are_never_trained_on(run, data, capsys, name, fault):
    (run / "results.json").unlink()
    fault(run / "features" / name)
    said = fails(capsys, *tiny_run.command(data, run))
    assert "Delete this store and extract it again." in said
    assert str(run / "features" / name) in said
    said = fails(capsys, "rescore", run, "score.kind=knn")
    assert "results.json" in said or name in said


def test_wrong_numbers_in_features_that_no_checksum_of_the_file_system_sees(run, data, capsys):
    """4,096 flipped bytes; 50 values that are no numbers."""
    (run / "results.json").unlink()
    path = run / "features" / "features.npy"
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    content = np.frombuffer(whole, np.uint8).copy()
    content[rng.integers(200, len(content), 4096)] ^= 4
    path.write_bytes(content)
    assert "clips: " in fails(capsys, *tiny_run.command(data, run))
    path.write_bytes(whole)
    features = np.lib.format.open_memmap(path, mode="r+")
    features[rng.integers(0, len(features), 50), 0, 0] = np.nan
    features.flush()
    assert "clips: " in fails(capsys, *tiny_run.command(data, run))
    assert np.isnan(open_store(run / "features", verify=False).features).any()


def test_one_process_at_a_time(run, trained, data, no_pictures, capsys):
    (run / "results.json").unlink()
    before = (run / "metrics.jsonl").read_bytes()
    with locked(run, LOCK):
        for command in (tiny_run.command(data, run), ["rescore", str(run), "score.kind=knn"]):
            if command[0] == "rescore":
                shutil.copy(trained / "results.json", run)
            said = fails(capsys, *command)
            assert f"{run}: found another process working in it; expected one at a time" in said
    assert (run / "metrics.jsonl").read_bytes() == before
    (run / "results.json").unlink()
    assert cli.main(tiny_run.command(data, run)) == 0
    assert not (run / LOCK).exists()
