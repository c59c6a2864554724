"""``evaluate``, ``report`` and ``summarize``: from scores to figures and pages."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdproto.arguments import Parser
from asdproto.commands import add_command, add_options, message, say
from asdproto.errors import DataError, counted

if TYPE_CHECKING:
    from asdproto.scoring.metrics import SectionScores


def add(parsers: dict[str, Parser]) -> None:
    """Adds the commands."""
    parser = add_command(
        parsers,
        "evaluate",
        evaluate,
        "metrics of a run or of a folder of anomaly scores",
        "Computes source AUC, target AUC and pAUC of anomaly_score_*.csv (and precision,\n"
        "recall and F1 where there are decision_result_*.csv), prints them and writes\n"
        "result.csv and results.json. A result.csv that is there already is kept.\n"
        "Of a run it prints the figures of every system, and writes with --out alone.",
    )
    parser.add_argument(
        "scores", type=Path, help="folder of a run, or folder of the score files of one system"
    )
    truth = (
        "for file names that do not tell normal from anomaly: the folder of ground_truth_data "
        "and ground_truth_domain, or the collection or csv that lists the clips (default: read off "
        "file names, or known from the run)"
    )
    add_options(
        parser,
        ("--ground-truth", Path, "PATH", truth),
        ("--out", Path, "DIR", "folder to write to (default: the score folder)"),
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a result.csv that is there"
    )

    parser = add_command(
        parsers,
        "report",
        report,
        "one web page about a run",
        "Writes one self-contained web page about a run, finished or not: a verdict, alarms\n"
        "beside the nearest normal recording, to look at and to listen to, every clip, what\n"
        "a threshold does, and figures and ROC curves where there are labels.",
    )
    parser.add_argument("workdir", type=Path, metavar="run", help="folder of the run")
    add_options(parser, ("--out", Path, "FILE", "file to write (default: report.html in it)"))

    parser = add_command(
        parsers,
        "summarize",
        summarize,
        "mean and standard deviation over runs with different seeds",
        "Reads finished runs that differ in their seed alone and prints their figures as\n"
        "mean ± standard deviation (divisor: runs - 1), and how systems differ within runs. Of\n"
        "runs of several seeds, also what each seed gives alone.",
    )
    parser.add_argument("workdirs", type=Path, nargs="+", metavar="run", help="folder of a run")
    add_options(parser, ("--out", Path, "JSON", "also write them to this file (default: no file)"))


def evaluate(arguments: argparse.Namespace) -> int:
    """Prints and writes the metrics of a run or of scores."""
    from asdproto.results.run_folder import CONFIG
    from asdproto.results.tables import print_table
    from asdproto.scoring.metrics import evaluate

    folder, out = arguments.scores, arguments.out
    if out is not None and _is_run(out):
        remedy = "Name a new folder: these figures would replace those of the run."
        raise DataError(out, "the folder of a run", "a folder for figures", remedy)
    of_run = arguments.ground_truth is None and _is_run(folder)
    if of_run:
        tables = _run_tables(folder)
    else:
        tables = {"": _official_tables(folder, arguments.ground_truth)}
    figures = {name: evaluate(own) for name, own in tables.items()}
    of_systems = (folder / CONFIG).is_file()
    results = {"systems": figures} if of_systems else next(iter(figures.values()))
    print_table(results)
    say("percent; pAUC is standardized: chance is 50")
    if of_run:
        if out is not None:
            _write_figures(out / "results.json", results)
        return 0
    try:
        _write_results(out or folder, results, arguments.overwrite)
    except PermissionError as error:
        if out is not None:
            raise
        say(f"note: nothing written: {message(error)}; --out names another folder")
    return 0


def _is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, or of one of its detectors."""
    from asdproto.results.run_folder import CONFIG, SCORES

    return (folder / CONFIG).is_file() or (folder / SCORES).is_file()


def _official_tables(folder: Path, truth: Path | None) -> list[SectionScores]:
    """Scores of official files; what is what, they say themselves, or files or a collection."""
    from asdproto.data.collection import read_collection
    from asdproto.results.official import read_official

    official = ("ground_truth_data", "ground_truth_domain")
    if truth is None:
        return read_official(folder)
    if truth.name in official or any((truth / name).is_dir() for name in official):
        return read_official(folder, ground_truth=truth)
    collection = read_collection(truth, labels=False)
    collection.check()
    return read_official(folder, clips=collection.clips)


