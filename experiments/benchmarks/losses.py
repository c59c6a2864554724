r"""The losses: speed and memory, and what each of them learns.

    python -m experiments.benchmarks.losses --cores 1 --out losses_speed_cpu.json
    python -m experiments.benchmarks.losses --loss arcface --sizes 512x1024x256 --rounds 50
    python -m experiments.benchmarks.losses --part quality --data ROOT OTHER_ROOT \
        --workdir runs/losses --seeds 0 1 2 3 4 --out quality.json --plot quality.png
    python -m experiments.benchmarks.losses --plot-from quality.json --plot quality.png
    python -m experiments.benchmarks.losses --own mine:objective --loss mine:objective softmax

**Speed.** For every loss and size (batch x classes x dimensions), the time of a value and its
gradients in all vector arguments: ours; ours by chunks of 2,048 classes (or of 512 anchors); the
formula typed into JAX, with optax's loss where it has one and with plain operations; and
pytorch-metric-learning's same loss, where it is installed (``pip install -e '.[bench]'``). Values
and gradients are compared before anything is timed; then all take turns in one process, so that
what else the machine does slows all alike. Ratios are medians over rounds, of time on the clock and
of CPU time. The table has the latter's on a CPU; on one core (``--cores 1``) it is hardly disturbed
by other work. Memory is what the compiled program takes beside its arguments and results, as the
compiler says; what would not fit into ``--memory`` is compiled, reported and not run.

**Quality.** One encoder, schedule, sampler and data set; only the loss differs. All train for the
epochs of the preset's pre-training on balanced episodes of 8 classes x 4 clips, from the same
seeds, at the temperature that their authors publish, and at the best of three (half of it, it,
twice it) by normal training clips that are kept out. Each encoder is scored twice: by the nearest
training clips with the maps of all stages, as the small preset does, and by prototypes with the
last stage, as the paper does. Differences to attribute softmax are paired by seed. The comparison
may be made in pieces: what a work folder holds is read back, see :mod:`experiments.loss_quality`.

**A loss of your own** joins both parts: ``--own package.module:function``, importable from the
working directory, where ``function(stage)`` returns an
:class:`asdproto.training.objectives.Objective`. ``--loss`` then takes its path as a name.
``experiments`` is no part of the installed package: run this from a checkout.
"""

import argparse
import json
import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from asdproto.arguments import Parser, within
from asdproto.config import at_least, nearest
from asdproto.data.store import versions
from asdproto.systems import PRESETS, load_path
from asdproto.training.objectives import OBJECTIVES
from experiments import common, loss_quality
from experiments.benchmarks.loss_rivals import ENTRIES, Entry
from experiments.benchmarks.timing import interleave, ratios, spread

SIZES = ((128, 147, 512), (512, 1024, 256))
# Of accelerators, too; with several prototypes a class, as many of them.
LARGE_SIZES = ((1024, 10_000, 512), (4096, 100_000, 512))
LARGE_SEVERAL_SIZES = ((1024, 2500, 512), (4096, 25_000, 512))
PIECES = {"classes": 2048, "anchors": 512}
GIB = 2**30
OwnLosses = Mapping[str, loss_quality.MakeObjective]
KINDS = {
    "ours": "ours",
    "pieces": "ours, chunked",
    "optax": "optax",
    "naive": "plain JAX",
    "torch": "pytorch-metric-learning",
}


def compiled(
    loss: Callable[..., jax.Array], arrays: dict[str, np.ndarray], labels: np.ndarray
) -> tuple[Any, int]:
    """Value and gradients of the mean, compiled, and the bytes it takes beside arguments."""

    def mean(arrays: list[jax.Array], labels: jax.Array) -> jax.Array:
        return jnp.mean(loss(*arrays, labels))

    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays.values()]
    label_shape = jax.ShapeDtypeStruct(labels.shape, jnp.int32)
    program = jax.jit(jax.value_and_grad(mean)).lower(shapes, label_shape).compile()
    analysis = program.memory_analysis()
    return program, analysis.temp_size_in_bytes if analysis else 0


