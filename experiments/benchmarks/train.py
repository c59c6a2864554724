"""Speed of training: steps, prototype pass, loops, lowerings, sweeps, host path, PyTorch.

    make bench-gpu                     everything that needs an accelerator
    make bench-cpu                     this machine's cores, beside PyTorch
    python -m experiments.benchmarks.train --preset paper --dtype bfloat16 --full --out FOLDER/
    python -m experiments.benchmarks.train --parts torch --widths 16 32 --out train.json
    python -m experiments.benchmarks.train --tag no_graphs \
        --xla-flags="--xla_gpu_enable_command_buffer="

Random features of the paper's shape (313 frames of 128 mel filters, float16, 147 attribute
classes, 990 source clips to 10 target clips in each section) are put on the device; the steps, the
loops and the sweep are those that training runs. ``FIELD=VALUE`` changes the system as in
``experiments.two_stage``; ``--batch`` sets the batch of pre-training (fine-tuning takes
``finetune.ways`` x ``finetune.shots``).

Parts (``--parts``; each is written as soon as it is there, one that fails costs only itself):

- ``steps``: a step of both stages; what compiling took; memory; shares of the step from compiled
  sub-programs (sampling; and forward; and loss; and backward; the whole), as differences.
- ``pass``: the prototype pass.
- ``loops``: an epoch as one program against one call a step: what ``default_loop``
  chooses from.
- ``lowering``: every way to compile convolutions, for every one of ``--widths``, and the chosen
  one compiled with the backend's defaults: what ``default_lowering`` and ``compiler_options``
  choose from.
- ``sweep``: S runs as one program against S runs in a row; short epochs of pre-training, prototype
  pass included.
- ``host``: crops gathered by the host against resident features, on the same epochs.
- ``torch``: the pre-training step against the same network in PyTorch (``torch_reference.py``), for
  every one of ``--widths``. Values are compared first. Our side gathers and standardizes its crops
  in the step, PyTorch finds them ready.

Times: every contender runs K steps (``--steps``) and waits for the device (``block_until_ready``);
that over K is a step's time. Contenders take turns for ``--rounds`` rounds after one that does not
count; median and quartiles over rounds, ratios within rounds. Other work on the machine slows
PyTorch's threads, which wait for each other, more than ours: look at ``load_before``, and at the
ratio of the fastest rounds beside that of the medians. Arithmetic counts convolutions only:
a convolution does ``2 * size^2 * channels * features * rows * columns`` operations forward, and as
many again for each of its two gradients (the first layer needs one of them only). The peak is that
of a large matrix product in the same dtype, measured in the same run. ``--full`` really runs the
schedule, every epoch as training runs it, compiling included.

Goals stand in :mod:`experiments.benchmarks.short`. No figure of a GPU has been measured yet, nor
one of a CPU since the loop was rebuilt.
"""

import functools
import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
from rich.console import Console

from asdproto.arguments import Parser, within
from asdproto.commands.train import describe_systems
from asdproto.config import at_least
from asdproto.models.convolution import Lowering, compiler_options
from asdproto.systems.prototype import STAGES
from asdproto.training import step as steps
from asdproto.training.devices import Loop
from asdproto.training.host import gather_crops
from asdproto.training.loop import Programs, stack_runs
from asdproto.training.task import Task
from experiments.benchmarks.common import (
    CLASSES,
    CLIPS,
    MELS,
    PIECES,
    Bench,
    Compiled,
    forward_flops,
    measure_peak,
    per_step,
    project,
    start,
)
from experiments.benchmarks.timing import interleave, ratios, rounded, run_parts, show, spread
from experiments.common import run_main


