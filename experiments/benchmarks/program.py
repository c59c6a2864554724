"""What the compiler makes of training for a GPU, on a machine that need not have one.

    pip install -e '.[cuda13]'
    python -m experiments.benchmarks.program --out experiments/results/program_h100.json

XLA compiles for a GPU that is described to it (``--target``; the default describes an H100). Whole
epochs of both stages are compiled, and sweeps of ``--runs`` runs. Of the loop over the steps this
prints what each step launches and moves, by direction and kind:

- ``kernels``: programs that the GPU is given, calls of libraries included;
- ``megabytes``: what they read and write, were every array read from memory once by every program
  that takes it; caches make it less. Of the features, which steps only gather crops from, only the
  crops count.

No time is measured: nothing runs. Both numbers bound it from below (a launch costs microseconds,
an H100 reads 3.35 GB in a millisecond), and both show before a GPU is at hand whether a change
helps. Algorithms of matrix products and convolutions are chosen by trying on the device, so what
these need besides their operands is not seen here.

At paper scale for an H100 (width 64, bfloat16, ``experiments/results/program_h100.json``, made with
``--lowering auto --runs 8``): a step of pre-training 271 kernels and 883 MB, of fine-tuning 294 and
1,916 MB; of 8 runs as one program 305 and 8,154 MB, 324 and 18,921 MB.
"""

import functools
import math
import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from rich.console import Console

from asdproto.arguments import Parser
from asdproto.config import ConfigError, override
from asdproto.data.dataset import Dataset
from asdproto.systems.prototype import STAGES, make_task
from asdproto.training.devices import Devices
from asdproto.training.state import clip_index
from asdproto.training.step import run_epoch
from asdproto.training.task import Task
from experiments.benchmarks.common import CLASSES, CLIPS, FRAMES, MELS, make_data, versions
from experiments.benchmarks.timing import show
from experiments.common import run_main, write_json
from experiments.two_stage import get_config

# Facts of the device, as XLA writes and reads them.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
runtime_version { major: 13 minor: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

BYTES = {"pred": 1, "u8": 1, "s8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}
# Instructions that name memory or rename it; nothing is launched for them.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
LIBRARY = re.compile(r'custom_call_target="__cu|"kind":"__(triton|cublas|cudnn)\w*gemm')


class Kernel(NamedTuple):
    """An instruction of a compiled program.

    Attributes:
      name: Its name there.
      kind: ``"product"`` (convolutions and matrix products), ``"normalization"`` or ``"other"``.
      direction: ``"forward"``, ``"backward"`` or ``"around"``: sampling and the update.
      read: Bytes of its operands.
      written: Bytes of its results.
    """

    name: str
    kind: str
    direction: str
    read: int
    written: int


def size(shape: str) -> int:
    """Bytes of the arrays that a text of shapes such as ``(f32[2,3]{1,0}, s32[])`` names."""
    total = 0
    for dtype, dimensions in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape):
        lengths = map(int, filter(None, dimensions.split(",")))
        total += math.prod(lengths) * BYTES.get(dtype, 0)
    return total


def computations(text: str) -> dict[str, list[str]]:
    """Lines of every computation of a compiled program, by name."""
    by_name: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            lines = by_name.setdefault(head[1], [])
        elif line.startswith(" "):
            lines.append(line)
    return by_name


def loop_kernels(text: str, gathered: int = 0) -> list[Kernel]:
    """What a turn of the longest loop of a compiled program launches, in order.

    Arrays of at least ``gathered`` bytes are gathered from: they are not read whole.

    Raises:
      ValueError: The program has no loop.
    """
    bodies = computations(text)
    names = set(re.findall(r"body=%?([\w.\-]+)", text))
    if not names:
        raise ValueError("the program has no loop; found no body= in its text")
    shapes: dict[str, int] = {}
    kernels = []
    pattern = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)")
    for line in max((bodies[name] for name in names), key=len):
        if not (match := pattern.match(line)):
            continue
        name, shape, operation, rest = match.groups()
        shapes[name] = size(shape)
        if operation in FREE:
            continue
        scope = re.search(r'op_name="([^"]*)"', rest)
        where = scope[1] if scope else ""
        kind = "normalization" if "norm" in where else "other"
        if LIBRARY.search(rest):  # its scratch is the last of its results
            kind, shape = "product", re.sub(r"\bu8\[\d+\]", "", shape)
        direction = "around"
        if "jvp(" in where:
            direction = "backward" if "transpose(" in where else "forward"
        operands = [shapes.get(x, 0) for x in re.findall(r"%([\w.\-]+)", rest.split(")")[0])]
        read = sum(x for x in operands if not gathered or x < gathered)
        kernels.append(Kernel(name, kind, direction, read, size(shape)))
    return kernels


