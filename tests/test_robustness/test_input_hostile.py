"""Hostile content: what is loaded never runs, and random damage ends in one line."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from asdproto.data.dcase import Clip
from asdproto.data.store import open_store, write_store
from asdproto.errors import DataError
from asdproto.files import read_arrays

ROOT = Path(__file__).parents[2]
# Each is one way to run what data says, and the rule that refuses it.
FORBIDDEN = {
    "S301": "import pickle\n\npickle.load(open('x', 'rb'))\n",
    "S302": "import marshal\n\nmarshal.loads(b'')\n",
    "S307": "eval('1')\n",
    "S102": "exec('1')\n",
    "S506": "import yaml\n\nyaml.load('x', Loader=yaml.Loader)\n",
    "S202": "import tarfile\n\ntarfile.open('x').extractall('y')\n",
    "S602": "import subprocess\n\nsubprocess.run('ls', shell=True)\n",
    "TID251": "import joblib\n\njoblib.load('x')\n",
}


@pytest.mark.parametrize("rule", FORBIDDEN)
def test_lint_refuses_what_runs_data(rule):
    ruff = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise"]
    command = [*ruff, "--stdin-filename", str(ROOT / "asdproto/x.py"), "-"]
    found = subprocess.run(
        command, input=FORBIDDEN[rule], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert found.returncode == 1
    assert rule in found.stdout, found.stdout + found.stderr


def test_nothing_allows_pickles():
    """No argument of numpy's that a rule of lint would see."""
    for path in [*(ROOT / "asdproto").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]:
        text = path.read_text(encoding="utf-8").replace("allow_pickle=False", "")
        assert "allow_pickle" not in text, path


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickles_in_stores_and_arrays_are_refused_and_not_run(tmp_path):
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    np.savez(tmp_path / "arrays.npz", scores=trap)
    (tmp_path / "plain.npz").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    for name in ("arrays.npz", "plain.npz"):
        with pytest.raises(DataError, match=rf"{name}: found damage \(.*pickle"):
            read_arrays(tmp_path / name, remedy="Make it again.")
    clip = Clip("a.wav", "fan", "00", "", "train", "normal", "")
    for number in range(2):
        write_store(tmp_path / f"store{number}", np.zeros((1, 4, 8)), [clip], settings={})
        file = tmp_path / f"store{number}/features.npy"
        if number:
            file.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
        else:
            np.save(file, trap, allow_pickle=True)
        with pytest.raises(DataError, match=r"features\.npy: found "):
            open_store(tmp_path / f"store{number}")
    assert not (tmp_path / "sprung").exists()


def fuzz(code):
    """Runs code where ``fuzz_input`` is imported, in a process without threads, as it forks."""
    head = "from tests.test_robustness import fuzz_input as f\n"
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", head + code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    return json.loads(found.stdout)


def test_random_damage_is_refused_in_one_line():
    """The same few hundred inputs in every run; the module tries more for as long as one likes."""
    counts = fuzz("import json; print(json.dumps(f.run(range(600))))")
    assert not [said for said in counts if "FINDING" in said]
    assert sum(counts.values()) == 600
    assert set(counts) == {"recording taken", "recording refused", "table taken", "table refused"}


def test_the_search_finds_what_raises_and_what_ends_the_process():
    counts = fuzz(
        "import json, os\n"
        "f.attempt = lambda n, folder: 1 // (n - 3) or os.abort() if n in (3, 5) else 'fine'\n"
        "print(json.dumps(f.run(range(2, 8))))"
    )
    assert counts.pop("fine") == 4
    assert sorted(said[-9:] for said in counts) == ["(input 3)", "(input 5)"]
    assert any("ZeroDivisionError" in said for said in counts)
    assert any("the process ended with status" in said for said in counts)
