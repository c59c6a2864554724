"""One process of a run over several; test_two_processes.py starts it.

    python -m tests.multiprocess.worker FOLDER COORDINATOR PROCESSES PROCESS_ID

Trains the tiny task and leaves what each process has seen in FOLDER.
"""

import dataclasses
import itertools
import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np

from asdproto.signals import Stopped
from asdproto.systems.embedding import shared_by, window_means
from asdproto.training import loop as loops
from asdproto.training.checkpoint import Checkpoints, _named
from asdproto.training.devices import Devices, use_devices
from asdproto.training.loop import StageRun
from asdproto.training.processes import joined
from tests.training import tiny

# Each stage in one shape from its start; stopped and resumed, step by step from resident features.
STAGES = {"pretrain": "host", "finetune": "scan"}
STOP = 5  # in the middle of an epoch of 3 and of 2 steps
KEY = 11


def train(stage: str, devices: Devices, run: StageRun, shape: str = "dispatch"):
    """The tiny task with crops from the devices, or from the host where ``shape`` says so."""
    data = tiny.make_data()
    loop = "scan" if shape == "scan" else "dispatch"
    run = dataclasses.replace(run, loop=loop, resident=shape != "host")
    task = tiny.make_task(data, stage, devices)
    state = task.init(jax.random.key(0), tiny.MELS)
    return tiny.train(task, data, devices, state, jax.random.key(KEY), run)


def embeddings(devices: Devices) -> np.ndarray:
    """Training clips embedded by a fresh encoder on all devices."""
    data, model = tiny.make_data(), tiny.Encoder()
    crops = data.train.load()[:, : tiny.CROP].astype(np.float32)
    variables = model.init(jax.random.key(0), crops, train=True)
    with shared_by(devices):
        return window_means(
            model, variables, data.train, mean=data.mean, scale=1 / data.std, hop=4, batch=5
        )


def train_until_preempted(stage: str, devices: Devices, run: StageRun, process: int) -> str:
    """Trains until process 1, and it alone, gets SIGTERM in step ``STOP``; what is said then."""
    look, every, calls = loops._Keeper.look, loops._ASK_EVERY, itertools.count(1)

    def preempted(*arguments, **keywords):
        if next(calls) == STOP and process == 1:  # once a step, after it
            os.kill(os.getpid(), signal.SIGTERM)
        look(*arguments, **keywords)

    loops._Keeper.look, loops._ASK_EVERY = preempted, 1
    try:
        train(stage, devices, run)
    except Stopped as stop:
        return stop.kept
    finally:
        loops._Keeper.look, loops._ASK_EVERY = look, every
        run.checkpoints.close()
    raise AssertionError(f"{stage} came to its end")


def main(folder: Path, process: int) -> None:
    devices = use_devices()
    refused = ""
    try:
        use_devices(1)
    except ValueError as error:
        refused = str(error)

    def keep(name: str, state) -> None:
        arrays = {key: np.asarray(leaf) for key, leaf in _named(state).items()}
        np.savez(folder / f"{name}.{process}.npz", **arrays)

    def metrics(name: str) -> Path:
        return folder / f"{name}.{process}.jsonl"

    loops._ASK_EVERY = 2  # epochs are shorter than what suits real ones
    for stage, shape in STAGES.items():
        name = f"{stage}-whole"
        keep(name, train(stage, devices, StageRun(stage, metrics=metrics(name)), shape))

        # Stopped here in the middle of an epoch, where no save is due; one process on one device
        # goes on.
        checkpoints = Checkpoints(folder / "written_by_two" / stage, keep=100)
        run = StageRun(stage, checkpoints, save_seconds=1e9, metrics=metrics(f"{stage}-stopped"))
        said = train_until_preempted(stage, devices, run, process)

        # And the other way round; saved by the clock, which the processes read apart.
        checkpoints = Checkpoints(folder / "written_by_one" / stage, keep=100)
        began = checkpoints.latest()
        run = StageRun(
            stage,
            checkpoints,
            metrics=metrics(f"{stage}-resumed"),
            # Only process 0 ever thinks that it is time.
            save_seconds=1e-9 if process == 0 else 1e9,
        )
        keep(f"{stage}-resumed", train(stage, devices, run))
        checkpoints.close()
        about = {
            "began": began,
            "ended": checkpoints.latest(),
            "saved": _steps(checkpoints.folder),
            "said": said,
        }
        (folder / f"{stage}-resumed.{process}.json").write_text(json.dumps(about))

    np.save(folder / f"embeddings.{process}.npy", embeddings(devices))
    about = {
        "processes": jax.process_count(),
        "devices": devices.count,
        "local": len(devices.local),
        "first": devices.first,
        "is_main": devices.is_main,
        "refused": refused,
    }
    (folder / f"about.{process}.json").write_text(json.dumps(about))


def _steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


if __name__ == "__main__":
    with joined(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])):
        main(Path(sys.argv[1]), int(sys.argv[4]))
