"""A run's folder: the only module that reads and writes its files, other than arrays.

::

    RUN/
      config.json            what was asked for; "data" and "features" say where those are
      metrics.jsonl          a line for every epoch of every stage
      results.json           {"seeds": [...], "systems": {name: figures}, ...}
      report.html            see :mod:`asdproto.results.page`
      scores/NAME/           one detector
        scores.csv           its test clips, see :class:`ScoredClip`; the truth, from which are made
        anomaly_score_*.csv, decision_result_*.csv, result.csv     the official files
        results.json         figures, and the checksum of scores.csv; written last

The json files carry a checksum of their contents, so that no flipped byte goes unnoticed.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from asdproto.data.identity import is_identity
from asdproto.data.store import FeatureStore, open_store
from asdproto.errors import DataError, plain_cell, quoted, some, spreadsheet_cell
from asdproto.files import (
    check_manifest,
    checked,
    csv_text,
    json_text,
    read_arrays,
    read_bytes,
    read_checked,
    read_json,
    write_atomically,
    write_json,
)
from asdproto.results.official import write_official, write_result_csv
from asdproto.scoring.metrics import (
    AUC_METRICS,
    SectionScores,
    evaluate,
    group_scores,
)

CONFIG, RESULTS, METRICS, SCORES = "config.json", "results.json", "metrics.jsonl", "scores.csv"
MANIFEST = "detector.json"  # of a detector's folder
AGAIN = "Repeat the run's command, with the same settings and without this file."
_MOVABLE = ("data", "features")  # fields of config.json that follow folders that are moved
# Fields of config.json and what they may be; None stands for those that may be missing.
_CONFIG_FIELDS: dict[str, tuple[type, ...]] = {
    "kind": (str,),
    "system": (dict,),
    "names": (list,),
    "seeds": (list,),
    "machines": (list, type(None)),
    "classes": (list, type(None)),
    "features": (str, type(None)),
    "data": (str, type(None)),
    "collection": (dict, type(None)),
}


@dataclass(frozen=True, slots=True)
class ScoredClip:
    """A recording and what a detector says of it; the columns of ``scores.csv``, in this order.

    Attributes:
      file: Path relative to the collection's root, with forward slashes; or as it was given.
      machine_type: The machine type.
      section: The section.
      domain: ``"source"``, ``"target"``, or ``""`` where unknown.
      state: ``"normal"``, ``"anomaly"``, or ``""`` where unknown.
      score: Anomaly score, finite; higher is more anomalous.
      percentile: Share of the machine type's held-out normal scores below the score, in percent.
      threshold: Decision threshold of the machine type; a higher score is called an anomaly.
      decision: 1 where the clip is called an anomaly, else 0.
      nearest_class: Attribute class of the nearest reference; ``""`` where there is none.
      note: What is odd about the recording; ``""`` mostly.
    """

    file: str
    machine_type: str
    section: str
    domain: str
    state: str
    score: float
    percentile: float
    threshold: float
    decision: int
    nearest_class: str
    note: str

    @property
    def name(self) -> str:
        """File name without its folder, as the official files have it."""
        return self.file.rpartition("/")[2]

    @property
    def path(self) -> str:
        """As :class:`asdproto.data.dcase.Clip` calls the file."""
        return self.file

    @property
    def class_in_section(self) -> str:
        """Nearest attribute class without the machine type and section that it begins with."""
        return self.nearest_class.removeprefix(f"{self.machine_type} {self.section}").strip()


COLUMNS = tuple(column.name for column in dataclasses.fields(ScoredClip))
_NUMBERS = ("score", "percentile", "threshold")


# --- scores of one detector


def csv_cells(clip: ScoredClip) -> list[Any]:
    """A row of ``scores.csv`` and of ``score --csv``, numbers with all digits."""
    values = dataclasses.astuple(clip)
    return [spreadsheet_cell(value) if isinstance(value, str) else value for value in values]


def write_scores(folder: str | os.PathLike, rows: Sequence[ScoredClip]) -> dict[str, Any] | None:
    """Writes a detector's ``scores.csv`` and what is made from it: official files and figures.

    Killed half way, it leaves no ``results.json``, and :func:`read_scores` refuses the folder.

    Returns:
      The figures of :func:`asdproto.scoring.metrics.evaluate`; None where a clip's state is not
      known, or there is no clip.

    Raises:
      DataError: A score that is not finite, or a machine type or section that cannot be part of a
        file name.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for clip in rows:
        if not math.isfinite(clip.score):
            remedy = "Look for a diverged model or an empty clip, and score again."
            raise DataError(clip.file, f"the score {clip.score}", "a finite number", remedy)
    figures = None
    if rows and all(clip.state for clip in rows):
        figures = evaluate(tables_of(rows))
    (folder / RESULTS).unlink(missing_ok=True)
    write_official(folder, rows)
    if figures is not None:
        write_result_csv(folder / "result.csv", figures)
    text = csv_text([COLUMNS, *map(csv_cells, rows)])
    write_atomically(folder / SCORES, text.encode())
    about = {} if figures is None else figures
    write_figures(folder / RESULTS, {**about, "scores": zlib.crc32(text.encode())})
    return figures


