"""What a run folder holds, read without training code: for reports, while it trains or after.

::

    WORKDIR/
      config.json                what was asked for
      metrics.jsonl              a line for every epoch of every stage
      features/                  the feature store, unless it lies elsewhere
      results.json               {"systems": {name: figures}}
      scores/SYSTEM/             official score files, thresholds.json, embeddings.npz
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from asdproto.data.dcase import Clip, ParsedName, parse_name
from asdproto.data.store import open_store
from asdproto.errors import DataError
from asdproto.results.result_files import read_results
from asdproto.results.score_files import read_scores
from asdproto.results.tables import HEADLINE
from asdproto.scoring.metrics import SectionScores, evaluate


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingMap:
    """Embeddings of one machine type's clips in the plane in which they vary most.

    Attributes:
      machine_type: The machine type.
      train: float64, shape ``[n, 2]``: some of the training clips.
      test: float64, shape ``[m, 2]``: the test clips.
      anomaly: bool, shape ``[m]``.
      target: bool, shape ``[m]``: of the target domain.
    """

    machine_type: str
    train: np.ndarray
    test: np.ndarray
    anomaly: np.ndarray
    target: np.ndarray


@dataclass(slots=True)
class Run:
    """What a run folder holds, as far as it has come.

    Attributes:
      name: The folder's name.
      config: ``config.json``; empty where there is none.
      training: Rows of ``metrics.jsonl`` by stage, in order of their epochs.
      systems: Figures of every system, as :func:`asdproto.scoring.metrics.evaluate` gives them.
      scores: Scored test sections of every system whose score files can be read.
      thresholds: Decision threshold of every machine type, by system; see
        :func:`infer_thresholds` where the run does not say it.
      maps: Maps of the embeddings of every system that has kept them.
      notes: Sentences about what is missing or odd, for the reader of the report.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    training: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    systems: dict[str, dict[str, Any]] = field(default_factory=dict)
    scores: dict[str, list[SectionScores]] = field(default_factory=dict)
    thresholds: dict[str, dict[str, float]] = field(default_factory=dict)
    maps: dict[str, list[EmbeddingMap]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_run(workdir: str | os.PathLike) -> Run:
    """Reads a run folder: ``config.json``, ``metrics.jsonl``, ``results.json``, ``scores/``.

    Whatever is missing is left out and noted, so that a run can be looked at while it trains.

    Args:
      workdir: The run folder.

    Returns:
      Its contents.

    Raises:
      DataError: The folder does not exist, holds none of these, or one of them is damaged.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise DataError(
            workdir,
            "a file" if workdir.exists() else "nothing",
            "the folder of a run",
            "Give the --workdir of an experiment.",
        )
    run = Run(workdir.resolve().name)
    if (workdir / "config.json").exists():
        run.config = read_results(workdir / "config.json")
    if (workdir / "metrics.jsonl").exists():
        run.training = _read_training(workdir / "metrics.jsonl", run.notes)
    if (workdir / "results.json").exists():
        run.systems = _read_systems(workdir / "results.json")
    clips = _stored_clips(workdir)
    for folder in sorted((workdir / "scores").glob("*/")):
        try:
            if any(folder.glob("anomaly_score_*.csv")):
                run.scores[folder.name] = _read_scores(folder, clips)
                run.thresholds[folder.name] = _read_thresholds(folder, run.scores[folder.name])
            if (folder / "embeddings.npz").exists():
                run.maps[folder.name] = _read_maps(folder / "embeddings.npz", clips)
        except DataError as error:
            run.notes.append(f"Not everything of {folder.name} is drawn: {error}")
    for name, tables in run.scores.items():
        if name not in run.systems:
            run.systems[name] = evaluate(tables)
    if not (run.config or run.training or run.systems):
        raise DataError(
            workdir,
            "none of config.json, metrics.jsonl, results.json and scores/",
            "the folder of a run",
            "Give the --workdir of an experiment.",
        )
    for name, result in run.systems.items():
        run.notes += [f"Undefined for {name}: {text}." for text in result.get("undefined", [])]
    return run


def infer_thresholds(tables: Sequence[SectionScores]) -> dict[str, float]:
    """Decision threshold of every machine type, as its decisions show it.

    Args:
      tables: Scored sections.

    Returns:
      The middle between the highest score called normal and the lowest called an anomaly, by
      machine type; absent where there are no decisions, or none of one kind, or where no single
      threshold explains them.
    """
    calls: dict[str, list[list[float]]] = {}
    for table in tables:
        if table.decisions is not None:
            normal, anomalous = calls.setdefault(table.machine_type, [[], []])
            normal.extend(table.scores[~table.decisions].tolist())
            anomalous.extend(table.scores[table.decisions].tolist())
    return {
        machine: (max(normal) + min(anomalous)) / 2.0
        for machine, (normal, anomalous) in calls.items()
        if normal and anomalous and max(normal) <= min(anomalous)
    }


def _read_systems(path: Path) -> dict[str, dict[str, Any]]:
    systems = read_results(path).get("systems")
    if not isinstance(systems, dict):
        systems = {"the file": {}}
    for name, result in systems.items():
        lacking = [
            key
            for key in (*HEADLINE, "machines")
            if not isinstance(result, dict) or key not in result
        ]
        if lacking:
            raise DataError(
                path,
                f"{name} without {', '.join(lacking)}",
                '{"systems": {name: the figures of that system}}',
                "Remove the file; the scores are then evaluated again.",
            )
    return systems


def _stored_clips(workdir: Path) -> list[Clip]:
    """The clips of the run's own feature store, if it has one."""
    if not (workdir / "features" / "manifest.json").exists():
        return []
    return open_store(workdir / "features").clips


def _read_scores(folder: Path, clips: list[Clip]) -> list[SectionScores]:
    """Scores with the ground truth of the clips' names, else of the feature store."""
    try:
        return read_scores(folder)
    except DataError:
        if not clips:
            raise
        return read_scores(folder, clips=clips)


def _read_thresholds(folder: Path, tables: Sequence[SectionScores]) -> dict[str, float]:
    path = folder / "thresholds.json"
    if not path.exists():
        return infer_thresholds(tables)
    thresholds = read_results(path)
    if not all(isinstance(value, float | int) for value in thresholds.values()):
        raise DataError(path, "something else", "{machine type: number}", "Score again.")
    return thresholds


def _read_maps(path: Path, clips: list[Clip], most: int = 400) -> list[EmbeddingMap]:
    """Principal components of each machine type's embeddings, training and test clips together."""
    known: Mapping[str, Clip | ParsedName] = {clip.path: clip for clip in clips}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            train, test = (np.asarray(arrays[name], np.float64) for name in ("train", "test"))
            files = [[str(name) for name in arrays[f"{n}_files"]] for n in ("train", "test")]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(path, str(error), "embeddings of the run's clips", "Score again.") from None
    facts = [[known.get(name) or parse_name(name) for name in names] for names in files]
    maps = []
    for machine in sorted({fact.machine_type for fact in facts[1]}):
        rows = [
            np.array([i for i, fact in enumerate(group) if fact.machine_type == machine], int)
            for group in facts
        ]
        # Every so many of them: enough to see where they lie, and a page that stays small.
        rows[0] = rows[0][:: max(1, -(-len(rows[0]) // most))]
        both = np.concatenate([train[rows[0]], test[rows[1]]])
        centered = both - both.mean(axis=0)
        places = centered @ np.linalg.svd(centered, full_matrices=False)[2][:2].T
        tested = [facts[1][row] for row in rows[1]]
        maps.append(
            EmbeddingMap(
                machine,
                places[: len(rows[0])],
                places[len(rows[0]) :],
                np.array([fact.state == "anomaly" for fact in tested]),
                np.array([fact.domain == "target" for fact in tested]),
            )
        )
    return maps


def _read_training(path: Path, notes: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows by stage; where a resumed run wrote an epoch twice, the later row holds."""
    rows: dict[str, dict[tuple[float, float], dict[str, Any]]] = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            key = float(row["epoch"]), float(row.get("step", 0))
            float(row["learning_rate"])
            row["loss"] = float("nan" if row["loss"] is None else row["loss"])
            rows.setdefault(str(row["stage"]), {})[key] = row
        except (ValueError, KeyError, TypeError, AttributeError):
            if line.strip():
                what = "is cut short" if number == len(lines) else "is not a line of metrics"
                notes.append(f"Line {number} of {path.name} {what} and left out.")
    return {stage: [by_key[key] for key in sorted(by_key)] for stage, by_key in rows.items()}