def torch_memory(entry: Entry, arrays: dict[str, np.ndarray], batch: int) -> int:
    """About the bytes that the rival takes."""
    if entry.name == "nt_xent":  # makes a matrix of positive pairs by negative pairs
        return 6 * 4 * batch * batch * (batch - 2)
    if entry.name == "triplet":
        return 8 * 8 * batch * batch * (entry.group - 1)
    rows = math.prod(list(arrays.values())[1].shape[:-1]) if not entry.group else batch
    return 8 * 4 * batch * rows  # about eight matrices of scores


def difference(actual: Any, expected: Any) -> dict[str, float]:
    """Largest difference of values and gradients, over the largest entry of what is expected."""

    def relative(a: Any, b: Any) -> float:
        a, b = (np.asarray(x.cpu() if hasattr(x, "cpu") else x, np.float64) for x in (a, b))
        return float(f"{np.abs(a - b).max() / max(np.abs(b).max(), 1e-30):.2g}")

    pairs = zip(actual[1], expected[1], strict=True)
    return {
        "value": relative(actual[0], expected[0]),
        "gradients": max(relative(a, b) for a, b in pairs),
    }


def measure(
    entry: Entry, size: tuple[int, int, int], args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """What every implementation of a loss costs at a size."""
    batch, classes, dim = size
    arrays, labels = entry.make(batch, classes, dim), entry.labels(batch, classes)
    results: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], Any]] = {}
    placed: list[jax.Array] = []

    def add(name: str, loss: Callable[..., jax.Array]) -> None:
        program, temporary = compiled(loss, arrays, labels)
        results[name] = {"temporary_mib": round(temporary / 2**20, 2)}
        if temporary > args.memory * GIB:
            results[name]["skipped"] = f"needs {temporary / GIB:.0f} GiB"
            return
        placed[:] = placed or [jnp.asarray(x) for x in arrays.values()]
        y = jnp.asarray(labels, jnp.int32)
        calls[name] = lambda: jax.block_until_ready(program(list(placed), y))

    add("ours", entry.ours)
    whole, piece = (batch, "anchors") if entry.group else (classes, "classes")
    if entry.chunk and whole > PIECES[piece]:
        add("pieces", lambda *arguments: entry.ours(*arguments, chunk_size=PIECES[piece]))
    for name, rival in {"optax": entry.optax, "naive": entry.naive}.items():
        if rival is not None:
            add(name, rival)
    if entry.torch is not None and args.torch:
        needed, results["torch"] = torch_memory(entry, arrays, batch), {}
        if needed > args.memory * GIB:
            results["torch"]["skipped"] = f"needs about {needed / GIB:.0f} GiB"
        else:
            calls["torch"] = entry.torch(arrays, labels)

    base = "ours" if "ours" in calls else "pieces"
    if base not in calls:
        return results
    expected = calls[base]()
    for name, call in calls.items():
        if name != base:
            results[name]["difference"] = difference(call(), expected)
    wall, cpu = interleave(calls, args.rounds, limit=args.seconds, prepared=True)
    for name in calls:
        for prefix, taken in {"": wall, "cpu_": cpu}.items():
            results[name][f"{prefix}ms"] = spread([1e3 * x for x in taken[name]])
            results[name][f"{prefix}times_ours"] = ratios(taken[name], taken[base])
        results[name]["rounds"] = len(wall[name])
    return results


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device() -> dict[str, Any]:
    """What the figures were taken on."""
    on_cpu, packages = jax.default_backend() == "cpu", ("jax", "torch", "pytorch-metric-learning")
    facts: dict[str, Any] = {
        "device": common.processor() if on_cpu else jax.devices()[0].device_kind,
        "cores": cores(),
        "clock": "CPU" if on_cpu else "wall",
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version(), **versions(packages)},
    }
    if packages[-1] in facts["versions"]:
        import torch

        torch.set_num_threads(cores())
    else:
        facts["torch_missing"] = "pip install -e '.[bench]' to compare with it"
    return facts


