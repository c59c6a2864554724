"""``train`` and ``score`` as a person uses them, on a tiny collection of two machines."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asdproto import cli
from asdproto.commands import rows, score, watch
from asdproto.results.run_folder import COLUMNS, ScoredClip, read_config, read_scores
from asdproto.systems.detector import Detector

pytestmark = [
    pytest.mark.filterwarnings("ignore:undefined figures", "ignore:.*trust the threshold"),
    pytest.mark.usefixtures("no_pictures"),
]
OPTIONS = ("--system", "spectral-knn", "--preset", "quick", "features.n_mels=16")


def record(path, pitch=0.05, seed=0, rate=16000, gain=0.1, channels=1, samples=9600):
    """A hum in noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).standard_normal(samples)
    sound = gain * (np.sin(pitch * np.arange(samples)) + 0.3 * noise)
    columns = [sound * (number == channels - 1) for number in range(channels)]
    soundfile.write(os.fsencode(path), np.stack(columns, 1), rate)


def collection(root):
    for machine, pitch in (("fan", 0.05), ("valve", 0.2)):
        for number in range(4):
            record(root / machine / "normal" / f"{number}.wav", pitch, seed=number)
        record(root / machine / "abnormal" / "a.wav", 3 * pitch, seed=9)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return collection(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asdproto.results.page.write_report", lambda run: run / "report.html")
        assert cli.main(["train", str(data), str(folder), *OPTIONS]) == 0
    return folder


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


# --- train


def test_a_run_knows_its_collection(tmp_path, call):
    data, run = collection(tmp_path / "data"), tmp_path / "run"
    code, _, err = call("train", data, data, *OPTIONS)
    assert (code, sorted(path.name for path in data.iterdir())) == (1, ["fan", "valve"])
    assert f"{data}: found a folder with other things in it (fan, valve); expected" in err
    command = ("train", data, run, *OPTIONS)
    assert call(*command)[0] == 0
    before = (run / "scores/spectral-knn/scores.csv").read_bytes()
    code, out, _ = call(*command)
    assert code == 0
    assert "is finished; this only reports" in out
    record(data / "fan" / "normal" / "new.wav", seed=7)
    both = r"\. Train anew with --retrain, or name another run folder\.\n\Z"
    nowhere = ("train", tmp_path / "nowhere", run, *OPTIONS)
    for words, said in (
        (command, rf"run: found a run of other recordings: 1 file added \(fan/normal/new.*{both}"),
        ((*command, "quantile=0.8"), "other settings: system.quantile is 0.9 there, 0.8 here"),
        (nowhere, f"nowhere: found nothing; expected the recordings that {run}"),
    ):
        code, _, err = call(*words)
        assert code == 1
        assert re.search(said, err)
    assert (run / "scores/spectral-knn/scores.csv").read_bytes() == before
    assert call(*command, "--retrain")[0] == 0
    assert "fan/normal/new.wav" in read_config(run)["collection"]
    assert "this only reports" in call(*command, "--retrain")[1]


def test_options_in_a_persons_own_words(data, tmp_path, call):
    run = tmp_path / "run"
    options = ("--machine", "pump 7", "--contamination", "0.25")
    assert call("train", data / "fan", run, *OPTIONS, *options)[0] == 0
    assert {row.machine_type for row in read_scores(run / "scores/spectral-knn")} == {"pump 7"}
    assert Detector.load(run).contamination == 0.25
    code, _, err = call("train", data, tmp_path / "no", *OPTIONS, "--machine", "../x")
    assert code == 1
    assert "found '../x'" in err
    assert not (tmp_path / "no").exists()


def test_whatever_the_environment_is_like(data, tmp_path):
    """A notebook's drawing back-end, an ascii terminal, no home, a folder that is not UTF-8."""
    run = os.fsencode(tmp_path) + b"/run \xff"
    environment = os.environ | {
        "MPLBACKEND": "module://of_a_notebook",
        "PYTHONIOENCODING": "ascii",
        "HOME": "/nonexistent",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    code = (
        "import sys; from asdproto.cli import main; from asdproto.results import page; "
        "page.MOST_SHOWN = 1; _, run, data, *options = sys.argv; "
        "assert main(['train', data, run, *options]) == 0; "
        "sys.exit(main(['score', run, data + '/normal']))"
    )
    command = [sys.executable, "-c", code, run, data / "fan", *OPTIONS]
    done = subprocess.run(command, env=environment, capture_output=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    trained, _, scored = done.stdout.partition(b"Score recordings with it")
    assert b"run \\udcff/report.html" in trained
    assert os.path.getsize(run + b"/report.html")
    assert scored.count(b"normal") == 9


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "not enough memory"),
        (RuntimeError("INTERNAL: broken\nmore"), "INTERNAL: broken\nmore"),
        (KeyError("seeds"), "this program has a fault (KeyError: 'seeds')"),
        (shutil.Error([("a", "b", "b: no space left")]), "b: no space left"),
    ],
)
def test_no_error_shows_a_traceback(finished, call, monkeypatch, error, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("asdproto.systems.detector.Detector.load", fail)
    code, _, err = call("score", finished, __file__)
    assert code == 1
    assert err.startswith("error: ")
    assert said in err
    assert "Traceback" not in err
    assert "Traceback" in call("--traceback", "score", finished, __file__)[2]


# --- score


def test_score_ranks_and_keeps_everything(data, finished, tmp_path, call):
    table = tmp_path / "new" / "scores.csv"
    files = (data / "fan" / "abnormal" / "a.wav", data / "fan")
    code, out, err = call("score", finished, *files, "--top", 2, "--csv", table)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split()[:2] == ["file", "machine"]
    assert lines[1].split()[:3] == [str(files[0]), "fan", "00"]
    assert lines[3] == "1 of 5 recordings above their threshold, 3 rows not shown"
    assert lines[4].startswith("fan: limit ")
    assert "of spectral-knn, above it " in lines[4]
    assert "% of 4 held-out normal clips; caution: it rests on 4 clips only" in lines[4]
    found = rows_of(table.read_text())
    assert list(found[0]) == list(COLUMNS)
    assert len(found) == 5
    # The scores are those of the run, to the last digit.
    written = {row.file: row.score for row in read_scores(finished / "scores/spectral-knn")}
    assert float(found[0]["score"]) == written["fan/abnormal/a.wav"]
    assert [row["state"] for row in found] == ["anomaly", *["normal"] * 4]
    _, out, err = call("score", finished, data, "--sort", "name", "--format", "jsonl")
    found = [json.loads(line) for line in out.splitlines()]
    assert [row["file"] for row in found] == sorted(row["file"] for row in found)
    assert {row["machine_type"] for row in found} == {"fan", "valve"}
    assert "2 of 10 recordings" in err


def test_limits_of_a_persons_own(data, finished, call):
    def scored(*options):
        out = call("score", finished, data / "fan", "--format", "csv", *options)[1]
        return [(int(row["decision"]), float(row["threshold"])) for row in rows_of(out)]

    assert scored("--threshold", "1e9") == [(0, 1e9)] * 5
    assert scored("--threshold=-1e9") == [(1, -1e9)] * 5
    assert scored("--contamination", "0.9")[0][1] < scored("--contamination", "0.01")[0][1]


def test_what_a_recording_is_taken_for(data, finished, tmp_path, call):
    """A csv says so; else the nearest known folder above."""

    def machines(*paths):
        out = call("score", finished, *paths, "--format", "csv", "--sort", "name")[1]
        assert {row["state"] for row in rows_of(out)} <= {""}  # which nobody says
        return [row["machine_type"] for row in rows_of(out)]

    sound = (data / "fan" / "normal" / "0.wav").read_bytes()
    for name in ("valve/of_monday/fan/x.wav", "fan/valve/latest.wav", "listed/y.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(sound)
    assert machines(tmp_path / "valve", tmp_path / "fan/valve/latest.wav") == ["valve", "fan"]
    (tmp_path / "listed" / "clips.csv").write_text("file,machine_type,split\ny.wav,valve,test\n")
    assert machines(tmp_path / "listed") == ["valve"]
    code, _, err = call("score", finished, tmp_path / "listed" / "y.wav")
    assert code == 1
    assert "machine type unknown" in err
    assert machines(tmp_path / "listed" / "y.wav", "--machine-type", "fan") == ["fan"]


def test_what_is_odd_about_a_recording_reaches_its_row(finished, tmp_path, call):
    record(tmp_path / "fan" / "dead.wav", channels=2)
    record(tmp_path / "fan" / "far.wav", gain=1e-4, rate=48000, samples=30000)
    record(tmp_path / "fan" / "loud.wav", gain=30)
    _, out, err = call("score", finished, tmp_path, "--format", "csv")
    notes = {Path(row["file"]).name: row["note"] for row in rows_of(out)}
    assert "channel 0 silent, channel 1 taken" in notes["dead.wav"]
    assert "48000 Hz where training has 16000" in notes["far.wav"]
    assert "level -8" in notes["far.wav"]
    assert "clipped" in notes["loud.wav"]
    assert "note: 1 recording: channel 0 silent, channel 1 taken (" in err


def test_one_bad_recording_is_named_and_the_others_are_scored(data, finished, tmp_path, call):
    folder = tmp_path / "fan"
    for name in ("a.wav", "b.wav"):
        record(folder / name)
    (folder / "cut.wav").write_bytes((folder / "a.wav").read_bytes()[:99])
    os.mkfifo(folder / "pipe.wav")
    os.symlink("nowhere", folder / "link.wav")
    record(folder / "short.wav", samples=100)
    code, out, err = call("score", finished, folder, tmp_path / "no.wav", "--format", "csv")
    assert code == 1
    assert sorted(Path(row["file"]).name for row in rows_of(out)) == ["a.wav", "b.wav"]
    errors = [line.split(": ")[1] for line in err.splitlines() if line.startswith("error: ")]
    names = ("no.wav", "cut.wav", "link.wav", "pipe.wav", "short.wav")
    assert sorted(Path(error).name for error in errors) == sorted(names)
    code, _, err = call("score", finished, *[folder / f"no{number}.wav" for number in range(9)])
    assert re.fullmatch(
        r"error: .*no0.wav, .*no1.wav, .*no2.wav, ... \(9 in all\): found .*\n", err
    )


def test_wrong_usage_of_score_is_one_line(data, finished, tmp_path, call):
    (tmp_path / "empty").mkdir()
    scores = finished / "scores/spectral-knn/scores.csv"
    for words, message in (
        ((finished, tmp_path / "empty"), "found no .wav or .flac file"),
        ((finished,), "no recording"),
        ((tmp_path / "norun", data), "norun: found no such folder"),
        ((finished, data, "--on-alarm", "true"), "--on-alarm alone"),
        ((finished, data, "--csv", "x", "--report", "x"), "one file for --csv and --report"),
        ((finished, data, "--csv", scores), f"{scores}: found a file of a detector"),
    ):
        code, _, err = call("score", *words)
        assert code == 1
        assert message in err
        assert err.count("\n") == 1
    code, _, err = call("rescore", finished, tmp_path / "no", "score.kind=knn")
    assert code == 1
    assert "spectral-knn has no training that another score could be fitted on" in err


def test_the_table_is_shown_though_a_file_cannot_be_written(data, finished, call):
    recording = data / "fan" / "normal" / "0.wav"
    before = recording.read_bytes()
    for options, said in (
        (("--csv", recording), "found a file of another kind"),
        (("--report", recording), "found a file of another kind"),
        (("--csv", "/dev/full"), "/dev/full: No space left on device"),
    ):
        code, out, err = call("score", finished, recording, *options)
        assert code == 1
        assert "0.wav" in out
        assert said in err
    assert recording.read_bytes() == before


def test_names_are_no_formulas_and_no_commands(finished, tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("=1+1.wav", "-1.wav", "a\x1b[2Jb.wav", "a\nb.wav", "a\udcffb.wav"):
        record(Path("fan") / name)
    os.chdir("fan")
    names = ["./-1.wav", "=1+1.wav", *sorted(set(os.listdir()) - {"-1.wav", "=1+1.wav"})]
    code, out, err = call("score", finished, *names, "--csv", "scores.csv", "--sort", "name")
    assert code == 0, err
    assert all(line.isprintable() for line in out.splitlines())
    files = [row["file"] for row in rows_of(Path("scores.csv").read_text())]
    assert {"'=1+1.wav", "'-1.wav", r"a\udcffb.wav"} <= set(files)
    _, out, _ = call("score", finished, *names, "--format", "jsonl")
    assert len(out.splitlines()) == 5
    os.mkdir("a\x1b[2J")
    for words in (
        ("evaluate", finished, "--out", "a\x1b[2J"),
        ("validate", "a\x1b[2J"),
        ("features", "a\x1b[2J", "a\nb\u202e"),
    ):
        assert all(line.isprintable() for line in "".join(call(*words)[1:]).splitlines()), words
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _, out, _ = call("score", finished, *names, "--format", "csv")
    assert all(line.isprintable() for line in out.splitlines())


def test_a_table_fits_a_terminal_and_names_can_be_told_apart():
    def row(file):
        return ScoredClip(
            *(file, "gearbox", "00", "", "", -12.3456, 99.0, 1e-5, 1),
            *("gearbox 00 source volt_1.0_wt_50", ""),
        )

    long = [row("x" * 70 + "/0001.wav"), row("x" * 70 + "/0002.wav")]
    for width in (80, 120):
        lines = rows.table_lines(long, width, color=True)
        assert max(map(len, lines)) <= width + len("\x1b[1;31m\x1b[0m")
        assert lines[1].startswith("\x1b[1;31m…")
    assert "0001.wav" in lines[1]
    # The same end: only the whole name tells them apart.
    alike = [row(f"{start}/{'y' * 60}.wav") for start in ("monday", "tuesday")]
    lines = rows.table_lines(alike, 80)
    assert lines[1].split()[0] != lines[2].split()[0]


def test_long_recordings_are_scored_apart(data, finished, tmp_path, call, monkeypatch):
    for number in range(4):
        samples = 160_000 if number == 1 else 9600
        record(tmp_path / "fan" / f"{number}.wav", seed=number, samples=samples)
    whole = call("score", finished, tmp_path, "--format", "csv")
    monkeypatch.setattr(score, "_FRAMES", 400)
    pieces = []
    original = Detector.score_recordings

    def count(self, recordings, thresholds=None):
        pieces.append(len(recordings))
        return original(self, recordings, thresholds)

    monkeypatch.setattr(Detector, "score_recordings", count)
    assert call("score", finished, tmp_path, "--format", "csv") == whole
    assert pieces == [1, 1, 2]


# --- watching


def test_a_file_waits_until_it_stops_growing(tmp_path, monkeypatch):
    (tmp_path / "a.wav").write_bytes(b"1234")
    looks = watch.arrivals(tmp_path, {})
    monkeypatch.setattr(watch, "pause", lambda: None)
    found = []
    for look in range(12):
        if look in (2, 4):  # a stream that pauses
            with open(tmp_path / "a.wav", "ab") as stream:
                stream.write(b"5678")
        found.append(next(looks))
    assert [len(paths) for paths in found] == [0] * 8 + [1] + [0] * 3
    scored = {str(tmp_path / "a.wav"): watch.time_of(tmp_path / "a.wav")}
    looks = watch.arrivals(tmp_path, scored)
    assert not any(next(looks) for _ in range(8))


def test_watching_appends_and_continues_and_ends_by_its_signal(
    data, finished, tmp_path, call, monkeypatch
):
    folder, table, alarms = tmp_path / "fan", tmp_path / "scores.csv", tmp_path / "alarms"
    (tmp_path / "alarm").write_text(f'#!/bin/sh\necho "$1" >> {alarms}\ncat >> {alarms}\n')
    os.chmod(tmp_path / "alarm", 0o755)
    folder.mkdir()
    looks = []

    def look():
        looks.append(len(looks))
        if len(looks) % 8 == 0:
            os.kill(os.getpid(), signals[len(looks) // 8 - 1])
            time.sleep(10)

    monkeypatch.setattr(watch, "pause", look)
    command = ("score", finished, "--watch", folder, "--csv", table)
    command += ("--on-alarm", tmp_path / "alarm")
    anomaly = (data / "fan" / "abnormal" / "a.wav").read_bytes()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number, code in enumerate((143, 130)):
        (folder / f"{number}.wav").write_bytes(anomaly)
        found, out, err = call(*command)
        assert found == code
        assert "interrupted: 1 of 1 recording above their threshold" in err
        assert f"{number}.wav" in out
        with open(table, "a") as stream:
            stream.write("2026-01-01,half a ro")  # a kill cuts a row
    found = rows_of(table.read_text())[:2]
    assert list(found[0]) == ["time", *COLUMNS]
    assert [Path(row["file"]).name for row in found] == ["0.wav", "1.wav"]
    assert [row["time"] for row in found] == [watch.time_of(Path(row["file"])) for row in found]
    said = alarms.read_text().split("\n")
    assert said[0] == str(folder / "0.wav")
    assert json.loads(said[1].removesuffix(str(folder / "1.wav")))["decision"] == 1
    table.write_text("something else\n")
    assert "other columns" in call(*command)[2]
