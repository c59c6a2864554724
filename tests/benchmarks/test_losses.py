import importlib.util
import json

import pytest

from experiments.benchmarks import losses as bench_losses
from experiments.benchmarks.loss_rivals import ENTRIES

RIVAL = importlib.util.find_spec("pytorch_metric_learning") is not None
# One of every kind: with and without pieces, within a batch, with coefficients drawn. All of them
# where there is another library to be equal to.
LOSSES = ["negative_prototype", "arcface", "nt_xent", "vicreg"]
LOSSES = [entry.name for entry in ENTRIES if RIVAL or entry.name in LOSSES]


@pytest.mark.filterwarnings("ignore")  # they are the rival's
def test_losses_are_compared_and_timed(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(bench_losses.PIECES, "classes", 8)
    monkeypatch.setitem(bench_losses.PIECES, "anchors", 5)
    out, picture = tmp_path / "speed.json", tmp_path / "speed.png"
    options = ("--sizes", "16x20x6", "--rounds", "2", "--out", str(out), "--plot", str(picture))
    bench_losses.main(["--loss", *LOSSES, *options])
    table = capsys.readouterr().out.partition("Value and gradients")[2]
    assert max(map(len, table.splitlines())) <= 80
    result = json.loads(out.read_text())
    assert [row["loss"] for row in result["rows"]] == LOSSES
    for row, entry in zip(result["rows"], [e for e in ENTRIES if e.name in LOSSES], strict=True):
        assert row["ours"]["rounds"] == 2
        contenders = {
            "pieces": entry.chunk,
            "optax": entry.optax is not None,
            "naive": entry.naive is not None,
            "torch": RIVAL and entry.torch is not None,
        }
        assert contenders == {name: name in row for name in contenders}
        for name in contenders:
            if name in row:
                # The rivals are independent: value and gradients are the same formula's.
                difference = row[name]["difference"]
                assert difference["value"] < 2e-5, (entry.name, name)
                assert difference["gradients"] < 1e-3, (entry.name, name)
    assert picture.stat().st_size > 10_000
    bench_losses.main(["--plot-from", str(out), "--plot", str(picture)])


def test_what_does_not_fit_is_compiled_and_not_run(monkeypatch):
    result = bench_losses.main(["--loss", "adaproj", "--sizes", "64x100x32", "--memory", "0.002"])
    (row,) = result["rows"]
    assert row["optax"]["skipped"].startswith("needs")
    assert row["optax"]["temporary_mib"] > row["ours"]["temporary_mib"]
    assert "ms" in row["ours"]


def test_bad_sizes_are_named():
    with pytest.raises(SystemExit):
        bench_losses.main(["--sizes", "16x20"])
