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
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from asdproto.config import ConfigError, override, to_dict
from asdproto.data.collection import Collection, read_collection
from asdproto.data.dataset import Dataset, section_keys
from asdproto.data.dcase import Clip
from asdproto.data.identity import changes
from asdproto.data.store import MANIFEST as STORE_MANIFEST
from asdproto.data.store import FeatureStore, is_store, open_store
from asdproto.errors import DataError
from asdproto.files import (
    check_folder,
    differences,
    json_checksum,
    locked,
    new_folder,
    read_arrays,
    remove_abandoned,
)
from asdproto.results.run_folder import (
    AGAIN,
    MANIFEST,
    read_config,
    read_figures,
    read_results,
    settle,
    write_config,
    write_results,
)
from asdproto.results.tables import HEADLINE
from asdproto.scoring.metrics import UndefinedMetricWarning, evaluate, group_scores
from asdproto.systems import YARDSTICKS, preset
from asdproto.systems.detector import Detector, trained_on
from asdproto.systems.detector_files import (
    MEMBER_SCORES,
    chosen_detector,
    read_system,
    replaced,
)
from asdproto.systems.embedding import shared_by
from asdproto.systems.system import Comparison, Member, RunOptions, System, prepare_for
from asdproto.training.processes import agree_on, alone, is_main

LOCK = ".lock"  # of a work folder
# How the names of all else begin that a run leaves there.
_OWN = (
    *(".", "checkpoints", "features", "metrics.jsonl", "profile"),
    *("report.html", "results.json", "scores", "summary"),
)
FUSED = "fused"  # the detector of a network and spectra
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
                "collection": collection,
            }
            write_config(options.workdir, about)
        with shared_by(options.devices):
            members = system.train(data, options, seeds)
            trained = time.monotonic()
            figures, each = score_all(options.workdir, system, data, members)
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
    assert options.workdir is not None
    with _alone(options):
        data = prepare_for(system, store, machines)
        if most is not None:
            data = _some(data, most)
        return score_all(options.workdir, system, data, system.train(data, options, seeds))[0]


def fuse_with_spectra(
    spectra: System,
    store: FeatureStore,
    options: RunOptions,
    *,
    machines: Sequence[str] | None = None,
    encoder: Any = None,
) -> dict[str, Any]:
    """Fits spectra beside a finished run, and makes both one detector: the run's new result.

    Arguments are those of :func:`train_beside`; ``encoder`` is the flax module that the run was
    trained with, where it was one of your own. Returns figures by name.
    """
    assert options.workdir is not None
    run = options.workdir
    figures = train_beside(spectra, store, options, machines=machines)
    with _alone(options):
        config = read_config(run)
        own = [name for name in config["names"] if name not in (*spectra.names, FUSED)]
        figures |= _fuse_results(run / "scores", (own[-1], *spectra.names), config, encoder)
        write_config(run, {**config, "names": [*own, *spectra.names, FUSED]})
    return figures


def _fuse_results(
    scores: Path, names: Sequence[str], config: Mapping[str, Any], encoder: Any
) -> dict[str, Any]:
    """Makes one detector of several in a folder ``RUN/scores``; its figures by name."""
    folders = [scores / name for name in names]
    fused = Detector.fuse([Detector.load(folder, encoder=encoder) for folder in folders])
    figures = fused.write(scores / FUSED, *_test_scores(folders, config))
    return {} if figures is None else {FUSED: figures}


def _some(data: Dataset, most: int) -> Dataset:
    """A data set of at most so many training clips, evenly spread over its sections' clips."""
    count = len(data.train_clips)
    if count <= most:
        return data
    ordered = sorted(range(count), key=lambda row: (section_keys([data.train_clips[row]]), row))
    rows = np.sort(np.array(ordered)[np.linspace(0, count - 1, most).astype(int)])
    return dataclasses.replace(
        data,
        train=data.train.take(rows),
        train_clips=[data.train_clips[row] for row in rows],
        labels=data.labels[rows],
    )


@contextlib.contextmanager
def _alone(options: RunOptions) -> Iterator[None]:
    """Keeps other runs out of the work folder; process 0 speaks for all of this one."""
    if not options.devices.is_main:
        yield
        return
    assert options.workdir is not None
    options.workdir.mkdir(parents=True, exist_ok=True)
    with locked(options.workdir, LOCK):
        settle(options.workdir)
        remove_abandoned(options.workdir)
        yield