def describe_device(target: str) -> Any:
    """The device of a description, for which programs can be compiled.

    Raises:
      ConfigError: No compiler for it is installed, or it does not understand the description.
    """
    # Compiling needs no driver, which the check of versions asks for.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    jax.devices()  # registers what compilers are installed
    try:
        described = topologies.get_topology_desc(
            topology_name="", platform="cuda", target_config=target, topology="1x1x1"
        )
    except Exception as error:  # of several types, by version and cause
        raise ConfigError(
            f"cannot compile for the described GPU: {str(error).splitlines()[0]}; the compiler is "
            "installed by pip install -e '.[cuda13]', no GPU is needed"
        ) from error
    return described.devices[0]


def epoch_program(task: Task, data: Dataset, device: Any, runs: int = 0) -> Any:
    """An epoch of a stage, or of several runs of it, compiled for a device."""
    sharding = jax.sharding.SingleDeviceSharding(device)

    def abstract(tree: Any, *leading: int) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((*leading, *x.shape), x.dtype, sharding=sharding), tree
        )

    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda key: task.init(key, MELS), key)
    hyper = jax.tree.map(jnp.asarray, task.stage.hyper())
    shape = (len(data.labels), FRAMES, MELS)
    features = jax.ShapeDtypeStruct(shape, jnp.float16, sharding=sharding)
    index = abstract(clip_index(data, resident=False))._replace(features=features)

    each = (runs,) if runs else ()
    function = functools.partial(run_epoch, task)
    if runs:
        function = jax.vmap(function, in_axes=(0, None, 0, 0))
    lowered = jax.jit(function, donate_argnums=0).lower(
        abstract(state, *each), index, abstract(key, *each), abstract(hyper, *each)
    )
    return lowered.compile()


def summarize(compiled: Any, gathered: int) -> dict[str, Any]:
    """Kernels, bytes and memory of a compiled epoch."""
    kernels = loop_kernels(compiled.as_text(), gathered)
    counts: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    for kernel in kernels:
        for group in (f"{kernel.direction}, {kernel.kind}", "all"):
            counts[group] += 1
            moved[group] += kernel.read + kernel.written
    memory = compiled.memory_analysis()
    return {
        "kernels": {group: counts[group] for group in sorted(counts)},
        "megabytes": {group: round(moved[group] / 1e6, 1) for group in sorted(counts)},
        "temporary_megabytes": round(memory.temp_size_in_bytes / 1e6, 1),
        "argument_megabytes": round(memory.argument_size_in_bytes / 1e6, 1),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = Parser(
        prog="python -m experiments.benchmarks.program",
        description="Kernels and bytes of a training step, compiled for a GPU without one.",
    )
    add = parser.add_argument
    add("--target", type=Path, metavar="FILE", help="description of the GPU; an H100 by default")
    add("--preset", choices=tuple(CLIPS), default="paper")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    add("--width", type=int, metavar="N", help="channels of the first stage; the preset's")
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    add("--lowering", nargs="+", default=["auto"], help="how convolutions are compiled, to compare")
    add("--runs", type=int, default=0, metavar="S", help="a sweep of S runs besides")
    add("--out", type=Path, metavar="FILE", help="json of the result")
    args, console = parser.parse_args(arguments), Console()
    device = describe_device(args.target.read_text() if args.target else H100)
    changes = [f"encoder.dtype={args.dtype}"]
    if args.width:
        changes.append(f"encoder.width={args.width}")
    base, clips = override(get_config(args.preset), changes), CLIPS[args.preset]
    data = make_data(clips, CLASSES, base.encoder.crop)
    result: dict[str, Any] = {
        "device": f"{device.device_kind}, described, not present",
        "versions": versions(),
        "preset": args.preset,
        "dtype": args.dtype,
        "width": base.encoder.width,
        "clips": clips,
        "programs": {},
    }
    for lowering in args.lowering:
        system = override(base, [f"encoder.lowering={lowering}"])
        for stage in args.stages:
            task = make_task(system, stage, data, Devices((device,), 1, 0), "scan")
            for runs in (0, args.runs) if args.runs else (0,):
                name = f"{stage}, {task.model.lowering}" + (f", {runs} runs" if runs else "")
                with console.status(f"compiling {name}"):
                    started = time.perf_counter()
                    compiled = epoch_program(task, data, device, runs)
                    seconds = round(time.perf_counter() - started, 1)
                figures = summarize(compiled, clips * FRAMES * MELS * 2)
                result["programs"][name] = {"compile_seconds": seconds, **figures}
                show(console, {name: result["programs"][name]})
    if args.out is not None:
        write_json(args.out, result)
        console.print(f"Written to {args.out}", highlight=False, soft_wrap=True)
    return result


if __name__ == "__main__":
    run_main(main)
