"""Runs to compare: their figures, and how these are drawn."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from asdproto.config import ConfigError
from asdproto.data.dataset import Dataset
from asdproto.results.tables import HEADLINE, TITLES
from asdproto.scoring.thresholds import ThresholdWarning
from asdproto.systems import prototype
from asdproto.systems.prototype import PrototypeSystem
from asdproto.systems.run import score_fitted
from asdproto.training.state import TrainState


def score_run(folder: Path, system: PrototypeSystem, data: Dataset, state: TrainState) -> None:
    """Scores and evaluates a trained run into a folder; ``results.json`` is written last.

    Raises:
      ConfigError: The test clips carry no labels.
    """
    with warnings.catch_warnings():
        # Decisions are not what is compared here.
        warnings.simplefilter("ignore", ThresholdWarning)
        fitted = prototype.fit(system, data, state)
        figures, _ = score_fitted(folder, system, data, [fitted], [0])
    if figures is None:
        raise ConfigError(
            "--data: the test clips carry no labels; expected normal and anomalous ones, or there "
            "is nothing to compare"
        )


def plot_rows(
    path: Path,
    title: str,
    rows: Mapping[str, Mapping[str, Any]],
    paper: Mapping[str, Mapping[str, float]],
) -> None:
    """Draws the headline figures of rows: every seed, mean and standard deviation.

    Args:
      path: The picture.
      title: Above it.
      rows: By name, ``{figure: {"values", "mean", "std"}}`` in [0, 1].
      paper: By name, figures to mark beside, in percent.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    height = 0.42 * len(rows) + 1.6
    figure, axes = pyplot.subplots(
        1, len(HEADLINE), figsize=(13, height), sharey=True, layout="constrained"
    )
    for axis, name in zip(axes, HEADLINE, strict=True):
        for place, (row, figures) in enumerate(rows.items()):
            one = figures[name]
            values = [100 * value for value in one["values"]]
            axis.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.4)
            std = 100 * np.nan_to_num(one["std"])
            axis.errorbar(100 * one["mean"], place, xerr=std, fmt="|", color="black", capsize=4)
            if name in paper.get(row, {}):
                axis.plot(paper[row][name], place, "D", color="tab:red", fillstyle="none")
        axis.axvline(50, color="black", linewidth=0.8, linestyle=":")
        axis.set_xlabel(TITLES[name] + ", %")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(rows)), list(rows))
    axes[0].invert_yaxis()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
