"""The figures of a GPU that matter most, in at most 6 minutes.

    make bench-gpu-short
    python -m experiments.benchmarks.short --expect gpu --out experiments/results/

Needs jax, flax, optax, rich and, for the comparison, PyTorch; no audio library. Everything is the
paper's: width 64, bfloat16, 21,000 clips of random features in 147 classes. In this order, each
written to the json as soon as it is there:

====================  ============================================================  ==============
figure                what it is                                                    goal on an H100
====================  ============================================================  ==============
pretrain              a step of pre-training, 32 crops                              <= 1.0 ms
finetune              a step of fine-tuning, 10 x 10 crops                          <= 1.6 ms
pass                  the prototype pass over all clips                             >= 200,000 /s
schedule              120 + 50 epochs, from the three above                         <= 120 s
eager                 PyTorch's step of pre-training over ours                      >= 3
compiled              the same by ``torch.compile``, with CUDA graphs               >= 1.2
sweep                 8 runs as one program over 8 runs in a row                    >= 2.5
====================  ============================================================  ==============

Once ``--limit`` seconds are over, no other figure is begun; one that fails costs only itself. How
times are taken is said in :mod:`experiments.benchmarks.train`, which measures much more. No figure
of a GPU has been measured yet.
"""

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from asdproto.config import ConfigError
from asdproto.systems.prototype import STAGES
from asdproto.training import step as steps
from experiments.benchmarks import train
from experiments.benchmarks.common import Bench, describe, file_name, per_step, project
from experiments.benchmarks.timing import interleave, ratios, show
from experiments.common import run_main, write_json

# Figure -> where it stands in the result, its goal, and whether more is better.
GOALS: dict[str, tuple[tuple[str, ...], float, bool]] = {
    "pretrain": (("milliseconds", "median"), 1.0, False),
    "finetune": (("milliseconds", "median"), 1.6, False),
    "pass": (("crops_per_second", "median"), 200_000, True),
    "schedule": (("seconds",), 120, False),
    "eager": (("speed_to_eager", "median"), 3, True),
    "compiled": (("speed_to_compiled", "median"), 1.2, True),
    "sweep": (("throughput_to_single", "median"), 2.5, True),
}


def measure_step(bench: Bench, stage: str) -> dict[str, Any]:
    """A step of a stage."""
    task = bench.task(stage, bench.loop, bench.count)
    run, program = bench.stepper(task, bench.loop)
    seconds = interleave({"step": run}, bench.args.rounds)[0]["step"]
    return {
        "batch": task.stage.batch,
        "milliseconds": per_step(seconds, bench.count),
        "compile_seconds": program.seconds,
        "compiled_memory_bytes": program.memory,
    }


def measure_torch(bench: Bench, how: str) -> dict[str, Any]:
    """The step of pre-training beside PyTorch's, ``"eager"`` or ``"compiled"``."""
    if importlib.util.find_spec("torch") is None:
        return {"skipped": "PyTorch is not installed"}
    from experiments.benchmarks.torch_reference import Rival

    task = bench.task("pretrain", bench.loop, bench.count)
    state = bench.state(task)
    index, plan, _ = bench.inputs(task)
    batch = jax.device_get(steps.take_batch(task, index, plan.steps, state.step, None))
    rival = Rival(
        task, jax.device_get(state), batch, dtype=bench.args.dtype, compiled=how == "compiled"
    )
    rival.run(5)  # compiles, searches, warms up and records the graphs
    ours, _ = bench.stepper(task, bench.loop)
    contenders = {"ours": ours, how: lambda: rival.run(bench.count)}
    seconds, _ = interleave(contenders, bench.args.rounds)
    return {
        "ours_milliseconds": per_step(seconds["ours"], bench.count),
        f"{how}_milliseconds": per_step(seconds[how], bench.count),
        f"speed_to_{how}": ratios(seconds[how], seconds["ours"]),
    }


def measure(bench: Bench, name: str, result: dict[str, Any]) -> dict[str, Any]:
    """One figure of :data:`GOALS`; those before it are in ``result``."""
    if name in STAGES:
        return measure_step(bench, name)
    if name == "pass":
        return train.measure_pass(bench)
    if name == "schedule":
        return project(bench, {"steps": result, "pass": result["pass"]})
    if name == "sweep":  # at the lowering that training takes
        lowering = bench.task("pretrain", "scan").model.lowering  # type: ignore[attr-defined]
        found = train.measure_sweep(bench, (lowering,))
        return {"lowering": lowering, **found.pop(lowering), **found}
    return measure_torch(bench, name)


def judged(name: str, figures: dict[str, Any]) -> dict[str, Any]:
    """A figure beside its goal."""
    path, goal, more_is_better = GOALS[name]
    value: Any = figures
    for key in path:
        value = value[key] if isinstance(value, dict) and key in value else None
    if value is None:
        return figures
    met = value >= goal if more_is_better else value <= goal
    return {**figures, "goal": goal, "met": bool(met)}


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Options of its own, and those that go to :mod:`experiments.benchmarks.train`."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.short",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="All other options are those of experiments.benchmarks.train.",
    )
    parser.add_argument("--limit", type=float, default=300.0, help="seconds (default 300)")
    parser.add_argument("--expect", choices=("cpu", "gpu", "tpu"), help="fail on other devices")
    parser.add_argument("--out", type=Path, metavar="JSON", help="a file, or a folder for it")
    return parser.parse_known_args(arguments)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    own, others = parse(arguments)
    started = time.monotonic()
    args = train.parse(["--preset", "paper", "--dtype", "bfloat16", "--rounds", "5", *others])
    # Read when jax first looks for devices, which is below: PyTorch needs room on the same GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")
    if own.expect and jax.default_backend() != own.expect:
        raise ConfigError(f"--expect {own.expect}, but jax runs on {jax.default_backend()}")
    console, bench = Console(), Bench(args)
    result = describe(bench, sys.argv[1:] if arguments is None else arguments)
    result["command"][2] = "experiments.benchmarks.short"
    out = own.out
    if out is not None and out.suffix != ".json":
        out = out / file_name("short", result["device"], args.dtype)
    failed = []
    for name in GOALS:
        try:
            if time.monotonic() - started > own.limit:
                figures: dict[str, Any] = {"skipped": f"{own.limit:g} s are over"}
            else:
                figures = judged(name, measure(bench, name, result))
        except Exception as error:  # the other figures must not be lost
            failed.append(name)
            figures = {"failed": f"{type(error).__name__}: {error}"[:1000]}
        result[name] = {**figures, "at_second": round(time.monotonic() - started, 1)}
        show(console, {name: result[name]})
        if out is not None:
            write_json(out, result)
    if failed:
        raise SystemExit(f"error: failed: {', '.join(failed)}")
    return result


if __name__ == "__main__":
    run_main(main)
