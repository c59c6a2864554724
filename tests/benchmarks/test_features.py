import json

import pytest

from experiments.benchmarks import features as bench_features


# librosa.load imports a module of the standard library that is on its way out.
@pytest.mark.filterwarnings("ignore:.*slated for removal:DeprecationWarning")
@pytest.mark.slow
def test_a_small_run_measures_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_features, "GENERATED", 2)
    small = ["--rounds", "1", "--batch", "2", "--clips", "6", "--repeats", "1", "--workers", "2"]
    out = tmp_path / "results/features.json"
    result = bench_features.main([*small, "--out", str(out)])
    assert json.loads(out.read_text()) == result
    assert result["recordings"] == 2
    assert result["largest_difference_db"] < 1e-3
    assert result["stores"]["workers"] == 2
    core = result["one_core"]
    for name in ("plain_clips_per_second", "clips_per_second", "speedup_to_plain"):
        assert 0 < core[name]["low"] <= core[name]["median"] <= core[name]["high"]
    assert "one core, speedup to plain" in capsys.readouterr().out.replace("_", " ")
