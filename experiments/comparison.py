"""Figures of several variants over seeds, as json, table and picture."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from asdproto.config import ConfigError
from asdproto.data.dataset import Dataset
from asdproto.results.result_files import read_results
from asdproto.results.tables import TITLES, percent
from asdproto.scoring.thresholds import ThresholdWarning
from asdproto.systems import prototype
from asdproto.systems.prototype import PrototypeSystem
from asdproto.systems.run import score_fitted
from asdproto.training.devices import Devices
from asdproto.training.state import TrainState

FIGURES = ("source_auc", "target_auc", "pauc", "overall")


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Values, mean and sample standard deviation."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {
        "values": [round(float(v), 4) for v in values],
        "mean": round(float(np.mean(values)), 4),
        "std": round(spread, 4),
    }


def score_run(
    folder: Path, system: PrototypeSystem, data: Dataset, state: TrainState, devices: Devices
) -> None:
    """Scores and evaluates a trained run into a folder; ``results.json`` is written last.

    Raises:
      ConfigError: The test clips carry no labels.
    """
    with warnings.catch_warnings():
        # Decisions are not what is compared here.
        warnings.simplefilter("ignore", ThresholdWarning)
        fitted = prototype.fit(system, data, state, devices)
        figures, _ = score_fitted(folder, system, data, [fitted], [0])
    if figures is None:
        raise ConfigError(
            "--data: the test clips carry no labels; expected normal and anomalous ones, or there "
            "is nothing to compare"
        )


def over_runs(folders: Sequence[Path]) -> dict[str, Any]:
    """Summaries of :data:`FIGURES` over runs that :func:`score_run` has scored."""
    figures = [read_results(folder / "results.json") for folder in folders]
    return {name: summary([run[name] for run in figures]) for name in FIGURES}


def print_rows(
    console: Console,
    title: str,
    rows: Mapping[str, Mapping[str, Any]],
    *,
    first: str,
    more: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Prints variants below each other.

    Args:
      console: Where to.
      title: Above the table.
      rows: Summaries of :data:`FIGURES` by variant, in their order.
      first: Title of the column of names.
      more: Further columns by title: texts by variant.
    """
    more = more or {}
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=title)
    table.add_column(first, justify="left", overflow="fold")
    for name in (*(TITLES[figure] for figure in FIGURES), *more):
        table.add_column(name, justify="right", no_wrap=True)
    for row, summaries in rows.items():
        cells = [percent(summaries[figure], 1) for figure in FIGURES]
        table.add_row(row, *cells, *(column.get(row, "") for column in more.values()))
    console.print(table)


def plot_rows(path: Path, title: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Draws every seed's figures of every variant, and their means."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(FIGURES), figsize=(13, 0.34 * len(rows) + 1.4), sharey=True, layout="constrained"
    )
    for axis, name in zip(axes, FIGURES, strict=True):
        for row, one in enumerate(rows.values()):
            values = [100 * v for v in one[name]["values"]]
            axis.plot(values, [row] * len(values), "o", color="tab:blue", alpha=0.45)
            axis.plot([100 * one[name]["mean"]], [row], "|", color="black", markersize=16)
        axis.axvline(50, color="black", linewidth=0.8, linestyle=":")
        axis.set_xlabel(TITLES[name] + ", %")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(rows)), list(rows))
    axes[0].invert_yaxis()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
