"""The paper's experiment, and its tables: what is shared is trained once, and not again."""

import json
import warnings

import numpy as np
import pytest
from rich.console import Console

from asdproto.config import ConfigError
from asdproto.errors import DataError
from asdproto.files import locked
from asdproto.results.run_folder import read_scores, tables_of, write_figures
from asdproto.scoring.metrics import evaluate, harmonic_mean
from asdproto.systems import YARDSTICKS, preset
from experiments import common, grid, side_by_side, table1, table2, table3, two_stage
from tests.experiments.collection import TEST, write_collection

CHANGES = (
    "encoder.width=4",
    "encoder.crop=32",
    "pretrain.epochs=2",
    "pretrain.batch_size=4",
    "finetune.epochs=1",
    "finetune.ways=2",
    "finetune.shots=2",
)
SMALL = tuple(f"prototype.{change}" for change in CHANGES)
SILENT = Console(quiet=True)
pytestmark = [
    pytest.mark.usefixtures("one_block"),
    pytest.mark.filterwarnings("ignore::asdproto.scoring.thresholds.ThresholdWarning"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("tables")
    write_collection(root / "clips")
    return root


def _arguments(places, workdir, *more):
    data = ("--data", places / "clips", "--features", places / "features")
    given = (*data, "--workdir", places / workdir, "--preset", "quick", *more)
    return [str(word) for word in given]


@pytest.fixture(scope="module")
def finished(places, one_block):
    """The paper's experiment as a run of its own."""
    features = ("--features", places / "paper_features")
    two_stage.main(_arguments(places, "paper", *features, "--seeds", "1", *CHANGES))
    return places / "paper"


def _metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _score_files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*_test.csv")}


def test_variants_that_share_their_pre_training_share_it():
    system = preset("prototype", "paper")
    jobs, last = side_by_side.plan(table3.variants(system), [0, 1])
    assert [job.stage for job in jobs] == ["pretrain"] * 2 + ["finetune"] * 10
    assert last["pretrain", 1] in jobs
    assert all(job.before in jobs for job in jobs[2:])
    assert {job.seed for job in jobs[2:] if job.before is jobs[1]} == {1}
    # Four ranges of one program and a program without mixing; every ratio of MPE is one program.
    assert len({job.program for job in jobs}) == 3
    jobs, _ = side_by_side.plan(table2.variants(system), [0])
    assert len(jobs) == 4
    assert len({job.program for job in jobs}) == 2
    jobs, last = side_by_side.plan(table1.variants(system), [0])
    assert len(jobs) == 3
    assert last["scratch", 0].before is None


def test_the_papers_figures_are_harmonic_means_of_each_other():
    # Printed with two decimals, and a mean of rounded figures is no further off.
    for figures in table1.PAPER.values():
        machines, metrics, overall = figures[:7], figures[7:10], figures[10]
        assert harmonic_mean(machines) == pytest.approx(overall, abs=0.0101)
        assert harmonic_mean(metrics) == pytest.approx(overall, abs=0.0101)
    for _, (*metrics, overall) in [*table2.PAPER.values(), *table3.PAPER.values()]:
        assert harmonic_mean(metrics) == pytest.approx(overall, abs=0.0101)


def _cells(folder, log):
    def run(name):
        log.append(name)
        (folder / name).write_text("done")

    return [grid.Cell(name, (folder / name,), lambda name=name: run(name)) for name in "abc"]


def test_a_cell_in_other_hands_is_left_to_them(tmp_path):
    log = []
    (tmp_path / "cells" / "b").mkdir(parents=True)
    with locked(tmp_path / "cells" / "b", grid.LOCK):
        assert grid.run_cells(_cells(tmp_path, log), tmp_path, SILENT) == []
    assert log == ["a", "c"]


def test_a_cell_finished_by_another_process_meanwhile_is_not_done_again(tmp_path):
    log = []
    cells = _cells(tmp_path, log)
    first = grid.Cell("a", cells[0].results, lambda: (tmp_path / "b").write_text("theirs"))
    grid.run_cells([first, *cells[1:]], tmp_path, SILENT)
    assert log == ["c"]


def _results(folder, seed, scale):
    figures = {"source_auc": 0.5 * scale, "target_auc": 0.4, "pauc": 0.6, "overall": 0.48 * scale}
    machine = {"overall": 0.7 * scale, "sections": {}}
    about = {**figures, "machines": {"ToyCar": machine}, "undefined": []}
    write_figures(folder / f"{seed}.json", about)


def test_figures_stand_beside_the_papers(tmp_path):
    for seed, scale in ((0, 1.0), (1, 1.2)):
        _results(tmp_path, seed, scale)
    paper = dict(zip(table1.FIGURES, table1.PAPER["mobilenet"], strict=True))
    row = grid.Row("mobilenet", "MobileNetV2", lambda seed: tmp_path / f"{seed}.json", paper)
    found = grid.collect(row, [0, 1, 2])
    assert found["seeds"] == [0, 1]
    assert found["paper"]["ToyCar"] == 54.40
    assert "fan" not in found["paper"]
    np.testing.assert_allclose(found["figures"]["overall"]["mean"], 0.48 * 1.1)
    std = 0.48 * 0.2 / np.sqrt(2)  # of two, divisor 1
    np.testing.assert_allclose(found["figures"]["overall"]["std"], std)
    text = grid.markdown({"mobilenet": found})
    head, rule, line, *_ = text.splitlines()
    assert head == "| system | ToyCar | source AUC | target AUC | pAUC | overall | seeds |"
    assert rule.count("---:") == 6
    assert "77.0 ± 9.9 (54.40)" in line
    assert f"52.8 ± {100 * std:.1f} (56.58) | 2 |" in line
    one = grid.collect(row, [0])
    assert "± " not in grid.markdown({"m": one}).splitlines()[2]
    grid.plot(tmp_path / "table.png", "Table", {"mobilenet": found, "one": one})
    assert (tmp_path / "table.png").stat().st_size > 10_000


def test_overrides_name_their_system(places):
    args = table1.grid.make_parser("table1", None, table1.KINDS).parse_args(
        _arguments(places, "x", "mobilenet.stage.epochs=3", "gmm.quantile=0.8")
    )
    names = ["mobilenet", "prototype"]
    systems = grid.get_systems(table1.KINDS, names, args)
    assert list(systems) == names
    assert systems["mobilenet"].stage.epochs == 3
    args.overrides = ["stage.epochs=3"]
    with pytest.raises(ConfigError, match=r"no system 'stage'; expected NAME\.FIELD=VALUE"):
        grid.get_systems(table1.KINDS, names, args)


@pytest.mark.slow
def test_table1_runs_and_reports_what_fails(places, monkeypatch, capsys):
    command = ("--seeds", "1", "--systems", "gmm", "spectral-knn", "scratch")
    arguments = _arguments(places, "one", *command, *SMALL)
    train_run = table1.train_run

    def broken(system, *args, **kwargs):
        if system.kind == "gmm":
            raise ValueError("the mixture is ill")
        return train_run(system, *args, **kwargs)

    monkeypatch.setattr(table1, "train_run", broken)
    with pytest.raises(SystemExit) as caught:
        table1.main(arguments)
    assert caught.value.code == 1
    assert "1 failed: gmm-1" in capsys.readouterr().out
    found = json.loads((places / "one" / "results.json").read_text())
    assert list(found["rows"]) == ["spectral-knn", "scratch"]
    assert found["failed"] == ["gmm-1"]
    failure = places / "one" / "failures" / "gmm-1.txt"
    assert "the mixture is ill" in failure.read_text()
    assert found["command"] == ["python", "-m", "experiments.table1", *arguments]
    assert found["cores"] > 0
    # Cells that finished, with the time that they took.
    assert found["seconds"].keys() == {"spectral-knn-1", "paper-1"}
    assert min(found["seconds"].values()) > 0

    monkeypatch.setattr(table1, "train_run", train_run)
    metrics = (places / "one" / "metrics.jsonl").read_text()
    result = table1.main(arguments)
    assert list(result["rows"]) == ["gmm", "spectral-knn", "scratch"]
    assert not failure.exists()
    assert (places / "one" / "metrics.jsonl").read_text() == metrics
    assert "| TWFR-GMM |" in (places / "one" / "table.md").read_text()

    # A seed more costs its own cells only.
    more = [*arguments, "--systems", "spectral-knn", "--seeds", "1", "2"]
    assert table1.main(more)["rows"]["spectral-knn"]["seeds"] == [1, 2]
    assert capsys.readouterr().out.count("Cell: ") == 2
    with pytest.raises(DataError, match=r"preset is 'quick' there, 'small' here"):
        table1.main([*arguments, "--preset", "small"])
    with pytest.raises(DataError, match="table is 1 there, 2 here"):
        table2.main(_arguments(places, "one", *SMALL))
    with pytest.raises(ConfigError, match="given twice"):
        table1.main(_arguments(places, "one", "--seeds", "1", "1", *SMALL))


@pytest.mark.slow
def test_a_run_leaves_its_files_and_the_figures_of_its_scores(finished):
    found = {path.name for path in finished.iterdir()}
    assert found >= {"config.json", "metrics.jsonl", "results.json", "report.html", "checkpoints"}
    assert not list(finished.rglob("*.partial"))
    config = json.loads((finished / "config.json").read_text())
    assert config["system"]["encoder"]["width"] == 4
    assert len(config["classes"]) == 8
    results = json.loads((finished / "results.json").read_text())
    assert set(results["systems"]) == {"pretrain", "finetune", "spectral", "fused", *YARDSTICKS}
    assert (results["seeds"], results["preset"]) == ([1], "quick")
    for stage, figures in results["systems"].items():
        assert set(figures["machines"]) == {"fan", "pump"}
        sections = tables_of(read_scores(finished / "scores" / stage))
        assert sum(len(section.scores) for section in sections) == 2 * len(TEST)
        assert evaluate(sections)["overall"] == pytest.approx(figures["overall"], abs=1e-12)


def test_what_ends_an_experiment_is_said_in_one_line(monkeypatch, capsys):
    def main(_):
        raise DataError("config.json", "seeds 1", "seeds 7", "Name another folder.")

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # run_main sets it
    with pytest.raises(SystemExit) as end:
        common.run_main(main)
    assert end.value.code == 1
    found = "error: config.json: found seeds 1; expected seeds 7. Name another folder.\n"
    assert capsys.readouterr().err == found


@pytest.mark.slow
def test_rows_are_runs_of_the_paper_to_the_bit_and_side_by_side_nearly(
    finished, places, monkeypatch
):
    for key in ("without", "third", "fourth"):
        monkeypatch.delitem(table3.RANGES, key)
        monkeypatch.delitem(table3.PAPER, key)
    command = ("--seeds", "1", *SMALL)
    result = table3.main(_arguments(places, "apart", *command))
    assert list(result["rows"]) == ["pretrain", "first", "second"]
    assert (places / "apart" / "table.png").stat().st_size > 10_000
    # What rows share is trained once.
    assert len(list((places / "apart" / "checkpoints").iterdir())) == 3
    rows = {key: _score_files(places / "apart" / "scores" / f"{key}-1") for key in result["rows"]}
    assert rows["first"] != rows["second"]
    for key, stage in (("pretrain", "pretrain"), ("second", "finetune")):
        assert rows[key] == _score_files(finished / "scores" / stage)
        assert len(rows[key]) == 4
    losses = [line["loss"] for line in _metrics(places / "apart")]
    expected = [line["loss"] for line in _metrics(finished)]
    assert [*losses[:2], losses[3]] == expected

    table3.main(_arguments(places, "together", *command, "--together"))
    lines = _metrics(places / "together")
    assert len(lines[-1]["losses"]) == 2
    found = [loss for line in lines for loss in line.get("losses", [line["loss"]])]
    np.testing.assert_allclose(found, losses, rtol=1e-3)
