import json

import pytest

from experiments.benchmarks import features as bench_features


# librosa.load imports a module of the standard library that is on its way out.
@pytest.mark.filterwarnings("ignore:.*slated for removal:DeprecationWarning")
@pytest.mark.slow
def test_a_small_run_measures_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_features, "GENERATED", 4)
    small = ["--rounds", "2", "--batch", "2", "--clips", "40", "--repeats", "1", "--workers", "2"]
    out = tmp_path / "results/features.json"
    result = bench_features.main([*small, "--out", str(out)])
    assert json.loads(out.read_text()) == result
    assert result["recordings"] == 4
    assert result["largest_difference_db"] < 1e-3
    assert result["stores"]["workers"] == 2
    assert result["stores"]["speedup"]["median"] > 0
    for name in ("plain_clips_per_second", "clips_per_second", "speedup", "speedup_cpu_time"):
        values = result["one_core"][name]
        assert 0 < values["low"] <= values["median"] <= values["high"]
    said = capsys.readouterr().out
    assert "ours / plain, wall time" in said
    assert "several workers / one, wall time" in said


def test_arguments_are_checked(capsys):
    with pytest.raises(SystemExit):
        bench_features.main(["--clips", "0"])
    assert "argument --clips: 0 is not in [2, inf)" in capsys.readouterr().err
