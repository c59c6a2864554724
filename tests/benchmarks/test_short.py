"""The short benchmark runs to its end on a CPU, and without audio libraries."""

import json
import subprocess
import sys

import pytest

from experiments.benchmarks import short, timing

TINY = [
    "finetune.ways=3", "finetune.shots=2", "encoder.crop=32", "--width", "4", "--batch", "4",
    "--clips", "24", "--classes", "6", "--steps", "2", "--rounds", "2", "--runs", "2",
]  # fmt: skip
AUDIO = ("librosa", "soundfile")


@pytest.mark.usefixtures("one_block")
def test_every_figure_is_measured_in_order_and_written_at_once(tmp_path, monkeypatch):
    for library in AUDIO:
        monkeypatch.setitem(sys.modules, library, None)
    written = []

    def write_json(path, value):
        written.append([name for name in short.GOALS if name in value])
        path.write_text(json.dumps(value))

    monkeypatch.setattr(timing, "write_json", write_json)
    out = tmp_path / "short.json"
    result = short.main([*TINY, "--out", str(out)])
    assert json.loads(out.read_text()) == result
    names = list(short.GOALS)
    assert names == ["pretrain", "finetune", "pass", "schedule", "eager", "compiled", "sweep"]
    assert written == [names[: count + 1] for count in range(len(names))]
    for name in names:
        assert "met" in result[name] or "PyTorch" in result[name]["skipped"], name
    assert result["sweep"]["runs"] == 2


@pytest.mark.usefixtures("one_block")
def test_what_fails_or_comes_too_late_costs_only_itself(monkeypatch, tmp_path):
    def measure(bench, name, result):
        if name == "finetune":
            raise RuntimeError("out of luck")
        return {"fine": 1}

    monkeypatch.setattr(short, "measure", measure)
    out = tmp_path / "short.json"
    with pytest.raises(SystemExit, match="failed: finetune"):
        short.main([*TINY, "--out", str(out)])
    written = json.loads(out.read_text())
    assert "out of luck" in written["finetune"]["failed"]
    assert written["sweep"]["fine"] == 1
    late = short.main([*TINY, "--limit", "0"])
    assert all(late[name]["skipped"] == "0 s are over" for name in short.GOALS)


def test_goals_are_judged():
    assert short.judged("pretrain", {"milliseconds": {"median": 0.9}})["met"]
    assert not short.judged("finetune", {"milliseconds": {"median": 1.7}})["met"]
    assert not short.judged("sweep", {"throughput_to_single": {"median": 2.4}})["met"]


def test_it_imports_no_audio_library():
    blocked = f"import sys; sys.modules.update(dict.fromkeys({(*AUDIO, 'sklearn')!r}))\n"
    code = blocked + "from experiments.benchmarks import short; short.make_parser()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
