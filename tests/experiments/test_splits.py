import json

import numpy as np
import pytest
import soundfile

from asdproto.config import ConfigError
from experiments import splits


def test_splits_tell_a_tone_from_noise(tmp_path):
    rng = np.random.default_rng(0)
    tone = 0.3 * np.sin(np.arange(16000) * 0.7)
    for folder, count, faulty in (("normal", 6, 0), ("abnormal", 2, 1)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            samples = 0.1 * rng.standard_normal(16000) + faulty * tone
            soundfile.write(tmp_path / folder / f"{number}.wav", samples, 16000)
    options = ["--normal", str(tmp_path / "normal"), "--anomalous", str(tmp_path / "abnormal")]
    options += ["--splits", "2", "--out", str(tmp_path / "out.json")]
    with pytest.warns(UserWarning, match="rests on 4 clips only"):
        found = splits.main([*options, "--train", "4", "--systems", "spectral"])
    assert found["systems"]["spectral"]["areas"] == [1.0, 1.0]
    assert json.loads((tmp_path / "out.json").read_text())["train"] == 4
    with pytest.raises(ConfigError, match="found 6 normal and 2 anomalous recordings"):
        splits.main([*options, "--train", "6"])
