"""What is made of finished runs without training: another back-end, one detector of several."""

import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asdproto.config import ConfigError, from_dict, override, to_dict
from asdproto.data.dcase import Clip
from asdproto.data.identity import changes
from asdproto.data.store import FeatureStore, open_store
from asdproto.errors import DataError
from asdproto.files import new_folder, read_arrays
from asdproto.results.run_folder import (
    AGAIN,
    CONFIG,
    MANIFEST,
    RESULTS,
    SCORES,
    read_config,
    read_figures,
    read_results,
    write_config,
)
from asdproto.systems import system_class
from asdproto.systems.detector import Detector, trained_on
from asdproto.systems.detector_files import MEMBER_SCORES, chosen_detector
from asdproto.systems.run import score_all, train_beside, work_in
from asdproto.systems.system import Comparison, System, prepare_for
from asdproto.training.devices import RunOptions

FUSED = "fused"  # a detector of several


def fuse_with_spectra(
    spectra: System,
    store: FeatureStore,
    options: RunOptions,
    *,
    machines: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Fits spectra beside a finished run, and makes both one detector: the run's new result.

    Arguments are those of :func:`asdproto.systems.run.train_beside`. Returns figures by name.
    """
    figures = train_beside(spectra, store, options, machines=machines)
    with work_in(options) as run:
        config = read_config(run)
        own = [name for name in config["names"] if name not in (*spectra.names, FUSED)]
        folders = [run / "scores" / name for name in (own[-1], *spectra.names)]
        figures |= _fuse(folders, run / "scores", config)[1]
        write_config(run, {**config, "names": [*own, *spectra.names, FUSED]})
    return figures


def rescore(run: Path, out: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Fits the back-end of a finished run again, on the encoders that it has trained.

    Args:
      run: The run folder; its features must still be where they were.
      out: Run folder to make.
      overrides: Assignments to ``score``, such as ``"score.kind=knn"``.

    Returns:
      What belongs into ``results.json``.

    Raises:
      ConfigError: Something else than ``score`` is assigned, or the system has no back-end.
      DataError: The run is not finished, or its features are gone.
    """
    config, results = read_config(run), read_results(run)
    for text in overrides:
        if not text.startswith("score."):
            raise ConfigError(f"{text} asks for training; only score.* changes without")
    if config["kind"] != FUSED and "score" not in config["system"]:
        raise ConfigError(
            f"{run}: {config['kind']} has no training that another score could be fitted on; train "
            "it again instead"
        )
    if config["features"] is None:
        found, expected = "no feature store", "that of a run that trained on one"
        raise DataError(run / CONFIG, found, expected, "Train on a collection or a store.")
    try:
        system = override(from_dict(system_class(config["kind"]), config["system"]), overrides)
    except ConfigError as error:
        if config["kind"] != FUSED and overrides:
            raise
        raise DataError(run / CONFIG, str(error), "the settings of a run", AGAIN) from None
    store = open_store(config["features"])
    data = prepare_for(system, store, config["machines"])
    clips = trained_on(data.train_clips)
    _check_recordings(store.root, config["collection"], store.identity(), clips)
    with new_folder(out, "run", CONFIG) as made:
        members = {}
        for name in system.names:
            before = Detector.load(run, name)
            if before.train_clips_ != clips:
                found = "features of other clips than it was trained on"
                raise DataError(config["features"], found, "those of the run", AGAIN)
            members[name] = [system.refit(member, data) for member in before.members_]
        systems, each = score_all(made / "scores", system, data, members)
        if FUSED in config["names"]:
            parts = [name for name in config["names"] if name != FUSED][-2:]
            shutil.copytree(run / "scores" / parts[1], made / "scores" / parts[1])
            systems |= {parts[1]: results["systems"][parts[1]]} if systems else {}
            folders = [made / "scores" / name for name in parts]
            systems |= _fuse(folders, made / "scores", config)[1]
        write_config(made, {**config, "system": to_dict(system)})
    return {"seeds": results["seeds"], "systems": systems, **({"members": each} if each else {})}


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


def fuse(out: Path, sources: Sequence[Path]) -> dict[str, Any]:
    """Makes one detector of several, as a run folder.

    Args:
      out: The run folder to make.
      sources: Run folders, whose results are taken, or folders of detectors,
        ``RUN/scores/NAME``. All trained on the same clips.

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
    config, *others = [read_config(folder.parents[1]) for folder in folders]
    systems: dict[str, Any] = {}
    for folder in folders:
        if (folder / SCORES).is_file() and (own := read_figures(folder / RESULTS)):
            systems[f"{folder.parents[1].name}/{folder.name}"] = own
    with new_folder(out, "run", CONFIG) as work:
        fused, figures = _fuse(folders, work / "scores", config)
        for folder, other in zip(folders[1:], others, strict=True):
            _check_recordings(folder, config["collection"], other["collection"], fused.train_clips_)
        about = {
            **config,
            "kind": FUSED,
            "system": {"sources": [str(folder) for folder in folders]},
            "seeds": sorted({member.seed for member in fused.members_}),
            "names": [FUSED],
        }
        write_config(work, about)
    return {"seeds": about["seeds"], "systems": {**systems, **figures}}


def _fuse(
    folders: Sequence[Path], scores: Path, config: Mapping[str, Any]
) -> tuple[Detector, dict[str, Any]]:
    """One detector of those in folders, written into a folder ``RUN/scores``; figures by name."""
    fused = Detector.fuse([Detector.load(folder) for folder in folders])
    figures = fused.write(scores / FUSED, *_test_scores(folders, config))
    return fused, {} if figures is None else {FUSED: figures}


def _test_scores(
    folders: Sequence[Path], config: Mapping[str, Any]
) -> tuple[list[Clip], list[Comparison]]:
    """The test clips that all sources have scored, and every member's scores of them."""
    paths = [folder / MEMBER_SCORES for folder in folders]
    if not all(path.is_file() for path in paths) or not config["features"]:
        return [], []
    machines = config["machines"]
    clips = [
        clip
        for clip in open_store(config["features"]).clips
        if clip.split == "test" and (machines is None or clip.machine_type in machines)
    ]
    found = []
    for path in paths:
        arrays = read_arrays(path, ("files", "scores"), remedy="Score again.")
        rows = {name: row for row, name in enumerate(arrays["files"].tolist())}
        if any(clip.path not in rows for clip in clips):
            warnings.warn(
                "the runs have scored other test clips; the fused run has none", stacklevel=3
            )
            return [], []
        chosen = [rows[clip.path] for clip in clips]
        found += [Comparison(scores[chosen]) for scores in arrays["scores"]]
    return clips, found
