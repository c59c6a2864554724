"""The quickstart, from nothing to its table."""

import json

import pytest

from experiments import quickstart

pytestmark = pytest.mark.slow

OVERRIDES = ("encoder.width=4", "encoder.crop=32", "pretrain.epochs=1", "finetune.epochs=1")


def test_quickstart_shows_four_systems_and_says_what_its_faults_are(tmp_path, monkeypatch, capsys):
    # Its own code, on a small set.
    monkeypatch.setattr(quickstart, "MACHINES", ("fan",))
    monkeypatch.setattr(quickstart, "TEST_CLIPS", 2)
    monkeypatch.setattr(quickstart, "SECONDS", 1.5)
    command = ["--workdir", str(tmp_path / "run"), "--clips", "6", *OVERRIDES]
    quickstart.main(command)
    out = capsys.readouterr().out
    assert f"Faults are {quickstart.SEVERITY:g} dB stronger" in out
    assert "plainly audible" in out
    made = json.loads((tmp_path / "run/data/synthetic.json").read_text())["settings"]
    assert (made["severity"], made["clips"]) == (quickstart.SEVERITY, 6)
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert list(results["systems"]) == ["autoencoder", "gmm", "pretrain", "finetune"]
    quickstart.main(command)
    assert "is finished; this only reports" in capsys.readouterr().out
