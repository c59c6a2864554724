"""Damaged checkpoints: what is restored is what was saved, to the bit, or another good one."""

import shutil
import warnings

import jax
import numpy as np
import pytest

from asdproto.training.checkpoint import CheckpointError, Checkpoints, DamageWarning
from asdproto.training.devices import use_devices
from asdproto.training.loop import StageRun
from tests.test_robustness import damage
from tests.training import tiny

# Where a read fails, those beside it end without anybody to tell.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

STEPS = (4, 8, 12)
# Kinds of files that a checkpoint consists of, by a part of their path.
FILES = ("state/d/", "state/manifest", "ocdbt.process_0/d/", "state/_METADATA", "about/metadata")


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
    checkpoints = Checkpoints(folder, keep=10)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            state = checkpoints.restore(state_of(0))
        return state, [str(one.message) for one in caught if one.category is DamageWarning]
    finally:
        checkpoints.close()


@pytest.mark.parametrize("fault", [damage.cut, damage.flip, damage.missing])
def test_every_file_of_the_newest(saved, tmp_path, fault):
    """A file that is not needed may be damaged unnoticed; wrong bits are never taken."""
    files = [path.relative_to(saved) for path in saved.rglob("*") if path.is_file()]
    files = [path for path in files if path.parts[0] == "12"]
    assert all(any(kind in str(path) for path in files) for kind in FILES)
    noticed = []
    for number, path in enumerate(files):
        folder = shutil.copytree(saved, tmp_path / str(number))
        fault(folder / path)
        state, said = restore(folder)
        step = int(state["step"])
        assert step in (12, 8), path
        assert tiny.same(state, state_of(step)), path
        if said:
            noticed.append(str(path))
            assert step == 8
            assert len(said) == 1
            assert "\n" not in said[0]
            assert said[0].startswith(f"{folder}: the checkpoint of step 12 is damaged (")
            assert said[0].endswith("going on from step 8")
            assert not (folder / "12").exists()
    # What holds the arrays and their description is needed.
    assert any("about/metadata" in path for path in noticed)
    assert any("/d/" in path for path in noticed)


def test_any_bit_of_the_arrays(saved, tmp_path):
    """The data file of the arrays, flipped in many places: never other numbers."""
    largest = max((saved / "12").rglob("*"), key=lambda path: path.is_file() * path.stat().st_size)
    content, rng = largest.read_bytes(), np.random.default_rng(0)
    found = set()
    for number in range(10):
        folder = shutil.copytree(saved, tmp_path / str(number))
        flipped = bytearray(content)
        flipped[rng.integers(len(content))] ^= 1 << rng.integers(8)
        (folder / largest.relative_to(saved)).write_bytes(flipped)
        state, _ = restore(folder)
        assert tiny.same(state, state_of(int(state["step"])))
        found.add(int(state["step"]))
    assert 8 in found


def test_two_damaged_ones(folder):
    for step in ("12", "8"):
        damage.empty(folder / step / "about" / "metadata")
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
        damage.folder_missing(folder / str(step) / "state" / "manifest.ocdbt")
    with pytest.raises(CheckpointError) as caught:
        restore(folder)
    text = str(caught.value)
    assert text.startswith(f"{folder}: found damaged checkpoints only (step 12: ")
    assert text.endswith("Delete the folder: the same command then starts this stage again.")
    assert "\n" not in text
    assert (folder / "12").exists()  # nothing is deleted where nothing better is there


@pytest.mark.parametrize("content", ["null", '{"arrays": 3}', "{"])
def test_a_description_of_another_kind(folder, content):
    (folder / "12" / "about" / "metadata").write_text(content)
    assert int(restore(folder)[0]["step"]) == 8


def test_an_empty_folder_and_a_file_in_place_of_one(folder, tmp_path):
    shutil.rmtree(folder / "12")
    (folder / "12").mkdir()
    assert int(restore(folder)[0]["step"]) == 8
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Checkpoints(tmp_path / "file")


def test_training_goes_on_from_the_newest_good_one(tmp_path):
    data, key = tiny.make_data(), jax.random.key(3)
    task = tiny.make_task(data)
    start = task.init(jax.random.key(0), tiny.MELS)

    def train():
        checkpoints = Checkpoints(tmp_path / "checkpoints", keep=10)
        run = StageRun("pretrain", checkpoints, save_seconds=0, loop="dispatch")
        try:
            return tiny.train(task, data, use_devices(1), start, key, run)
        finally:
            checkpoints.close()

    whole = train()
    newest = max((tmp_path / "checkpoints").iterdir(), key=lambda path: int(path.name))
    for path in [*newest.glob("state/d/*"), *newest.glob("state/*/d/*")]:
        damage.flip(path)
    with pytest.warns(DamageWarning, match=f"step {newest.name} is damaged"):
        assert tiny.same(train(), whole)
    assert tiny.same(train(), whole)  # saved again
