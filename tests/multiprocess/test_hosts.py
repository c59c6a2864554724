"""Hosts with an address each run the documented command, and resume what others left."""

import contextlib
import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.experiments.collection import write_collection
from tests.multiprocess.hosts import PORT, hosts
from tests.multiprocess.processes import Processes, wait_for

pytestmark = pytest.mark.slow

SLOW = 5  # seconds, longer than what JAX waits at the end, which command.py lowers
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
) -> tuple[list[int], str]:
    """Runs the command on so many hosts; one gets SIGTERM after so many epochs.

    Returns:
      Exit codes, and all that the processes have written.
    """
    command = [sys.executable, "-m", "tests.multiprocess.command", "--data", f"{folder}/data"]
    command += ["--workdir", f"{folder}/run", "--preset", "quick", "--save-seconds", "1000"]
    command += [*more, *OVERRIDES]
    if count > 1:
        command += ["--coordinator", f"10.77.0.1:{PORT}", "--processes", f"{count}"]
    numbers = [["--process-id", f"{i}"] if count > 1 else [] for i in range(count)]
    try:
        network = hosts(count)
        hosted = network.__enter__()
    except OSError as error:
        pytest.skip(f"no hosts can be made of network namespaces here: {error}")
    with contextlib.ExitStack() as stack:
        stack.push(network)
        run = Processes(
            [[*host, *command, *own] for host, own in zip(hosted, numbers, strict=True)],
            folder,
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.1",
            ASDPROTO_TEST_SLOW=str(slow),
        )
        if stop_after:
            wait_for(folder / "run" / "metrics.jsonl", stop_after, seconds=200)
            run.running[-1].send_signal(signal.SIGTERM)
        codes, _, outputs = run.end(seconds=200)
    return codes, "\n".join(outputs)


def _losses(folder: Path) -> dict[tuple, float]:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return {(e["stage"], e["epoch"]): e["loss"] for e in map(json.loads, lines)}


def _train(folder: Path, *counts: tuple[int, int]) -> Path:
    """Runs on so many hosts, each until so many epochs are done, all in one work folder."""
    write_collection(folder / "data")
    for count, epochs in counts:
        slow = SLOW if count == 2 else 0
        codes, text = run_command(folder, count, slow=slow, stop_after=epochs)
        assert codes == [128 + signal.SIGTERM] * count, text
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that two processes, then one, have pre-trained."""
    return _train(tmp_path_factory.mktemp("several"), (2, 1), (1, 6))


def test_two_processes_and_then_one_train_as_one_does(folder, tmp_path):
    """A signal to one of the processes stops all at a step that any number continues from."""
    losses, expected = _losses(folder), _losses(_train(tmp_path, (1, 6)))
    epochs = [("pretrain", epoch + 1) for epoch in range(6)]
    # Sums over devices in another order, through 12 steps of a network that they drive apart.
    np.testing.assert_allclose(
        [losses[epoch] for epoch in epochs], [expected[epoch] for epoch in epochs], rtol=5e-3
    )


def test_two_hosts_finish_and_only_report_again(folder):
    """First extraction, scoring and report outlast what JAX waits for."""
    codes, text = run_command(folder, 2, "--profile", "2", slow=SLOW)
    assert codes == [0, 0], text
    assert (folder / "run" / "report.html").is_file()
    assert list((folder / "run" / "profile" / "finetune").rglob("perfetto_trace.json.gz"))
    codes, text = run_command(folder, 2)
    assert codes == [0, 0], text
    assert "is finished; this only reports" in text
