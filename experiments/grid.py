"""A table of systems and seeds as a grid of cells, filled by one process or several.

A finished cell is skipped, so the same command continues where it stopped, and more seeds or
systems may be added. A cell in work is locked: other processes on the same file system take the
next. A cell that fails leaves its traceback in ``failures/``, does not stop the others, and makes
the command end with exit code 1. Whoever ends last has written the whole table.
"""

import argparse
import contextlib
import json
import os
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from asdproto.arguments import Parser
from asdproto.config import ConfigError, describe_fields, override
from asdproto.data.store import FeatureStore
from asdproto.errors import DataError
from asdproto.files import locked
from asdproto.results.run_folder import read_figures, write_config, write_figures
from asdproto.results.tables import HEADLINE, TITLES, percent
from asdproto.scoring.metrics import summarize
from asdproto.systems import PRESETS, preset, run
from asdproto.systems.workdir import check_same_run
from asdproto.training.devices import RunOptions, use_compilation_cache, use_devices
from experiments import common

LOCK = "lock"
SECONDS = "seconds"


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
      key: For files and the command line.
      name: As the paper writes it.
      results: ``seed -> results.json`` of one run.
      paper: What the paper reports on DCASE 2022, in percent: by figure, and by machine type in
        lower case; empty for rows of our own.
    """

    key: str
    name: str
    results: Callable[[int], Path]
    paper: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """What is trained and scored at a stretch.

    Attributes:
      name: For files and messages.
      results: The files that make it finished.
      run: Writes them.
    """

    name: str
    results: tuple[Path, ...]
    run: Callable[[], None]

    @property
    def finished(self) -> bool:
        """Whether all its results are there."""
        return all(path.exists() for path in self.results)


def run_cells(cells: Sequence[Cell], workdir: Path, console: Console) -> list[str]:
    """Runs the cells that are neither finished nor in another process's hands.

    Returns the names of those that failed; their tracebacks are in ``workdir/failures``.
    """
    failed = []
    for cell in cells:
        with claimed(workdir / "cells" / cell.name) as has_lock:
            if not has_lock or cell.finished:
                continue
            failure = workdir / "failures" / f"{cell.name}.txt"
            console.print(f"Cell:     {cell.name}", highlight=False)
            started = time.monotonic()
            try:
                cell.run()
            except Exception as error:  # one broken cell must not cost the others
                failed.append(cell.name)
                common.write_text(failure, traceback.format_exc())
                text = f"failed: {cell.name}: {error}"
                console.print(text, style="red", highlight=False, markup=False)
            else:
                failure.unlink(missing_ok=True)
                took = f"{time.monotonic() - started:.1f}"
                common.write_text(workdir / "cells" / cell.name / SECONDS, took)
    return failed


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether this process holds a folder, for the time of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder, LOCK))
            has_lock = True
        except DataError:
            has_lock = False
        yield has_lock


def features_of(system: Any, args: argparse.Namespace, console: Console | None) -> FeatureStore:
    """Features of a system; waits for another process that is extracting them.

    Systems of one kind of features share them.
    """
    described = json.dumps(vars(system.features), sort_keys=True).encode()
    name = f"{system.features.scale}-{zlib.crc32(described):08x}"
    folder = (args.features or args.workdir / "features") / name
    while True:
        with claimed(folder.with_name(f"{name}.claim")) as has_lock:
            if has_lock:
                return run.features_of(args.data, folder, system.features, console)
        time.sleep(1)


def get_systems(
    kinds: Mapping[str, str], names: Iterable[str], args: argparse.Namespace
) -> dict[str, Any]:
    """Systems at the preset of a command line, with its overrides ``NAME.FIELD=VALUE``.

    ``names`` are those to make; overrides may begin with any name in ``kinds``.

    Raises:
      ConfigError: An override names no such system, or no field of it.
    """
    systems = {name: preset(kinds[name], args.preset) for name in names}
    for text in args.overrides:
        name, _, rest = text.partition(".")
        if name not in kinds or name == text:
            raise ConfigError(
                f"override {text!r}: found no system {name.partition('=')[0]!r}; expected "
                f"NAME.FIELD=VALUE with one of {', '.join(sorted(kinds))}"
            )
        if name in systems:
            systems[name] = override(systems[name], [rest])
    return systems


def make_parser(name: str, description: str | None, kinds: Mapping[str, str]) -> Parser:
    """The command line that all tables share; ``kinds`` are the systems that it overrides."""
    parser = common.make_parser(name, description)
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="paper", help="size of the systems (default: paper)")
    add(
        "--seeds",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        metavar="S",
        help="a run each (default: 0 1 2)",
    )
    add("--machines", nargs="+", metavar="TYPE", help="machine types to keep (default: all)")
    add("--features", type=Path, metavar="DIR", help="where features go (default: in WORKDIR)")
    add(
        "--together",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="train runs of the paper's system side by side as one program, in one cell (default: "
        "on accelerators)",
    )

    def describe(_: Any) -> str:
        return "\n".join(
            f"{name}, preset paper:\n{describe_fields(preset(kind, 'paper'), f'{name}.')}\n"
            for name, kind in kinds.items()
        )

    parser.add_overrides(describe)
    return parser


def start(args: argparse.Namespace, argv: Sequence[str] | None, *, table: int) -> RunOptions:
    """Makes the work folder, or refuses one of other settings; says where cells train and report.

    Raises:
      ConfigError: A seed is given twice.
      DataError: The folder belongs to other settings.
    """
    if len(set(args.seeds)) != len(args.seeds):
        raise ConfigError(f"--seeds: a seed is given twice; found {args.seeds}")
    names = ("preset", "machines", "overrides")
    settings = {"table": table, **{name: getattr(args, name) for name in names}}
    words = sys.argv[1:] if argv is None else argv
    args.command = ["python", "-m", f"experiments.table{table}", *words]
    check_same_run(args.workdir, settings)
    write_config(args.workdir, settings)
    use_compilation_cache()
    return RunOptions(args.workdir, use_devices(), Console())


def finish(
    table: int,
    rows: Sequence[Row],
    cells: Sequence[Cell],
    args: argparse.Namespace,
    options: RunOptions,
) -> dict[str, Any]:
    """Runs the cells, writes the table as json, markdown and picture, and prints it.

    Rows without a finished run are left out. Returns what ``results.json`` holds: the rows, the
    command, the machine and the seconds that each cell took.

    Raises:
      SystemExit: Cells failed; everything else is written before.
    """
    workdir, console, title = args.workdir, Console(), f"Table {table}, preset {args.preset}"
    failed = run_cells(cells, workdir, console)
    finished = {row.key: collect(row, args.seeds) for row in rows}
    finished = {key: one for key, one in finished.items() if one["seeds"]}
    took = sorted((workdir / "cells").glob(f"*/{SECONDS}"))
    result = {
        "table": table,
        "device": options.devices.local[0].device_kind,
        "command": args.command,
        "processor": common.processor(),
        "cores": os.cpu_count(),
        "seconds": {path.parent.name: float(path.read_text()) for path in took},
        "preset": args.preset,
        "machines": args.machines,
        "rows": finished,
        "overrides": args.overrides,
        "failed": failed,
    }
    write_figures(workdir / "results.json", result)
    if finished:
        text = f"{title}\n\n{markdown(finished)}"
        common.write_text(workdir / "table.md", f"# {text}")
        plot(workdir / "table.png", title, finished)
        console.print(text, highlight=False, markup=False, soft_wrap=True)
        console.print(f"Table:   {workdir / 'table.md'}, .png", highlight=False)
    console.print(f"Figures: {workdir / 'results.json'}", highlight=False, soft_wrap=True)
    if failed:
        text = (
            f"{len(failed)} failed: {', '.join(failed)}; see {workdir / 'failures'}. The same "
            "command tries them again."
        )
        console.print(text, style="red", highlight=False, soft_wrap=True)
        raise SystemExit(1)
    if waiting := [cell.name for cell in cells if not cell.finished]:
        console.print(f"not finished, in other processes: {', '.join(waiting)}", highlight=False)
    return result


def collect(row: Row, seeds: Sequence[int]) -> dict[str, Any]:
    """A row's figures over the seeds that are finished.

    Returns:
      ``{"name", "seeds", "values": {figure: [one a seed]}, "figures": {figure: {"mean", "std",
      "count"}}, "paper": {figure: percent}}``. Figures in [0, 1]: machine types by name, their
      harmonic mean over sections and metrics, then the headline ones.
    """
    done = [seed for seed in seeds if row.results(seed).exists()]
    flat = []
    for seed in done:
        results = read_figures(row.results(seed))
        machines = {name: one["overall"] for name, one in results["machines"].items()}
        flat.append({**machines, **{name: results[name] for name in HEADLINE}})
    names = list(flat[0]) if flat else []
    paper = {name: row.paper[name.lower()] for name in names if name.lower() in row.paper}
    return {
        "name": row.name,
        "seeds": done,
        "values": {name: [one[name] for one in flat] for name in names},
        "figures": summarize(flat) if flat else {},
        "paper": paper,
    }


def markdown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The table as markdown: mean ± std over seeds in percent, the paper's figure in brackets."""

    def cell(row: Mapping[str, Any], name: str) -> str:
        published = f" ({row['paper'][name]:.2f})" if name in row["paper"] else ""
        return percent(row["figures"].get(name), 1) + published

    figures = dict.fromkeys(name for row in rows.values() for name in row["figures"])
    names = [*(name for name in figures if name not in HEADLINE), *HEADLINE]
    lines = [
        ["system", *(TITLES.get(name, name) for name in names), "seeds"],
        ["---", *["---:"] * len(names), "---:"],
    ]
    lines += [
        [row["name"], *(cell(row, name) for name in names), str(len(row["seeds"]))]
        for row in rows.values()
    ]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    if any(row["paper"] for row in rows.values()):
        table += (
            "\nMean ± standard deviation over seeds, %; in brackets the paper's, on DCASE 2022.\n"
        )
    return table


def plot(path: Path, title: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Draws mean and standard deviation of the headline figures, every seed, and the paper's."""
    names = [row["name"] for row in rows.values()]
    with common.panels(path, names, len(HEADLINE), width=13) as (figure, axes):
        figure.suptitle(f"{title}: points are seeds, bars mean ± std, diamonds the paper's figures")
        for axis, name in zip(axes, HEADLINE, strict=True):
            axis.axvline(50, color="black", linewidth=0.8, linestyle=":")
            axis.set_xlabel(TITLES[name] + ", %")
            for height, row in enumerate(rows.values()):
                values, found = 100 * np.array(row["values"][name]), row["figures"][name]
                std = 100 * np.nan_to_num(found["std"])
                axis.plot(values, [height] * len(values), "o", color="tab:blue", alpha=0.4)
                axis.errorbar(
                    100 * found["mean"], height, xerr=std, fmt="|", color="black", capsize=4
                )
                if name in row["paper"]:
                    axis.plot(row["paper"][name], height, "D", color="tab:red", fillstyle="none")
