"""One process of a run in which something goes wrong; test_faults.py starts it.

    python -m tests.multiprocess.faults FAULT FOLDER ADDRESS PROCESSES PROCESS_ID

It stands for a run: contact, agreement, work of process 0 alone, steps with a collective each.
"""

import os
import signal
import sys
import time
from pathlib import Path

import jax

from asdproto import signals
from asdproto.errors import DataError
from asdproto.training import processes
from asdproto.training.devices import use_devices
from asdproto.training.processes import agree_on, alone, joined

# What stands for the limits of real runs.
processes._BEAT, processes._STUCK, processes._GRACE, processes._LOOK = 3.0, 2.0, 1.0, 0.2
_initialize = jax.distributed.initialize


def _impatient(*options: object, **limits: object) -> None:
    _initialize(*options, **{**limits, "shutdown_timeout_seconds": 2})


def run(fault: str, folder: Path, process: int) -> None:
    """A short run, with a fault in process 1 unless its name says another."""
    here = fault.endswith(str(process)) if fault[-1].isdigit() else process == 1
    workdir = folder / "run"
    agree_on({"system": {"width": 8 if here and fault == "settings" else 4}}, workdir)
    (workdir / "checkpoints" / "pretrain" / "5").mkdir(parents=True, exist_ok=True)
    if fault == "error-in-lone-work0":
        alone(lambda: _raise(DataError("clip.wav", "noise", "a recording", "Delete it.")))
    devices = use_devices()
    with signals.deferred() as asked:
        for step in range(10**6):
            if here and step == 3:
                (folder / "began").touch()
                if fault.startswith("kill"):
                    os.kill(os.getpid(), signal.SIGKILL)
                if fault == "stuck":
                    time.sleep(1000)
            try:
                _, stop = devices.agree(False, asked())
            except ValueError as error:  # as checkpoints do, whose saves have collectives too
                raise DataError("run", f"a save that failed ({error})", "one", "Free it.") from None
            if stop:
                print(f"stops at step {step}")
                signals.stop(f"step {step} is saved")
            time.sleep(0.01)


def _raise(error: Exception) -> None:
    raise error


if __name__ == "__main__":
    jax.distributed.initialize = _impatient
    number = int(sys.argv[5])
    try:
        with signals.handled(), joined(sys.argv[3], int(sys.argv[4]), number):
            run(sys.argv[1], Path(sys.argv[2]), number)
    except KeyboardInterrupt as stop:
        raise SystemExit(signals.code(stop)) from None
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