def _run_tables(folder: Path) -> dict[str, list[SectionScores]]:
    """Scores and ground truth of every detector of a run, or of one, by name; none is left out."""
    from asdproto.results.run_folder import SCORES, read_scores, tables_of

    paths = sorted(folder.glob(f"scores/*/{SCORES}")) or sorted(folder.glob(SCORES))
    found = {path.resolve().parent.name: tables_of(read_scores(path.parent)) for path in paths}
    tables = {name: own for name, own in found.items() if own}
    if not tables:
        expected = "the run of a collection with test clips known to be normal or anomalous"
        remedy = "Score recordings with python -m asdproto score, or give --ground-truth."
        raise DataError(folder, "no scores of such clips", expected, remedy)
    for name in found.keys() - tables.keys():
        say(f"note: {name} has scored no clip that is known to be normal or anomalous")
    return tables


def report(arguments: argparse.Namespace) -> int:
    """Writes a run's page."""
    from rich.console import Console

    from asdproto.results.page import write_report

    with Console(stderr=True).status("Drawing"):
        path = write_report(arguments.workdir, arguments.out)
    say(f"written: {path}")
    return 0


def summarize(arguments: argparse.Namespace) -> int:
    """Mean and standard deviation over runs that differ in their seed alone."""
    from asdproto.results.run_folder import read_results
    from asdproto.results.tables import percent, print_table
    from asdproto.scoring.metrics import paired_difference
    from asdproto.scoring.metrics import summarize as over_runs

    runs = [read_results(folder) for folder in arguments.workdirs]
    seeds = [" ".join(map(str, run["seeds"])) for run in runs]
    _check_summarized(arguments.workdirs, seeds)
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
    shown = f"percent, mean ± standard deviation over {counted(len(runs), 'run')}"
    say(f"{shown}: seeds {' '.join(seeds)}")
    differences = {}
    overall = {name: [one["overall"] for one in all_] for name, all_ in (each | alone).items()}
    for group in (each, alone):
        for one, other in itertools.combinations(group, 2):
            gain = paired_difference(overall[one], overall[other])
            differences[f"{other} - {one}"] = gain
            say(
                f"{other} - {one}, within runs: overall {percent(gain, signed=True)}, "
                f"higher in {gain['higher']} of {gain['count']}"
            )
    if arguments.out is not None:
        runs_of = {name: _headlines(figures) for name, figures in each.items()} | alone
        summary = {"seeds": seeds, "runs": runs_of, "systems": systems, "differences": differences}
        _write_figures(arguments.out, summary)
    return 0


def _check_summarized(folders: list[Path], seeds: list[str]) -> None:
    """Refuses runs that differ in more than their seed, and one run twice."""
    from asdproto.results.run_folder import CONFIG, read_config

    configs = [read_config(folder) for folder in folders]
    # Features of the same settings are the same, wherever they lie.
    first = {n: value for n, value in configs[0].items() if n not in ("seeds", "features")}
    for folder, config in zip(folders, configs, strict=True):
        different = [name for name, value in first.items() if config.get(name) != value]
        if different:
            found = f"another {', '.join(different)} than in {folders[0]}"
            expected, remedy = "runs that differ in their seed alone", "Summarize each kind alone."
            raise DataError(folder / CONFIG, found, expected, remedy)
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        folder, found = folders[seeds.index(twice[0])], f"seed {twice[0]} more than once"
        raise DataError(folder, found, "a seed a run", "Leave the repeats out.")


def _headlines(figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from asdproto.results.tables import HEADLINE

    return [{name: one[name] for name in HEADLINE} for one in figures]


def _write_results(folder: Path, figures: dict[str, Any], overwrite: bool) -> None:
    from asdproto.results.official import write_result_csv

    _write_figures(folder / "results.json", figures)
    path = folder / "result.csv"
    if path.exists() and not overwrite:
        say(f"{path} is there already and kept; --overwrite replaces it")
        return
    write_result_csv(path, figures)
    say(f"written: {path}")


def _write_figures(path: Path, figures: Mapping[str, Any]) -> None:
    """Writes figures over figures of the same command, over nothing else."""
    from asdproto.files import write_output
    from asdproto.results.run_folder import figures_text

    write_output(path, figures_text(figures))
    say(f"written: {path}")
