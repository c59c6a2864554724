"""From a feature store to a run folder: train a system, score the test clips, evaluate.

::

    WORKDIR/
      config.json                what was asked for
      checkpoints/  metrics.jsonl
      scores/NAME/               a detector (systems/detector_files.py) and its scores of test clips
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

from asdproto.data.collection import Collection, read_collection
from asdproto.data.dataset import Dataset, section_keys
from asdproto.data.store import MANIFEST as STORE_MANIFEST
from asdproto.data.store import FeatureStore, is_store, open_store
from asdproto.errors import DataError
from asdproto.files import json_checksum, locked, remove_abandoned
from asdproto.results.run_folder import write_config
from asdproto.results.tables import HEADLINE
from asdproto.scoring.metrics import UndefinedMetricWarning, evaluate, group_scores
from asdproto.systems import YARDSTICKS, preset
from asdproto.systems.detector import Detector
from asdproto.systems.embedding import shared_by
from asdproto.systems.system import Member, System, prepare_for
from asdproto.systems.workdir import run_settings
from asdproto.training.devices import RunOptions
from asdproto.training.processes import agree_on, alone, is_main

LOCK = ".lock"  # of a work folder
# Training clips of a mixture that is only fitted to compare with: its search takes minutes of more.
_MOST_CLIPS = 1000


def train_run(
    system: System,
    store: FeatureStore,
    options: RunOptions,
    *,
    seeds: Sequence[int] = (0,),
    machines: Sequence[str] | None = None,
    root: Path | None = None,
    collection: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains a system on a feature store, scores its test clips and keeps everything.

    Args:
      system: The system.
      store: Features of ``system.features``.
      options: How the run goes; with a work folder.
      seeds: One, or several that make one detector.
      machines: Machine types to keep; all when ``None``.
      root: Folder that the clips' paths are relative to, where it is known: reports read it.
      collection: What tells the collection from another, kept in ``config.json``.

    Returns:
      What belongs into ``results.json``: seeds, figures by name, figures of each seed, and the
      seconds that each part took.

    Raises:
      DataError: Another process is working in the folder.
    """
    with work_in(options) as workdir:
        started = time.monotonic()
        data = prepare_for(system, store, machines)
        _announce(system, data, options, seeds)
        if options.devices.is_main:
            about = {
                **run_settings(system, seeds, machines),
                "names": list(system.names),
                "classes": [list(name) for name in data.classes],
                "features": str(store.root.resolve()),
                "data": None if root is None else str(root.resolve()),
                "collection": collection,
            }
            write_config(workdir, about)
        with shared_by(options.devices):
            members = system.train(data, options, seeds)
            trained = time.monotonic()
            figures, each = score_all(workdir / "scores", system, data, members)
        seconds = {
            "train": round(trained - started, 2),
            "score": round(time.monotonic() - trained, 2),
        }
    results = {"seeds": list(seeds), "systems": figures, "seconds": seconds}
    return {**results, "members": each} if each else results