def speed(args: argparse.Namespace, own: OwnLosses, console: Console) -> dict[str, Any]:
    """Times every loss at every size, those of one's own last."""
    result: dict[str, Any] = {"part": "speed", **device(), "memory_gib": args.memory}
    args.torch = "torch_missing" not in result
    console.print(f"{result['device']}, {result['cores']} cores, load {result['load_before']}")
    result["rows"] = []
    for entry, size in entries(args, own):
        with console.status(f"{entry.name} {show_size(size)}"):
            row = {"loss": entry.name, "size": size, **measure(entry, size, args)}
        result["rows"].append(row)
        console.print(one_line(row), soft_wrap=True)
        if args.out is not None:  # what is measured stays, whatever comes
            common.write_json(args.out, result)
    return result


def entries(
    args: argparse.Namespace, own: OwnLosses
) -> Iterator[tuple[Entry, tuple[int, int, int]]]:
    """What is to be timed, at which size."""
    large = jax.default_backend() != "cpu"
    for entry in ENTRIES:
        more = LARGE_SEVERAL_SIZES if "several" in entry.arrays else LARGE_SIZES
        for batch, classes, dim in args.sizes or (SIZES + more if large else SIZES):
            if not args.loss or entry.name in args.loss:
                yield entry, (batch, 0 if entry.group else classes, dim)
    for name, make in own.items():
        for size in args.sizes or SIZES:
            if not args.loss or name in args.loss:
                loss, parameters = loss_quality.as_function(make, *size[1:])
                yield Entry(name, ("embeddings",), loss, chunk=False, more=parameters), size


def show_size(size: Sequence[int]) -> str:
    """As on the command line."""
    return "x".join(f"{x}" for x in size if x)


def one_line(row: dict[str, Any]) -> str:
    """A row in words: what is skipped and why, or else milliseconds."""
    costs = {KINDS[name]: row[name] for name in KINDS if name in row}
    words = {
        name: one.get("skipped") or f"{one['ms']['median']:,.2f} ms" for name, one in costs.items()
    }
    each = "; ".join(f"{name} {text}" for name, text in words.items())
    return f"{row['loss']} {show_size(row['size'])}: {each}"


def report(result: dict[str, Any], console: Console) -> None:
    """Prints the table, of 80 columns at most."""
    times = "cpu_times_ours" if result["clock"] == "CPU" else "times_ours"
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title=f"Value and gradients: ours, and {result['clock']} time of others over ours",
    )
    table.add_column("loss", overflow="fold")
    for name in ("B x C x D", "ms", "MiB", "chunked", "optax", "plain", "p-m-l"):
        table.add_column(name, justify="right", overflow="fold")
    worst = {}
    for row in result["rows"]:
        costs = row["ours"]
        cells = [f"{costs['ms']['median']:,.2f}" if "ms" in costs else "-"]
        cells.append(f"{costs['temporary_mib']:,.1f}")
        for name in list(KINDS)[1:]:
            known = row.get(name, {})
            skipped = "-" if "skipped" in known else ""
            cells.append(f"{known[times]['median']:.2f}" if times in known else skipped)
            if known.get("difference"):
                worst[max(known["difference"].values())] = f"{KINDS[name]}, {row['loss']}"
        table.add_row(row["loss"], show_size(row["size"]), *cells)
    console.print(table, highlight=False)
    if worst:
        largest = max(worst)
        console.print(f"values and gradients agree to {largest:.0e} ({worst[largest]})")


def plot(result: dict[str, Any], path: Path) -> None:
    """Draws how many times our time and memory the others take."""
    rows = [row for row in result["rows"] if row["ours"].get("ms")]
    names = [f"{row['loss']} {show_size(row['size'])}" for row in rows]
    with common.panels(path, names, 2, width=13) as (figure, (times, memory)):
        figure.suptitle(f"{result['device']}, {result['cores']} cores")
        for name, mark in {"optax": "^", "naive": "o", "torch": "s"}.items():
            known = {place: row[name] for place, row in enumerate(rows) if name in row}
            slower = {i: one["times_ours"]["median"] for i, one in known.items() if "ms" in one}
            times.plot(list(slower.values()), list(slower), mark, label=KINDS[name])
            larger = {
                i: one["temporary_mib"] / max(rows[i]["ours"]["temporary_mib"], 0.01)
                for i, one in known.items()
                if "temporary_mib" in one
            }
            memory.plot(list(larger.values()), list(larger), mark)
        for axis, what in ((times, "time"), (memory, "temporary memory")):
            axis.set_xlabel(f"{what}, times ours")
            axis.set_xscale("log")
            axis.axvline(1, color="black", linewidth=0.8)
        times.legend()


