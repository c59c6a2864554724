"""The paper's tables of ablations: what is shared is trained once, what is there is not again."""

import json

import numpy as np
import pytest

from asdproto.config import ConfigError
from asdproto.errors import DataError
from asdproto.systems.prototype import EncoderConfig
from experiments import ablation, two_stage
from tests.experiments.collection import write_collection

SMALL = (
    "encoder.width=4",
    "encoder.crop=32",
    "pretrain.epochs=2",
    "pretrain.batch_size=4",
    "finetune.epochs=1",
    "finetune.ways=2",
    "finetune.shots=2",
)


@pytest.fixture(autouse=True)
def one_block(monkeypatch):
    """Compiling eight blocks is most of what a run of two epochs does."""
    build = EncoderConfig.build
    monkeypatch.setattr(EncoderConfig, "build", lambda *args: build(*args).clone(stages=(1,)))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("ablation")
    write_collection(root / "clips")
    return root


def _arguments(places, workdir, *more):
    data = ("--data", places / "clips", "--features", places / "features")
    given = (*data, "--workdir", places / workdir, "--preset", "quick", *more, "--", *SMALL)
    return [str(word) for word in given]


def test_rows_that_share_their_pre_training_share_it():
    rows = ablation.get_rows(3, two_stage.get_config())
    jobs, last = ablation.plan(rows, [0, 1])
    assert [job.stage for job in jobs] == ["pretrain"] * 2 + ["finetune"] * 10
    assert last["pretrain", 1] in jobs
    assert all(job.before in jobs for job in jobs[2:])
    assert {job.seed for job in jobs[2:] if job.before is jobs[1]} == {1}
    # Four ranges of one program and a program without mixing; every ratio of MPE is one program.
    assert len({job.program for job in jobs}) == 3
    jobs, _ = ablation.plan(ablation.get_rows(2, two_stage.get_config()), [0])
    assert len(jobs) == 4
    assert len({job.program for job in jobs}) == 2
    jobs, last = ablation.plan(ablation.get_rows(1, two_stage.get_config()), [0])
    assert len(jobs) == 3
    assert last["scratch", 0].before is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::asdproto.scoring.thresholds.ThresholdWarning")
def test_a_row_is_the_run_of_the_paper_and_nothing_is_trained_twice(places, capsys):
    result = ablation.main(_arguments(places, "three", "--table", "3", "--seeds", "1"))
    assert "Pre-train" in capsys.readouterr().out
    assert list(result["rows"]) == list(result["paper_overall"])
    assert json.loads((places / "three" / "results.json").read_text()) == result
    assert (places / "three" / "table.png").stat().st_size > 10_000

    two_stage.main(_arguments(places, "run", "--seed", "1"))
    for system, row in (("pretrain", "pretrain-1"), ("finetune", "second-1")):
        for score in (places / "run" / "scores" / system).glob("anomaly_score_*.csv"):
            same = places / "three" / "scores" / row / score.name
            assert same.read_text() == score.read_text()

    name = "anomaly_score_fan_section_00_test.csv"
    rows = [path / name for path in (places / "three" / "scores").iterdir()]
    assert len({path.read_text() for path in rows}) == len(rows) == 6  # no two rows are the same

    lines = (places / "three" / "metrics.jsonl").read_text()
    more = ablation.main(_arguments(places, "three", "--table", "3", "--seeds", "1", "2"))
    added = (places / "three" / "metrics.jsonl").read_text()
    assert added.startswith(lines)
    stages = {json.loads(line)["stage"] for line in added[len(lines) :].splitlines()}
    assert {stage.rpartition("-")[2] for stage in stages} == {"2"}
    for name, found in more["rows"].items():
        assert found["overall"]["values"][0] == result["rows"][name]["overall"]["values"][0]

    with pytest.raises(DataError, match="table is 3 there, 2 here"):
        ablation.main(_arguments(places, "three", "--table", "2"))
    with pytest.raises(ConfigError, match="given twice"):
        ablation.main(_arguments(places, "three", "--table", "3", "--seeds", "1", "1"))


@pytest.mark.slow
def test_side_by_side_gives_the_same_losses(places):
    command = ("--table", "2", "--seeds", "0")
    ablation.main(_arguments(places, "apart", *command))
    ablation.main(_arguments(places, "together", *command, "--together"))

    def losses(workdir, field):
        found = {}
        for line in (places / workdir / "metrics.jsonl").read_text().splitlines():
            epoch = json.loads(line)
            found.setdefault(epoch["stage"], []).append(epoch[field])
        return list(found.values())

    without, *ratios = losses("apart", "loss")
    program_without, program_ratios = losses("together", "losses")
    np.testing.assert_allclose(program_without, np.transpose([without]), rtol=1e-3)
    np.testing.assert_allclose(program_ratios, np.transpose(ratios), rtol=1e-3)
    assert np.shape(program_ratios) == (2, 3)