def read_scores(folder: str | os.PathLike) -> list[ScoredClip]:
    """Reads a detector's ``scores.csv``, in the order in which it was written.

    Raises:
      DataError: The file is missing, unfinished or not the one that was written.
    """
    path = Path(folder) / SCORES
    saved = _read_nan(path.with_name(RESULTS)).get("scores")
    content = read_bytes(path, "scores of clips", AGAIN)
    if zlib.crc32(content) != saved:
        raise DataError(path, "other scores than were saved", "what its checksum says", AGAIN)
    header, *rows = csv.reader(io.StringIO(content.decode(), newline=""))
    if header != list(COLUMNS):
        raise DataError(path, f"columns {quoted(','.join(header))}", ",".join(COLUMNS), AGAIN)
    clips = []
    for cells in rows:
        values: dict[str, Any] = dict(zip(COLUMNS, map(plain_cell, cells), strict=True))
        values |= {name: float(values[name]) for name in _NUMBERS}
        clips.append(ScoredClip(**{**values, "decision": int(values["decision"])}))
    return clips


def read_figures(path: str | os.PathLike) -> dict[str, Any]:
    """The figures in a detector's ``results.json``, undefined ones nan; empty without labels.

    Raises:
      DataError: The file is missing, damaged, or of another shape.
    """
    figures = _read_nan(Path(path))
    figures.pop("scores", None)
    if figures:
        _check_systems(Path(path), {"": figures})
    return figures


def tables_of(rows: Sequence[ScoredClip]) -> list[SectionScores]:
    """One table a section of the clips whose sections are labeled throughout."""
    unknown = {(clip.machine_type, clip.section) for clip in rows if not clip.state}
    known = [clip for clip in rows if (clip.machine_type, clip.section) not in unknown]
    scores, decisions = [clip.score for clip in known], [clip.decision for clip in known]
    return group_scores(known, scores, decisions)


# --- json of a run


