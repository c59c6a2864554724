"""``synthesize``, ``download``, ``validate``, ``features``: from nothing to a feature store."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from asdproto.commands import add_command, add_options, count, given

_WORKERS = ("--workers", int, "N", "processes (default: one per core)")


def add_synthesize(subparsers: Any) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "synthesize",
        synthesize,
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
        "--size",
        choices=("small", "bench"),
        default="small",
        help="small trains on a CPU; bench has the real set's counts, for a GPU (default: "
        "%(default)s); any of the four that follow may be given beside it",
    )
    add_options(
        parser,
        ("--clips", int, "N", "source training clips of a section (default: 50; with bench 990)"),
        ("--target-clips", int, "N", "target training clips of a section (default: 10)"),
        (
            "--test-clips",
            int,
            "N",
            "test clips of a section, each of source and target, normal and anomaly (default: 25; "
            "with bench 50)",
        ),
        ("--seconds", float, "S", "of a clip (default: 6; with bench 10)"),
        (
            "--severity",
            float,
            "DB",
            "raise the faults: 10 makes them plainly audible (default: 0, as hard for the "
            "challenge's baselines as the real set)",
        ),
        ("--seed", int, "S", "of everything random (default: 0)"),
        _WORKERS,
    )


def synthesize(arguments: argparse.Namespace) -> int:
    """Makes a synthetic data set."""
    from asdproto.data.synthetic import SIZES, synthesize

    counts = SIZES[arguments.size]._asdict()
    names = ("machines", "sections", *counts, "severity", "seed", "workers")
    folder = synthesize(arguments.out, **{**counts, **given(arguments, names)})
    print(f"written: {folder}")
    return 0


def add_download(subparsers: Any) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "download",
        download,
        "fetch a data set of DCASE Task 2 from Zenodo",
        "Fetches the archives of a data set, checks them, and unpacks them to ROOT/dev_data\n"
        "(development) and ROOT/eval_data (additional training, evaluation). Run again after an\n"
        "interruption, it continues where it stopped; when everything is there, it does nothing.",
    )
    years = [f"dcase{year}" for year in range(2020, 2026)]
    parser.add_argument(
        "--dataset", choices=years, default="dcase2022", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--root", type=Path, required=True, help="folder to make, of this data set alone"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=("development", "additional", "evaluation"),
        default=["development"],
        help="which of its parts (default: development; the others hold no labels of test clips)",
    )
    parser.add_argument(
        "--server",
        default="https://zenodo.org",
        metavar="URL",
        help="where its records are asked for (default: %(default)s)",
    )


def download(arguments: argparse.Namespace) -> int:
    """Fetches a data set."""
    from asdproto.data.download import download

    fetched = download(arguments.root, arguments.dataset, arguments.parts, server=arguments.server)
    for folder, files in fetched.items():
        what = f"{count(files, 'file')} fetched" if files else "everything is there"
        print(f"{folder}: {what}")
    return 0


def add_validate(subparsers: Any) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "validate",
        validate,
        "list every problem of a collection of recordings",
        "Lists every problem of a collection: file, found, expected, what to do about it.\n"
        "Exits 1 where it cannot be used as it is; notices alone exit 0.",
    )
    parser.add_argument(
        "root",
        type=Path,
        help="folder in the layout of DCASE Task 2, folder with clips.csv, or such a csv",
    )


def validate(arguments: argparse.Namespace) -> int:
    """Prints every problem of a collection; 1 where it cannot be used."""
    from rich.console import Console

    from asdproto.data.table import load_collection
    from asdproto.data.validate import validate

    with Console(stderr=True).status(f"Reading {arguments.root}"):
        problems = validate(arguments.root)
    for problem in problems:
        print(problem)
    errors = sum(problem.is_error for problem in problems)
    if errors:
        print(f"{count(errors, 'error')}, {count(len(problems) - errors, 'notice')}")
        return 1
    clips = load_collection(arguments.root)[1]
    machines = {clip.machine_type for clip in clips}
    sections = {(clip.machine_type, clip.section) for clip in clips}
    train = sum(clip.split == "train" for clip in clips)
    notices = f", {count(len(problems), 'notice')}" if problems else ""
    print(
        f"no errors{notices}: {count(train, 'training clip')} and "
        f"{count(len(clips) - train, 'test clip')} of {count(len(machines), 'machine type')}, "
        f"{count(len(sections), 'section')}"
    )
    from asdproto.systems import choose

    kind, why = choose(clips)
    print(f"can be trained: {kind}; {why}")
    return 0


def add_features(subparsers: Any) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "features",
        features,
        "extract log-mel features into a feature store",
        "Extracts the features of a collection, once, on every core, into a folder that\n"
        "training reads. Run again after an interruption, it continues where it stopped.",
    )
    parser.add_argument("root", type=Path, help="the collection, as for validate")
    parser.add_argument("store", type=Path, help="folder of the feature store to make")
    parser.add_argument(
        "--scale",
        choices=("inverted", "mel"),
        help="mel filters mirrored in frequency, or as they are (default: inverted)",
    )
    add_options(
        parser,
        ("--n-mels", int, "N", "number of filters (default: 128)"),
        ("--n-fft", int, "N", "samples of a frame (default: 1024)"),
        ("--hop-length", int, "N", "samples between frames (default: 512)"),
        ("--sample-rate", int, "HZ", "hertz (default: 16000)"),
        ("--fmin", float, "HZ", "lowest frequency, hertz (default: 0)"),
        ("--fmax", float, "HZ", "highest frequency, hertz (default: half the sample rate)"),
        ("--power", float, "P", "of the magnitude (default: 2)"),
        _WORKERS,
    )
    add_on_error(parser)
    parser.add_argument(
        "--dtype",
        choices=("float16", "float32"),
        default="float16",
        help="precision of the stored features",
    )


def add_on_error(parser: argparse.ArgumentParser) -> None:
    """What is to become of recordings that cannot be used."""
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="list all recordings that cannot be used, and stop; or leave them out, counted on "
        "screen and listed in the feature store's manifest.json",
    )


def features(arguments: argparse.Namespace) -> int:
    """Extracts a feature store."""
    from asdproto.data.extract import extract_collection
    from asdproto.features import FeatureSettings

    names = ("scale", "n_mels", "n_fft", "hop_length", "sample_rate", "fmin", "fmax", "power")
    settings = FeatureSettings(**given(arguments, names))
    store = extract_collection(
        arguments.root,
        arguments.store,
        settings,
        on_error=arguments.on_error,
        workers=arguments.workers,
        dtype=arguments.dtype,
    )
    _, frames, mels = store.features.shape
    print(
        f"{arguments.store}: {count(len(store), 'clip')} of up to {frames} frames x {mels} mels, "
        f"{store.features.dtype}, {store.features.nbytes / 1e6:,.0f} MB"
    )
    return 0
