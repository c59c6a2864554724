"""Timing by turns, and the figures that come of it: spreads, printed and written."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.common import write_json

Times = dict[str, list[float]]


def interleave(
    contenders: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    limit: float = math.inf,
    prepared: bool = False,
) -> tuple[Times, Times]:
    """Times contenders in turns: what else the machine does slows all alike.

    Each waits until its work is done. Once ``limit`` seconds are over, no round begins. The first
    round does not count. Where turns are ``prepared``, every round counts, and every turn comes
    after 5 ms and a call that is not timed: threads of the contender before spin for a while, and
    after one that took much memory the next one gets new pages from the system.

    Returns:
      Seconds on the clock, and seconds of CPU time of this process, by name; one a round.
    """
    names, started = list(contenders), time.perf_counter()
    wall: Times = {name: [] for name in names}
    cpu: Times = {name: [] for name in names}
    for turn in range(rounds if prepared else rounds + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            if prepared:
                time.sleep(0.005)
                contenders[name]()
            began = time.perf_counter(), time.process_time()
            contenders[name]()
            ended = time.perf_counter(), time.process_time()
            if prepared or turn:
                wall[name].append(ended[0] - began[0])
                cpu[name].append(ended[1] - began[1])
        if time.perf_counter() - started > limit:
            break
    return wall, cpu


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, four significant digits."""
    if len(values) == 1:
        values = [*values, *values]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": rounded(middle), "low": rounded(low), "high": rounded(high)}


def ratios(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Spread of the ratio within rounds."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def show(console: Console, result: dict[str, Any]) -> None:
    """Prints every figure of a part as a row."""

    def rows(tree: Any, name: str = "") -> None:
        if isinstance(tree, dict) and set(tree) == {"median", "low", "high"}:
            sheet.add_row(name, f"{tree['median']:g}", f"{tree['low']:g} to {tree['high']:g}")
        elif isinstance(tree, dict):
            for key, value in tree.items():
                rows(value, f"{name}, {key}" if name else str(key).replace("_", " "))
        else:
            sheet.add_row(name, f"{tree:g}" if isinstance(tree, float) else str(tree), "")

    sheet = Table("figure", "median", "quartiles", highlight=True)
    rows(result)
    console.print(sheet)


def run_parts(
    names: Sequence[str],
    measure: Callable[[str], dict[str, Any]],
    result: dict[str, Any],
    out: Path | None,
) -> None:
    """Enters parts into a result; each is printed and written as soon as it is there.

    Raises:
      SystemExit: Parts failed; the others are there.
    """
    console, failed = Console(), {}
    for name in names:
        with console.status(f"measuring {name}"):
            try:
                result[name] = measure(name)
            except Exception as error:  # the other parts must not be lost
                failed[name] = f"{type(error).__name__}: {error}"
                result[name] = {"failed": failed[name][:1000]}
        show(console, {name: result[name]})
        if out is not None:
            write_json(out, result)
    if out is not None:
        console.print(f"Written to {out}", highlight=False, soft_wrap=True)
    if failed:
        why = "; ".join(f"{name}: {error}" for name, error in failed.items())
        raise SystemExit(f"error: {len(failed)} of {len(names)} parts failed: {why}")
