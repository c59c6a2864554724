"""Whatever happens to one process, all of them end soon and say the same."""

import signal
import sys

import pytest

from tests.multiprocess.processes import Processes, free_address, wait_for

pytestmark = pytest.mark.slow

# Seconds until all have ended, on a busy machine. The limits in faults.py are shorter than the real
# ones; of a process that is gone, nobody knows before them.
SOON, LOST = 10, 15


def start(fault, folder):
    """A run of two processes in which something goes wrong."""
    words = [sys.executable, "-m", "tests.multiprocess.faults", fault, str(folder), free_address()]
    return Processes([[*words, "2", str(i)] for i in range(2)], folder)


@pytest.mark.parametrize(
    ("fault", "who", "message"),
    [
        ("error-in-lone-work0", 0, "clip.wav: found noise; expected a recording. Delete it."),
        ("settings", 1, "system.width: found 8; expected 4, as in process 0."),
    ],
)
def test_an_error_of_one_process_is_read_at_all(tmp_path, fault, who, message):
    codes, seconds, outputs = start(fault, tmp_path).end()
    assert codes == [1, 1]
    assert seconds < SOON
    for process, output in enumerate(outputs):
        assert message in output
        assert (f"error: process {who}: " in output) == (process != who)
        assert "Fatal" not in output


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_process_is_named_with_the_step_to_continue_from(tmp_path, lost):
    codes, seconds, outputs = start(f"kill{lost}", tmp_path).end()
    assert codes[lost] == -signal.SIGKILL
    assert codes[1 - lost] == 1
    assert seconds < LOST
    last = outputs[1 - lost].splitlines()[-1]
    assert last.startswith(f"error: process {lost} is gone")
    assert last.endswith("; the same command continues from step 5 of pretrain")


def test_sigterm_ends_a_run_in_which_one_process_reaches_no_step(tmp_path):
    run = start("stuck", tmp_path)
    wait_for(tmp_path / "began")
    run.running[0].send_signal(signal.SIGTERM)
    codes, seconds, outputs = run.end()
    assert all(codes)
    assert seconds < SOON
    assert "error: process 0 reached no step since it was asked to stop" in outputs[1]