def train_yardsticks(
    system: System,
    store: FeatureStore,
    options: RunOptions,
    *,
    machines: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Fits what takes no training beside a finished run, on its features; figures by name.

    There are none where the features are no spectrograms.

    Warns:
      UserWarning: One of them cannot be fitted; the message says which, and why.
    """
    figures: dict[str, Any] = {}
    if system.features.waveform or system.features.summary or not options.devices.is_main:
        return figures
    for kind in YARDSTICKS:
        if kind == system.kind:
            continue
        other = dataclasses.replace(preset(kind, "small"), features=system.features)
        most = _MOST_CLIPS if kind == "gmm" else None
        with warnings.catch_warnings(record=True) as caught:
            # Those of the run's own detectors are the same.
            warnings.simplefilter("ignore", UndefinedMetricWarning)
            try:
                figures |= train_beside(other, store, options, machines=machines, most=most)
            except DataError as error:
                warnings.warn(f"not fitted: {error}", stacklevel=1)
        for one in caught:
            warnings.warn(f"yardstick {kind}: {one.message}", one.category, stacklevel=2)
    return figures


def train_beside(
    system: System,
    store: FeatureStore,
    options: RunOptions,
    *,
    seeds: Sequence[int] = (0,),
    machines: Sequence[str] | None = None,
    most: int | None = None,
) -> dict[str, Any]:
    """Trains another system into a run folder that exists; figures by name.

    Args:
      system: The system.
      store: Its features, of the run's collection.
      options: How the run went.
      seeds: As for :func:`train_run`.
      machines: The run's machine types.
      most: Training clips at most, evenly spread over the sections; all when ``None``.
    """
    with work_in(options) as workdir:
        data = prepare_for(system, store, machines)
        if most is not None:
            data = _some(data, most)
        return score_all(workdir / "scores", system, data, system.train(data, options, seeds))[0]


def _some(data: Dataset, most: int) -> Dataset:
    """A data set of at most so many training clips, evenly spread over its sections' clips."""
    count = len(data.train_clips)
    if count <= most:
        return data
    ordered = sorted(range(count), key=lambda row: (section_keys([data.train_clips[row]]), row))
    return data.take(np.sort(np.array(ordered)[np.linspace(0, count - 1, most).astype(int)]))


@contextlib.contextmanager
def work_in(options: RunOptions) -> Iterator[Path]:
    """The work folder, of which other runs are kept out; process 0 speaks for all of this one."""
    workdir = options.workdir
    assert workdir is not None
    if not options.devices.is_main:
        yield workdir
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with locked(workdir, LOCK):
        remove_abandoned(workdir)
        yield workdir


def _announce(system: System, data: Dataset, options: RunOptions, seeds: Sequence[int]) -> None:
    """Says what is about to be trained, on what."""
    if options.console is None:
        return
    device, count = options.devices.local[0], options.devices.count
    options.console.print(
        f"Training: {system.kind} ({system.plan(len(data.labels))}), seed"
        f"{'s' * (len(seeds) > 1)} {' '.join(map(str, seeds))}\n"
        f"Clips:    {len(data.train_clips)} for training in {len(data.classes)} attribute "
        f"class{'es' * (len(data.classes) > 1)}, {len(data.test_clips)} for testing\n"
        f"Device:   {count} x {device.device_kind} ({device.platform})",
        highlight=False,
        soft_wrap=True,
    )


def score_all(
    scores: Path,
    system: System,
    data: Dataset,
    members: Mapping[str, Sequence[Member]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores what was trained into a folder ``RUN/scores``.

    Returns:
      Figures by name, and those of each seed where there are several.
    """
    figures: dict[str, Any] = {}
    each: dict[str, Any] = {}
    for name, own in members.items():
        detector = Detector.trained(name, system, data, own)
        if name == system.names[-1] and system.kind not in YARDSTICKS and is_main():
            detector.warn_of_limits()
        together, by_seed = score_detector(scores / name, detector, data)
        figures |= {} if together is None else {name: together}
        each |= {name: by_seed} if by_seed else {}
    return figures, each


def score_detector(
    folder: Path, detector: Detector, data: Dataset
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Scores the test clips with all processes; the first one saves the detector and evaluates.

    Returns:
      The figures of :func:`asdproto.scoring.metrics.evaluate`, ``None`` where the test clips carry
      no labels; and the headline figures of every seed where there are several.
    """
    clips, sections = data.test_clips, section_keys(data.test_clips)
    found = detector.compare([data.test], sections) if clips else []
    if not is_main():
        return None, []
    figures, members = detector.write(folder, clips, found), detector.members_
    seeds = list(dict.fromkeys(member.seed for member in members))
    each = []
    for seed in seeds if figures is not None and len(seeds) > 1 else []:
        own = [row for row, member in enumerate(members) if member.seed == seed]
        scores = [found[row].scores for row in own]
        combined = detector.combine(scores, sections, [members[row] for row in own])
        values = evaluate(group_scores(clips, combined))
        each.append({"seed": seed, **{name: values[name] for name in HEADLINE}})
    return figures, each


def features_of(
    data: Path | Collection,
    folder: Path,
    settings: Any,
    console: Console | None,
    *,
    on_error: str = "stop",
) -> FeatureStore:
    """Feature store of a collection, extracted into ``folder`` unless it is there already.

    Process 0 extracts, the others wait for it and open the same store. ``data`` is a collection,
    its path, or the folder of a feature store; ``on_error`` is as for
    :func:`asdproto.data.extract.build_store`.
    """
    made: list[FeatureStore] = []

    def extract() -> bool:
        """Whether the store is given, and nothing is to be extracted."""
        if isinstance(data, Path) and is_store(data):
            return True
        from asdproto.data.extract import build_store

        collection = read_collection(data) if isinstance(data, Path) else data
        shown = console is not None
        made.append(build_store(collection, folder, settings, on_error=on_error, progress=shown))
        return False

    path = data if alone(extract) and isinstance(data, Path) else folder
    store = made[0] if made else open_store(path, expect=settings)
    checksum = json_checksum((path / STORE_MANIFEST).read_text())
    agree_on({"feature store": {"clips": len(store.clips), "checksum": checksum}})
    return store
