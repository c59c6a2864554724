"""Ctrl-C, SIGTERM and SIGKILL: nothing is lost, and the same command goes on to the same bits."""

import contextlib
import hashlib
import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from asdproto import cli, signals
from asdproto.results.run_folder import read_results
from tests.test_robustness import tiny_run
from tests.test_robustness.processes import command, ended, server, started, wait_for
from tests.test_robustness.test_run_files import contents

pytestmark = pytest.mark.slow

__all__ = ["server"]  # a fixture
# One in each phase; ASDPROTO_KILLS=25 kills in each phase five times.
KILLS = int(os.environ.get("ASDPROTO_KILLS", "5"))
# A phase has begun when this is there.
PHASES = {
    "features": "features",
    "pre-training": "checkpoints/pretrain/[0-9]*",
    "fine-tuning": "checkpoints/finetune/[0-9]*",
    "scoring": "scores/*",
    "report": "results.json",
}


def metrics(workdir: Path) -> list[dict]:
    """Whole lines of metrics.jsonl, also while it is being written."""
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def test_a_signal_saves_and_ends(server, data, tmp_path):
    """What goes on can be stopped again, also by the other signal."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    # No checkpoint is due but the one that the signal asks for.
    arguments = tiny_run.command(data, workdir, "--save-seconds", "1e9", "pretrain.epochs=100000")
    last = 0
    for count, number in enumerate((signal.SIGINT, signal.SIGTERM), 1):
        with started(server, command, (arguments,), log) as process:
            assert wait_for(process, lambda n=last: len(metrics(workdir)) > n, log)
            os.kill(process.pid, number)
            assert ended(process, log) == 128 + number, log.read_text()
        saved = [int(path.name) for path in (workdir / "checkpoints/pretrain").glob("[0-9]*")]
        lines = metrics(workdir)
        step, last = max(saved), len(lines)
        assert lines[-1]["step"] <= step < lines[-1]["step"] + 4  # of an epoch
        assert [line["epoch"] for line in lines] == list(range(1, last + 1))
        said = log.read_text().splitlines()
        notice = "stopping as soon as this is saved; a second signal stops at once"
        assert said.count(notice) == count
        assert said[-1] == (
            f"interrupted: step {step} of pretrain is saved; train is not finished; the same "
            "command continues"
        )
        assert "Traceback" not in log.read_text()
        assert not (workdir / "results.json").exists()


def never_ends(ready: str) -> int:
    with signals.handled(), signals.deferred():
        Path(ready).touch()
        while True:
            time.sleep(0.01)


def test_the_second_signal_ends_at_once(server, tmp_path):
    log, ready = tmp_path / "log", tmp_path / "ready"
    with started(server, never_ends, (str(ready),), log) as process:
        assert wait_for(process, ready.exists, log)
        os.kill(process.pid, signal.SIGTERM)
        assert wait_for(process, lambda: "a second signal stops at once" in log.read_text(), log)
        assert process.is_alive()
        os.kill(process.pid, signal.SIGINT)
        assert ended(process, log) == -signal.SIGINT


def swallowed(otherwise):
    """A library whose callback meets a signal."""
    with contextlib.suppress(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    if otherwise is not None:
        raise otherwise


def test_a_signal_that_a_library_swallows_ends_the_command():
    for otherwise in (None, RuntimeError("INTERNAL: a callback has failed")):
        with pytest.raises(signals.Stopped) as caught, signals.handled():
            swallowed(otherwise)
        assert signals.code(caught.value) == 143


def test_handlers_are_put_back_and_what_others_have_set_stays():
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    with contextlib.suppress(signals.Stopped), signals.deferred() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before
    heard = []
    signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with signals.handled():
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def outcome(workdir: Path) -> tuple:
    """What a run has come to: parameters, scores, tables."""
    features = contents(workdir / "features")
    features.pop(".lock", None)  # which a kill may leave behind
    names = ("stage", "epoch", "step", "loss", "learning_rate")
    lines = [[line[name] for name in names] for line in metrics(workdir)]
    results = read_results(workdir)
    return contents(workdir / "scores"), features, lines, results["systems"], results["seeds"]


def test_killed_at_random_moments_and_resumed(server, data, tmp_path):
    """In every phase; the end is that of a run that nothing has disturbed."""

    def run_to_the_end(arguments, log):
        with started(server, command, (arguments,), log) as process:
            assert ended(process, log) == 0, log.read_text()[-3000:]

    def arguments_of(workdir):
        return tiny_run.command(data, workdir, "--save-seconds", "0")

    whole = tmp_path / "whole"
    run_to_the_end(arguments_of(whole), tmp_path / "log")
    expected = outcome(whole)
    rng, killed = random.Random(7), []
    for turn in range(-(-KILLS // len(PHASES))):
        workdir, log, kept = tmp_path / f"run{turn}", tmp_path / f"log{turn}", []
        for phase, sign in PHASES.items():
            with started(server, command, (arguments_of(workdir),), log) as process:
                wait_for(process, lambda at=workdir, sign=sign: any(at.glob(sign)), log)
                time.sleep(rng.uniform(0, 0.4))
                process.kill()
                if ended(process, log) == -signal.SIGKILL:
                    killed.append(phase)
            # The epoch of the last line may be trained again; those before it are saved.
            lines = metrics(workdir)
            assert lines[: len(kept)] == kept
            kept = lines[:-1]
        run_to_the_end(arguments_of(workdir), log)
        assert metrics(workdir)[: len(kept)] == kept  # with their times
        assert outcome(workdir) == expected
        assert "<html" in (workdir / "report.html").read_text().lower()
        assert "Traceback" not in log.read_text()
        # Nothing half done is left, but perhaps of the page, which anybody may be writing.
        assert not [path for path in workdir.rglob("*") if "tmp" in path.name]
        hidden = [path.name for path in workdir.rglob(".*") if path.name != ".lock"]
        assert not [name for name in hidden if not name.startswith(".report.html.")]
    assert len(set(killed)) >= 4, "processes ended before they could be killed"


def test_what_the_command_line_says_where_nothing_can_be_saved(tmp_path, capsys, monkeypatch):
    """Within this process: a command that a signal meets anywhere."""
    monkeypatch.setattr(cli.data, "features", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert cli.main(["features", str(tmp_path), str(tmp_path / "store")]) == 143
    said = capsys.readouterr().err.split("\n")
    assert said[1:] == ["interrupted: features is not finished; the same command continues", ""]


def test_a_thread_sees_a_signal_that_nobody_asks_for():
    """While the main thread is in compiled code, as here with signals held back from Python."""
    overdue = []

    def look():
        while not signals.overdue(0.1):
            time.sleep(0.01)
        overdue.append(True)

    with contextlib.suppress(signals.Stopped), signals.deferred() as asked:
        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        os.kill(os.getpid(), signal.SIGTERM)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**20)
        thread.join(10)
        assert overdue
        assert asked()
        assert not signals.overdue(0.1)
