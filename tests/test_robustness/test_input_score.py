"""``score`` on folders and names that are not as they should be, and hostile content in them."""

import csv
import io
import json
import os

import numpy as np
import pytest

from asdproto import cli
from asdproto.commands import score
from asdproto.commands.score import table_lines
from asdproto.systems.detector import Detector
from tests.data.conftest import nobody, open_folder  # noqa: F401
from tests.test_robustness.test_input_collections import add, template  # noqa: F401


@pytest.fixture(scope="module")
def finished(template, tmp_path_factory):  # noqa: F811
    """A run of the quickest system."""
    run = tmp_path_factory.mktemp("run") / "run"
    command = ("train", template, run, "--system", "spectral-knn", "--preset", "quick")
    assert cli.main([str(word) for word in (*command, "features.n_mels=16")]) == 0
    return run


@pytest.fixture
def scored(finished, capsys):
    def run(*arguments):
        capsys.readouterr()
        code = cli.main(["score", str(finished), *map(str, arguments)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_one_bad_recording_is_named_and_the_others_are_scored(scored, tmp_path):
    for name in ("a.wav", "b.wav"):
        add(tmp_path, name)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:99])
    (tmp_path / "text.flac").write_text("no audio")
    (tmp_path / "folder.wav").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")
    os.symlink("nowhere", tmp_path / "link.wav")
    add(tmp_path, "short.wav", samples=100)
    code, out, err = scored(tmp_path, "--format", "csv")
    assert code == 1
    assert [row["file"] for row in csv.DictReader(io.StringIO(out))] == [
        str(tmp_path / name) for name in ("a.wav", "b.wav")
    ]
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert [line.split(": ")[1] for line in errors] == [
        str(tmp_path / name)
        for name in ("cut.wav", "link.wav", "pipe.wav", "short.wav", "text.flac")
    ]
    assert "a truncated or damaged file" in errors[0]
    assert "8 bytes that do not decode" in errors[4]


def test_a_folder_that_may_not_be_read_is_named_and_the_others_are_scored(open_folder, nobody):  # noqa: F811
    os.chmod(open_folder, 0o755)
    for name in ("a.wav", "b/c.wav"):
        add(open_folder, name)
    os.chmod(open_folder / "b", 0)
    with nobody():
        files, errors = score._recordings([open_folder])
    os.chmod(open_folder / "b", 0o755)
    assert files == [open_folder / "a.wav"]
    assert [(e.file, e.found) for e in errors] == [
        (str(open_folder / "b"), "a folder that cannot be read (Permission denied)")
    ]


def test_names_are_no_formulas_and_no_commands(scored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("=1+1.wav", "-1.wav", "a\x1b[2Jb.wav", "a\nb.wav", "a\udcffb.wav"):
        add(tmp_path, name)
    names = ["./-1.wav", "=1+1.wav", *sorted(set(os.listdir()) - {"-1.wav", "=1+1.wav"})]
    code, out, err = scored(*names, "--csv", "scores.csv", "--sort", "name")
    assert code == 0, err
    assert len(out.splitlines()) == 1 + 5 + 1
    assert all(line.isprintable() for line in out.splitlines())
    text = (tmp_path / "scores.csv").read_bytes().decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert "'=1+1.wav" in [row["file"] for row in rows]
    assert r"a\udcffb.wav" in [row["file"] for row in rows]
    assert not any(row["file"].startswith(("=", "-", "+", "@")) for row in rows)
    assert all(np.isfinite(float(row["score"])) for row in rows)
    _, out, _ = scored(*names, "--format", "jsonl")
    assert {json.loads(line)["file"] for line in out.splitlines()} == {
        name.removeprefix("./") for name in names
    }


def test_long_recordings_are_scored_apart(scored, tmp_path, monkeypatch):
    for number in range(4):
        add(tmp_path, f"{number}.wav", seed=number, samples=8000 if number != 1 else 160_000)
    whole = scored(tmp_path, "--format", "csv")
    pieces = []
    monkeypatch.setattr(score, "_FRAMES", 400)
    original = Detector.score_recordings

    def count(self, recordings, thresholds=None):
        pieces.append(len(recordings))
        return original(self, recordings, thresholds)

    monkeypatch.setattr(Detector, "score_recordings", count)
    assert scored(tmp_path, "--format", "csv") == whole
    assert pieces == [1, 1, 2]


@pytest.mark.parametrize("word", ["nan", "inf", "x"])
def test_thresholds_that_are_no_numbers(scored, tmp_path, word):
    with pytest.raises(SystemExit) as caught:
        scored(tmp_path, "--threshold", word)
    assert caught.value.code == 2


def test_a_table_shows_control_characters(tmp_path):
    row = {"file": "a\x1b[2J.wav", "machine_type": "fan", "section": "00", "score": 1.0}
    row |= {"threshold": 1.0, "decision": 0, "margin": 0.0, "nearest_class": None}
    assert r"a\x1b[2J.wav" in table_lines([row], None)[1]
