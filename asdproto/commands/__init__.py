"""What the commands of the command line do: arguments in, exit code out.

Each imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SCORE_COLUMNS = (
    "file",
    "machine_type",
    "section",
    "score",
    "threshold",
    "decision",
    "nearest_class",
)
# How far figures may lie apart and count as the same: sums of a few hundred float64 figures.
_SAME = 1e-12


def synthesize(arguments: argparse.Namespace) -> int:
    """Makes a synthetic data set."""
    from asdproto.data.synthetic import synthesize

    names = ("machines", "sections", "clips", "target_clips", "test_clips", "seconds", "seed")
    given = {name: getattr(arguments, name) for name in (*names, "workers")}
    options = {name: value for name, value in given.items() if value is not None}
    folder = synthesize(arguments.out, **options)
    print(f"written: {folder}")
    return 0


def validate(arguments: argparse.Namespace) -> int:
    """Prints every problem of a collection; 1 where it cannot be used."""
    from rich.console import Console

    from asdproto.data.table import load_collection
    from asdproto.data.validate import validate

    with Console(stderr=True).status(f"Reading the headers of {arguments.root}"):
        problems = validate(arguments.root)
    for problem in problems:
        print(problem)
    errors = sum(problem.is_error for problem in problems)
    if errors:
        print(f"{_count(errors, 'error')}, {_count(len(problems) - errors, 'notice')}")
        return 1
    clips = load_collection(arguments.root)[1]
    machines = {clip.machine_type for clip in clips}
    sections = {(clip.machine_type, clip.section) for clip in clips}
    train = sum(clip.split == "train" for clip in clips)
    notices = f", {_count(len(problems), 'notice')}" if problems else ""
    print(
        f"no errors{notices}: {_count(train, 'training clip')} and "
        f"{_count(len(clips) - train, 'test clip')} of {_count(len(machines), 'machine type')}, "
        f"{_count(len(sections), 'section')}"
    )
    from asdproto.systems import choose

    kind, why = choose(clips)
    print(f"can be trained: {kind}; {why}")
    return 0


def features(arguments: argparse.Namespace) -> int:
    """Extracts a feature store."""
    from asdproto.data.extract import build_store
    from asdproto.data.table import load_collection
    from asdproto.features import FeatureSettings

    names = ("scale", "n_mels", "n_fft", "hop_length", "sample_rate", "fmin", "fmax", "power")
    given = {name: getattr(arguments, name) for name in names}
    settings = FeatureSettings(**{k: value for k, value in given.items() if value is not None})
    root, clips = load_collection(arguments.root)
    store = build_store(
        clips, root, arguments.store, settings, workers=arguments.workers, dtype=arguments.dtype
    )
    _, frames, mels = store.features.shape
    print(
        f"{arguments.store}: {_count(len(clips), 'clip')} of up to {frames} frames x {mels} mels, "
        f"{store.features.dtype}, {store.features.nbytes / 1e6:,.0f} MB"
    )
    return 0


def score(arguments: argparse.Namespace) -> int:
    """Scores recordings with a trained run."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from asdproto.errors import DataError

    paths = _recordings(arguments.paths)
    if not arguments.workdir.is_dir():
        raise DataError(
            arguments.workdir, "no such folder", "the folder of a run", "Give its --workdir."
        )
    from asdproto.systems.trained import load_run

    run = load_run(arguments.workdir)
    rows = run.score_files(paths, machine_type=arguments.machine_type, section=arguments.section)
    if arguments.csv is not None:
        _write_scores_csv(arguments.csv, rows)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("file", "machine type", "section"):
        table.add_column(title, overflow="fold")
    for title in ("score", "threshold"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("decision", "nearest class"):
        table.add_column(title, overflow="fold")
    for row in rows:
        anomaly = bool(row["decision"])
        table.add_row(
            Text(str(row["file"])),
            Text(row["machine_type"]),
            Text(row["section"]),
            f"{row['score']:.6g}",
            f"{row['threshold']:.6g}",
            Text("anomaly" if anomaly else "normal", style="bold red" if anomaly else ""),
            Text(_class_name(row["nearest_class"])),
        )
    Console().print(table)
    anomalies = sum(bool(row["decision"]) for row in rows)
    print(f"{anomalies} of {_count(len(rows), 'recording')} above their threshold")
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """Prints and writes the metrics of a folder of scores; 1 where a kept result.csv differs."""
    from asdproto.results.score_files import read_scores
    from asdproto.results.tables import print_table
    from asdproto.scoring.metrics import evaluate

    truth = arguments.ground_truth
    if truth is None:
        tables = read_scores(arguments.scores)
    elif _is_official(truth):
        tables = read_scores(arguments.scores, ground_truth=truth)
    else:
        from asdproto.data.table import load_collection

        tables = read_scores(arguments.scores, clips=load_collection(truth)[1])
    results = evaluate(tables, max_fpr=arguments.max_fpr)
    print_table(results)
    print("percent; pAUC is standardized: chance is 50")
    try:
        return _write_results(arguments.out or arguments.scores, results, arguments.overwrite)
    except PermissionError as error:
        if arguments.out is not None:
            raise
        print(f"note: nothing written: {message(error)}; --out names another folder")
        return 0


def report(arguments: argparse.Namespace) -> int:
    """Writes a run's page."""
    from rich.console import Console

    from asdproto.results.page import write_report

    with Console(stderr=True).status("Drawing"):
        path = write_report(arguments.workdir, arguments.out)
    print(f"written: {path}")
    return 0


def summarize(arguments: argparse.Namespace) -> int:
    """Mean and standard deviation over runs that differ in their seed alone."""
    from asdproto.errors import DataError
    from asdproto.results.result_files import read_results, write_results
    from asdproto.results.tables import HEADLINE, print_table
    from asdproto.scoring.metrics import paired_difference
    from asdproto.scoring.metrics import summarize as over_runs

    runs, configs = [], []
    for folder in arguments.workdirs:
        for name in ("results.json", "config.json"):
            if not (folder / name).is_file():
                raise DataError(
                    folder / name,
                    "no such file",
                    "a finished run",
                    "Finish the run: repeat its command.",
                )
        runs.append(read_results(folder / "results.json"))
        # Not read_results: of null it makes nan, which equals nothing.
        configs.append(json.loads((folder / "config.json").read_text()))
    first = {name: value for name, value in configs[0].items() if name != "seeds"}
    for folder, config in zip(arguments.workdirs, configs, strict=True):
        different = [name for name, value in first.items() if config.get(name) != value]
        if different:
            raise DataError(
                folder / "config.json",
                f"another {', '.join(different)} than in {arguments.workdirs[0]}",
                "runs that differ in their seed alone",
                "Summarize each kind of run by itself.",
            )
    seeds = [" ".join(map(str, run["seeds"])) for run in runs]
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise DataError(
            arguments.workdirs[seeds.index(twice[0])],
            f"seed {twice[0]} more than once",
            "a seed a run",
            "Leave the repeats out.",
        )
    systems = {
        name: over_runs([run["systems"].get(name, {}) for run in runs])
        for name in runs[0]["systems"]
    }
    print_table({"systems": systems})
    print(f"percent, mean ± standard deviation over {_count(len(runs), 'run')}: seeds", *seeds)
    differences = {}
    for one, other in itertools.combinations(systems, 2):
        overall = [[run["systems"][name]["overall"] for run in runs] for name in (one, other)]
        gain = differences[f"{other} - {one}"] = paired_difference(*overall)
        print(
            f"{other} - {one}, within runs: overall {100 * gain['mean']:+.2f} ± "
            f"{100 * gain['std']:.2f}, higher in {gain['higher']} of {gain['count']}"
        )
    if arguments.out is not None:
        each = {
            name: [{k: run["systems"][name][k] for k in HEADLINE} for run in runs]
            for name in systems
        }
        found = {"seeds": seeds, "runs": each, "systems": systems, "differences": differences}
        write_results(arguments.out, found)
        print(f"written: {arguments.out}")
    return 0


def message(error: Exception) -> str:
    """What an error says to somebody who does not know the code."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        library = error.name.partition(".")[0]
        package = {"sklearn": "scikit-learn"}.get(library, library)
        return f"this command needs {library}, which is not installed: pip install {package}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _recordings(paths: Sequence[Path]) -> list[Path]:
    """The files among the paths, and every recording below the folders among them."""
    from asdproto.data.dcase import audio_files
    from asdproto.errors import DataError

    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = [path / name for name in audio_files(path)]
            if not below:
                raise DataError(path, "no .wav or .flac file", "recordings", "Check the path.")
            files += below
        elif path.exists():
            files.append(path)
        else:
            raise DataError(path, "no such file", "a recording or a folder", "Check the path.")
    return list(dict.fromkeys(files))


def _write_scores_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    from asdproto.results.result_files import write_text

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_SCORE_COLUMNS)
    for row in rows:
        cells = {**row, "decision": int(row["decision"])}
        cells["nearest_class"] = _class_name(row["nearest_class"])
        for name in ("score", "threshold"):
            cells[name] = repr(float(row[name]))
        writer.writerow([cells[name] for name in _SCORE_COLUMNS])
    write_text(path, text.getvalue())


def _class_name(key: Any) -> str:
    if key is None:
        return ""
    return " ".join(part for part in map(str, key) if part) if isinstance(key, tuple) else str(key)


def _write_results(folder: Path, results: dict[str, Any], overwrite: bool) -> int:
    from asdproto.errors import DataError
    from asdproto.results.result_files import (
        largest_difference,
        read_result_csv,
        write_result_csv,
        write_results,
    )

    path = folder / "result.csv"
    write_results(folder / "results.json", results)
    if overwrite or not path.exists():
        write_result_csv(path, results)
        print(f"written: {path}, {folder / 'results.json'}")
        return 0
    print(f"written: {folder / 'results.json'}")
    try:
        difference, where = largest_difference(results, read_result_csv(path))
    except DataError as error:
        print(f"{path} is kept, though it cannot be compared ({error}); --overwrite replaces it")
        return 1
    if difference <= _SAME:
        print(f"{path} is there already and agrees: largest difference {difference:.2g}")
        return 0
    print(
        f"{path} is kept, though its figures differ, most at {where}, by {difference:.3g}; "
        "--overwrite replaces it"
    )
    return 1


def _is_official(path: Path) -> bool:
    names = ("ground_truth_data", "ground_truth_domain")
    return path.name in names or any((path / name).is_dir() for name in names)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