def write_config(run: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Writes ``config.json``, with a checksum of all but ``features`` and ``data``."""
    Path(run).mkdir(parents=True, exist_ok=True)
    write_json(Path(run) / CONFIG, checked(config, _MOVABLE))


def read_config(run: str | os.PathLike) -> dict[str, Any]:
    """Reads ``config.json``; fields that it lacks are empty, or None.

    Raises:
      DataError: It is missing, damaged, of another shape, or changed by hand in other fields than
        ``features`` and ``data``.
    """
    path = Path(run) / CONFIG
    config = read_checked(path, _MOVABLE, remedy=AGAIN)
    for name, kinds in _CONFIG_FIELDS.items():
        value = config.setdefault(name, kinds[-1]())
        fits = isinstance(value, kinds)
        if fits and value and name in ("names", "machines"):
            fits = all(isinstance(text, str) for text in value)
        elif fits and value and name == "collection":
            fits = is_identity(value)
        if not fits:
            found = f"{name} {quoted(repr(value))}"
            raise DataError(path, found, "the settings of a run", AGAIN)
    return config


def write_results(run: str | os.PathLike, results: Mapping[str, Any]) -> None:
    """Writes ``results.json``, ``{"seeds": [...], "systems": {name: figures}, ...}``.

    It holds the checksums of the settings and detectors whose figures these are.
    """
    whose = _checksums(Path(run), results["systems"])
    write_figures(Path(run) / RESULTS, {**results, "of": whose})


def _checksums(run: Path, names: Iterable[str]) -> dict[str, Any]:
    """Checksum of the settings and of each detector, of those that there are."""
    files = {CONFIG: run / CONFIG} | {name: run / "scores" / name / MANIFEST for name in names}
    return {
        name: read_json(path, remedy=AGAIN).get("checksum")
        for name, path in files.items()
        if path.is_file()
    }


def read_results(run: str | os.PathLike) -> dict[str, Any]:
    """Reads the ``results.json`` of a run; an undefined figure is nan.

    Raises:
      DataError: It is missing, damaged, changed by hand, of another shape, or of other settings or
        detectors than are there.
    """
    path = Path(run) / RESULTS
    results = _read_nan(path)
    _check_systems(path, results.get("systems"))
    whose = results.pop("of", {})
    if not isinstance(whose, dict):
        raise DataError(path, f"of {quoted(repr(whose))}", "checksums by name", AGAIN)
    now = _checksums(Path(run), results["systems"])
    others = [name for name in now if whose.get(name, now[name]) != now[name]]
    if others:
        found = f"figures of another {some(others)} than is there"
        raise DataError(path, found, "those of this run", AGAIN)
    seeds = results.get("seeds")
    members = results.get("members", {})
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        raise DataError(path, f"seeds {quoted(repr(seeds))}", "a list of integers", AGAIN)
    if not isinstance(members, dict) or not all(isinstance(x, list) for x in members.values()):
        raise DataError(path, f"members {quoted(repr(members))}", "figures by seed", AGAIN)
    for name, each in members.items():
        _check_systems(path, {f"{name}, {index}": one for index, one in enumerate(each)})
    return results


def write_figures(path: str | os.PathLike, figures: Mapping[str, Any]) -> None:
    """Writes nested figures as json, in the place of whatever is there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, figures_text(figures).encode())


def figures_text(figures: Mapping[str, Any]) -> str:
    """Nested figures as json, with a checksum; an undefined one (nan) becomes ``null``."""
    plain = _map_leaves(figures, lambda x: None if isinstance(x, float) and math.isnan(x) else x)
    return json_text(checked(plain))


def _read_nan(path: Path) -> dict[str, Any]:
    """What :func:`write_figures` wrote; ``null`` becomes nan."""
    content = read_checked(path, remedy=AGAIN)
    return _map_leaves(content, lambda leaf: math.nan if leaf is None else leaf)


def _check_systems(path: Path, systems: Any) -> None:
    well_formed = isinstance(systems, dict) and all(
        isinstance(figures, dict)
        and all(isinstance(figures.get(name), float | int) for name in ("overall", *AUC_METRICS))
        and isinstance(figures.get("machines", {}), dict)
        for figures in systems.values()
    )
    if not well_formed:
        raise DataError(path, "no figures by system", '{"systems": {name: figures}}', AGAIN)


def _map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _map_leaves(item, function) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_leaves(item, function) for item in value]
    return function(value)


# --- everything in a run


@dataclass(slots=True)
class ScoredSystem:
    """What a run holds of a detector: test clips, figures, held-out scores by machine type."""

    clips: list[ScoredClip] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    held_out: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(slots=True)
