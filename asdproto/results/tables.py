"""Figures as text: percentages, mean +- standard deviation, and tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from asdproto.errors import printable
from asdproto.scoring.metrics import AUC_METRICS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

TITLES = {
    "source_auc": "source AUC",
    "target_auc": "target AUC",
    "pauc": "pAUC",
    "overall": "overall",
    "precision_source": "precision (source)",
    "precision_target": "precision (target)",
    "recall_source": "recall (source)",
    "recall_target": "recall (target)",
    "f1_source": "F1 (source)",
    "f1_target": "F1 (target)",
}
HEADLINE = (*AUC_METRICS, "overall")


def value_of(figure: float | Mapping[str, float] | None) -> float:
    """The figure itself, or the mean of one summarized over seeds; nan where it is undefined."""
    if isinstance(figure, Mapping):
        figure = figure["mean"]
    return math.nan if figure is None else float(figure)


def percent(
    figure: float | Mapping[str, float] | None, digits: int = 2, *, signed: bool = False
) -> str:
    """A figure in [0, 1] as a percentage, with its standard deviation where it has one.

    Args:
      figure: As for :func:`value_of`.
      digits: Decimals; the paper's tables have two.
      signed: Whether a plus is written, as for differences.

    Returns:
      ``"75.25"``, ``"75.25 ± 0.61"`` for a summary over several runs, ``"–"`` where undefined.
    """
    value = value_of(figure)
    if math.isnan(value):
        return "–"
    text = f"{100 * value:{'+' if signed else ''}.{digits}f}"
    if isinstance(figure, Mapping) and not math.isnan(value_of(figure["std"])):
        text += f" ± {100 * figure['std']:.{digits}f}"
    return text


def number(value: float | None, form: str) -> str:
    """A number in a format such as ``".4g"``; ``"–"`` for None, nan and infinities."""
    return "–" if value is None or not math.isfinite(value) else format(value, form)


def highest(figures: list[Any]) -> set[int]:
    """Positions of the largest figures as they print; none where there is nothing to compare."""
    values = [round(value_of(figure), 4) for figure in figures]
    defined = [value for value in values if not math.isnan(value)]
    if len(defined) < 2:
        return set()
    return {position for position, value in enumerate(values) if value == max(defined)}


def print_table(results: Mapping[str, Any], *, console: Console | None = None) -> None:
    """Prints systems side by side, in percent: the three metrics, overall, every machine type.

    Args:
      results: ``{"systems": {name: figures}}`` with figures as
        :func:`asdproto.scoring.metrics.evaluate` or
        :func:`asdproto.scoring.metrics.summarize` gives them, or the figures of a single system.
      console: Where to print; the standard output by default.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    systems = results.get("systems", {"": results})
    table = _table("system" if len(systems) > 1 or "" not in systems else "")
    for name in HEADLINE:
        table.add_column(TITLES[name], justify="right", no_wrap=True)
    best = [highest([figures.get(name) for figures in systems.values()]) for name in HEADLINE]
    for row, (system, figures) in enumerate(systems.items()):
        cells = [
            Text(percent(figures.get(name)), style="bold" if row in marked else "")
            for name, marked in zip(HEADLINE, best, strict=True)
        ]
        table.add_row(Text(printable(system) or "all machine types"), *cells)
    console.print(table)
    if len(systems) == 1:
        print_sections(next(iter(systems.values())), console=console)
        return
    systems = {name: figures for name, figures in systems.items() if figures.get("machines")}
    machines = list(dict.fromkeys(m for figures in systems.values() for m in figures["machines"]))
    if not systems:
        return
    table = _table("machine type")
    for system in systems:
        table.add_column(Text(printable(system)), justify="right", overflow="fold")
    for machine in machines:
        row_figures = [
            figures["machines"].get(machine, {}).get("overall") for figures in systems.values()
        ]
        marked = highest(row_figures)
        cells = [
            Text(percent(figure), style="bold" if column in marked else "")
            for column, figure in enumerate(row_figures)
        ]
        table.add_row(Text(printable(machine)), *cells)
    console.print(table)


def print_sections(results: Mapping[str, Any], *, console: Console | None = None) -> None:
    """Prints one system's figures, in percent, for every machine type and section."""
    from rich.console import Console
    from rich.text import Text

    table = _table("machine type")
    table.add_column("section", no_wrap=True)
    for name in HEADLINE:
        table.add_column(TITLES[name], justify="right", no_wrap=True)
    for machine, figures in results.get("machines", {}).items():
        sections = list(figures["sections"].items())
        for position, (section, values) in enumerate(sections):
            cells = [percent(values[name]) for name in AUC_METRICS]
            alone = percent(figures["overall"]) if len(sections) == 1 else ""
            table.add_row(
                Text("" if position else printable(machine)),
                Text(printable(section)),
                *cells,
                alone,
            )
        if len(sections) > 1:
            table.add_row(
                "",
                Text("harmonic mean", style="dim"),
                *(Text(percent(figures[name]), style="bold") for name in HEADLINE),
            )
        table.add_section()
    (console or Console()).print(table)


def _table(first: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")  # a long name wraps before a figure is cut
    return table
