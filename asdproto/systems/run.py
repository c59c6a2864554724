"""From a feature store to a run folder: train a system, score the test clips, evaluate.

::

    WORKDIR/
      config.json                what was asked for
      checkpoints/  metrics.jsonl
      scores/NAME/               a detector (systems/trained.py) and its scores of test clips
      results.json               figures by name, where the test clips carry labels
"""

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from asdproto.config import to_dict
from asdproto.data.collection import Collection
from asdproto.data.dataset import Dataset, section_keys
from asdproto.data.dcase import Clip
from asdproto.data.store import FeatureStore
from asdproto.errors import DataError
from asdproto.files import json_checksum, locked, remove_abandoned, write_arrays
from asdproto.results import class_name
from asdproto.results.run_folder import (
    ScoredClip,
    percentiles,
    read_config,
    write_config,
    write_scores,
)
from asdproto.results.tables import HEADLINE
from asdproto.scoring.metrics import evaluate, group_scores
from asdproto.scoring.thresholds import decide
from asdproto.systems import YARDSTICKS, preset
from asdproto.systems.members import Fitted, RunOptions, prepare_for
from asdproto.systems.trained import TrainedDetector
from asdproto.training.processes import agree_on, alone, differences

LOCK = ".lock"  # of a work folder
# Scores of the test clips by every member: what fusing takes.
MEMBER_SCORES = "member_scores.npz"


class EqualEmbeddingsWarning(UserWarning):
    """An encoder tells no two clips apart."""


def train_run(
    system: Any,
    store: FeatureStore,
    options: RunOptions,
    *,
    seeds: Sequence[int] = (0,),
    machines: Sequence[str] | None = None,
    root: Path | None = None,
) -> dict[str, Any]:
    """Trains a system on a feature store, scores its test clips and keeps everything.

    The yardsticks, which take no time, are fitted beside it.

    Args:
      system: The system.
      store: Features of ``system.features``.
      options: How the run goes; with a work folder.
      seeds: One, or several that make one detector.
      machines: Machine types to keep; all when ``None``.
      root: Folder that the clips' paths are relative to, where it is known: reports read it.

    Returns:
      What belongs into ``results.json``: seeds, figures by name, figures of each seed, and the
      seconds that each part took.

    Raises:
      DataError: Another process is working in the folder.
      OSError: The disk is full, or may not be written to; what is saved stays.
    """
    assert options.workdir is not None
    with _alone(options):
        started = time.monotonic()
        data = prepare_for(system, store, machines)
        announce(system, data, options, seeds)
        if options.devices.is_main:
            about = {
                **asked(system, seeds, machines),
                "names": list(system.names),
                "classes": [list(name) for name in data.classes],
                "features": str(store.root.resolve()),
                "data": None if root is None else str(root.resolve()),
            }
            write_config(options.workdir, about)
        fitted = system.train(data, options, seeds)
        trained = time.monotonic()
        figures, members = score_all(options.workdir, system, data, seeds, fitted)
        if options.devices.is_main:
            figures |= fit_yardsticks(system, data, options)
        seconds = {
            "train": round(trained - started, 2),
            "score": round(time.monotonic() - trained, 2),
        }
    results = {"seeds": list(seeds), "systems": figures, "seconds": seconds}
    return {**results, "members": members} if members else results


def fit_yardsticks(system: Any, data: Dataset, options: RunOptions) -> dict[str, Any]:
    """Fits what takes no training beside a system, on its features; returns figures by name."""
    figures: dict[str, Any] = {}
    for kind in YARDSTICKS:
        if kind == system.kind or system.features.waveform:
            continue
        other = dataclasses.replace(preset(kind, "small"), features=system.features)
        try:
            fitted = other.train(data, options, [0])
        except DataError as error:
            warnings.warn(f"no {kind} beside: {error}", stacklevel=2)
            continue
        figures |= score_all(options.workdir, other, data, [0], fitted)[0]
    return figures


