"""Hosts with an address each run the documented command, and resume what others left."""

import json
import signal
import sys

import numpy as np
import pytest

from tests.experiments.collection import write_collection
from tests.multiprocess.hosts import PORT, two_hosts
from tests.multiprocess.processes import Processes, wait_for

pytestmark = pytest.mark.slow

EPOCHS = {"pretrain": 6, "finetune": 3}
OVERRIDES = (
    "encoder.width=4",
    "encoder.crop=32",
    *(f"{stage}.epochs={count}" for stage, count in EPOCHS.items()),
    "pretrain.batch_size=8",
    "finetune.ways=4",
    "finetune.shots=1",
)


@pytest.fixture
def network():
    """Of each of two hosts, the words that run a command there."""
    try:
        with two_hosts() as words:
            yield words
    except OSError as error:
        pytest.skip(f"no hosts can be made of network namespaces here: {error}")


def run_command(folder, network, *more, slow="", stop_after=0):
    """Runs the command on these hosts; one gets SIGTERM after so many epochs.

    Returns:
      Exit codes, and all that the processes have written.
    """
    command = [sys.executable, "-m", "tests.multiprocess.command", "--data", f"{folder}/data"]
    command += ["--workdir", f"{folder}/run", "--preset", "quick", "--save-seconds", "1000"]
    command += [*more, *OVERRIDES]
    commands = [[*host, *command] for host in network]
    if len(network) > 1:
        joined = ["--coordinator", f"10.77.0.1:{PORT}", "--processes", f"{len(network)}"]
        commands = [[*own, *joined, "--process-id", f"{i}"] for i, own in enumerate(commands)]
    minimum = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    run = Processes(commands, folder, ASDPROTO_TEST_SLOW=slow, **minimum)
    if stop_after:
        wait_for(folder / "run" / "metrics.jsonl", stop_after, seconds=200)
        run.running[-1].send_signal(signal.SIGTERM)
    codes, _, outputs = run.end(seconds=200)
    return codes, "\n".join(outputs)


def test_two_hosts_then_one_then_two_finish_a_run_and_only_report_again(network, tmp_path):
    """A signal to one stops both; first extraction and the report outlast what JAX waits for."""
    write_collection(tmp_path / "data")
    codes, text = run_command(tmp_path, network, slow="build_store", stop_after=1)
    assert codes == [128 + signal.SIGTERM] * 2, text
    codes, text = run_command(tmp_path, network[:1], stop_after=6)
    assert codes == [128 + signal.SIGTERM], text
    codes, text = run_command(tmp_path, network, "--profile", "2", slow="write_report")
    assert codes == [0, 0], text
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    epochs = [(stage, n + 1) for stage, count in EPOCHS.items() for n in range(count)]
    assert [(line["stage"], line["epoch"]) for line in lines] == epochs
    assert np.isfinite([line["loss"] for line in lines]).all()
    assert (tmp_path / "run" / "report.html").is_file()
    assert list((tmp_path / "run" / "profile" / "finetune").rglob("perfetto_trace.json.gz"))
    codes, text = run_command(tmp_path, network)
    assert codes == [0, 0], text
    assert "is finished; this only reports" in text
