"""The command line: ``python -m asdproto synthesize | validate | features | score | ...``.

Every command imports what it needs when it runs, so that help is instant and a machine without an
audio library can still evaluate and report. Exit codes: 0 done, 1 problems found or an error, 2
wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from asdproto import __version__

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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: Arguments without the program's name; those of the process by default.

    Returns:
      The exit code.

    Raises:
      SystemExit: Wrong usage (2), or help was asked for (0).
    """
    arguments = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = _show_warning
            code = arguments.run(arguments)
            sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        print(f"\ninterrupted: {arguments.command} is not finished", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough; the interpreter must not try to flush the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ImportError) as error:
        if arguments.traceback:
            traceback.print_exc()
        print(f"error: {_message(error)}", file=sys.stderr)
        return 1


def _message(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        library = error.name.partition(".")[0]
        package = {"sklearn": "scikit-learn"}.get(library, library)
        return f"this command needs {library}, which is not installed: pip install {package}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """What a warning says, without the place in the code that interests nobody here."""
    print(f"note: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    called = Path(sys.argv[0]).name
    parser = argparse.ArgumentParser(
        prog="python -m asdproto" if called == "__main__.py" else "asdproto",
        description="Anomalous sound detection with prototypes: data, features, scores, reports. "
        "Training lives in the experiments: python -m experiments.two_stage --help",
        epilog="Exit codes: 0 done, 1 problems found or an error, 2 wrong usage, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"asdproto {__version__}")
    parser.add_argument(
        "--traceback", action="store_true", help="show where in the code an error arose"
    )
    commands = parser.add_subparsers(title="commands", dest="command", required=True)
    for add in (
        _add_synthesize,
        _add_validate,
        _add_features,
        _add_score,
        _add_evaluate,
        _add_report,
    ):
        add(commands)
    return parser


def _command(commands: Any, name: str, run: Any, help_: str, description: str) -> Any:
    parser = commands.add_parser(
        name,
        help=help_,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


# --- validate


def _add_validate(commands: Any) -> None:
    parser = _command(
        commands,
        "validate",
        _validate,
        "list every problem of a collection of recordings",
        "Lists every problem of a collection: file, found, expected, what to do about it.\n"
        "Exits 1 where it cannot be used as it is; notices alone exit 0.",
    )
    parser.add_argument(
        "root",
        type=Path,
        help="folder in the layout of DCASE Task 2, folder with clips.csv, or such a csv",
    )


def _validate(arguments: argparse.Namespace) -> int:
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
    return 0


# --- features


def _add_features(commands: Any) -> None:
    parser = _command(
        commands,
        "features",
        _features,
        "extract log-mel features into a feature store",
        "Extracts the features of a collection, once, on every core, into a folder that\n"
        "training reads. Run again after an interruption, it goes on where it stopped.",
    )
    parser.add_argument("root", type=Path, help="the collection, as for validate")
    parser.add_argument("store", type=Path, help="folder of the feature store to make")
    parser.add_argument(
        "--scale",
        choices=("inverted", "mel"),
        help="mel filters mirrored in frequency, or as they are (default: inverted)",
    )
    parser.add_argument("--mels", type=int, metavar="N", help="number of filters (default: 128)")
    parser.add_argument(
        "--window", type=int, metavar="N", help="samples of a frame (default: 1024)"
    )
    parser.add_argument(
        "--hop", type=int, metavar="N", help="samples between frames (default: 512)"
    )
    parser.add_argument("--sample-rate", type=int, metavar="HZ", help="hertz (default: 16000)")
    parser.add_argument(
        "--fmin", type=float, metavar="HZ", help="lowest frequency, hertz (default: 0)"
    )
    parser.add_argument(
        "--fmax",
        type=float,
        metavar="HZ",
        help="highest frequency, hertz (default: half the sample rate)",
    )
    parser.add_argument("--power", type=float, metavar="P", help="of the magnitude (default: 2)")
    parser.add_argument(
        "--dtype", choices=("float16", "float32"), default="float16", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one per core)"
    )


def _features(arguments: argparse.Namespace) -> int:
    from asdproto.data.extract import build_store
    from asdproto.data.table import load_collection
    from asdproto.features import FeatureSettings

    names = ("scale", "mels", "window", "hop", "sample_rate", "fmin", "fmax", "power")
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


# --- score


def _add_score(commands: Any) -> None:
    parser = _command(
        commands,
        "score",
        _score,
        "score recordings with a trained run",
        "Scores recordings with the model of a finished run. A file scores as it does in a\n"
        "batch. Machine type and section are read off names and folders where they follow\n"
        "DCASE Task 2.",
    )
    parser.add_argument("workdir", type=Path, help="folder of the run, as given to --workdir")
    parser.add_argument("paths", type=Path, nargs="+", metavar="path", help="recording or folder")
    parser.add_argument(
        "--machine-type", metavar="NAME", help="of all recordings, where names do not say it"
    )
    parser.add_argument(
        "--section", metavar="NN", help="of all recordings, where names do not say it"
    )
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="also write everything, unrounded, to this file"
    )


def _score(arguments: argparse.Namespace) -> int:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from asdproto.data.errors import DataError

    paths = _recordings(arguments.paths)
    if not arguments.workdir.is_dir():
        raise DataError(
            arguments.workdir, "no such folder", "the folder of a run", "Give its --workdir."
        )
    from asdproto.systems.prototype import load_run

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


def _recordings(paths: Sequence[Path]) -> list[Path]:
    """The files among the paths, and every recording below the folders among them."""
    from asdproto.data.dcase import audio_files
    from asdproto.data.errors import DataError

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
    from asdproto.results_io import write_text

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
    return " ".join(part for part in map(str, key) if part) if isinstance(key, tuple) else str(key)


# --- evaluate


def _add_evaluate(commands: Any) -> None:
    parser = _command(
        commands,
        "evaluate",
        _evaluate,
        "metrics of a folder of anomaly scores",
        "Computes source AUC, target AUC and pAUC of anomaly_score_*.csv (and precision,\n"
        "recall and F1 where there are decision_result_*.csv), prints them and writes\n"
        "result.csv and results.json. A result.csv that is there already is compared and kept.",
    )
    parser.add_argument("scores", type=Path, help="folder of the score files of one system")
    parser.add_argument(
        "--ground-truth",
        type=Path,
        metavar="PATH",
        help="where file names do not tell normal from anomaly: the folder of ground_truth_data "
        "and ground_truth_domain, or the collection or csv that lists the clips",
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
        type=_rate,
        default=0.1,
        help="upper end of the false-positive rates of pAUC (default: %(default)s)",
    )


def _rate(text: str) -> float:
    value = float(text)
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not in (0, 1]")
    return value


def _evaluate(arguments: argparse.Namespace) -> int:
    from asdproto.metrics import evaluate
    from asdproto.scores_io import read_scores
    from asdproto.tables import print_table

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
    print("percent; pAUC is standardised: chance is 50")
    try:
        return _write_results(arguments.out or arguments.scores, results, arguments.overwrite)
    except PermissionError as error:
        if arguments.out is not None:
            raise
        print(f"note: nothing written: {_message(error)}; --out names another folder")
        return 0


def _write_results(folder: Path, results: dict[str, Any], overwrite: bool) -> int:
    from asdproto.data.errors import DataError
    from asdproto.results_io import (
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


# --- report


def _add_report(commands: Any) -> None:
    parser = _command(
        commands,
        "report",
        _report,
        "one web page about a run",
        "Writes one self-contained web page about a run, finished or not: figures,\n"
        "training curves, score histograms and ROC curves.",
    )
    parser.add_argument("workdir", type=Path, help="folder of the run, as given to --workdir")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="file to write (default: report.html in it)"
    )


def _report(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from asdproto.report import write_report

    with Console(stderr=True).status("Drawing"):
        path = write_report(arguments.workdir, arguments.out)
    print(f"written: {path}")
    return 0


# --- synthesize


def _add_synthesize(commands: Any) -> None:
    parser = _command(
        commands,
        "synthesize",
        _synthesize,
        "make a synthetic data set in the layout of DCASE 2022 Task 2",
        "Writes 16 kHz wav files of simulated machines, normal and faulty, with the names and\n"
        "attributes of DCASE 2022 Task 2. The same seed gives the same files.",
    )
    parser.add_argument("out", type=Path, help="folder to make; the recordings go to OUT/dev_data")
    parser.add_argument(
        "--machines", nargs="+", metavar="NAME", help="machine types (default: all)"
    )
    parser.add_argument("--sections", nargs="+", metavar="NN", help="such as 00 01 (default: all)")
    parser.add_argument(
        "--clips",
        type=int,
        metavar="N",
        help="source training clips of a section (default: 100; the real set has 990)",
    )
    parser.add_argument(
        "--target-clips",
        type=int,
        metavar="N",
        help="target training clips of a section (default: 10)",
    )
    parser.add_argument(
        "--test-clips",
        type=int,
        metavar="N",
        help="test clips of a section, each of source and target, normal and anomaly (default: 50)",
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="of a clip (default: 10)")
    parser.add_argument("--seed", type=int, metavar="S", help="(default: 0)")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one per core)"
    )


def _synthesize(arguments: argparse.Namespace) -> int:
    from asdproto.data.synthetic import synthesize

    names = ("machines", "sections", "clips", "target_clips", "test_clips", "seconds", "seed")
    given = {name: getattr(arguments, name) for name in (*names, "workers")}
    options = {name: value for name, value in given.items() if value is not None}
    folder = synthesize(arguments.out, **options)
    print(f"written: {folder}")
    return 0


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