def parse_size(text: str) -> tuple[int, int, int]:
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not batch x classes x dim, as 512x1024x256")
    return int(parts[0]), int(parts[1]), int(parts[2])


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; ``arguments`` are those of the process if ``None``."""
    args, own = parse(arguments)
    console = Console()
    if args.plot_from is not None:
        result = json.loads(args.plot_from.read_text(encoding="utf-8"))
    elif args.part == "speed":
        result = speed(args, own, console)
    else:
        result = loss_quality.measure(args, {**OBJECTIVES, **own}, console)
    speedy = result["part"] == "speed"
    (report if speedy else loss_quality.report)(result, console)
    if args.plot is not None:
        (plot if speedy else loss_quality.plot)(result, args.plot)
    return result


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, OwnLosses]:
    """The command line's options, and the losses of one's own."""
    parser = Parser(prog="python -m experiments.benchmarks.losses", description=__doc__)
    speeds = [entry.name for entry in ENTRIES]
    known = f"speed: {', '.join(speeds)}; quality: {', '.join(OBJECTIVES)}"
    add = parser.add_argument
    add("--part", choices=("speed", "quality"), default="speed", help="what to measure")
    add("--loss", nargs="+", metavar="NAME", help=f"some losses only. {known}")
    add("--own", nargs="+", default=[], metavar="MODULE:FUNCTION", help="losses of your own")
    add("--out", type=Path, metavar="JSON", help="write the results there too")
    add("--plot", type=Path, metavar="PNG", help="draw them")
    add("--plot-from", type=Path, metavar="JSON", help="measure nothing, draw these")
    add = parser.add_argument_group("quality").add_argument
    add("--data", type=Path, nargs="+", help="collections, or feature stores")
    add("--workdir", type=Path, default=Path("runs/losses"), help="for its cells")
    add("--features", type=Path, help="where features go; WORKDIR/features")
    add("--preset", choices=PRESETS, default="small")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="SEED")
    add("--as-published", action="store_true", help="look for no better temperatures")
    add(
        "--together",
        action=argparse.BooleanOptionalAction,
        help="the seeds of a loss as one program; on accelerators by default",
    )
    add(
        "--set",
        dest="overrides",
        nargs="+",
        default=[],
        metavar="FIELD=VALUE",
        help="dotted overrides, as pretrain.epochs=10 (default: none)",
    )
    add = parser.add_argument_group("speed").add_argument
    add("--sizes", nargs="+", type=parse_size, metavar="BxCxD")
    add("--rounds", type=within(int, at_least(1)), default=30, help="turns at most")
    add("--seconds", type=float, default=4.0, help="time of a loss at a size")
    add("--memory", type=float, default=6.0, metavar="GIB", help="not to exceed")
    add("--cores", type=int, metavar="N", help="use N cores only")
    args = parser.parse_args(arguments)
    own = {path: load_path(path) for path in args.own}
    names = [*(speeds if args.part == "speed" else OBJECTIVES), *own]
    for name in args.loss or ():
        if name not in names:
            parser.error(
                f"--loss: --part {args.part} knows no {name!r}{nearest(name, names) or '.'} "
                f"Expected some of {', '.join(names)}"
            )
    if args.part == "quality" and args.data is None and args.plot_from is None:
        parser.error("--part quality needs --data")
    if args.cores is not None:
        if not hasattr(os, "sched_setaffinity"):
            parser.error("--cores needs a system that binds processes to cores")
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-args.cores :])
    if args.plot_from is not None and args.plot is None:
        parser.error("--plot-from needs --plot")
    return args, own


if __name__ == "__main__":
    common.run_main(main)
