"""``rescore``, ``fuse`` and ``export``: what is made of finished runs, without training."""

from __future__ import annotations

import argparse
from pathlib import Path

from asdproto.arguments import Parser
from asdproto.commands import add_command, add_options, program, say
from asdproto.commands.train import finish


def add(parsers: dict[str, Parser]) -> None:
    """Adds the commands."""
    parser = add_command(
        parsers,
        "rescore",
        rescore,
        "fit another back-end to a trained run and score its test clips again",
        "Fits the back-end of a finished run again, without training, and makes another run\n"
        "folder of it: score.kind=knn, score.shrinkage=0.01, score.hop=16 and so on.",
        usage=f"{program()} rescore RUN OUT [FIELD=VALUE ...]",
    )
    parser.add_argument("workdir", type=Path, metavar="run", help="folder of a finished run")
    parser.add_argument("out", type=Path, help="run folder to make")
    parser.add_overrides(_fields)

    parser = add_command(
        parsers,
        "fuse",
        fuse,
        "make one detector of several runs",
        "Makes a run folder whose detector takes, for each clip, the score of the run that\n"
        "finds it most anomalous, measured by each run's held-out normal clips.",
    )
    parser.add_argument("out", type=Path, help="run folder to make")
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="run",
        help="finished run, whose result is taken, or one of its detectors: RUN/scores/NAME",
    )

    parser = add_command(
        parsers,
        "export",
        export,
        "write a trained detector as four files that jax alone can run",
        "Writes the encoder and its back-end as one jax.export artifact, for CPUs and CUDA, with\n"
        "prototypes, thresholds and a reader of one page beside it, which needs jax, flatbuffers\n"
        "and what they bring. Takes detectors of --system prototype, of one seed or several.\n"
        "Other systems are scored by python -m asdproto score.",
    )
    parser.add_argument("workdir", type=Path, metavar="run", help="folder of a finished run")
    parser.add_argument("out", type=Path, help="folder to make")
    which = "which of the run's detectors (default: its last network)"
    add_options(parser, ("--detector", str, "NAME", which))


def _fields(_: str | None) -> str:
    from asdproto.config import describe_fields
    from asdproto.systems.prototype import ScoreConfig

    return describe_fields(ScoreConfig(), "score.")


def rescore(arguments: argparse.Namespace) -> int:
    """Scores a run again."""
    from rich.console import Console

    from asdproto.systems.remake import rescore

    results = rescore(arguments.workdir, arguments.out, arguments.overrides)
    finish(arguments.out, results, Console())
    return 0


def fuse(arguments: argparse.Namespace) -> int:
    """Fuses runs."""
    from rich.console import Console

    from asdproto.systems.remake import fuse

    results = fuse(arguments.out, arguments.runs)
    finish(arguments.out, results, Console())
    return 0


def export(arguments: argparse.Namespace) -> int:
    """Exports a detector."""
    from asdproto.results.run_folder import read_config
    from asdproto.systems.detector import Detector
    from asdproto.systems.remake import FUSED

    name = arguments.detector
    if name is None:  # spectra, and what is fused with them, cannot be exported
        names = read_config(arguments.workdir)["names"]
        name = next((one for one in names[::-1] if one not in (FUSED, "spectral")), None)
    detector = Detector.load(arguments.workdir, name)
    detector.export(arguments.out)
    size = (arguments.out / "model.jax").stat().st_size
    say(f"written: {arguments.out}, {size / 1e6:.1f} MB; score with {arguments.out}/score.py")
    return 0
