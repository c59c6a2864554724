"""What can be made of finished runs without training: other back-ends, and fused detectors."""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asdproto.config import ConfigError, from_dict, override, to_dict
from asdproto.data.dcase import Clip
from asdproto.data.store import open_store
from asdproto.errors import DataError
from asdproto.files import locked, read_arrays
from asdproto.results.run_folder import AGAIN, read_config, read_figures, read_results, write_config
from asdproto.scoring.fusion import balancing_weights, combine
from asdproto.systems import system_class
from asdproto.systems.members import prepare_for
from asdproto.systems.run import LOCK, MEMBER_SCORES, save_scores, score_all
from asdproto.systems.trained import ABOUT, TrainedDetector, load_run


def rescore(run: Path, overrides: Sequence[str], out: Path | None = None) -> dict[str, Any]:
    """Fits the back-end of a finished run again, on the encoders that it has trained.

    Args:
      run: The run folder; its features must still be where they were.
      overrides: Assignments to ``score``, such as ``"score.kind=knn"``.
      out: Run folder for the result; the run itself when ``None``.

    Returns:
      What belongs into ``results.json``.

    Raises:
      ConfigError: Something else than ``score`` is assigned, or the system has no back-end.
      DataError: The run is not finished, or its features are gone.
    """
    config, results = read_config(run), read_results(run)
    try:
        before = from_dict(system_class(config["kind"]), config["system"])
    except ConfigError as error:
        raise DataError(run / "config.json", str(error), "the settings of a run", AGAIN) from None
    if not isinstance(config.get("features"), str):
        found, expected = "no feature store", "that of a run that trained on one"
        raise DataError(run / "config.json", found, expected, "Train on a collection or a store.")
    system = override(before, overrides)
    for text in overrides:
        if not text.startswith("score."):
            raise ConfigError(f"{text} asks for training; only score.* changes without")
    if not hasattr(system, "refit"):
        raise ConfigError(f"a run of the system {config['kind']} has no back-end to fit again")
    data = prepare_for(system, open_store(config["features"]), config["machines"])
    target = run if out is None else out
    target.mkdir(parents=True, exist_ok=True)
    systems: dict[str, Any] = dict(results["systems"])
    members: dict[str, Any] = {}
    with locked(target, LOCK):
        for name in config["names"]:
            old = load_run(run, name)
            fitted = {name: [system.refit(member, data) for member in old.members]}
            figures, each = score_all(target, system, data, old.seeds, fitted)
            systems.pop(name, None)
            systems |= figures
            members |= each
        config["system"] = to_dict(system)
        write_config(target, config)
    ordered = {name: systems[name] for name in results["systems"] if name in systems}
    return {**results, "systems": ordered, **({"members": members} if members else {})}


def fuse(
    out: Path, sources: Sequence[Path], weights: Sequence[float] | None = None
) -> dict[str, Any]:
    """Makes one detector of several, as a run folder.

    Args:
      out: The run folder to make.
      sources: Run folders, whose results are taken, or folders of detectors,
        ``RUN/scores/NAME``. All trained on the same clips.
      weights: One a source, not negative. When ``None``, the inverse of how far the source's
        log-normalized scores of held-out normal clips spread (interquartile range), so that all
        have an equal say; see :mod:`asdproto.scoring.fusion`.

    Returns:
      What belongs into ``results.json``: figures of the fused detector and of its parts.

    Raises:
      DataError: A source is no finished detector, or the sources were trained on other clips.
      ConfigError: Weights that do not fit.
    """
    if len(sources) < 2:
        raise ConfigError("one detector is nothing to fuse; give two runs or more")
    folders = [_detector_folder(source) for source in sources]
    detectors = [TrainedDetector.load(folder) for folder in folders]
    first = detectors[0]
    for folder, detector in zip(folders, detectors, strict=True):
        same = (detector.train_files, detector.train_sections, detector.dtype)
        if same != (first.train_files, first.train_sections, first.dtype):
            raise DataError(
                folder,
                f"a detector of other training clips or features than {folders[0]}",
                "detectors trained on the same clips, in the same order",
                "Train them on one collection.",
            )
    if weights is None:
        weights = _balanced(detectors)
    if len(weights) != len(sources) or min(weights) < 0 or not sum(weights) > 0:
        raise ConfigError(
            f"weights are {list(weights)}; expected {len(sources)}, none below 0, one above"
        )
    shares = [
        float(weight * share / sum(detector.weights) / sum(weights))
        for weight, detector in zip(weights, detectors, strict=True)
        for share in detector.weights
    ]
    fused = dataclasses.replace(
        first,
        name="fused",
        members=[member for one in detectors for member in one.members],
        seeds=[seed for one in detectors for seed in one.seeds],
        classes=[classes for one in detectors for classes in one.classes],
        weights=shares,
        held_out=np.concatenate([one.held_out for one in detectors]),
        fitted=None,
    )
    folder = out / "scores" / fused.name
    fused.save(folder)
    config = read_config(folders[0].parents[1])
    about: dict[str, Any] = {
        "kind": "fused",
        "system": {"sources": [str(one) for one in folders], "weights": list(map(float, weights))},
        "seeds": sorted(set(fused.seeds)),
        "machines": config.get("machines"),
        "names": [fused.name],
        "classes": config.get("classes"),
        "features": config.get("features"),
        "data": config.get("data"),
    }
    write_config(out, about)
    systems = {}
    for source in folders:
        if (source / "scores.csv").is_file() and (own := read_figures(source / "results.json")):
            systems[f"{source.parents[1].name}/{source.name}"] = own
    clips, scores = _test_scores(folders, config)
    figures = save_scores(folder, clips, fused, scores)
    if figures is not None:
        systems[fused.name] = figures
    return {"seeds": about["seeds"], "systems": systems, "weights": about["system"]["weights"]}


def _detector_folder(source: Path) -> Path:
    if (source / ABOUT).is_file():
        return source
    return source / "scores" / load_run(source).name


def _balanced(detectors: Sequence[TrainedDetector]) -> list[float]:
    normalized = []
    for one in detectors:
        held_out, sections = list(one.held_out), one.train_sections
        normalized.append(combine(held_out, held_out, sections, sections, weights=one.weights))
    try:
        return balancing_weights(normalized).tolist()
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _test_scores(
    folders: Sequence[Path], config: dict[str, Any]
) -> tuple[list[Clip], list[np.ndarray]]:
    """The test clips that all sources have scored, and every member's scores of them."""
    paths = [folder / MEMBER_SCORES for folder in folders]
    if not all(path.is_file() for path in paths) or not config.get("features"):
        return [], []
    arrays = [read_arrays(path, ("files", "scores"), remedy="Score again.") for path in paths]
    machines = config.get("machines")
    clips = [
        clip
        for clip in open_store(config["features"]).clips
        if clip.split == "test" and (machines is None or clip.machine_type in machines)
    ]
    files = [clip.path for clip in clips]
    scores = []
    for source in arrays:
        rows = {str(name): row for row, name in enumerate(source["files"])}
        if not set(files) <= set(rows):
            warnings.warn(
                "the runs have scored other test clips; the fused run has none", stacklevel=3
            )
            return [], []
        scores += list(source["scores"][:, [rows[name] for name in files]])
    return clips, scores