def score_all(
    workdir: Path,
    system: System,
    data: Dataset,
    members: Mapping[str, Sequence[Member]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores what was trained: figures by name, and those of each seed where there are several."""
    figures: dict[str, Any] = {}
    each: dict[str, Any] = {}
    for name, own in members.items():
        detector = Detector.trained(name, system, data, own)
        if name == system.names[-1] and system.kind not in YARDSTICKS and is_main():
            detector.warn_of_limits()
        together, by_seed = score_detector(workdir / "scores" / name, detector, data)
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


# --- without training


def rescore(
    run: Path, overrides: Sequence[str], out: Path | None = None, *, encoder: Any = None
) -> dict[str, Any]:
    """Fits the back-end of a finished run again, on the encoders that it has trained.

    All of its detectors change together, or none.

    Args:
      run: The run folder; its features must still be where they were.
      overrides: Assignments to ``score``, such as ``"score.kind=knn"``.
      out: New run folder for the result; the run itself when ``None``.
      encoder: The flax module that it was trained with, where it was one of your own.

    Returns:
      What belongs into ``results.json``.

    Raises:
      ConfigError: Something else than ``score`` is assigned, or the system has no back-end.
      DataError: The run is not finished, or its features are gone.
    """
    config, results = read_config(run), read_results(run)
    path = run / "config.json"
    for text in overrides:
        if not text.startswith("score."):
            raise ConfigError(f"{text} asks for training; only score.* changes without")
    if not isinstance(config["features"], str):
        found, expected = "no feature store", "that of a run that trained on one"
        raise DataError(path, found, expected, "Train on a collection or a store.")
    try:
        system = override(read_system(config["kind"], config["system"], encoder), overrides)
    except ConfigError as error:
        if config["kind"] != FUSED and overrides:
            raise
        raise DataError(path, str(error), "the settings of a run", AGAIN) from None
    store = open_store(config["features"])
    data = prepare_for(system, store, config["machines"])
    clips = trained_on(data.train_clips)
    _check_recordings(store.root, config["collection"], store.identity(), clips)
    systems, each = dict(results["systems"]), dict(results.get("members", {}))
    config = {**config, "system": to_dict(system)}
    folder = new_folder(out, "run", "config.json") if out is not None else locked(run, LOCK)
    with folder as made:
        target = run if made is None else made
        with replaced(target / "scores") as scores:
            if out is None:
                shutil.copytree(target / "scores", scores, dirs_exist_ok=True)
            for name in system.names:
                before = Detector.load(run, name, encoder=encoder)
                if before.train_clips_ != clips:
                    found = "features of other clips than it was trained on"
                    raise DataError(config["features"], found, "those of the run", AGAIN)
                members = [system.refit(member, data) for member in before.members_]
                detector = Detector.trained(name, system, data, members)
                figures, by_seed = score_detector(scores / name, detector, data)
                systems |= {} if figures is None else {name: figures}
                each |= {name: by_seed} if by_seed else {}
            if FUSED in config["names"]:
                parts = [name for name in config["names"] if name != FUSED][-2:]
                if out is not None:
                    shutil.copytree(run / "scores" / parts[1], scores / parts[1])
                systems |= _fuse_results(scores, parts, config, encoder)
            if out is not None:
                systems = {name: systems[name] for name in systems if name in config["names"]}
            results = {**results, "systems": systems, **({"members": each} if each else {})}
            write_config(scores, config)
            write_results(scores, results, scores)
        settle(target)
    return results


def _check_recordings(
    path: Path,
    own: Mapping[str, Sequence[int]] | None,
    found: Mapping[str, Sequence[int]] | None,
    clips: Sequence[tuple[str, str, str]],
) -> None:
    """Refuses training recordings that have the names of others: sizes and times tell."""
    own, found = own or {}, found or {}
    known = [name for name, *_ in clips if name in own and name in found]
    told = changes({name: own[name] for name in known}, {name: found[name] for name in known})
    if told:
        expected = "those that the run was trained on"
        raise DataError(path, f"other recordings: {told}", expected, "Train on one collection.")


def fuse(out: Path, sources: Sequence[Path], *, encoder: Any = None) -> dict[str, Any]:
    """Makes one detector of several, as a run folder.

    Args:
      out: The run folder to make.
      sources: Run folders, whose results are taken, or folders of detectors,
        ``RUN/scores/NAME``. All trained on the same clips.
      encoder: The flax module that they were trained with, where it was one of your own.

    Returns:
      What belongs into ``results.json``: figures of the fused detector and of its parts.

    Raises:
      DataError: A source is no finished detector, or of other clips than the first.
      ConfigError: One source only, or one twice.
    """
    folders = [
        source if (source / MANIFEST).is_file() else source / "scores" / chosen_detector(source)
        for source in sources
    ]
    fused = Detector.fuse([Detector.load(folder, encoder=encoder) for folder in folders])
    config, *others = [read_config(folder.parents[1]) for folder in folders]
    for folder, other in zip(folders[1:], others, strict=True):
        _check_recordings(folder, config["collection"], other["collection"], fused.train_clips_)
    systems: dict[str, Any] = {}
    for folder in folders:
        if (folder / "scores.csv").is_file() and (own := read_figures(folder / "results.json")):
            systems[f"{folder.parents[1].name}/{folder.name}"] = own
    about = {
        "kind": FUSED,
        "system": {"sources": [str(folder) for folder in folders]},
        "seeds": sorted({member.seed for member in fused.members_}),
        "names": [FUSED],
        **{
            name: config[name] for name in ("machines", "classes", "features", "data", "collection")
        },
    }
    with new_folder(out, "run", "config.json") as work:
        figures = fused.write(work / "scores" / FUSED, *_test_scores(folders, config))
        write_config(work, about)
    systems |= {} if figures is None else {FUSED: figures}
    return {"seeds": about["seeds"], "systems": systems}


def _test_scores(
    folders: Sequence[Path], config: Mapping[str, Any]
) -> tuple[list[Clip], list[Comparison]]:
    """The test clips that all sources have scored, and every member's scores of them."""
    paths = [folder / MEMBER_SCORES for folder in folders]
    if not all(path.is_file() for path in paths) or not config["features"]:
        return [], []
    arrays = [read_arrays(path, ("files", "scores"), remedy="Score again.") for path in paths]
    machines = config["machines"]
    clips = [
        clip
        for clip in open_store(config["features"]).clips
        if clip.split == "test" and (machines is None or clip.machine_type in machines)
    ]
    files, found = [clip.path for clip in clips], []
    for source in arrays:
        rows = {str(name): row for row, name in enumerate(source["files"])}
        if not set(files) <= set(rows):
            warnings.warn(
                "the runs have scored other test clips; the fused run has none", stacklevel=3
            )
            return [], []
        chosen = [rows[name] for name in files]
        found += [Comparison(scores[chosen]) for scores in source["scores"]]
    return clips, found


# --- what was asked for


def asked(system: System, seeds: Sequence[int], machines: Sequence[str] | None) -> dict[str, Any]:
    """What ``config.json`` says of a run, as far as the command decides it."""
    return {
        "kind": system.kind,
        "system": to_dict(system),
        "seeds": list(seeds),
        "machines": None if machines is None else list(machines),
    }


def announce(system: System, data: Dataset, options: RunOptions, seeds: Sequence[int]) -> None:
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


def check_workdir(workdir: Path) -> None:
    """Refuses a work folder that holds something else than a run.

    Raises:
      DataError: It does; the message names what is there.
    """
    if not (workdir / "config.json").exists():
        check_folder(workdir, _OWN, "that of a run")


def check_same_run(
    workdir: Path, command: dict[str, Any], *, but: tuple[str, ...] = ()
) -> list[str]:
    """Refuses a work folder that belongs to other settings.

    Args:
      workdir: The folder.
      command: What :func:`asked` says of the command.
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
    differing = list(differences(command, {name: config.get(name) for name in command}))
    different = [
        f"{name} is {before!r} there, {now!r} here"
        for name, now, before in differing
        if not name.startswith(but)
    ]
    if different:
        raise DataError(
            path,
            "a run of other settings: " + "; ".join(different[:5]),
            "the settings of this command",
            "Train anew with --retrain, or name another run folder.",
        )
    return [name for name, _, _ in differing]


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
