import json
import subprocess
import sys
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdproto.models.resnet import ResNet
from experiments.benchmarks import common as bench_common
from experiments.benchmarks import short, timing
from experiments.benchmarks import train as bench_train

SHORT = [
    "finetune.ways=3", "finetune.shots=2", "encoder.crop=32", "--width", "4", "--batch", "4",
    "--clips", "24", "--classes", "6", "--steps", "2", "--rounds", "2", "--runs", "2",
]  # fmt: skip
TINY = [*SHORT, "pretrain.epochs=2", "finetune.epochs=1", "--rounds", "1", "--matrix", "64"]
AUDIO = ("librosa", "soundfile")
pytestmark = pytest.mark.usefixtures("one_block")
SHARES = {"sampling", "forward", "loss", "backward", "optimizer"}


def is_spread(values):
    return 0 < values["low"] <= values["median"] <= values["high"]


@pytest.mark.slow
def test_every_part_is_measured_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_train, "Lowering", Literal["native"])
    out, parts = tmp_path / "results", ["steps", "pass", "loops", "lowering", "host"]
    words = ["--parts", *parts, "--full", "--tag", "Try 1", "--out", str(out)]
    result = bench_train.main([*TINY, *words])
    (file,) = out.iterdir()
    assert file.name.startswith("train_")
    assert file.name.endswith("_float32_try_1.json")
    assert json.loads(file.read_text()) == result
    assert result["steps"]["matrix_product_tflops"] > 0
    for stage, batch in (("pretrain", 4), ("finetune", 6)):
        found = result["steps"][stage]
        assert is_spread(found["milliseconds"])
        assert found["batch"] == batch
        assert found["clips_per_second"] == pytest.approx(
            1e3 * batch / found["milliseconds"]["median"], rel=1e-3
        )
        assert set(found["share_by_part"]) == SHARES
        assert found["compile_seconds"] > 0
    assert is_spread(result["pass"]["crops_per_second"])
    full = result["full"]
    assert (full["pretrain"]["steps"], full["finetune"]["steps"]) == (2 * 6, 4)
    assert np.isfinite([full["pretrain"]["last_loss"], full["finetune"]["last_loss"]]).all()
    assert full["seconds"] >= full["pretrain"]["seconds"] + full["finetune"]["seconds"]
    # 2 epochs of 2,100 / 4 steps and passes, and 1 epoch of 2,100 / 6.
    wanted = 2 * (
        525 * result["steps"]["pretrain"]["milliseconds"]["median"] / 1e3
        + 2100 / result["pass"]["crops_per_second"]["median"]
    )
    assert result["projected"]["pretrain"] == pytest.approx(wanted, abs=0.1)
    assert result["peak_memory"]["bytes"] > 24 * 313 * 128 * 2
    assert "projected" in capsys.readouterr().out

    loops, lowering = result["loops"], result["lowering"]["4"]
    assert {"dispatch", "scan", "scan, native convolution"} == set(loops)
    assert {"native", "default_options"} == set(lowering)
    assert all(is_spread(one["milliseconds"]) for one in (*loops.values(), *lowering.values()))
    assert is_spread(result["host"]["host_speed_to_resident"])


def test_pytorch_does_the_same_and_is_timed():
    pytest.importorskip("torch")
    found = bench_train.main([*TINY, "--parts", "torch"])["torch"]["4"]
    # Float32 on both sides, sums in another order; one block only, so the update is exact too.
    assert found["differences"]["embeddings"] < 1e-4
    assert found["differences"]["loss"] < 1e-4
    assert found["differences"]["update"] < 1e-3
    assert is_spread(found["speed_to_eager"])


def test_operations_are_those_that_xla_counts():
    # As patches, every convolution is a matrix product, which XLA counts like we do. What else it
    # counts (normalization, pooling, attention) is a few per cent at this width.
    model = ResNet(width=16, lowering="patches")
    crops = jax.ShapeDtypeStruct((2, 64, 128), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), crops)
    lowered = jax.jit(lambda v, x: model.apply(v, x, train=False)).lower(variables, crops)
    counted = lowered.cost_analysis()["flops"] / 2
    ours, stem = bench_common.forward_flops(16, model.stages, 64, 128)
    assert ours <= counted < 1.06 * ours
    assert stem == 2 * 49 * 16 * 32 * 64


@pytest.mark.parametrize("clips", [1024, 2100, 21_000])
def test_labels_are_imbalanced(clips):
    counts = np.bincount(bench_common.imbalanced_labels(clips), minlength=147)
    assert counts.sum() == clips
    assert counts.min() >= 1
    if clips == 21_000:
        target = np.arange(147) % 7 >= 4
        assert counts[target].sum() == pytest.approx(0.01 * clips, rel=0.15)


def test_every_figure_is_measured_in_order_and_written_at_once(tmp_path, monkeypatch):
    for library in AUDIO:
        monkeypatch.setitem(sys.modules, library, None)
    written = []

    def write_json(path, value):
        written.append([name for name in short.GOALS if name in value])
        path.write_text(json.dumps(value))

    monkeypatch.setattr(timing, "write_json", write_json)
    out = tmp_path / "short.json"
    result = short.main([*SHORT, "--out", str(out)])
    assert json.loads(out.read_text()) == result
    names = list(short.GOALS)
    assert names == ["pretrain", "finetune", "pass", "schedule", "eager", "compiled", "sweep"]
    assert written == [names[: count + 1] for count in range(len(names))]
    for name in names:
        assert "met" in result[name] or "PyTorch" in result[name]["skipped"], name
    assert result["sweep"]["runs"] == 2


def test_what_fails_or_comes_too_late_costs_only_itself(monkeypatch, tmp_path):
    def measure(bench, name, result):
        if name == "finetune":
            raise RuntimeError("out of luck")
        return {"fine": 1}

    monkeypatch.setattr(short, "measure", measure)
    out = tmp_path / "short.json"
    with pytest.raises(SystemExit, match="failed: finetune"):
        short.main([*SHORT, "--out", str(out)])
    written = json.loads(out.read_text())
    assert "out of luck" in written["finetune"]["failed"]
    assert written["sweep"]["fine"] == 1
    late = short.main([*SHORT, "--limit", "0"])
    assert all(late[name]["skipped"] == "0 s are over" for name in short.GOALS)


def test_goals_are_judged():
    assert short.judged("pretrain", {"milliseconds": {"median": 0.9}})["met"]
    assert not short.judged("finetune", {"milliseconds": {"median": 1.7}})["met"]
    assert not short.judged("sweep", {"throughput_to_single": {"median": 2.4}})["met"]


def test_it_imports_no_audio_library():
    blocked = f"import sys; sys.modules.update(dict.fromkeys({(*AUDIO, 'sklearn')!r}))\n"
    code = blocked + "from experiments.benchmarks import short; short.make_parser()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
