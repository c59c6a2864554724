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

import importlib.util
import time
from collections.abc import Sequence
from typing import Any

from asdproto.arguments import Parser
from asdproto.systems.prototype import STAGES
from experiments.benchmarks import train
from experiments.benchmarks.common import Bench, per_step, project, start
from experiments.benchmarks.timing import interleave, run_parts
from experiments.common import run_main

# Figure -> its name in the result, the goal of it or of its median, and whether more is better.
GOALS: dict[str, tuple[str, float, bool]] = {
    "pretrain": ("milliseconds", 1.0, False),
    "finetune": ("milliseconds", 1.6, False),
    "pass": ("crops_per_second", 200_000, True),
    "schedule": ("seconds", 120, False),
    "eager": ("speed_to_eager", 3, True),
    "compiled": ("speed_to_compiled", 1.2, True),
    "sweep": ("throughput_to_single", 2.5, True),
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
    if importlib.util.find_spec("torch") is None:
        return {"skipped": "PyTorch is not installed"}
    return train.time_torch(bench, bench.task("pretrain", bench.loop, bench.count), (name,))


def judged(name: str, figures: dict[str, Any]) -> dict[str, Any]:
    """A figure beside its goal."""
    key, goal, more_is_better = GOALS[name]
    if key not in figures:
        return figures
    value = figures[key] if name == "schedule" else figures[key]["median"]
    met = value >= goal if more_is_better else value <= goal
    return {**figures, "goal": goal, "met": bool(met)}


def make_parser() -> Parser:
    """The options, which are those of :mod:`experiments.benchmarks.train`, and a limit."""
    parser = train.make_parser("short", __doc__)
    parser.set_defaults(preset="paper", dtype="bfloat16", rounds=5)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds")
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    started, args = time.monotonic(), make_parser().parse_args(arguments)
    bench, result, out = start(args, "short", arguments, torch=True)

    def figure(name: str) -> dict[str, Any]:
        if time.monotonic() - started > args.limit:
            return {"skipped": f"{args.limit:g} s are over"}
        figures = judged(name, measure(bench, name, result))
        return {**figures, "at_second": round(time.monotonic() - started, 1)}

    run_parts(list(GOALS), figure, result, out)
    return result


if __name__ == "__main__":
    run_main(main)
