"""Whatever happens to one process, all of them end soon and say the same."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# Seconds until all have ended, on a busy machine. The limits in faults.py are shorter than the real
# ones; of a process that is gone, nobody knows before them.
SOON, LOST = 10, 15


class Run:
    """Processes of a run on this machine, and what each has written."""

    def __init__(self, fault: str, folder: Path, count: int = 2):
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            address = f"localhost:{listener.getsockname()[1]}"
        command = [sys.executable, "-m", "tests.multiprocess.faults", fault, str(folder), address]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
        self.folder, self.logs = folder, [folder / f"log.{i}" for i in range(count)]
        self.processes = []
        for i, log in enumerate(self.logs):
            with open(log, "w") as stream:
                words = [*command, str(count), str(i)]
                self.processes.append(
                    subprocess.Popen(words, cwd=ROOT, env=environment, stdout=stream, stderr=stream)
                )

    def wait_until_it_steps(self) -> None:
        give_up = time.monotonic() + 60
        while not (self.folder / "began").exists() and time.monotonic() < give_up:
            time.sleep(0.05)

    def end(self, seconds: float = 60) -> tuple[list[int], float, list[str]]:
        """Exit codes, seconds between the first end and the last, and outputs."""
        ended: list[float] = []
        give_up = time.monotonic() + seconds
        try:
            while len(ended) < len(self.processes) and time.monotonic() < give_up:
                now = sum(process.poll() is not None for process in self.processes)
                ended += [time.monotonic()] * (now - len(ended))
                time.sleep(0.05)
        finally:
            for process in self.processes:
                process.kill()
        codes = [process.wait() for process in self.processes]
        outputs = [log.read_text() for log in self.logs]
        assert len(ended) == len(codes), f"still running after {seconds} s: {outputs}"
        return codes, ended[-1] - ended[0], outputs


@pytest.mark.parametrize(
    ("fault", "who", "message"),
    [
        ("error", 1, "ROOT: found nothing; expected a feature store. Make one."),
        ("error-in-lone-work0", 0, "clip.wav: found noise; expected a recording. Delete it."),
        ("settings", 1, "system.width: found 8; expected 4, as in process 0."),
        ("other-step", 1, "newest checkpoint.pretrain: found 7; expected None, as in process 0."),
        ("unshared", 1, "found a work folder without what process 0 writes there"),
    ],
)
def test_an_error_of_one_process_is_read_at_all(tmp_path, fault, who, message):
    codes, seconds, outputs = Run(fault, tmp_path).end()
    assert codes == [1, 1]
    assert seconds < SOON
    for process, output in enumerate(outputs):
        assert message in output
        assert (f"error: process {who}: " in output) == (process != who)
        assert "Fatal" not in output


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_process_is_named_with_the_step_to_continue_from(tmp_path, lost):
    codes, seconds, outputs = Run(f"kill{lost}", tmp_path).end()
    assert codes[lost] == -signal.SIGKILL
    assert codes[1 - lost] == 1
    assert seconds < LOST
    last = outputs[1 - lost].splitlines()[-1]
    assert last.startswith(f"error: process {lost} is gone")
    assert last.endswith("; the same command continues from step 5 of pretrain")


def test_sigterm_ends_a_run_in_which_one_process_reaches_no_step(tmp_path):
    run = Run("stuck", tmp_path)
    run.wait_until_it_steps()
    run.processes[0].send_signal(signal.SIGTERM)
    codes, seconds, outputs = run.end()
    assert all(codes)
    assert seconds < SOON
    assert "error: process 0 reached no step since it was asked to stop" in outputs[1]


def test_sigterm_to_one_of_four_stops_all_at_the_same_step(tmp_path):
    run = Run("none", tmp_path, count=4)
    run.wait_until_it_steps()
    run.processes[2].send_signal(signal.SIGTERM)
    codes, _, outputs = run.end()
    assert codes == [128 + signal.SIGTERM] * 4
    steps = {line for out in outputs for line in out.splitlines() if line.startswith("stops")}
    assert len(steps) == 1


def test_lone_work_and_reports_may_take_longer_than_any_limit(tmp_path):
    codes, _, outputs = Run("slow", tmp_path).end()
    assert codes == [0, 0], outputs