def train_beside(
    system: Any,
    store: FeatureStore,
    options: RunOptions,
    *,
    seeds: Sequence[int] = (0,),
    machines: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Trains another system into a run folder that exists; returns its figures by name."""
    with _alone(options):
        data = prepare_for(system, store, machines)
        fitted = system.train(data, options, seeds)
        return score_all(options.workdir, system, data, seeds, fitted)[0]


@contextlib.contextmanager
def _alone(options: RunOptions) -> Iterator[None]:
    """Keeps other runs out of the work folder; process 0 speaks for all of this one."""
    assert options.workdir is not None
    if not options.devices.is_main:
        yield
        return
    options.workdir.mkdir(parents=True, exist_ok=True)
    with locked(options.workdir, LOCK):
        for folder in (options.workdir, *options.workdir.glob("scores/*/")):
            remove_abandoned(folder)
        yield


def score_all(
    workdir: Path | None,
    system: Any,
    data: Dataset,
    seeds: Sequence[int],
    fitted: Mapping[str, Sequence[Fitted]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores what was trained: figures by name, and those of each seed where there are several."""
    assert workdir is not None
    figures, members = {}, {}
    for name, by_seed in fitted.items():
        folder = workdir / "scores" / name
        together, each = score_fitted(folder, system, data, by_seed, seeds)
        if together is not None:
            figures[name] = together
        if each:
            members[name] = each
    return figures, members


def asked(system: Any, seeds: Sequence[int], machines: Sequence[str] | None) -> dict[str, Any]:
    """What ``config.json`` says of a run, as far as the command decides it."""
    return {
        "kind": system.kind,
        "system": to_dict(system),
        "seeds": list(seeds),
        "machines": None if machines is None else list(machines),
    }


def announce(system: Any, data: Dataset, options: RunOptions, seeds: Sequence[int]) -> None:
    """Says what is about to be trained, on what."""
    if options.console is None:
        return
    device = options.devices.local[0]
    count = options.devices.count
    options.console.print(
        f"Training: {system.kind} ({system.plan(len(data.labels))}), seed"
        f"{'s' * (len(seeds) > 1)} {' '.join(map(str, seeds))}\n"
        f"Clips:    {len(data.train_clips)} for training in {len(data.classes)} attribute "
        f"class{'es' * (len(data.classes) > 1)}, {len(data.test_clips)} for testing\n"
        f"Device:   {count} x {device.device_kind} ({device.platform})",
        highlight=False,
        soft_wrap=True,
    )


def detector_of(
    name: str, system: Any, data: Dataset, fitted: Sequence[Fitted], seeds: Sequence[int]
) -> TrainedDetector:
    """The detector that members trained on a data set make.

    Warns:
      EqualEmbeddingsWarning: A member gives all training clips one embedding.
    """
    for one, seed in zip(fitted, seeds, strict=True):
        if one.embeddings is not None and _collapsed(one.embeddings):
            warnings.warn(
                f"{name}, seed {seed}: all {len(one.embeddings)} training clips have one "
                "embedding, so the scores mean nothing. Look for features that are constant, or "
                "lower the learning rate",
                EqualEmbeddingsWarning,
                stacklevel=2,
            )
    return TrainedDetector(
        name=name,
        members=[one.member for one in fitted],
        seeds=list(seeds),
        classes=[data.classes] * len(fitted),
        weights=[1.0] * len(fitted),
        held_out=np.stack([one.held_out for one in fitted]),
        train_sections=section_keys(data.train_clips),
        train_files=[clip.path for clip in data.train_clips],
        quantile=system.quantile,
        dtype=str(data.train.features.dtype),
    )


def _collapsed(embeddings: np.ndarray) -> bool:
    """Whether what differs between embeddings is rounding: a millionth of their length."""
    x = np.asarray(embeddings, np.float64)
    return bool(np.square(x - x.mean(axis=0)).mean() <= 1e-12 * np.square(x).mean())


def score_fitted(
    folder: Path, system: Any, data: Dataset, fitted: Sequence[Fitted], seeds: Sequence[int]
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Scores the test clips, saves the detector and its scores, and evaluates.

    Args:
      folder: ``WORKDIR/scores/NAME``.
      system: The system.
      data: The data set.
      fitted: The members, one a seed.
      seeds: Their seeds.

    Returns:
      The figures of :func:`asdproto.scoring.metrics.evaluate`, ``None`` where the test clips carry
      no labels; and the headline figures of every seed where there are several.
    """
    detector = detector_of(folder.name, system, data, fitted, seeds)
    comparisons = []
    if data.test_clips:
        comparisons = detector.compare([data.test], section_keys(data.test_clips))
    detector.save(folder)
    scores = [one.scores for one in comparisons]
    labels = next((one.nearest for one in comparisons if one.nearest is not None), None)
    nearest = None if labels is None else [class_name(data.classes[label]) for label in labels]
    figures = save_scores(folder, data.test_clips, detector, scores, nearest)
    if figures is None or len(comparisons) == 1:
        return figures, []
    each = []
    for seed, one in zip(seeds, scores, strict=True):
        alone = evaluate(group_scores(data.test_clips, one))
        each.append({"seed": seed, **{key: alone[key] for key in HEADLINE}})
    return figures, each


def save_scores(
    folder: Path,
    clips: Sequence[Clip],
    detector: TrainedDetector,
    scores: Sequence[np.ndarray],
    nearest: Sequence[str] | None = None,
) -> dict[str, Any] | None:
    """Writes the members' scores of the test clips as one; evaluates where there are labels."""
    if not clips:
        return None
    files = np.array([clip.path for clip in clips])
    write_arrays(folder / MEMBER_SCORES, {"files": files, "scores": np.stack(scores)})
    combined = detector.combine(scores, section_keys(clips))
    thresholds = detector.thresholds()
    limits = np.array([thresholds[clip.machine_type] for clip in clips])
    decisions = decide(combined, limits)
    train_machines = [machine for machine, _ in detector.train_sections]
    machines = [clip.machine_type for clip in clips]
    shares = percentiles(combined, machines, detector.train_scores, train_machines)
    rows = [
        ScoredClip(
            file=clip.path,
            machine_type=clip.machine_type,
            section=clip.section,
            domain=clip.domain,
            state=clip.state,
            score=float(combined[row]),
            percentile=float(shares[row]),
            threshold=float(limits[row]),
            decision=int(decisions[row]),
            nearest_class=nearest[row] if nearest else "",
            note="",
        )
        for row, clip in enumerate(clips)
    ]
    return write_scores(folder, rows)


def check_same_run(workdir: Path, asked: dict[str, Any], *, but: tuple[str, ...] = ()) -> list[str]:
    """Refuses a work folder that belongs to other settings.

    Args:
      workdir: The folder.
      asked: What :func:`asked` says of the command.
      but: Beginnings of dotted fields that may differ.

    Returns:
      The fields that may differ and do.

    Raises:
      DataError: Others differ; the message names them.
    """
    path = workdir / "config.json"
    if not path.exists():
        return []
    config = read_config(workdir)
    differing = list(differences(asked, {name: config.get(name) for name in asked}))
    allowed = [name for name, _, _ in differing if name.startswith(but)]
    different = [
        f"{name} is {there!r} there, {here!r} here"
        for name, here, there in differing
        if name not in allowed
    ]
    if different:
        raise DataError(
            path,
            "a run of other settings: " + "; ".join(different[:5]),
            "the settings of this command",
            "Choose another folder for the run, or repeat that run's settings.",
        )
    return allowed


def features_of(
    data: Path | Collection,
    folder: Path,
    settings: Any,
    console: Console | None,
    *,
    on_error: str = "stop",
) -> FeatureStore:
    """Feature store of a collection, extracted into ``folder`` unless it is there already.

    Process 0 extracts, the others wait for it and open the same store.

    Args:
      data: A collection, its path, or the folder of a feature store.
      folder: Where the store goes.
      settings: Feature settings.
      console: Where progress goes.
      on_error: As for :func:`asdproto.data.extract.build_store`.
    """
    from asdproto.data.store import MANIFEST, is_store, open_store

    extracted = []

    def extract() -> bool:
        """Whether the store is given, and nothing is to be extracted."""
        if isinstance(data, Path) and is_store(data):
            return True
        from asdproto.data.collection import read_collection
        from asdproto.data.extract import build_store

        collection = read_collection(data) if isinstance(data, Path) else data
        shown = console is not None
        extracted.append(
            build_store(collection, folder, settings, on_error=on_error, progress=shown)
        )
        return False

    path = data if alone(extract) and isinstance(data, Path) else folder
    store = extracted[0] if extracted else open_store(path, expect=settings)
    checksum = json_checksum((path / MANIFEST).read_text())
    agree_on({"feature store": {"clips": len(store.clips), "checksum": checksum}})
    return store
