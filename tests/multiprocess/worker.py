"""One process of a run over several; test_two_processes.py starts it.

    python -m tests.multiprocess.worker FOLDER COORDINATOR PROCESSES PROCESS_ID

Trains the tiny task and leaves what each process has seen in FOLDER.
"""

import functools
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
from asdproto.training.devices import Devices, RunOptions, use_devices
from asdproto.training.processes import joined
from tests.training import tiny

# Each stage in one shape from its start; stopped and resumed, step by step from resident features.
STAGES = {"pretrain": "host", "finetune": "scan"}
STOP = 5  # in the middle of an epoch of 3 and of 2 steps
KEY = 11


def train(stage: str, workdir: Path, devices: Devices, shape: str = "dispatch", **options):
    """The tiny task with crops from the devices, or from the host where ``shape`` says so."""
    loops.Checkpoints = functools.partial(Checkpoints, keep=100)
    data, loop = tiny.make_data(), "scan" if shape == "scan" else "dispatch"
    run = RunOptions(workdir, devices, loop=loop, resident=shape != "host", **options)
    task = tiny.make_task(data, stage, devices)
    state = task.init(jax.random.key(0), tiny.MELS)
    return tiny.train(task, data, run, state, jax.random.key(KEY))


def saved_steps(workdir: Path) -> list[int]:
    """Steps of the checkpoints, in order."""
    return sorted(int(path.name) for path in workdir.glob("checkpoints/tiny/[0-9]*"))


def embeddings(devices: Devices) -> np.ndarray:
    """Training clips embedded by a fresh encoder on all devices."""
    data, model = tiny.make_data(), tiny.Encoder()
    crops = data.train.load()[:, : tiny.CROP].astype(np.float32)
    variables = model.init(jax.random.key(0), crops, train=True)
    with shared_by(devices):
        return window_means(
            model, variables, data.train, mean=data.mean, scale=1 / data.std, hop=4, batch=5
        )


def train_until_preempted(stage: str, workdir: Path, devices: Devices, process: int) -> str:
    """Trains until process 1, and it alone, gets SIGTERM in step ``STOP``; what is said then."""
    look, every, calls = loops._Keeper.look, loops._ASK_EVERY, itertools.count(1)

    def preempted(*arguments, **keywords):
        if next(calls) == STOP and process == 1:  # once a step, after it
            os.kill(os.getpid(), signal.SIGTERM)
        look(*arguments, **keywords)

    loops._Keeper.look, loops._ASK_EVERY = preempted, 1
    try:
        train(stage, workdir, devices, save_seconds=1e9)
    except Stopped as stop:
        return stop.kept
    finally:
        loops._Keeper.look, loops._ASK_EVERY = look, every
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

    about = {
        "processes": jax.process_count(),
        "devices": devices.count,
        "local": len(devices.local),
        "first": devices.first,
        "is_main": devices.is_main,
        "refused": refused,
    }
    loops._ASK_EVERY = 2  # epochs are shorter than what suits real ones
    for stage, shape in STAGES.items():
        keep(f"{stage}-whole", train(stage, folder / "whole" / stage, devices, shape))

        # Stopped here in the middle of an epoch, where no save is due; one process on one device
        # goes on.
        said = train_until_preempted(stage, folder / "stopped" / stage, devices, process)

        # And the other way round; saved by the clock, which the processes read apart: only process
        # 0 ever thinks that it is time.
        workdir, seconds = folder / "resumed" / stage, 1e-9 if process == 0 else 1e9
        began = max(saved_steps(workdir))
        keep(f"{stage}-resumed", train(stage, workdir, devices, save_seconds=seconds))
        about[stage] = {"began": began, "saved": saved_steps(workdir), "said": said}

    np.save(folder / f"embeddings.{process}.npy", embeddings(devices))
    (folder / f"about.{process}.json").write_text(json.dumps(about))


if __name__ == "__main__":
    with joined(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])):
        main(Path(sys.argv[1]), int(sys.argv[4]))
