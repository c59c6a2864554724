"""The paper's experiment from the command line: files, repeats, refusals and resumption."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from asdproto.commands import train
from asdproto.config import override
from asdproto.data.dataset import prepare
from asdproto.data.store import open_store
from asdproto.systems import YARDSTICKS, prototype
from asdproto.training.checkpoint import Checkpoints
from asdproto.training.devices import stack_runs, use_devices
from asdproto.training.state import TrainState
from experiments import common, two_stage
from tests.experiments.collection import TEST, write_collection

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
OVERRIDES = (
    "encoder.width=4",
    "encoder.crop=32",
    "pretrain.epochs=4",
    "pretrain.batch_size=4",
    "finetune.epochs=3",
    "finetune.ways=2",
    "finetune.shots=2",
)
EPOCHS = {"pretrain": 4, "finetune": 3}


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """24 clips in the layout and under the names of DCASE 2022."""
    root = tmp_path_factory.mktemp("collection")
    write_collection(root)
    assert len(list(root.rglob("*.wav"))) == 24
    return root


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Where all runs of this module find their features; the first one extracts them."""
    return tmp_path_factory.mktemp("store") / "features"


def arguments(collection, features, workdir, *more, overrides=OVERRIDES):
    given = ("--data", collection, "--features", features, "--workdir", workdir)
    given = (*given, "--preset", "paper", *more, *overrides)
    return [str(argument) for argument in given]


def _start(arguments, log):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    command = [sys.executable, "-m", "experiments.two_stage", *arguments]
    with open(log, "w") as file:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)


def run(arguments, log) -> str:
    """Runs the command to its end and returns what it printed."""
    process = _start(arguments, log)
    try:
        code = process.wait(timeout=180)
    finally:
        process.kill()
        process.wait()
    output = log.read_text()
    assert code == 0, output[-5000:]
    assert "Traceback" not in output
    return output


def metrics(workdir: Path) -> list[dict]:
    """Whole lines of metrics.jsonl, also while it is being written."""
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def progress(workdir: Path) -> list[tuple]:
    """What metrics.jsonl says apart from the time that things took."""
    names = ("stage", "epoch", "step", "loss", "learning_rate")
    return [tuple(line[name] for name in names) for line in metrics(workdir)]


