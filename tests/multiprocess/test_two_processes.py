"""Two processes of two devices each compute what one process computes on one device."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from asdproto.training.checkpoint import _named
from asdproto.training.devices import use_devices
from tests.multiprocess.processes import Processes, free_address
from tests.multiprocess.worker import STAGES, STOP, embeddings, saved_steps, train

pytestmark = pytest.mark.slow

# As in tests/training/test_epoch.py: sums over devices in another order, 9 to 12 steps on.
LOSSES, PARAMETERS = {"rtol": 1e-3}, {"atol": 1e-3, "rtol": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What one process left, and what two made of it."""
    folder = tmp_path_factory.mktemp("two_processes")
    for stage in STAGES:
        alone = folder / "alone" / stage
        state = train(stage, alone, use_devices(1), save_seconds=0)
        np.savez(folder / f"{stage}.npz", **_named(state))
        for step in saved_steps(alone):  # two processes resume it
            if step <= STOP:
                saved = f"checkpoints/tiny/{step}"
                shutil.copytree(alone / saved, folder / "resumed" / stage / saved)
    worker = [sys.executable, "-m", "tests.multiprocess.worker", str(folder), free_address(), "2"]
    commands = [[*worker, str(process)] for process in range(2)]
    codes, _, outputs = Processes(commands, folder, JAX_NUM_CPU_DEVICES="2").end(seconds=380)
    assert codes == [0, 0], outputs
    return folder


def _losses(workdir: Path) -> dict[int, float]:
    text = (workdir / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    losses = {line["epoch"]: line["loss"] for line in lines}
    assert len(losses) == len(lines)  # one process alone writes
    return losses


def _check(folder: Path, stage: str, arrays) -> None:
    expected = np.load(folder / f"{stage}.npz")
    assert set(arrays) == set(expected)
    assert int(arrays["step"]) == int(expected["step"]) > STOP
    compared = [name for name in expected if name.startswith(("params/", "batch_stats/"))]
    assert len(compared) > 4
    for name in compared:
        np.testing.assert_allclose(arrays[name], expected[name], **PARAMETERS, err_msg=name)


@pytest.fixture(scope="module")
def abouts(folder):
    """What each of the two says of itself."""
    return [json.loads((folder / f"about.{process}.json").read_text()) for process in range(2)]


def test_the_processes_find_each_other(abouts):
    for about in abouts:
        assert (about["processes"], about["devices"], about["local"]) == (2, 4, 2)
        assert "start fewer processes instead" in about["refused"]
    assert [about["first"] for about in abouts] == [0, 2]
    assert [about["is_main"] for about in abouts] == [True, False]


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_equal_one(folder, stage):
    losses, expected = _losses(folder / "whole" / stage), _losses(folder / "alone" / stage)
    assert list(losses) == list(expected) == [1, 2, 3]
    np.testing.assert_allclose(list(losses.values()), list(expected.values()), **LOSSES)
    first, second = (np.load(folder / f"{stage}-whole.{process}.npz") for process in range(2))
    _check(folder, stage, first)
    for name in first:  # replicas do not drift apart
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_processes_that_share_windows_give_the_bits_of_one(folder):
    expected = embeddings(use_devices(1))
    for process in range(2):
        np.testing.assert_array_equal(np.load(folder / f"embeddings.{process}.npy"), expected)


@pytest.mark.parametrize("stage", STAGES)
def test_a_signal_to_one_process_stops_both_at_the_same_step(folder, abouts, stage):
    for about in abouts:
        assert about[stage]["said"] == f"step {STOP} of tiny is saved"
    assert saved_steps(folder / "stopped" / stage) == [STOP]


@pytest.mark.parametrize("stage", STAGES)
def test_one_process_resumes_what_two_wrote(folder, stage, tmp_path):
    workdir = shutil.copytree(folder / "stopped" / stage, tmp_path / stage)
    state = train(stage, workdir, use_devices(1))
    _check(folder, stage, _named(state))
    losses, expected = _losses(workdir), _losses(folder / "alone" / stage)
    assert list(losses) == list(expected)
    np.testing.assert_allclose(list(losses.values()), list(expected.values()), **LOSSES)


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_resume_what_one_wrote(folder, abouts, stage):
    final = int(np.load(folder / f"{stage}.npz")["step"])
    for process, about in enumerate(abouts):
        assert (about[stage]["began"], about[stage]["saved"][-1]) == (STOP, final)
        # Process 0's clock decides for both: a save is a meeting of all processes.
        assert {final * 2 // 3, final, *range(STOP + 1, final, 2)} <= set(about[stage]["saved"])
        _check(folder, stage, np.load(folder / f"{stage}-resumed.{process}.npz"))
    losses, expected = _losses(folder / "resumed" / stage), _losses(folder / "alone" / stage)
    begun = STOP * len(expected) // final + 1  # the epoch that was stopped
    assert list(losses) == list(range(begun, len(expected) + 1))
    np.testing.assert_allclose(
        list(losses.values()), [expected[epoch] for epoch in losses], **LOSSES
    )
