"""Runs to compare: their figures, and how these are drawn."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from asdproto.config import ConfigError
from asdproto.data.dataset import ClipArrays, Dataset, section_keys
from asdproto.results.tables import HEADLINE, TITLES
from asdproto.scoring.metrics import evaluate, group_scores
from asdproto.systems import prototype
from asdproto.systems.detector import Detector
from asdproto.systems.prototype import PrototypeSystem
from asdproto.systems.run import score_detector
from asdproto.training.state import TrainState

_NO_LABELS = (
    "--data: the test clips carry no labels; expected normal and anomalous ones, or there is "
    "nothing to compare"
)


def score_run(folder: Path, system: PrototypeSystem, data: Dataset, state: TrainState) -> None:
    """Scores and evaluates a trained run into a folder; ``results.json`` is written last.

    Raises:
      ConfigError: The test clips carry no labels.
    """
    member = prototype.fit(system, data, state, seed=0)
    detector = Detector.trained(folder.name, system, data, [member])
    figures, _ = score_detector(folder, detector, data)
    if figures is None:
        raise ConfigError(_NO_LABELS)


def figures_of(system: PrototypeSystem, data: Dataset, state: TrainState) -> dict[str, float]:
    """Headline figures of a trained encoder with a system's back-end, in [0, 1].

    Raises:
      ConfigError: The test clips carry no labels.
    """
    if not data.test_clips or any(not clip.state for clip in data.test_clips):
        raise ConfigError(_NO_LABELS)
    model = prototype.fit(system, data, state, seed=0).model
    scores = model.compare(data.test, section_keys(data.test_clips)).scores
    figures = evaluate(group_scores(data.test_clips, scores))
    return {name: round(float(figures[name]), 6) for name in HEADLINE}


def score_of_kept_out(
    system: PrototypeSystem,
    data: Dataset,
    state: TrainState,
    clips: ClipArrays,
    labels: np.ndarray,
) -> float:
    """How well an encoder keeps new normal clips with their own class; lower is better.

    Args:
      system: Says how clips are embedded.
      data: What the encoder was trained on.
      state: The encoder.
      clips: Normal clips that it has not heard.
      labels: Their classes.

    Returns:
      Mean over clips of the distance to the nearest training clip of their class, over that to the
      nearest one of another class.
    """
    model: Any = prototype.fit(system, data, state, seed=0).model
    train, new = model.embed(data.train), model.embed(clips)
    squares = np.square(new).sum(axis=1)[:, None] + np.square(train).sum(axis=1)
    distances = np.sqrt(np.maximum(squares - 2 * new @ train.T, 0))
    own = labels[:, None] == data.labels
    nearest = [np.where(mask, distances, np.inf).min(axis=1) for mask in (own, ~own)]
    return float(np.mean(nearest[0] / np.maximum(nearest[1], 1e-6)))


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
