"""What a run folder holds, read without training code: for reports, while it trains or after.

::

    WORKDIR/
      config.json                what was asked for; "data" and "features" say where those are
      metrics.jsonl              a line for every epoch of every stage
      data/, features/           recordings and feature store, unless they lie elsewhere
      results.json               {"systems": {name: figures}}
      scores/SYSTEM/             see :mod:`asdproto.results.system_folder`
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asdproto.data.store import FeatureStore, open_store
from asdproto.errors import DataError
from asdproto.files import read_json
from asdproto.results.result_files import read_results
from asdproto.results.system_folder import System, noting, read_system


@dataclass(slots=True)
class Run:
    """What a run folder holds, as far as it has come.

    Attributes:
      name: The folder's name.
      config: ``config.json``; empty where there is none.
      training: Rows of ``metrics.jsonl`` by stage, in order of their epochs.
      systems: Every system with figures or scores, of test clips or of training clips alone.
      result: The system that the run is about, ``""`` where there is none yet.
      store: The run's feature store, where it can be opened.
      recordings: Folders that the paths of clips may be relative to.
      notes: Sentences about what is missing or odd, for the reader of the report.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    training: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    systems: dict[str, System] = field(default_factory=dict)
    result: str = ""
    store: FeatureStore | None = None
    recordings: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_run(workdir: str | os.PathLike) -> Run:
    """Reads a run folder.

    Whatever is missing or damaged is left out and noted, so that a run can be looked at while it
    trains. Figures that ``results.json`` lacks are made again from the scores.

    Args:
      workdir: The run folder.

    Returns:
      Its contents.

    Raises:
      DataError: The folder does not exist or holds nothing of a run that can be read.
    """
    workdir = Path(workdir)
    expected, remedy = "the folder of a run", "Give the --workdir of an experiment."
    if not workdir.is_dir():
        raise DataError(workdir, "a file" if workdir.exists() else "nothing", expected, remedy)
    run = Run(workdir.resolve().name)
    config, results, metrics = (
        workdir / name for name in ("config.json", "results.json", "metrics.jsonl")
    )
    if config.exists():
        with noting(run.notes, config.name):
            run.config = read_json(config, remedy="Train again.")
    if metrics.exists():
        with noting(run.notes, metrics.name):
            run.training = _read_training(metrics, run.notes)
    if results.exists():
        with noting(run.notes, results.name):
            run.systems = {name: System(figures) for name, figures in _figures(results).items()}
    features, data = (_place(workdir, run.config, name) for name in ("features", "data"))
    if (features / "manifest.json").exists():
        with noting(run.notes, "The feature store"):
            run.store = open_store(features)
    run.recordings = [folder for folder in (data, data / "dev_data") if folder.is_dir()]
    names, classes = (
        value if isinstance(value, list) else []
        for value in (run.config.get("names"), run.config.get("classes"))
    )
    order = [str(name) for name in names]
    folders = sorted((workdir / "scores").glob("*/"))
    for folder in sorted(folders, key=lambda x: order.index(x.name) if x.name in order else -1):
        figures = run.systems.get(folder.name, System()).figures
        system = read_system(folder, figures, classes, run.store, run.notes)
        if system.figures or system.clips or system.training:
            run.systems[folder.name] = system
    if not (run.config or run.training or run.systems):
        for path in (config, results):
            if path.exists():
                read_json(path, remedy="Train again.")
        found = "none of config.json, metrics.jsonl, results.json and scores/"
        raise DataError(workdir, found, expected, remedy)
    # Its last system, and not what is fitted beside it to compare with.
    own = [name for name in order if name in run.systems] or list(run.systems)
    run.result = own[-1] if own else ""
    undefined: dict[str, list[str]] = {}
    for name, system in run.systems.items():
        for text in system.figures.get("undefined", ()):
            undefined.setdefault(text, []).append(name)
    run.notes += [f"Undefined for {', '.join(names)}: {x}." for x, names in undefined.items()]
    return run


def _place(workdir: Path, config: Mapping[str, Any], name: str) -> Path:
    """Where the configuration says that something is; in the run folder if it is not there."""
    place = config.get(name)
    known = workdir / place if isinstance(place, str) else workdir / name
    # Not Path.exists, which raises where a folder may not be entered.
    return known if os.path.exists(known) else workdir / name


def _figures(path: Path) -> dict[str, dict[str, Any]]:
    systems = read_results(path).get("systems")
    if not isinstance(systems, dict) or not all(isinstance(x, dict) for x in systems.values()):
        remedy = "Remove the file; the scores are then evaluated again."
        raise DataError(path, "no figures by system", '{"systems": {name: figures}}', remedy)
    return systems


def _read_training(path: Path, notes: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows by stage; where a resumed run wrote an epoch twice, the later row holds."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(path, str(error.strerror), "lines of metrics", "Check the file.") from None
    rows: dict[str, dict[tuple[float, float], dict[str, Any]]] = {}
    bad = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            key = float(row["epoch"]), float(row.get("step") or 0)
            for name in ("loss", "learning_rate"):
                row[name] = math.nan if row.get(name) is None else float(row[name])
            rows.setdefault(str(row["stage"]), {})[key] = row
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            if line.strip():
                bad.append(number)
    if bad == [len(lines)]:
        notes.append(f"Line {bad[0]} of {path.name} is cut short and left out.")
    elif bad:
        what = f"{len(bad)} of {len(lines)} lines of {path.name} are not lines of metrics"
        notes.append(f"{what} and left out, the first is line {bad[0]}.")
    return {stage: [by_key[key] for key in sorted(by_key)] for stage, by_key in rows.items()}
