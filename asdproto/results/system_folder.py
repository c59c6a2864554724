"""What the folder of one system in a run holds: ``WORKDIR/scores/SYSTEM``.

::

    anomaly_score_*.csv, decision_result_*.csv   scores and decisions of test clips
    training_scores.npz    machine_types and held-out scores of training clips, files beside them
    thresholds.json        {machine type: decision threshold}
    embeddings.npz         train, test, train_files, test_files
    member_0.npz           the first member, with a back-end's arrays below "scorer/"

The score files are official; the others are there where the system has them.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from asdproto.data.dcase import Clip, ParsedName, parse_name
from asdproto.data.store import FeatureStore
from asdproto.errors import DataError
from asdproto.files import read_arrays, read_json
from asdproto.results import class_name
from asdproto.results.score_files import ScoreFile, clips_by_file, read_score_files
from asdproto.scoring.backends import Scorer
from asdproto.scoring.metrics import SectionScores, UndefinedMetricWarning, evaluate
from asdproto.scoring.thresholds import ThresholdWarning, decide, gamma_threshold

QUANTILES = (0.8, 0.9, 0.95, 0.99)
_MOST_DRAWN = 400  # training clips of a machine type in its map
_AGAIN = "Score again."


@dataclass(frozen=True, slots=True)
class ScoredClip:
    """A test clip and what one system says of it.

    Attributes:
      file: As the score file names it.
      path: Relative to the collection's root; ``""`` where no feature store says it.
      machine_type: The machine type.
      section: The section.
      state: ``"normal"``, ``"anomaly"``, or ``""`` where unknown.
      domain: ``"source"``, ``"target"``, or ``""`` where unknown.
      score: Anomaly score.
      decision: Whether the system called it an anomaly; None where it did not decide.
      nearest: Attribute class of the nearest reference; ``""`` where the system has none.
    """

    file: str
    path: str
    machine_type: str
    section: str
    state: str
    domain: str
    score: float
    decision: bool | None
    nearest: str


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


@dataclass(frozen=True, slots=True, eq=False)
class Similarity:
    """How alike the prototypes of all attribute classes are.

    Attributes:
      groups: Machine type and section of each class, in order; length ``c``.
      classes: Name of each class, length ``c``.
      cosine: float64, shape ``[c, c]``.
    """

    groups: list[str]
    classes: list[str]
    cosine: np.ndarray


@dataclass(frozen=True, slots=True)
class ThresholdEffect:
    """What a decision threshold does to the test clips of a machine type.

    Attributes:
      machine_type: The machine type.
      quantile: Of the distribution fitted to the held-out scores of training clips.
      threshold: The score there.
      called: Share of all test clips above it; of the training clips where there are none.
      false_alarms: Share of normal test clips above it; None without ground truth.
      detected: Share of anomalies above it; None without ground truth.
    """

    machine_type: str
    quantile: float
    threshold: float
    called: float
    false_alarms: float | None
    detected: float | None


@dataclass(slots=True)
class System:
    """What a run folder holds of one system.

    Attributes:
      figures: As :func:`asdproto.scoring.metrics.evaluate` gives them; empty without ground truth.
      tables: The scored test sections whose ground truth is known.
      clips: Every scored test clip.
      thresholds: Decision threshold of each machine type; see :func:`infer_thresholds` where the
        run does not say it.
      training: Held-out scores of training clips by machine type, where the run keeps them.
      maps: Maps of the embeddings, one a machine type.
      similarity: Of the prototypes, where the system has them.
    """

    figures: dict[str, Any] = field(default_factory=dict)
    tables: list[SectionScores] = field(default_factory=list)
    clips: list[ScoredClip] = field(default_factory=list)
    thresholds: dict[str, float] = field(default_factory=dict)
    training: dict[str, np.ndarray] = field(default_factory=dict)
    maps: list[EmbeddingMap] = field(default_factory=list)
    similarity: Similarity | None = None


def read_system(
    folder: Path,
    figures: dict[str, Any],
    classes: Sequence[Any],
    store: FeatureStore | None,
    notes: list[str],
) -> System:
    """Reads the folder of one system; what is missing or damaged is left out and noted.

    Args:
      folder: ``WORKDIR/scores/SYSTEM``.
      figures: Of the system, where they are known; made from the scores where empty.
      classes: Attribute classes as ``config.json`` lists them; empty where it does not.
      store: The run's feature store, which knows the clips, or None.
      notes: Sentences for the reader of the report are appended.

    Returns:
      What the folder holds.
    """
    system, name = System(figures), folder.name
    files: list[ScoreFile] = []
    with noting(notes, f"{name}: scores"):
        files = read_score_files(folder)
        system.thresholds = infer_thresholds(files)
    if (folder / "thresholds.json").exists():
        with noting(notes, f"{name}: thresholds"):
            system.thresholds = _read_thresholds(folder / "thresholds.json")
    if (folder / "training_scores.npz").exists():
        with noting(notes, f"{name}: training scores"):
            system.training = _read_training_scores(folder / "training_scores.npz")
    embeddings: dict[str, np.ndarray] = {}
    if (folder / "embeddings.npz").exists():
        with noting(notes, f"{name}: embeddings"):
            embeddings = _read_embeddings(folder / "embeddings.npz")
            system.maps = _maps(embeddings, store)
    scorer, names = None, [class_name(key) for key in classes]
    if (folder / "member_0.npz").exists() and names:
        with noting(notes, f"{name}: back-end"):
            member = read_arrays(folder / "member_0.npz", remedy=_AGAIN)
            below = {key.removeprefix("scorer/"): member[key] for key in member if "scorer/" in key}
            # A system without embeddings has no such back-end.
            with contextlib.suppress(ValueError):
                scorer = Scorer.from_arrays(below)
                system.similarity = _similarity(scorer, names)
    known = clips_by_file(store.clips if store else ())
    for one in files:
        key = one.machine_type, one.section
        facts = [_facts(known.get(key, {}), one, file) for file in one.files]
        paths = [getattr(fact, "path", "") for fact in facts]
        nearest = _nearest(scorer, embeddings, key, paths, names)
        decisions = [None] * len(facts) if one.decisions is None else one.decisions.tolist()
        system.clips += [
            ScoredClip(file, path, *key, fact.state, fact.domain, *values)
            for file, path, fact, *values in zip(
                one.files, paths, facts, one.scores.tolist(), decisions, nearest, strict=True
            )
        ]
        if all(fact.state for fact in facts):
            truths = [(fact.state == "anomaly", fact.domain) for fact in facts]
            system.tables.append(one.with_truth(truths))
    unknown = sum(not clip.state for clip in system.clips)
    if unknown:
        clips = f"{unknown} of {len(system.clips)} test clips"
        notes.append(f"{name}: {clips} carry no ground truth; what needs it is left out.")
    elif files and not system.figures:
        with warnings.catch_warnings():
            # What is undefined is among the notes.
            warnings.simplefilter("ignore", UndefinedMetricWarning)
            system.figures = evaluate(system.tables)
    return system


def infer_thresholds(files: Sequence[ScoreFile]) -> dict[str, float]:
    """Decision threshold of every machine type, as its decisions show it.

    Args:
      files: Scored sections.

    Returns:
      The middle between the highest score called normal and the lowest called an anomaly, by
      machine type; absent where there are no decisions, or none of one kind, or where no single
      threshold explains them.
    """
    calls: dict[str, tuple[list[float], list[float]]] = {}
    for one in files:
        if one.decisions is not None:
            normal, anomalous = calls.setdefault(one.machine_type, ([], []))
            normal.extend(one.scores[~one.decisions].tolist())
            anomalous.extend(one.scores[one.decisions].tolist())
    return {
        machine: (max(normal) + min(anomalous)) / 2.0
        for machine, (normal, anomalous) in calls.items()
        if normal and anomalous and max(normal) <= min(anomalous)
    }


def threshold_effects(system: System) -> list[ThresholdEffect]:
    """What thresholds at :data:`QUANTILES` of the training scores do to the test clips.

    Args:
      system: A system with held-out training scores; there are no effects without.

    Returns:
      One a machine type and quantile; with the share of training clips above where no test clip
      was scored.
    """
    effects = []
    for machine, training in system.training.items():
        clips = [clip for clip in system.clips if clip.machine_type == machine]
        if system.clips and not clips:
            continue
        scores = np.array([clip.score for clip in clips])
        states = np.array([clip.state for clip in clips])
        for quantile in QUANTILES:
            with warnings.catch_warnings():
                # The threshold in use is what people are warned of.
                warnings.simplefilter("ignore", ThresholdWarning)
                threshold = gamma_threshold(training, quantile=quantile)
            called = decide(scores, threshold)
            normal, anomalous = (
                float(called[states == state].mean()) if np.any(states == state) else None
                for state in ("normal", "anomaly")
            )
            share = float((called if clips else decide(training, threshold)).mean())
            effects.append(ThresholdEffect(machine, quantile, threshold, share, normal, anomalous))
    return effects


@contextlib.contextmanager
def noting(notes: list[str], what: str) -> Iterator[None]:
    """Notes that a part of a run is damaged, so that the other parts are shown all the same."""
    try:
        yield
    except DataError as error:
        notes.append(f"{what} is left out: {error}")


def _facts(named: Mapping[str, Clip], scored: ScoreFile, file: str) -> Clip | ParsedName:
    if file in named:
        return named[file]
    try:
        return parse_name(file)
    except DataError:
        key = scored.machine_type, scored.section
        return Clip("", *key, domain="", split="test", state="", attributes="")


def _read_thresholds(path: Path) -> dict[str, float]:
    thresholds = read_json(path, remedy=_AGAIN)
    if not all(type(value) in (int, float) for value in thresholds.values()):
        raise DataError(path, "something else", "{machine type: number}", _AGAIN)
    return thresholds


def _read_training_scores(path: Path) -> dict[str, np.ndarray]:
    arrays = read_arrays(path, ("machine_types", "scores"), remedy=_AGAIN)
    machines, scores = arrays["machine_types"], arrays["scores"]
    if scores.ndim != 1 or machines.shape != scores.shape or not np.isfinite(scores).all():
        raise DataError(path, "arrays that do not fit", "a finite score for each clip", _AGAIN)
    return {str(machine): scores[machines == machine] for machine in np.unique(machines)}


def _read_embeddings(path: Path) -> dict[str, np.ndarray]:
    arrays = read_arrays(path, ("train", "test", "train_files", "test_files"), remedy=_AGAIN)
    train, test = arrays["train"], arrays["test"]
    if (
        train.shape[1:] != test.shape[1:]
        or train.ndim != 2
        or any(len(arrays[x]) != len(arrays[f"{x}_files"]) for x in ("train", "test"))
        or not (np.isfinite(train).all() and np.isfinite(test).all())
    ):
        raise DataError(path, "arrays that do not fit", "an embedding for each clip", _AGAIN)
    return arrays


def _maps(arrays: Mapping[str, np.ndarray], store: FeatureStore | None) -> list[EmbeddingMap]:
    """Principal components of each machine type's embeddings, training and test clips together."""
    known = {clip.path: clip for clip in store.clips} if store else {}
    facts: dict[str, list[Clip | ParsedName]] = {
        split: [known.get(name) or parse_name(name) for name in map(str, arrays[f"{split}_files"])]
        for split in ("train", "test")
    }
    maps = []
    for machine in sorted({fact.machine_type for fact in facts["test"]}):
        train, test = (
            np.array([i for i, fact in enumerate(group) if fact.machine_type == machine], int)
            for group in facts.values()
        )
        # Every so many of them: enough to see where they lie, and a page that stays small.
        train = train[:: max(1, -(-len(train) // _MOST_DRAWN))]
        both = np.concatenate([arrays["train"][train], arrays["test"][test]]).astype(np.float64)
        centered = both - both.mean(axis=0)
        places = centered @ np.linalg.svd(centered, full_matrices=False)[2][:2].T
        maps.append(
            EmbeddingMap(
                machine,
                places[: len(train)],
                places[len(train) :],
                np.array([facts["test"][row].state == "anomaly" for row in test]),
                np.array([facts["test"][row].domain == "target" for row in test]),
            )
        )
    return maps


def _nearest(
    scorer: Scorer | None,
    embeddings: Mapping[str, np.ndarray],
    section: tuple[str, str],
    paths: Sequence[str],
    classes: Sequence[str],
) -> list[str]:
    """Attribute class of the nearest reference of each clip, ``""`` where it is not known."""
    rows = {str(path): row for row, path in enumerate(embeddings.get("test_files", ()))}
    known = [index for index, path in enumerate(paths) if path in rows]
    nearest = [""] * len(paths)
    if scorer is not None and known and section in scorer.sections:
        test = embeddings["test"][[rows[paths[index]] for index in known]]
        # Of another run than the back-end: embeddings of another length.
        with contextlib.suppress(ValueError):
            labels = scorer.nearest(test, [section] * len(known))
            for index, label in zip(known, labels, strict=True):
                nearest[index] = classes[label] if label < len(classes) else str(label)
    return nearest


def _similarity(scorer: Scorer, classes: Sequence[str]) -> Similarity | None:
    groups, names, prototypes = [], [], []
    for key, model in sorted(scorer.sections.items(), key=lambda item: str(item[0])):
        for label in np.unique(model.labels):
            # k-NN keeps every training embedding, the others one prototype a class.
            prototypes.append(model.references[model.labels == label].mean(axis=0))
            groups.append(class_name(key))
            names.append(classes[label] if label < len(classes) else str(label))
    unit = np.array(prototypes)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    return Similarity(groups, names, np.clip(unit @ unit.T, -1.0, 1.0)) if len(names) > 1 else None
