"""Hosts with an address each run the documented command, and resume what others left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.experiments.collection import write_collection
from tests.multiprocess.hosts import PORT, hosts

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
OVERRIDES = (
    "encoder.width=4",
    "encoder.crop=32",
    "pretrain.epochs=6",
    "pretrain.batch_size=8",
    "finetune.epochs=3",
    "finetune.ways=4",
    "finetune.shots=1",
)


def run_command(
    folder: Path, count: int, *more: str, slow: float = 0, stop_after: int = 0
) -> list[int]:
    """Runs the command on so many hosts; one gets SIGTERM after so many epochs. Exit codes."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "ASDPROTO_TEST_SLOW": str(slow),
    }
    command = [sys.executable, "-m", "tests.multiprocess.command", "--data", f"{folder}/data"]
    command += ["--workdir", f"{folder}/run", "--preset", "quick", "--save-seconds", "1000"]
    try:
        network = hosts(count)
        places = network.__enter__()
    except OSError as error:
        pytest.skip(f"no hosts can be made of network namespaces here: {error}")
    running = []
    try:
        for i, place in enumerate(places):
            own = ["--coordinator", f"10.77.0.1:{PORT}", "--processes", f"{count}"]
            own = [] if count == 1 else [*own, "--process-id", f"{i}"]
            with open(folder / f"log.{count}.{i}", "w") as log:
                words = [*place, *command, *own, *more, *OVERRIDES]
                running.append(
                    subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log)
                )
        give_up, metrics = time.monotonic() + 200, folder / "run" / "metrics.jsonl"
        while stop_after and time.monotonic() < give_up:
            if metrics.exists() and metrics.read_text().count("\n") >= stop_after:
                running[-1].send_signal(signal.SIGTERM)
                break
            time.sleep(0.01)
        return [process.wait(give_up - time.monotonic()) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
        network.__exit__(None, None, None)


def _losses(folder: Path) -> dict[tuple, float]:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return {(e["stage"], e["epoch"]): e["loss"] for e in map(json.loads, lines)}


def _output(folder: Path, count: int) -> str:
    return "\n".join(log.read_text() for log in sorted(folder.glob(f"log.{count}.*")))


def test_two_then_four_then_one_process_train_as_one_does(tmp_path):
    """A signal to one of the processes stops all at a step that any number continues from."""
    for name, counts in (("alone", [(1, 6)]), ("several", [(2, 1), (4, 3), (1, 6)])):
        write_collection(tmp_path / name / "data")
        for count, epochs in counts:
            codes = run_command(tmp_path / name, count, stop_after=epochs)
            assert codes == [128 + signal.SIGTERM] * count, _output(tmp_path / name, count)
    losses, expected = (_losses(tmp_path / name) for name in ("several", "alone"))
    epochs = [("pretrain", epoch + 1) for epoch in range(6)]
    # Sums over devices in another order, through 12 steps of a network that they drive apart.
    np.testing.assert_allclose(
        [losses[epoch] for epoch in epochs], [expected[epoch] for epoch in epochs], rtol=5e-3
    )


def test_two_hosts_finish_and_only_report_again(tmp_path):
    """First extraction, scoring and report outlast what JAX waits for."""
    write_collection(tmp_path / "data")
    assert run_command(tmp_path, 2, "--profile", "2", slow=5) == [0, 0], _output(tmp_path, 2)
    assert (tmp_path / "run" / "report.html").is_file()
    for stage in ("pretrain", "finetune"):
        assert list((tmp_path / "run" / "profile" / stage).rglob("perfetto_trace.json.gz"))
    assert run_command(tmp_path, 2) == [0, 0], _output(tmp_path, 2)
    assert "is finished; this only reports" in _output(tmp_path, 2)
