"""Dirty collections: what validation passes, training takes; what it does not, training refuses.

``tests/data`` has the same for single recordings and feature extraction; here whole commands run.
"""

import json
import os
import shutil

import numpy as np
import pytest
import soundfile

from asdproto import cli
from asdproto.errors import counted

TRAIN = "fan/train/section_00_source_train_normal_0000_v_0.wav"
CASES = {}


def noise(seed, samples=8000):
    return np.random.default_rng(seed).uniform(-0.3, 0.3, samples)


def add(root, name, seed=99, samples=8000, rate=16000):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(os.fsencode(path), noise(seed, samples), rate)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """One section, both domains, two attributes; all right."""
    root = tmp_path_factory.mktemp("template") / "dev_data"
    for number in range(6):
        domain = "target" if number > 3 else "source"
        name = f"section_00_{domain}_train_normal_{number:04}_v_{number % 2}.wav"
        add(root, f"fan/train/{name}", number)
    for number, state in enumerate(("normal", "anomaly") * 2):
        domain = "target" if number > 1 else "source"
        name = f"section_00_{domain}_test_{state}_{number:04}_v_1.wav"
        add(root, f"fan/test/{name}", 10 + number)
    return root


def case(name, bad):
    """Decorator: makes a collection dirty; ``bad`` parts of it are errors."""

    def register(function):
        CASES[name] = (function, bad)
        return function

    return register


def more(root, folder, count, first=60, **how):
    for number in range(count):
        name = f"section_00_source_train_normal_{number:04}_v_{number % 2}.wav"
        add(root, f"{folder}/train/{name}", first + number, **how)


def table(root, rows, columns="file,machine_type,section,domain,split,state"):
    files = [f"fan/train/{name}" for name in sorted(os.listdir(root / "fan/train"))]
    lines = [f"{file},fan,00,source,train,normal" for file in files]
    (root / "clips.csv").write_bytes("\n".join([columns, *lines, *rows, ""]).encode())


# fmt: off
case("nothing wrong", 0)(lambda root: None)
case("names of html", 0)(lambda root: more(root, "<b>x&y\"'", 4))
case("a machine type that is not seen", 0)(lambda root: more(root, "a\u202eb", 4))
case("a machine type on two lines", 4)(lambda root: more(root, "a\nb", 4))
case("another rate", 0)(lambda root: more(root, "pump", 4, rate=8000))
case("a clip of much longer", 1)(lambda root: more(root, "pump", 1, samples=16000 * 100))
case("a section without training clips", 1)(
    lambda root: add(root, "fan/test/section_01_source_test_normal_0000_v_1.wav"))
case("an anomaly for training", 1)(
    lambda root: add(root, "fan/train/section_00_source_train_anomaly_0009_v_1.wav"))
case("a test clip without label", 0)(
    lambda root: add(root, "fan/test/section_00_0009.wav"))
case("a name that says nothing", 1)(lambda root: add(root, "fan/train/x.wav"))
case("a pipe", 1)(lambda root: os.mkfifo(root / TRAIN.replace("0000", "0009")))
case("a csv", 0)(lambda root: table(root, []))
case("a csv with a path outside", 1)(
    lambda root: table(root, ["../x.wav,fan,00,source,train,normal"]))
case("a csv with a missing file", 1)(
    lambda root: table(root, ["gone.wav,fan,00,source,train,normal"]))
# fmt: on


@case("one class", 0)
def _(root):
    for path in (root / "fan/train").iterdir():
        if "v_1" in path.name or "target" in path.name:
            path.unlink()


@case("only silence", 0)
def _(root):
    for path in (root / "fan/train").iterdir():
        soundfile.write(path, np.zeros(8000), 16000)


@case("a link to the outside in a csv", 1)
def _(root):
    os.symlink("/etc", root / "etc")
    table(root, ["etc/passwd.wav,fan,00,source,train,normal"])


def run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


# Half a minute for all: whole commands run, as a user runs them.
@pytest.mark.parametrize("name", CASES)
def test_what_validation_passes_training_takes(template, tmp_path, capsys, name):
    make, bad = CASES[name]
    root = tmp_path / "dev_data"
    shutil.copytree(template, root)
    make(root)
    code, out, _ = run(capsys, "validate", root)
    errors = [line for line in out.splitlines() if line.startswith("error: ")]
    said = f"\n{counted(bad, 'error')}, " if bad else "\nno errors"
    assert code == int(bad > 0)
    assert said in out
    command = ("train", root, tmp_path / "run", "--preset", "quick", "features.n_mels=16")
    code, out, err = run(capsys, *command)
    if not bad:
        assert code == 0, err
        assert (tmp_path / "run/results.json").exists()
        assert "<b>x&y" not in (tmp_path / "run/report.html").read_text()
        return
    assert code == 1
    assert not (tmp_path / "run/features/manifest.json").exists()
    # All faults at once, each with its file.
    for line in errors:
        assert line.removeprefix("error: ").partition(" expected ")[2] in err
    code, out, err = run(capsys, *command, "--on-error", "skip")
    assert code == 0, err
    assert f"{bad} fault" in err
    manifest = json.loads((tmp_path / "run/features/manifest.json").read_text())
    assert len(manifest["skipped"]) == bad
    assert (tmp_path / "run/results.json").exists()


def test_what_cannot_be_trained_is_said_before_any_work(template, tmp_path, capsys):
    root = tmp_path / "dev_data"
    shutil.copytree(template, root)
    CASES["one class"][0](root)
    for options, said in (
        (("--system", "prototype"), "1 attribute class among 2 clips"),
        (("--machines", "fna"), "found no machine type fna; expected some of fan. Correct --mach"),
        (("--seeds", "3", "3"), "found one twice"),
        (("--system", "gmm", "features.n_mels=0"), "features.n_mels=0: expected a number in"),
        (("--system", "gmm", "features.n_mel=8"), "did you mean features.n_mels?"),
    ):
        code, _, err = run(capsys, "train", root, tmp_path / "run", "--preset", "quick", *options)
        assert code == 1
        assert said in err
        assert not (tmp_path / "run").exists()