class Run:
    """What a run folder holds, as far as it has come.

    Attributes:
      name: The folder's name.
      config: ``config.json``; empty where there is none.
      training: Rows of ``metrics.jsonl`` by stage, in order of their epochs.
      systems: Every detector, the run's own before what is fitted beside it to compare with.
      result: The system that the run is about, ``""`` where there is none yet.
      store: The run's feature store, where it can be opened.
      recordings: Folders that the files of clips may be relative to.
      notes: Sentences about what is missing or odd, for the reader of the report.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    training: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    systems: dict[str, ScoredSystem] = field(default_factory=dict)
    result: str = ""
    store: FeatureStore | None = None
    recordings: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_run(run: str | os.PathLike) -> Run:
    """Reads a run folder, also while it trains: what is missing or damaged is left out and noted.

    Raises:
      DataError: The folder does not exist or holds nothing of a run that can be read.
    """
    workdir = Path(run)
    expected, remedy = "the folder of a run", "Give the folder that train was given."
    if not workdir.is_dir():
        raise DataError(workdir, "a file" if workdir.exists() else "nothing", expected, remedy)
    found = Run(workdir.resolve().name)
    if (workdir / CONFIG).exists():
        with _noting(found.notes, CONFIG):
            found.config = read_config(workdir)
    if (workdir / METRICS).exists():
        with _noting(found.notes, METRICS):
            found.training = _read_training(workdir / METRICS, found.notes)
    features, data = (_folder(workdir, found.config, name) for name in ("features", "data"))
    if (features / "manifest.json").exists():
        with _noting(found.notes, "The feature store"):
            found.store = open_store(features)
    found.recordings = [folder for folder in (data, data / "dev_data") if folder.is_dir()]
    figures: dict[str, Any] = {}
    if (workdir / RESULTS).exists():
        with _noting(found.notes, RESULTS):
            figures = read_results(workdir)["systems"]
    order = [*found.config.get("names", ()), *figures]
    folders = {path.name: path for path in sorted((workdir / "scores").glob("*/"))}
    unordered = sorted(folders.keys() - set(order))
    for name in dict.fromkeys([*order, *unordered]):
        system = _read_system(folders[name], found.notes) if name in folders else ScoredSystem()
        system.figures = figures.get(name) or system.figures
        if system.figures or system.clips or system.held_out:
            found.systems[name] = system
    if not (found.config or found.training or found.systems):
        if found.notes:
            raise DataError(workdir, found.notes[0], expected, remedy)
        nothing = f"none of {CONFIG}, {METRICS}, {RESULTS} and scores/"
        raise DataError(workdir, nothing, expected, remedy)
    own = [name for name in found.config.get("names", ()) if name in found.systems]
    found.result = (own or list(found.systems) or [""])[-1]
    undefined: dict[str, list[str]] = {}
    for name, system in found.systems.items():
        for text in system.figures.get("undefined", ()):
            undefined.setdefault(text, []).append(name)
    found.notes += [f"Undefined for {', '.join(names)}: {x}." for x, names in undefined.items()]
    return found


def _read_system(folder: Path, notes: list[str]) -> ScoredSystem:
    system, held_out = ScoredSystem(), folder / "training_scores.npz"
    if (folder / SCORES).exists():
        with _noting(notes, f"{folder.name}: scores"):
            system.clips = read_scores(folder)
            system.figures = read_figures(folder / RESULTS)
    if held_out.exists():
        with _noting(notes, f"{folder.name}: training scores"):
            check_manifest(folder / MANIFEST, remedy=AGAIN)
            system.held_out = _read_held_out(held_out)
    return system


def _read_held_out(path: Path) -> dict[str, np.ndarray]:
    arrays = read_arrays(path, ("machine_types", "scores"), remedy=AGAIN)
    machines, scores = arrays["machine_types"], arrays["scores"]
    if scores.ndim != 1 or machines.shape != scores.shape or not np.isfinite(scores).all():
        raise DataError(path, "arrays that do not fit", "a finite score for each clip", AGAIN)
    return {str(machine): scores[machines == machine] for machine in np.unique(machines)}


def _folder(workdir: Path, config: Mapping[str, Any], name: str) -> Path:
    """Where the configuration says that something is; in the run folder if it is not there."""
    place = config.get(name)
    known = workdir / place if isinstance(place, str) else workdir / name
    # Not Path.exists, which raises where a folder may not be entered.
    return known if os.path.exists(known) else workdir / name


def _read_training(path: Path, notes: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows by stage; where a resumed run wrote an epoch twice, the later row holds."""
    content = read_bytes(path, "lines of metrics", "Check the file.")
    lines = content.decode(errors="replace").splitlines()
    rows: dict[str, dict[tuple[float, float], dict[str, Any]]] = {}
    bad = []
    for index, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            for name in ("loss", "learning_rate"):
                row[name] = math.nan if row.get(name) is None else float(row[name])
            key = float(row["epoch"]), float(row.get("step") or 0)
            rows.setdefault(str(row["stage"]), {})[key] = row
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            bad.append(index)
    if bad:
        which = f"{len(bad)} of {len(lines)} lines of {path.name}, the first of them line {bad[0]},"
        notes.append(f"{which} are no lines of metrics and left out.")
    return {stage: [by_key[key] for key in sorted(by_key)] for stage, by_key in rows.items()}


@contextlib.contextmanager
def _noting(notes: list[str], what: str) -> Iterator[None]:
    """Notes that a part of a run is damaged, so that the other parts are shown all the same."""
    try:
        yield
    except DataError as error:
        notes.append(f"{what} is left out: {error}")
