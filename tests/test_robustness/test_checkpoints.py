"""Damaged checkpoints: what is restored is what was saved, to the bit, or another good one."""

import contextlib
import shutil
import warnings

import numpy as np
import pytest

from asdproto.training.checkpoint import CheckpointError, Checkpoints, DamageWarning
from tests.test_robustness import damage
from tests.training import tiny

# Where a read fails, those beside it end without anybody to tell.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

STEPS = (4, 8, 12)


def state_of(step):
    rng = np.random.default_rng(step)
    weights = rng.standard_normal((20, 30)).astype(np.float32)
    return {"params": {"kernel": weights, "bias": weights[0]}, "step": np.int32(step)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "pretrain"
    checkpoints = Checkpoints(folder, keep=10)
    for step in STEPS:
        checkpoints.save(step, state_of(step))
    checkpoints.close()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "pretrain")


def restore(folder):
    """The state, and what was warned of."""
    with (
        contextlib.closing(Checkpoints(folder, keep=10)) as checkpoints,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        state = checkpoints.restore(state_of(0))
    return state, [str(one.message) for one in caught if one.category is DamageWarning]


def test_every_file_of_the_newest(saved, tmp_path):
    """A file that is not needed may be damaged unnoticed; wrong bits are never taken."""
    files = [path.relative_to(saved) for path in (saved / "12").rglob("*") if path.is_file()]
    needed = [path for path in files if "state/d/" in str(path) or path.match("about/metadata")]
    assert len(needed) > 1
    faults = [(damage.flip, path) for path in files]
    faults += [(fault, path) for fault in (damage.cut, damage.missing) for path in needed]
    noticed = set()
    for number, (fault, path) in enumerate(faults):
        folder = shutil.copytree(saved, tmp_path / str(number))
        fault(folder / path)
        state, said = restore(folder)
        assert tiny.same(state, state_of(8 if said else 12)), path
        if said:
            noticed.add(path)
            [line] = said
            assert line.isprintable()
            assert line.startswith(f"{folder}: the checkpoint of step 12 is damaged (")
            assert line.endswith("going on from step 8")
            assert not (folder / "12").exists()
    # What holds the arrays and their description is needed.
    assert noticed >= set(needed)


def test_two_damaged_ones(folder):
    for step, content in (("12", "null"), ("8", '{"arrays": 3}')):
        (folder / step / "about" / "metadata").write_text(content)
    state, said = restore(folder)
    assert tiny.same(state, state_of(4))
    assert ["step 12" in said[0], "step 8" in said[1]] == [True, True]
    # The steps are free to be saved again.
    checkpoints = Checkpoints(folder, keep=10)
    assert checkpoints.latest() == 4
    checkpoints.save(8, state_of(8))
    checkpoints.close()
    assert tiny.same(restore(folder)[0], state_of(8))


def test_no_good_one(folder):
    for step in STEPS:
        shutil.rmtree(folder / str(step) / "state")
    with pytest.raises(CheckpointError) as caught:
        restore(folder)
    text = str(caught.value)
    assert text.startswith(f"{folder}: found damaged checkpoints only (step 12: ")
    assert text.endswith("Delete the folder: the same command then starts this stage again.")
    assert "\n" not in text
    assert (folder / "12").exists()  # nothing is deleted where nothing better is there


def test_an_empty_folder_and_a_file_in_place_of_one(folder, tmp_path):
    shutil.rmtree(folder / "12")
    (folder / "12").mkdir()
    assert int(restore(folder)[0]["step"]) == 8
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Checkpoints(tmp_path / "file")
