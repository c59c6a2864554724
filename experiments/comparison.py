"""Figures of runs to compare."""

from pathlib import Path
from typing import Any

import numpy as np

from asdproto.config import ConfigError
from asdproto.data.dataset import ClipArrays, Dataset, section_keys
from asdproto.results.tables import HEADLINE
from asdproto.scoring.backends import Scorer
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


def figures_of(scorer: Scorer, data: Dataset, test: np.ndarray) -> dict[str, float]:
    """Headline figures of embedded test clips with a fitted back-end, in [0, 1].

    Raises:
      ConfigError: The test clips carry no labels.
    """
    if not data.test_clips or any(not clip.state for clip in data.test_clips):
        raise ConfigError(_NO_LABELS)
    scores, _ = scorer.compare(test, section_keys(data.test_clips))
    figures = evaluate(group_scores(data.test_clips, scores))
    return {name: round(float(figures[name]), 6) for name in HEADLINE}


def score_of_kept_out(
    system: PrototypeSystem,
    data: Dataset,
    state: TrainState,
    clips: ClipArrays,
    labels: np.ndarray,
) -> float:
    """How well an encoder keeps normal clips that it has not heard with their own class.

    Returns:
      Mean over clips of the distance to the nearest training clip of their class, over that to the
      nearest one of another class; lower is better.
    """
    member = prototype.fit(system, data, state, seed=0)
    model: Any = member.model
    train: Any = member.embeddings
    new = model.embed(clips)
    squares = np.square(new).sum(axis=1)[:, None] + np.square(train).sum(axis=1)
    distances = np.sqrt(np.maximum(squares - 2 * new @ train.T, 0))
    own = labels[:, None] == data.labels
    nearest = [np.where(mask, distances, np.inf).min(axis=1) for mask in (own, ~own)]
    return float(np.mean(nearest[0] / np.maximum(nearest[1], 1e-6)))
