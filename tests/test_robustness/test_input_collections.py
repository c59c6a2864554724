"""Dirty collections: what validation passes, training takes; what it does not, training refuses.

``tests/data`` has the same for single recordings and feature extraction; here whole commands run.
"""

import json
import os
import shutil

import numpy as np
import pytest
import soundfile

from asdproto.errors import counted

TRAIN = "fan/train/section_00_source_train_normal_{}_v_1.wav"


def add(root, name, seed=99, samples=32000, rate=16000):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).uniform(-0.3, 0.3, samples)
    soundfile.write(os.fsencode(path), noise, rate)


@pytest.fixture
def root(data, tmp_path):
    """A section without fault, both domains and several attributes."""
    shutil.copytree(data / "fan", tmp_path / "dev_data" / "fan")
    return tmp_path / "dev_data"


def more(root, folder, count, first=60, **how):
    for number in range(count):
        name = f"section_00_source_train_normal_{number:04}_v_{number % 2}.wav"
        add(root, f"{folder}/train/{name}", first + number, **how)


def odd(root):
    """Names of html and that are not seen, another rate, a test clip without a label."""
    more(root, "<b>x&y\"'", 4)
    more(root, "a\u202eb", 4)
    more(root, "pump", 4, rate=8000)
    add(root, "fan/test/section_00_0009.wav")


def bad_names(root):
    """A line break, a section without training clips, an anomaly for training, no grammar."""
    more(root, "a\nb", 1)
    add(root, "fan/test/section_01_source_test_normal_0000_v_1.wav")
    add(root, TRAIN.replace("normal", "anomaly").format("0007"), seed=98)
    add(root, "fan/train/x.wav", seed=97)


def bad_sounds(root):
    """A clip that is much longer than the others, a pipe, a link to nothing."""
    more(root, "pump", 4)
    more(root, "long", 1, samples=16000 * 100)
    os.mkfifo(root / TRAIN.format("0008"))
    os.symlink("nowhere", root / TRAIN.format("0009"))


@pytest.mark.parametrize(
    ("make", "faults"),
    [
        (odd, ()),
        (bad_names, (r"a\nb", "fan section 01", "anomaly_0007", "train/x.wav")),
        (bad_sounds, ("long/train", "_0008_", "_0009_")),
    ],
)
def test_what_validation_passes_training_takes(root, tmp_path, call, no_pictures, make, faults):
    make(root)
    code, out, _ = call("validate", root)
    errors = [line for line in out.splitlines() if line.startswith("error: ")]
    for fault in faults:
        assert any(fault in line for line in errors), fault
    assert code == bool(faults)
    assert (f"\n{counted(len(faults), 'error')}, " if faults else "\nno errors") in out
    command = ("train", root, tmp_path / "run", "--preset", "quick", "features.n_mels=16")
    code, _, err = call(*command)
    if not faults:
        assert code == 0, err
        assert (tmp_path / "run/results.json").exists()
        return
    assert code == 1
    assert not (tmp_path / "run/features/manifest.json").exists()
    # All faults at once, each with its file.
    for line in errors:
        assert line.removeprefix("error: ").partition(" expected ")[2] in err
    code, _, err = call(*command, "--on-error", "skip")
    assert code == 0, err
    assert counted(len(faults), "fault") in err
    manifest = json.loads((tmp_path / "run/features/manifest.json").read_text())
    assert len(manifest["skipped"]) == len(faults)
    assert (tmp_path / "run/results.json").exists()


def test_what_cannot_be_trained_is_said_before_any_work(root, tmp_path, call):
    for path in (root / "fan/train").iterdir():
        if "load_1" not in path.name:
            path.unlink()
    for options, said in (
        (("--system", "prototype"), "1 attribute class among 3 clips"),
        (("--machines", "fna"), "found no machine type fna; expected some of fan. Correct --mach"),
        (("--seeds", "3", "3"), "found one twice"),
        (("--system", "gmm", "features.n_mels=0"), "features.n_mels=0: expected a number in"),
    ):
        code, _, err = call("train", root, tmp_path / "run", "--preset", "quick", *options)
        assert code == 1
        assert said in err
        assert not (tmp_path / "run").exists()
