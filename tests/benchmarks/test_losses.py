import json

import pytest

from experiments.benchmarks import losses as bench_losses
from experiments.benchmarks.loss_rivals import ENTRIES

# One of every kind: with and without pieces, within a batch, with coefficients drawn.
LOSSES = ("negative_prototype", "arcface", "adaproj", "nt_xent", "vicreg")


def test_losses_are_compared_and_timed(tmp_path, monkeypatch):
    monkeypatch.setitem(bench_losses.PIECES, "classes", 8)
    monkeypatch.setitem(bench_losses.PIECES, "anchors", 5)
    out, picture = tmp_path / "speed.json", tmp_path / "speed.png"
    bench_losses.main(
        [
            *("--loss", *LOSSES, "--sizes", "16x20x6", "--rounds", "2", "--out", str(out)),
            "--plot",
            str(picture),
        ]
    )
    result = json.loads(out.read_text())
    assert [row["loss"] for row in result["rows"]] == list(LOSSES)
    entries = {entry.name: entry for entry in ENTRIES}
    for row in result["rows"]:
        entry = entries[row["loss"]]
        assert row["ours"]["rounds"] == 2
        assert ("pieces" in row) == entry.chunk
        assert ("closed" in row) == (row["loss"] == "negative_prototype")
        for name in ("pieces", "closed", "naive", "torch"):
            if "difference" in row.get(name, {}):
                # The rivals are independent: value and gradients are the same formula's.
                assert row[name]["difference"]["value"] < 1e-5, (row["loss"], name)
                assert row[name]["difference"]["gradients"] < 1e-4, (row["loss"], name)
    assert picture.stat().st_size > 10_000
    bench_losses.main(["--plot-from", str(out), "--plot", str(picture)])


def test_what_does_not_fit_is_compiled_and_not_run(monkeypatch):
    result = bench_losses.main(
        ["--loss", "prototypical_network", "--sizes", "64x100x32", "--memory", "0.0005"]
    )
    (row,) = result["rows"]
    assert row["naive"]["skipped"].startswith("needs")
    assert row["naive"]["temporary_mib"] > row["ours"]["temporary_mib"]
    assert "ms" in row["ours"]


def test_bad_sizes_are_named():
    with pytest.raises(SystemExit):
        bench_losses.main(["--sizes", "16x20"])