@pytest.fixture(scope="module")
def finished(collection, features, tmp_path_factory):
    """A run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    output = run(arguments(collection, features, workdir), workdir.parent / "log")
    assert "Report:" in output
    assert "report.html" in output
    return workdir


def final_state(workdir: Path, features: Path, stage: str) -> TrainState:
    """The last checkpoint of a stage."""
    system = override(two_stage.get_config(), OVERRIDES)
    data = prepare(open_store(features), system.encoder.crop)
    task = prototype.make_task(system, stage, data, use_devices(1), "dispatch")
    checkpoints = Checkpoints(workdir / "checkpoints" / stage)
    try:
        assert checkpoints.latest() == EPOCHS[stage] * task.steps_per_epoch
        return checkpoints.restore(
            stack_runs([task.init(jax.random.key(0), system.features.n_mels)])
        )
    finally:
        checkpoints.close()


def score_files(workdir: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in sorted((workdir / "scores").rglob("*.csv"))
    }


def check_same_bits(workdir: Path, other: Path, features: Path) -> None:
    for stage in EPOCHS:
        states = [final_state(folder, features, stage) for folder in (workdir, other)]
        leaves = [jax.tree.leaves(state) for state in states]
        assert len(leaves[0]) == len(leaves[1]) > 20
        for one, two in zip(*leaves, strict=True):
            np.testing.assert_array_equal(one, two)
    assert score_files(workdir) == score_files(other)
    assert progress(workdir) == progress(other)
    results = [json.loads((folder / "results.json").read_text()) for folder in (workdir, other)]
    assert results[0]["systems"] == results[1]["systems"]


def test_a_run_leaves_all_its_files(finished):
    found = {path.name for path in finished.iterdir()}
    assert found >= {"config.json", "metrics.jsonl", "results.json", "report.html", "checkpoints"}
    assert not list(finished.rglob("*.partial"))

    config = json.loads((finished / "config.json").read_text())
    assert config["system"]["encoder"]["width"] == 4
    assert config["system"]["features"]["n_mels"] == 128
    assert config["seeds"] == [0]
    assert len(config["classes"]) == 8

    lines = metrics(finished)
    expected = [(stage, n + 1) for stage, count in EPOCHS.items() for n in range(count)]
    assert [(line["stage"], line["epoch"]) for line in lines] == expected
    assert all(np.isfinite(line["loss"]) and line["clips_per_second"] > 0 for line in lines)
    assert len({line["loss"] for line in lines}) == len(lines)

    assert set(score_files(finished)) >= {
        f"scores/{stage}/{kind}_{machine}_section_00_test.csv"
        for stage in EPOCHS
        for kind in ("anomaly_score", "decision_result")
        for machine in ("fan", "pump")
    }
    assert "<html" in (finished / "report.html").read_text().lower()


def test_scores_and_figures_belong_together(finished):
    """Every test clip is scored, and the figures are those of the files."""
    from asdproto.results.run_folder import read_scores, tables_of
    from asdproto.scoring.metrics import evaluate

    results = json.loads((finished / "results.json").read_text())
    assert set(results["systems"]) == {"pretrain", "finetune", "spectral", "fused", *YARDSTICKS}
    assert results["seeds"] == [0]
    assert results["preset"] == "paper"
    for stage, figures in results["systems"].items():
        assert set(figures) >= {"overall", "source_auc", "target_auc", "pauc", "machines"}
        assert set(figures["machines"]) == {"fan", "pump"}
        for name in ("overall", "source_auc", "target_auc", "pauc"):
            assert 0 <= figures[name] <= 1
        sections = tables_of(read_scores(finished / "scores" / stage))
        assert sum(len(section.scores) for section in sections) == 2 * len(TEST)
        again = evaluate(sections)
        for name in ("overall", "source_auc", "target_auc", "pauc"):
            assert again[name] == pytest.approx(figures[name], abs=1e-12)


def command(monkeypatch, arguments) -> int:
    """Runs the command within this process, for what ends before anything is trained."""
    monkeypatch.setattr(sys, "argv", ["two_stage", *arguments])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # run_main sets it
    monkeypatch.setattr(train, "start_devices", None)
    try:
        common.run_main(two_stage.main)
    except SystemExit as end:
        return end.code
    return 0


def test_a_finished_folder_is_only_reported(finished, collection, features, monkeypatch, capsys):
    kept = ("metrics.jsonl", "results.json", "config.json", *score_files(finished))
    before = {name: (finished / name).stat().st_mtime_ns for name in kept}
    page = finished / "report.html"
    whole = page.read_text()
    page.unlink()
    assert command(monkeypatch, arguments(collection, features, finished)) == 0
    assert "is finished; this only reports" in capsys.readouterr().out
    assert {name: (finished / name).stat().st_mtime_ns for name in kept} == before
    assert page.read_text() == whole


@pytest.mark.parametrize(
    ("more", "field", "here"),
    [
        (["--seed", "7"], "seeds", "[7]"),
        (["--stages", "finetune"], "system.stages", "['finetune']"),
    ],
)
def test_other_settings_on_the_same_folder_are_refused(
    finished, collection, features, monkeypatch, capsys, more, field, here
):
    given = arguments(collection, features, finished, overrides=(*OVERRIDES, *more))
    assert command(monkeypatch, given) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert f"{field} is " in message
    assert f"{here} here" in message
    assert "Train anew with --retrain, or name another" in message
    assert message.count(" here") == 1  # and nothing that is the same


def test_the_same_seed_gives_the_same_bits(finished, collection, features, tmp_path):
    workdir = tmp_path / "run"
    run(arguments(collection, features, workdir), tmp_path / "log")
    check_same_bits(workdir, finished, features)
