"""Many runs as one program: seeds and hyper-parameters mapped with ``vmap``, runs over devices.

A sweep trains S runs that differ in their random key and in the numbers of
:class:`asdproto.training.stage.Hyper`. Everything else, shapes above all, is shared, and so is the
resident feature array. On several devices the runs are dealt out with pmap; nothing crosses
devices, so batch statistics are each run's own.
"""

import json
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asdproto.training.epoch import run_epoch
from asdproto.training.loop import DivergedError, StageRun, TrainingData, forget_after
from asdproto.training.parallel import Devices, stack_runs
from asdproto.training.progress import Meter
from asdproto.training.stage import Hyper
from asdproto.training.state import Task, TrainState, make_table


def compile_sweep(task: Task, devices: Devices, unroll: int = 1) -> Any:
    """Compiled epoch of several runs.

    Args:
      task: Static description of one run; laid out for one device.
      devices: Where the runs go.
      unroll: Steps per turn of the loop.

    Returns:
      ``(states, features, table, keys, hypers) -> (states, losses)``. On one device, states, keys,
      hypers and losses have a leading axis of runs; on several, two: devices and runs on each.
    """
    if task.num_devices != 1:
        raise ValueError(
            f"a sweep's runs take one device each, found num_devices={task.num_devices}"
        )

    def one(state, features, table, key, hyper):
        return run_epoch(task, state, features, table, key, hyper, unroll=unroll)

    in_axes = (0, None, None, 0, 0)
    return devices.compile_runs(jax.vmap(one, in_axes=in_axes), in_axes=in_axes)


def train_sweep(
    task: Task,
    data: TrainingData,
    devices: Devices,
    states: list[TrainState],
    keys: list[jax.Array],
    hypers: list[Hyper],
    run: StageRun,
) -> list[TrainState]:
    """Trains several runs of a stage to their end.

    Args:
      task: Static description of one run.
      data: The training clips, shared; resident on every device.
      devices: Where the runs go; one process.
      states: State to start each run from.
      keys: Random key of each run's stage.
      hypers: Hyper-parameters of each run.
      run: How it goes; a checkpoint holds all runs.

    Returns:
      The final states, as NumPy arrays, in order.

    Raises:
      DivergedError: The loss of some runs became nan or infinite; the message names them. The
        others are not lost: an earlier checkpoint holds them.
      ValueError: The lists differ in length, or there are several processes.
    """
    runs = len(states)
    if not runs or len(keys) != runs or len(hypers) != runs:
        raise ValueError(
            f"found {runs} states, {len(keys)} keys and {len(hypers)} sets of hyper-parameters; "
            "expected one of each per run"
        )
    if jax.process_count() > 1:
        raise ValueError("a sweep runs in one process; give each process its own part of the runs")
    # Devices take equal shares; the last runs are repeated to fill them and dropped at the end.
    share = -(-runs // devices.count)
    filled = [min(i, runs - 1) for i in range(share * devices.count)]
    stacked = stack_runs([states[i] for i in filled])
    if run.checkpoints is not None and run.checkpoints.latest() is not None:
        stacked = run.checkpoints.restore(stacked)
    all_keys = jnp.stack([keys[i] for i in filled])
    all_hypers = stack_runs([hypers[i] for i in filled])
    step = int(np.asarray(stacked.step)[0])
    final = task.stage.total_epochs * task.steps
    if run.metrics is not None:
        forget_after(run.metrics, run.name, step)

    def deal(tree: Any) -> Any:
        if devices.count == 1:
            return jax.device_put(tree, devices.local[0])
        shape = (devices.count, share)
        return devices.shard(jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), tree))

    def gather(tree: Any) -> Any:
        skip = 1 if devices.count == 1 else 2
        return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *np.shape(x)[skip:]), tree)

    table, _ = make_table(
        data.labels, data.clips.usable_frames, data.mean, data.deviation, data.num_classes
    )
    program = compile_sweep(task, devices, run.unroll)
    table, features = devices.replicate((table, data.clips.load()))
    sharded = deal(stacked)
    dealt_keys, dealt_hypers = deal(all_keys), deal(all_hypers)
    meter = Meter(f"{run.name} x {runs}", task.stage.total_epochs, step // task.steps, run.console)
    saved = time.monotonic()
    with meter.running():
        while step < final:
            started = time.monotonic()
            sharded, losses = program(sharded, features, table, dealt_keys, dealt_hypers)
            mean_losses = gather(losses).mean(axis=1)[:runs]
            step += task.steps
            seconds = time.monotonic() - started
            broken = [i for i, loss in enumerate(mean_losses) if not math.isfinite(loss)]
            if broken:
                raise DivergedError(
                    f"{run.name}: the loss of runs {broken} of {runs} became nan or infinite in "
                    f"epoch {step // task.steps}. Leave them out, or lower their learning rate"
                )
            if run.metrics is not None:
                line = {
                    "stage": run.name,
                    "epoch": step // task.steps,
                    "step": step,
                    "loss": float(mean_losses.mean()),
                    "losses": [float(loss) for loss in mean_losses],
                    "seconds": round(seconds, 4),
                    "clips_per_second": round(runs * task.steps * task.stage.batch / seconds, 1),
                }
                with open(run.metrics, "a") as file:
                    file.write(json.dumps(line) + "\n")
            if run.checkpoints is not None and (
                step == final or time.monotonic() - saved > run.save_seconds
            ):
                about = {"stage": run.name, "step": step, **run.about}
                run.checkpoints.save(step, gather(sharded), about)
                saved = time.monotonic()
            meter.epoch(step // task.steps, f"loss {mean_losses.mean():.4f}")
    if run.checkpoints is not None:
        run.checkpoints.wait()
    whole = gather(sharded)
    return [jax.tree.map(lambda x, i=i: x[i], whole) for i in range(runs)]
