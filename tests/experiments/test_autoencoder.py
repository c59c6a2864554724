import json

import pytest

from asdproto.errors import DataError
from experiments import autoencoder
from tests.experiments.collection import write_collection

pytestmark = pytest.mark.slow


def test_the_row_is_made_once_and_then_reported(tmp_path, capsys):
    root, workdir = tmp_path / "recordings", tmp_path / "run"
    write_collection(root)
    command = ["--data", str(root), "--workdir", str(workdir), "--preset", "quick", "epochs=4"]
    autoencoder.main(command)
    assert "AutoEncoder fan, pump: epoch 4/4" in capsys.readouterr().out
    results = json.loads((workdir / "results.json").read_text())
    figures = results["systems"]["autoencoder"]
    assert set(figures["machines"]) == {"fan", "pump"}
    # Anomalies are a tenth off in pitch; one clip each of normal and anomaly in every domain.
    assert figures["machines"]["fan"]["source_auc"] in (0, 0.5, 1)
    names = {path.name for path in (workdir / "scores" / "autoencoder").iterdir()}
    assert names >= {"anomaly_score_fan_section_00_test.csv", "result.csv", "results.json"}
    assert "<svg" in (workdir / "report.html").read_text()

    before = (workdir / "results.json").stat().st_mtime_ns
    autoencoder.main(command)
    assert "is finished; this only reports" in capsys.readouterr().out
    assert (workdir / "results.json").stat().st_mtime_ns == before
    with pytest.raises(DataError, match=r"system\.epochs is 4 there, 5 here"):
        autoencoder.main([*command[:-1], "epochs=5"])
