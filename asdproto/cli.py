"""The command line: ``python -m asdproto synthesize | validate | features | score | ...``.

Every command imports what it needs when it runs, so that help is instant and a machine without an
audio library can still evaluate and report. Exit codes: 0 done, 1 problems found or an error, 2
wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from asdproto import __version__, commands
from asdproto.arguments import Parser
from asdproto.commands import train


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
        print(f"error: {commands.message(error)}", file=sys.stderr)
        return 1


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
    parser = Parser(
        prog="python -m asdproto" if called == "__main__.py" else "asdproto",
        description="Anomalous sound detection with prototypes: from recordings of normal machines "
        "to scores and decisions.",
        epilog="Exit codes: 0 done, 1 problems found or an error, 2 wrong usage, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"asdproto {__version__}")
    parser.add_argument(
        "--traceback", action="store_true", help="show where in the code an error arose"
    )
    subparsers = parser.add_subparsers(title="commands", dest="command", required=True)
    for add in (
        _add_synthesize,
        _add_validate,
        _add_features,
        train.add,
        _add_score,
        _add_evaluate,
        _add_report,
        _add_summarize,
    ):
        add(subparsers)
    return parser


def _command(subparsers: Any, name: str, run: Any, help_: str, description: str) -> Any:
    parser = subparsers.add_parser(
        name,
        help=help_,
        description=description,
    )
    parser.set_defaults(run=run)
    return parser


def _add_validate(subparsers: Any) -> None:
    parser = _command(
        subparsers,
        "validate",
        commands.validate,
        "list every problem of a collection of recordings",
        "Lists every problem of a collection: file, found, expected, what to do about it.\n"
        "Exits 1 where it cannot be used as it is; notices alone exit 0.",
    )
    parser.add_argument(
        "root",
        type=Path,
        help="folder in the layout of DCASE Task 2, folder with clips.csv, or such a csv",
    )


def _add_features(subparsers: Any) -> None:
    parser = _command(
        subparsers,
        "features",
        commands.features,
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
    parser.add_argument("--n-mels", type=int, metavar="N", help="number of filters (default: 128)")
    parser.add_argument("--n-fft", type=int, metavar="N", help="samples of a frame (default: 1024)")
    parser.add_argument(
        "--hop-length", type=int, metavar="N", help="samples between frames (default: 512)"
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


def _add_score(subparsers: Any) -> None:
    parser = _command(
        subparsers,
        "score",
        commands.score,
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


def _add_evaluate(subparsers: Any) -> None:
    parser = _command(
        subparsers,
        "evaluate",
        commands.evaluate,
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


def _add_report(subparsers: Any) -> None:
    parser = _command(
        subparsers,
        "report",
        commands.report,
        "one web page about a run",
        "Writes one self-contained web page about a run, finished or not: figures,\n"
        "training curves, score histograms and ROC curves.",
    )
    parser.add_argument("workdir", type=Path, help="folder of the run, as given to --workdir")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="file to write (default: report.html in it)"
    )


def _add_summarize(subparsers: Any) -> None:
    parser = _command(
        subparsers,
        "summarize",
        commands.summarize,
        "mean and standard deviation over runs with different seeds",
        "Reads finished runs that differ in their seed alone and prints their figures as\n"
        "mean ± standard deviation (divisor: runs - 1), and how systems differ within runs.",
    )
    parser.add_argument("workdirs", type=Path, nargs="+", metavar="workdir", help="folder of a run")
    parser.add_argument("--out", type=Path, metavar="JSON", help="also write them to this file")


def _add_synthesize(subparsers: Any) -> None:
    parser = _command(
        subparsers,
        "synthesize",
        commands.synthesize,
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