def measure_steps(bench: Bench) -> dict[str, Any]:
    """Steps of both stages and their parts."""
    figures: dict[str, Any] = {"matrix_product_tflops": measure_peak(bench)}
    for stage in STAGES:
        task = bench.task(stage, bench.loop, bench.count)
        made = {name: bench.stepper(task, bench.loop, name) for name in PIECES}
        programs = Programs(bench.task(stage, bench.loop), bench.devices)
        plan_args = jnp.int32(0), bench.index, jax.random.key(1), bench.inputs(task)[2]
        planning = Compiled.of(programs.plan, *plan_args)
        seconds, _ = interleave(
            {name: run for name, (run, _) in made.items()}
            | {"plan": lambda p=planning, a=plan_args: jax.block_until_ready(p.call(*a))},
            bench.args.rounds,
        )
        # Drawing an epoch's choices is part of sampling, spread over the epoch's steps.
        plan_ms = 1e3 * statistics.median(seconds["plan"]) / programs.task.steps_per_epoch
        whole = per_step(seconds["step"], bench.count)
        model: Any = task.model
        total, stem = forward_flops(model.width, model.stages, task.crop, MELS)
        flops = task.stage.batch * (3 * total - stem)
        tflops = flops / whole["median"] * 1e-9
        parts = {"sampling": plan_ms + 1e3 * statistics.median(seconds["sampling"]) / bench.count}
        for before, name in itertools.pairwise(PIECES):
            gain = [b - a for a, b in zip(seconds[before], seconds[name], strict=True)]
            part = "optimizer" if name == "step" else name
            parts[part] = 1e3 * statistics.median(gain) / bench.count
        figures[stage] = {
            "batch": task.stage.batch,
            "steps_timed": bench.count,
            "milliseconds": whole,
            "clips_per_second": round(1e3 * task.stage.batch / whole["median"], 1),
            "compile_seconds": made["step"][1].seconds,
            "gflop_per_step": round(flops * 1e-9, 3),
            "tflops": rounded(tflops),
            "share_of_matrix_product": round(tflops / figures["matrix_product_tflops"], 4),
            "milliseconds_by_part": {name: rounded(ms) for name, ms in parts.items()},
            "share_by_part": {
                name: round(ms / (whole["median"] + plan_ms), 4) for name, ms in parts.items()
            },
            "compiled_memory_bytes": made["step"][1].memory,
        }
    return figures


def measure_pass(bench: Bench) -> dict[str, Any]:
    """The prototype pass over all clips."""
    task = bench.task("pretrain", bench.loop, bench.count)
    state = bench.state(task)
    index, plan, _ = bench.inputs(task)
    if bench.loop == "scan":
        whole = jax.jit(
            lambda *args: steps.scan_pass(task, *args).prototypes,
            compiler_options=compiler_options(bench.platform),
        )
        program = Compiled.of(whole, state, index, plan)

        def run() -> None:
            jax.block_until_ready(program.call(state, index, plan))
    else:
        programs = Programs(task, bench.devices)
        empty = programs.empty_sums(state.step)
        program = Compiled.of(programs.chunk, state, index, plan, empty, None)

        def run() -> None:
            sums = programs.empty_sums(state.step)
            for _ in range(task.pass_shape[0]):
                sums = program.call(state, index, plan, sums, None)
            jax.block_until_ready(sums)

    seconds = interleave({"pass": run}, bench.args.rounds)[0]["pass"]
    middle = statistics.median(seconds)
    model: Any = task.model
    flops, _ = forward_flops(model.width, model.stages, task.crop, MELS)
    return {
        "clips": bench.clips,
        "crops_per_call": task.pass_shape[1],
        "seconds": spread(seconds),
        "crops_per_second": spread([bench.clips / value for value in seconds]),
        "tflops": rounded(bench.clips * flops / middle * 1e-12),
        "compile_seconds": program.seconds,
    }


def compare_steps(
    bench: Bench, made: dict[str, tuple[Callable[[], None], Compiled]], base: str
) -> dict[str, Any]:
    """Steps by name, in turns, and how fast each is to the one of the name ``base``."""
    seconds, _ = interleave({name: run for name, (run, _) in made.items()}, bench.args.rounds)
    return {
        name: {
            "milliseconds": per_step(seconds[name], bench.count),
            f"speed_to_{base}": ratios(seconds[base], seconds[name]),
            "compile_seconds": program.seconds,
        }
        for name, (_, program) in made.items()
    }


def measure_loops(bench: Bench) -> dict[str, Any]:
    """Pre-training steps as one program and one by one."""
    loops: tuple[Loop, ...] = ("dispatch", "scan")
    made: dict[str, Any] = {
        loop: bench.stepper(bench.task("pretrain", loop, bench.count), loop) for loop in loops
    }
    if bench.platform == "cpu":  # the cliff that the default walks around
        native = bench.task("pretrain", "scan", bench.count, lowering="native")
        made["scan, native convolution"] = bench.stepper(native, "scan")
    return compare_steps(bench, made, "dispatch")


def measure_lowering(bench: Bench) -> dict[str, Any]:
    """Pre-training steps by lowering and width."""
    figures: dict[str, Any] = {}
    for width in bench.widths:
        made = {
            name: bench.stepper(
                bench.task("pretrain", bench.loop, bench.count, width=width, lowering=name),
                bench.loop,
            )
            for name in get_args(Lowering)
        }
        if compiler_options(bench.platform):
            task = bench.task("pretrain", bench.loop, bench.count, width=width)
            made["default_options"] = bench.stepper(task, bench.loop, suited=False)
        figures[str(width)] = compare_steps(bench, made, "native")
    return figures


