"""``evaluate``, ``report`` and ``summarize``: from scores to figures and pages."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

from asdproto.arguments import within
from asdproto.commands import add_command, count, message
from asdproto.config import positive

# How far figures may lie apart and count as the same: sums of a few hundred float64 figures.
_SAME = 1e-12


def add_evaluate(subparsers: Any) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "evaluate",
        evaluate,
        "metrics of a run or of a folder of anomaly scores",
        "Computes source AUC, target AUC and pAUC of anomaly_score_*.csv (and precision,\n"
        "recall and F1 where there are decision_result_*.csv), prints them and writes\n"
        "result.csv and results.json. A result.csv that is there already is compared and kept.\n"
        "Of a run it prints the figures of every system, and writes with --out alone.",
    )
    parser.add_argument(
        "scores", type=Path, help="folder of a run, or folder of the score files of one system"
    )
    parser.add_argument(
        "--ground-truth",
        type=Path,
        metavar="PATH",
        help="for file names that do not tell normal from anomaly: the folder of ground_truth_data "
        "and ground_truth_domain, or the collection or csv that lists the clips (default: read off "
        "file names, or known from the run)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to write to (default: the score folder)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a result.csv that has other figures"
    )
    parser.add_argument(
        "--max-fpr",
        metavar="RATE",
        type=within(float, positive(1)),
        default=0.1,
        help="upper end of the false-positive rates of pAUC (default: %(default)s)",
    )


def evaluate(arguments: argparse.Namespace) -> int:
    """Prints and writes the metrics of a run or of scores; 1 where a kept result.csv differs."""
    from asdproto.data.table import load_collection
    from asdproto.errors import DataError
    from asdproto.results.result_files import write_results
    from asdproto.results.score_files import read_scores
    from asdproto.results.tables import print_table
    from asdproto.scoring.metrics import evaluate

    truth, folder, out = arguments.ground_truth, arguments.scores, arguments.out
    if out is not None and (out / "config.json").is_file():
        remedy = "Name a new folder: these figures would replace those of the run."
        raise DataError(out, "the folder of a run", "a folder for figures", remedy)
    is_run = truth is None and (folder / "config.json").is_file()
    system = folder.resolve()
    above = system.parent
    if is_run:
        tables = _run_tables(folder)
    elif truth is None and above.name == "scores" and (above.parent / "config.json").is_file():
        tables = _run_tables(above.parent, system.name)
    elif truth is None:
        tables = {system.name: read_scores(folder)}
    elif _is_official(truth):
        tables = {system.name: read_scores(folder, ground_truth=truth)}
    else:
        tables = {system.name: read_scores(folder, clips=load_collection(truth)[1])}
    figures = {name: evaluate(own, max_fpr=arguments.max_fpr) for name, own in tables.items()}
    results = {"systems": figures} if is_run else figures[system.name]
    print_table(results)
    print("percent; pAUC is standardized: chance is 50")
    if is_run:
        if out is not None:
            print(f"written: {write_results(out / 'results.json', results)}")
        return 0
    try:
        return _write_results(out or folder, results, arguments.overwrite)
    except PermissionError as error:
        if out is not None:
            raise
        print(f"note: nothing written: {message(error)}; --out names another folder")
        return 0


def _run_tables(workdir: Path, name: str | None = None) -> dict[str, Any]:
    """Scores and ground truth of a run's systems, or of one of them, by name."""
    from asdproto.errors import DataError
    from asdproto.results.run_folder import read_run

    systems = read_run(workdir).systems
    tables = {
        one: system.tables
        for one, system in systems.items()
        if system.tables and name in (None, one)
    }
    if not tables:
        place = workdir if name is None else workdir / "scores" / name
        found = "no scored test clips that are known to be normal or anomalous"
        remedy = "Score recordings with python -m asdproto score, or give --ground-truth."
        raise DataError(place, found, "the run of a collection with such test clips", remedy)
    return tables


def add_report(subparsers: Any) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "report",
        report,
        "one web page about a run",
        "Writes one self-contained web page about a run, finished or not: figures, the most\n"
        "anomalous test clips to look at and to listen to, what a threshold does, score\n"
        "histograms, ROC curves and training curves.",
    )
    parser.add_argument("workdir", type=Path, metavar="run", help="folder of the run")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="file to write (default: report.html in it)"
    )


