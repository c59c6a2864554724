"""Starts the processes of a run, and waits for what becomes of them."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_address() -> str:
    """An address of this machine at which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return f"localhost:{listener.getsockname()[1]}"


class Processes:
    """Processes of a run, each of one CPU device unless ``environment`` says another number.

    Each writes into a file of the folder, ``log.NUMBER``.
    """

    def __init__(self, commands: Sequence[Sequence[str]], folder: Path, **environment: str):
        fixed = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHONFAULTHANDLER": "1"}
        environment = {**os.environ, **fixed, **environment}
        self.running, self.logs = [], [folder / f"log.{i}" for i in range(len(commands))]
        for command, log in zip(commands, self.logs, strict=True):
            with open(log, "w") as stream:
                process = subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=stream, stderr=stream
                )
            self.running.append(process)

    def end(self, seconds: float = 60) -> tuple[list[int], float, list[str]]:
        """Exit codes, seconds between the first end and the last, and outputs.

        Those that still run after so many seconds say where they are, and are ended.
        """
        ended: list[float] = []
        give_up = time.monotonic() + seconds
        try:
            while len(ended) < len(self.running) and time.monotonic() < give_up:
                now = sum(process.poll() is not None for process in self.running)
                ended += [time.monotonic()] * (now - len(ended))
                time.sleep(0.05)
        finally:
            for process in self.running:
                process.send_signal(signal.SIGABRT)
            time.sleep(1 if len(ended) < len(self.running) else 0)
            for process in self.running:
                process.kill()
            codes = [process.wait() for process in self.running]
        outputs = [log.read_text() for log in self.logs]
        assert len(ended) == len(codes), f"still running after {seconds} s: {outputs}"
        return codes, ended[-1] - ended[0], outputs


def wait_for(path: Path, lines: int = 0, seconds: float = 60) -> None:
    """Returns when a file is there and has so many lines, or when time is over."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if path.exists() and path.read_text().count("\n") >= lines:
            return
        time.sleep(0.02)
