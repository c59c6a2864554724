import json

import pytest

from experiments.benchmarks import features as bench_features


# librosa.load imports a module of the standard library that is on its way out.
@pytest.mark.filterwarnings("ignore:.*slated for removal:DeprecationWarning")
@pytest.mark.slow
def test_a_small_run_measures_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_features, "GENERATED", 4)
    monkeypatch.setattr(bench_features, "CONTROL_SECONDS", 0.05)
    small = ["--rounds", "2", "--batch", "2", "--clips", "40", "--repeats", "1", "--workers", "2"]
    out = tmp_path / "results/features.json"
    result = bench_features.main([*small, "--out", str(out)])
    assert json.loads(out.read_text()) == result
    assert result["recordings"] == 4
    assert result["largest_difference_db"] < 1e-3
    assert result["processes"]["workers"] == 2
    for name in ("plain_clips_per_second", "clips_per_second", "speedup", "speedup_cpu_time"):
        values = result["one_core"][name]
        assert 0 < values["low"] <= values["median"] <= values["high"]
    assert result["disk"]["cached"]["files_per_second"] > 0
    said = capsys.readouterr().out
    assert "ours / plain, wall time" in said
    assert "efficiency of 2 workers" in said


@pytest.mark.filterwarnings("ignore:.*slated for removal:DeprecationWarning")
def test_own_recordings_are_used(tmp_path):
    bench_features.generate(tmp_path)
    files = sorted(tmp_path.iterdir())[:2]
    assert bench_features.compare(files[0]) < 1e-3
    measured = bench_features.one_core(files, rounds=2, batch=2)
    assert measured["speedup"]["median"] > 0
    assert set(bench_features.disk(files)) >= {"cached"}


def test_arguments_are_checked(capsys):
    with pytest.raises(SystemExit):
        bench_features.main(["--clips", "0"])
    assert "argument --clips: 0 is not in [2, inf)" in capsys.readouterr().err
