"""The quality part of the loss benchmark: cells, choices, paired differences, own losses."""

import json

import numpy as np
import pytest

from asdproto.config import ConfigError
from asdproto.training.devices import use_devices
from experiments import loss_quality
from experiments.benchmarks import losses as bench_losses
from tests.experiments.collection import write_collection
from tests.losses.examples import example

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_block")]

SMALL = (
    "encoder.width=4",
    "encoder.crop=32",
    "pretrain.epochs=2",
    "pretrain.ways=4",
    "pretrain.shots=2",
)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with a collection; what is trained there is trained on one device."""
    root = tmp_path_factory.mktemp("quality")
    write_collection(root / "pumps")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_quality, "use_devices", lambda: use_devices(1))
        yield root


def _run(places, *more, workdir="one"):
    options = ("--part", "quality", "--data", str(places / "pumps"), "--preset", "quick")
    folders = ("--features", str(places / "features"), "--workdir", str(places / workdir))
    return bench_losses.main([*options, *folders, *more, "--set", *SMALL])


def test_losses_are_compared_cell_by_cell(places, capsys):
    out, picture = places / "quality.json", places / "quality.png"
    losses = ("--loss", "softmax", "vicreg")
    result = _run(places, *losses, "--seeds", "0", "1", "--out", str(out), "--plot", str(picture))
    assert json.loads(out.read_text()) == result
    assert picture.stat().st_size > 10_000
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    pumps = result["sets"]["pumps"]
    published, best = pumps["published"], pumps["best"]
    assert list(published) == list(best) == ["softmax", "vicreg"]
    assert published["softmax"]["temperature"] == 0.05
    # Three temperatures were tried; a loss without one has nothing to choose.
    tried = {cell["temperature"]: cell["ratio"] for cell in pumps["kept_out"]}
    assert sorted(tried) == [0.025, 0.05, 0.1]
    assert best["softmax"]["temperature"] == min(tried, key=tried.get)
    assert best["vicreg"]["nearest"]["overall"] == published["vicreg"]["nearest"]["overall"]
    for backend in ("nearest", "prototypes"):
        ours, base = (published[loss][backend] for loss in ("vicreg", "softmax"))
        differences = np.subtract(ours["overall"]["values"], base["overall"]["values"])
        to_softmax = ours["to_softmax"]
        assert to_softmax["mean"] == pytest.approx(differences.mean(), abs=2e-4)
        error = differences.std(ddof=1) / np.sqrt(2)
        assert to_softmax["standard_error"] == pytest.approx(error, abs=2e-4)

    # A third seed of one loss: only its cells are made, and the report holds all.
    cells = places / "one" / "cells" / "pumps"
    before = {path: path.stat().st_mtime_ns for path in cells.glob("**/*.json")}
    more = _run(places, "--loss", "vicreg", "--seeds", "2")["sets"]["pumps"]["published"]
    assert list(more) == ["softmax", "vicreg"]
    assert more["vicreg"]["seeds"] == [0, 1, 2]
    assert more["vicreg"]["nearest"]["to_softmax"]["seeds"] == 2
    added = {p.name for p in cells.glob("**/*.json")} - {p.name for p in before}
    assert added == {"vicreg-2.json"}
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    bench_losses.main(["--plot-from", str(out), "--plot", str(picture)])


def test_seeds_as_one_program_give_the_same_figures(places):
    options = ("--loss", "softmax", "--seeds", "0", "1", "--as-published")
    found, expected = (
        _run(places, *options, how, workdir=workdir)["sets"]["pumps"]["published"]["softmax"]
        for how, workdir in (("--together", "together"), ("--no-together", "one"))
    )
    assert found["prototypes"]["overall"] == expected["prototypes"]["overall"]


def test_clips_are_kept_out_of_every_large_class():
    labels = np.array([0] * 8 + [1] * 2 + [2] * 3)
    np.testing.assert_array_equal(np.flatnonzero(loss_quality.fold_of(labels)), [0, 4, 10])
    with pytest.raises(ConfigError, match="no class of 3 training clips"):
        loss_quality.fold_of(labels[8:10])


def test_an_own_loss_of_the_working_directory_joins_both_parts(places, monkeypatch, tmp_path):
    (tmp_path / "my_loss.py").write_text(example("CONTRIBUTING.md", "own-loss"))
    monkeypatch.chdir(tmp_path)
    path = "my_loss:objective"
    own = ("--own", path, "--loss", path)
    result = _run(places, *own, "softmax", "--seeds", "0", "--as-published")
    published = result["sets"]["pumps"]["published"]
    assert published[path]["temperature"] == 0.07  # the paper's
    assert "to_softmax" in published[path]["nearest"]
    timed = bench_losses.main([*own, "--sizes", "16x6x8", "--rounds", "2"])
    (row,) = timed["rows"]
    assert row["loss"] == path
    assert row["ours"]["ms"]["median"] > 0


def test_refusals(capsys):
    for arguments, message in (
        (["--part", "quality", "--loss", "arcfase"], "did you mean arcface?"),
        (["--loss", "softmax_center"], "--part speed knows no 'softmax_center'"),
        (["--part", "quality"], "needs --data"),
    ):
        with pytest.raises(SystemExit):
            bench_losses.main(arguments)
        assert message in capsys.readouterr().err
