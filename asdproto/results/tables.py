"""Figures as text: percentages, mean +- standard deviation, and tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from asdproto.errors import printable
from asdproto.scoring.metrics import AUC_METRICS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

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
    table = _table("system" if len(systems) > 1 or "" not in systems else "", HEADLINE)
    columns = [_texts([figures.get(name) for figures in systems.values()]) for name in HEADLINE]
    for name, cells in zip(systems, zip(*columns, strict=True), strict=True):
        table.add_row(Text(printable(name) or "all machine types"), *cells)
    console.print(table)
    if len(systems) == 1:
        console.print(_section_table(next(iter(systems.values()))))
        return
    by_machine = {
        name: figures["machines"] for name, figures in systems.items() if figures.get("machines")
    }
    if by_machine:
        table = _table("machine type")
        for name in by_machine:
            table.add_column(Text(printable(name)), justify="right", overflow="fold")
        for machine in dict.fromkeys(name for own in by_machine.values() for name in own):
            overall = [own.get(machine, {}).get("overall") for own in by_machine.values()]
            table.add_row(Text(printable(machine)), *_texts(overall))
        console.print(table)


def _texts(figures: list[Any]) -> list[Text]:
    """Figures that are compared, in percent; the highest are bold."""
    from rich.text import Text

    best = highest(figures)
    return [
        Text(percent(figure), style="bold" if position in best else "")
        for position, figure in enumerate(figures)
    ]


def _section_table(figures: Mapping[str, Any]) -> Table:
    """One system's figures, in percent, for every machine type and section."""
    from rich.text import Text

    table = _table("machine type", ("section", *HEADLINE))
    for machine, own in figures.get("machines", {}).items():
        for position, (section, values) in enumerate(own["sections"].items()):
            cells = [percent(values[name]) for name in AUC_METRICS]
            alone = percent(own["overall"]) if len(own["sections"]) == 1 else ""
            names = "" if position else printable(machine), printable(section)
            table.add_row(*map(Text, names), *cells, alone)
        if len(own["sections"]) > 1:
            means = [Text(percent(own[name]), style="bold") for name in HEADLINE]
            table.add_row("", Text("harmonic mean", style="dim"), *means)
        table.add_section()
    return table


def _table(first: str, others: Sequence[str] = ()) -> Table:
    """A table whose first column wraps; the others, which hold figures, are never cut."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        justify: Literal["left", "right"] = "left" if name == "section" else "right"
        table.add_column(TITLES.get(name, name), justify=justify, no_wrap=True)
    return table
