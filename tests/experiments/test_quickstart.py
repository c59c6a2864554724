"""The quickstart, from nothing to its table."""

import dataclasses
import json

import pytest

from asdproto.systems import autoencoder
from experiments import quickstart

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_block")]

OVERRIDES = ("encoder.width=4", "encoder.crop=32", "pretrain.epochs=1", "finetune.epochs=1")


def test_the_quickstart_runs_and_says_what_its_machines_are(tmp_path, monkeypatch, capsys):
    # Its own code, on a small set.
    monkeypatch.setattr(quickstart, "MACHINES", ("bearing",))
    monkeypatch.setattr(quickstart, "TEST_CLIPS", 2)
    monkeypatch.setattr(quickstart, "SECONDS", 1.5)
    quick = autoencoder.PRESETS["quick"]
    brief = dataclasses.replace(quick, stage=dataclasses.replace(quick.stage, epochs=1))
    monkeypatch.setitem(autoencoder.PRESETS, "quick", brief)
    command = ["--workdir", str(tmp_path / "run"), "--clips", "6", *OVERRIDES]
    quickstart.main(command)
    out = capsys.readouterr().out
    assert quickstart.ABOUT in " ".join(out.split())
    made = json.loads((tmp_path / "run/data/synthetic.json").read_text())
    assert made["clips"] == [6, quickstart.TARGET_CLIPS, 2]
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert list(results["systems"])[:3] == ["autoencoder", "pretrain", "finetune"]
    quickstart.main(command)
    assert "is finished; this only reports" in capsys.readouterr().out
