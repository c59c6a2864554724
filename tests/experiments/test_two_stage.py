"""The paper's experiment: files, repeats, refusals, and the same bits as a row of a table."""

import json
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
from asdproto.results.run_folder import read_scores, tables_of
from asdproto.scoring.metrics import evaluate
from asdproto.systems import YARDSTICKS, prototype
from asdproto.training.checkpoint import Checkpoints
from asdproto.training.devices import use_devices
from asdproto.training.loop import stack_runs
from experiments import common, table1, two_stage
from tests.experiments.collection import TEST, write_collection

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_block"),
    pytest.mark.filterwarnings("ignore::asdproto.scoring.thresholds.ThresholdWarning"),
]

OVERRIDES = (
    "encoder.width=4",
    "encoder.crop=32",
    "pretrain.epochs=3",
    "pretrain.batch_size=4",
    "finetune.epochs=2",
    "finetune.ways=2",
    "finetune.shots=2",
)
EPOCHS = {"pretrain": 3, "finetune": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """24 clips in the layout and under the names of DCASE 2022."""
    root = tmp_path_factory.mktemp("two_stage")
    write_collection(root / "clips")
    return root


def arguments(root, workdir, *more):
    given = ("--data", root / "clips", "--features", root / "features", "--workdir", workdir)
    return [str(word) for word in (*given, "--preset", "paper", *more, *OVERRIDES)]


@pytest.fixture(scope="module")
def finished(root, one_block):
    two_stage.main(arguments(root, root / "run"))
    return root / "run"


def metrics(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def score_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*_test.csv")}


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

    for stage in EPOCHS:
        assert set(score_files(finished / "scores" / stage)) == {
            f"{kind}_{machine}_section_00_test.csv"
            for kind in ("anomaly_score", "decision_result")
            for machine in ("fan", "pump")
        }
    assert "<html" in (finished / "report.html").read_text().lower()


def test_scores_and_figures_belong_together(finished):
    """Every test clip is scored, and the figures are those of the files."""
    results = json.loads((finished / "results.json").read_text())
    assert set(results["systems"]) == {"pretrain", "finetune", "spectral", "fused", *YARDSTICKS}
    assert results["seeds"] == [0]
    assert results["preset"] == "paper"
    for stage, figures in results["systems"].items():
        assert set(figures["machines"]) == {"fan", "pump"}
        sections = tables_of(read_scores(finished / "scores" / stage))
        assert sum(len(section.scores) for section in sections) == 2 * len(TEST)
        again = evaluate(sections)
        for name in ("overall", "source_auc", "target_auc", "pauc"):
            assert 0 <= figures[name] <= 1
            assert again[name] == pytest.approx(figures[name], abs=1e-12)


def test_other_settings_on_the_same_folder_are_refused(finished, root, monkeypatch, capsys):
    """As a command, before anything is trained."""
    monkeypatch.setattr(sys, "argv", ["two_stage", *arguments(root, finished, "--seed", "7")])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # run_main sets it
    monkeypatch.setattr(train, "start_devices", None)
    with pytest.raises(SystemExit) as end:
        common.run_main(two_stage.main)
    assert end.value.code == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "seeds is [0] there, [7] here" in message
    assert message.count(" here") == 1  # and nothing that is the same


def test_a_row_of_a_table_is_the_run_of_the_paper_to_the_bit(finished, root):
    given = ("--data", root / "clips", "--workdir", root / "table", "--preset", "paper")
    own = [f"prototype.{change}" for change in OVERRIDES]
    words = (*given, "--seeds", "0", "--systems", "pretrain", "finetune", *own)
    table1.main([str(word) for word in words])

    system = override(two_stage.get_config(), OVERRIDES)
    data = prepare(open_store(root / "features"), system.encoder.crop)
    for stage, key in (("pretrain", "pretrain-pretrain-0"), ("finetune", "finetune-finetune-0")):
        task = prototype.make_task(system, stage, data, use_devices(1), "dispatch")
        like = stack_runs([task.init(jax.random.key(0), system.features.n_mels)])
        leaves = []
        for folder in (finished / "checkpoints" / stage, root / "table" / "checkpoints" / key):
            checkpoints = Checkpoints(folder)
            assert checkpoints.latest() == EPOCHS[stage] * task.steps_per_epoch
            leaves.append(jax.tree.leaves(checkpoints.restore(like)))
            checkpoints.close()
        assert len(leaves[0]) == len(leaves[1]) > 10
        for one, two in zip(*leaves, strict=True):
            np.testing.assert_array_equal(one, two)
        scores = score_files(root / "table" / "scores" / f"{stage}-0")
        assert scores == score_files(finished / "scores" / stage)
        assert len(scores) == 4

    def progress(workdir):
        return [(line["epoch"], line["step"], line["loss"]) for line in metrics(workdir)]

    assert progress(finished) == progress(root / "table")