def measure_sweep(bench: Bench, lowerings: Sequence[str] = ()) -> dict[str, Any]:
    """Several runs as one program against as many in a row; at all lowerings that are worth it."""
    runs, (data, index) = bench.args.runs, bench.short()
    key = jax.random.key(2)
    task = bench.task("pretrain", bench.loop, data=data)
    contenders: dict[str, Callable[[], Any]] = {"single": bench.runner(task, index, key)}
    keys, hyper = jax.random.split(key, runs), bench.devices.replicate(task.stage.hyper())
    hypers = stack_runs(
        [hyper._replace(temperature=jnp.float32(0.07 + 0.01 * k)) for k in range(runs)]
    )
    compiling = {}
    # Grouped convolutions in a loop take a CPU minutes.
    worth = ("patches",) if bench.platform == "cpu" else ("native", "native_if_fits", "patches")
    for name in lowerings or worth:
        varied = bench.task("pretrain", "scan", data=data, lowering=name)
        held = [bench.devices.replicate(stack_runs([bench.state(varied)] * runs))]
        program = Compiled.of(
            Programs(varied, bench.devices, runs).epoch,
            held[0], index, keys, hypers,
        )  # fmt: skip

        def sweep(held: list[Any] = held, program: Compiled = program) -> None:
            held[0] = jax.block_until_ready(program.call(held[0], index, keys, hypers))

        contenders[name] = sweep
        compiling[name] = program.seconds
    seconds, _ = interleave(contenders, bench.args.rounds)
    return {
        "runs": runs,
        "steps_per_epoch": task.steps_per_epoch,
        "single_epoch_seconds": spread(seconds["single"]),
        **{
            name: {
                "epoch_seconds": spread(seconds[name]),
                "throughput_to_single": ratios([runs * t for t in seconds["single"]], taken),
                "compile_seconds": compiling[name],
            }
            for name, taken in seconds.items()
            if name != "single"
        },
    }


def measure_host(bench: Bench) -> dict[str, Any]:
    """Epochs of pre-training from the host's crops against resident features."""
    data, index = bench.short()
    key = jax.random.key(3)
    resident = bench.task("pretrain", bench.loop, data=data)
    host = bench.task("pretrain", "dispatch", data=data)
    contenders = {
        "resident": bench.runner(resident, index, key),
        "host": bench.runner(host, index, key, functools.partial(gather_crops, data.train)),
    }
    seconds, _ = interleave(contenders, bench.args.rounds)
    return {
        "clips": len(data.labels),
        "resident_epoch_seconds": spread(seconds["resident"]),
        "host_epoch_seconds": spread(seconds["host"]),
        "host_speed_to_resident": ratios(seconds["resident"], seconds["host"]),
    }


def measure_torch(bench: Bench) -> dict[str, Any]:
    """The pre-training step against PyTorch."""
    if importlib.util.find_spec("torch") is None:
        return {"skipped": "PyTorch is not installed: pip install -e '.[bench]'"}
    import torch

    from experiments.benchmarks import torch_reference

    figures: dict[str, Any] = {"threads": torch.get_num_threads(), "cuda": torch.version.cuda}
    both = bench.platform == "gpu" or bench.args.torch_compile
    for width in bench.widths:
        task = bench.task("pretrain", bench.loop, bench.count, width=width)
        exact = bench.task("pretrain", bench.loop, bench.count, width=width, dtype="float32")
        figures[str(width)] = {
            "differences": torch_reference.compare(exact, *bench.first_batch(task)),
            **time_torch(bench, task, ("eager", "compiled") if both else ("eager",)),
        }
    return figures


def time_torch(bench: Bench, task: Task, names: Sequence[str]) -> dict[str, Any]:
    """Steps in turns with PyTorch's, ``"eager"`` and ``"compiled"`` ones."""
    from experiments.benchmarks import torch_reference

    made, failed = torch_reference.rivals(
        task, *jax.device_get(bench.first_batch(task)), dtype=bench.args.dtype, names=names
    )
    contenders: dict[str, Callable[[], None]] = {
        name: lambda rival=rival: rival.run(bench.count)  # type: ignore[misc]
        for name, rival in made.items()
    }
    ours = bench.stepper(task, bench.loop)[0]
    seconds, _ = interleave({"ours": ours, **contenders}, bench.args.rounds)
    fastest = {name: round(min(seconds[name]) / min(seconds["ours"]), 3) for name in made}
    return {
        **{f"{name}_milliseconds": per_step(seconds[name], bench.count) for name in seconds},
        **{f"speed_to_{name}": ratios(seconds[name], seconds["ours"]) for name in made},
        **{f"speed_to_{name}_fastest_rounds": value for name, value in fastest.items()},
        **{f"{name}_failed": why for name, why in failed.items()},
    }