def report(arguments: argparse.Namespace) -> int:
    """Writes a run's page."""
    from rich.console import Console

    from asdproto.results.page import write_report

    with Console(stderr=True).status("Drawing"):
        path = write_report(arguments.workdir, arguments.out)
    print(f"written: {path}")
    return 0


def add_summarize(subparsers: Any) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "summarize",
        summarize,
        "mean and standard deviation over runs with different seeds",
        "Reads finished runs that differ in their seed alone and prints their figures as\n"
        "mean ± standard deviation (divisor: runs - 1), and how systems differ within runs. Of\n"
        "runs of several seeds, also what each seed gives alone.",
        aliases=["summarise"],
    )
    parser.add_argument("workdirs", type=Path, nargs="+", metavar="workdir", help="folder of a run")
    parser.add_argument(
        "--out", type=Path, metavar="JSON", help="also write them to this file (default: no file)"
    )


def summarize(arguments: argparse.Namespace) -> int:
    """Mean and standard deviation over runs that differ in their seed alone."""
    from asdproto.errors import DataError
    from asdproto.files import read_json
    from asdproto.results.result_files import read_run_results, write_results
    from asdproto.results.tables import percent, print_table
    from asdproto.scoring.metrics import paired_difference
    from asdproto.scoring.metrics import summarize as over_runs

    again = "Finish the run: repeat its command."
    runs, configs = [], []
    for folder in arguments.workdirs:
        for path in (folder / "results.json", folder / "config.json"):
            if not path.is_file():
                raise DataError(path, "no such file", "a finished run", again)
        runs.append(read_run_results(folder / "results.json"))
        # Not by read_results: it makes of null a nan, which equals nothing.
        configs.append(read_json(folder / "config.json", remedy=again))
    # Features of the same settings are the same, wherever they lie.
    first = {n: value for n, value in configs[0].items() if n not in ("seeds", "features")}
    for folder, config in zip(arguments.workdirs, configs, strict=True):
        different = [name for name, value in first.items() if config.get(name) != value]
        if different:
            found = f"another {', '.join(different)} than in {arguments.workdirs[0]}"
            expected, remedy = "runs that differ in their seed alone", "Summarize each kind alone."
            raise DataError(folder / "config.json", found, expected, remedy)
    seeds = [" ".join(map(str, run["seeds"])) for run in runs]
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        folder, found = arguments.workdirs[seeds.index(twice[0])], f"seed {twice[0]} more than once"
        raise DataError(folder, found, "a seed a run", "Leave the repeats out.")
    each = {name: [run["systems"].get(name, {}) for run in runs] for name in runs[0]["systems"]}
    # Runs of several seeds know what each seed gives alone.
    members = {
        f"{name}, one seed": [one for run in runs for one in run.get("members", {}).get(name, [])]
        for name in each
    }
    alone = {name: figures for name, figures in members.items() if figures}
    systems = {name: over_runs(figures) for name, figures in each.items()}
    systems |= {name: over_runs(_headlines(figures)) for name, figures in alone.items()}
    print_table({"systems": systems})
    print(f"percent, mean ± standard deviation over {count(len(runs), 'run')}: seeds", *seeds)
    differences = {}
    overall = {name: [one["overall"] for one in all_] for name, all_ in (each | alone).items()}
    for group in (each, alone):
        for one, other in itertools.combinations(group, 2):
            gain = paired_difference(overall[one], overall[other])
            differences[f"{other} - {one}"] = gain
            print(
                f"{other} - {one}, within runs: overall {percent(gain, signed=True)}, "
                f"higher in {gain['higher']} of {gain['count']}"
            )
    if arguments.out is not None:
        runs_of = {name: _headlines(figures) for name, figures in each.items()} | alone
        summary = {"seeds": seeds, "runs": runs_of, "systems": systems, "differences": differences}
        write_results(arguments.out, summary)
        print(f"written: {arguments.out}")
    return 0


def _headlines(figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from asdproto.results.tables import HEADLINE

    return [{name: one[name] for name in HEADLINE} for one in figures]


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