def measure_full(bench: Bench) -> dict[str, Any]:
    """The whole schedule, really run; fine-tuning goes on where pre-training ends."""
    figures: dict[str, Any] = {"clips": bench.clips}
    begun = time.perf_counter()
    state: Any = None
    for number, stage in enumerate(STAGES):
        task = bench.task(stage, bench.loop)
        if state is None:
            state = task.init(jax.random.key(0), MELS)
        else:
            state = task.start(state.params["encoder"], state.batch_stats, jax.random.key(0))
        run = bench.runner(task, bench.index, jax.random.key(10 + number), state=state)
        epochs, losses = [], []
        for _ in range(task.stage.total_epochs):
            started = time.perf_counter()
            state = run()
            losses.append(float(state.loss_sum) / task.steps_per_epoch)
            epochs.append(time.perf_counter() - started)
        figures[stage] = {
            "epochs": len(epochs),
            "steps": len(epochs) * task.steps_per_epoch,
            "seconds": round(sum(epochs), 3),
            "first_epoch_seconds": round(epochs[0], 3),
            "epoch_seconds": spread(epochs[1:] or epochs),
            "first_loss": losses[0],
            "last_loss": losses[-1],
        }
    figures["seconds"] = round(time.perf_counter() - begun, 3)
    later = [max(0.0, f["first_epoch_seconds"] - f["epoch_seconds"]["median"])
             for f in (figures[stage] for stage in STAGES)]  # fmt: skip
    figures["seconds_without_compiling"] = round(figures["seconds"] - sum(later), 3)
    return figures


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "steps": measure_steps,
    "pass": measure_pass,
    "loops": measure_loops,
    "lowering": measure_lowering,
    "sweep": measure_sweep,
    "host": measure_host,
    "full": measure_full,
    "torch": measure_torch,  # last: two frameworks share a device then
}


def make_parser(module: str, description: str | None) -> Parser:
    """The options of a benchmark of training."""
    parser = Parser(prog=f"python -m experiments.benchmarks.{module}", description=description)
    add, count = parser.add_argument, within(int, at_least(1))
    add("--preset", choices=tuple(CLIPS), default="small", help="of the system")
    add("--parts", nargs="+", choices=[n for n in PARTS if n != "full"], help="default all")
    add("--full", action="store_true", help="run the whole schedule too")
    add("--width", type=count, help="of the encoder, for all parts that take one")
    add("--widths", type=count, nargs="+", help="for lowering and torch; default the encoder's")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the arithmetic")
    add("--batch", type=count, help="of pre-training")
    add("--clips", type=count, help="training clips; default the preset's, at most 1,024 on CPU")
    add("--classes", type=count, default=CLASSES, help="attribute classes")
    add("--loop", choices=("scan", "dispatch"), help="default what suits the backend")
    add("--steps", type=count, help="steps in a turn; default 4 on CPU, else 200")
    add("--rounds", type=count, default=10, help="turns of every contender")
    add("--runs", type=count, default=8, help="runs in a sweep")
    add("--matrix", type=count, help="size of the matrix product; default 2048 on CPU, else 8192")
    add("--torch-compile", action="store_true", help="torch.compile on CPU too")
    add("--xla-flags", default="", metavar="FLAGS", help="put into XLA_FLAGS; recorded")
    add("--expect", choices=("cpu", "gpu", "tpu"), help="fail where jax has no such device")
    add("--out", type=Path, metavar="JSON", help=f"write there; a folder gets {module}_DEVICE.json")
    add("--tag", default="", help="ends the name of a file in a folder")
    parser.add_overrides(lambda _: describe_systems("prototype"))
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    args = make_parser("train", __doc__).parse_args(arguments)
    wanted = args.parts or [name for name in PARTS if name != "full"]
    parts = [name for name in PARTS if name in wanted or (name == "full" and args.full)]
    bench, result, out = start(args, "train", arguments, torch="torch" in parts)
    console = Console()
    console.print(
        f"{result['device']}, jax {jax.__version__}, load {result['load_before']} before. "
        f"Median and quartiles of {args.rounds} interleaved rounds of {bench.count} steps, each "
        "waited for; one more round before does not count.",
        highlight=False,
    )

    def measure(name: str) -> dict[str, Any]:
        found = PARTS[name](bench)
        if name != "torch":
            result["peak_memory"] = bench.peak_memory()
        if name == "pass" and result.get("steps", {}).keys() >= set(STAGES):
            result["projected"] = project(bench, {**result, name: found})
        return found

    run_parts(parts, measure, result, out)
    summary: dict[str, Any] = {
        key: result[key] for key in ("projected", "peak_memory") if key in result
    }
    if summary:
        show(console, summary)
    return result


if __name__ == "__main__":
    run_main(main)
