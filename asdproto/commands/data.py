"""``download``, ``validate``, ``features``: from nothing to a feature store."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from asdproto.arguments import Parser
from asdproto.commands import add_command, add_options, program, say
from asdproto.config import describe_fields, override
from asdproto.errors import counted

_YEARS = tuple(f"dcase{year}" for year in range(2020, 2026))


def add(parsers: dict[str, Parser]) -> None:
    """Adds the commands."""
    parser = add_command(
        parsers,
        "download",
        download,
        "fetch a data set of DCASE Task 2 from Zenodo",
        "Fetches the archives of a data set, checks them, and unpacks them to ROOT/dev_data\n"
        "(development) and ROOT/eval_data (additional training, evaluation). Run again after an\n"
        "interruption, it continues where it stopped; when everything is there, it does nothing.",
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
    add_options(
        parser,
        ("--dataset", _YEARS, None, "which one", "dcase2022"),
        ("--server", str, "URL", "where its records are asked for", "https://zenodo.org"),
    )

    parser = add_command(
        parsers,
        "validate",
        validate,
        "list every problem of a collection of recordings",
        "Lists every problem of a collection: file, found, expected, what to do about it.\n"
        "Exits 1 where it cannot be used as it is; notices alone exit 0. The csv of\n"
        "--write-csv belongs into the collection's folder, as clips.csv.",
    )
    parser.add_argument(
        "root",
        type=Path,
        help="folder of recordings in folders of any names, folder in the layout of DCASE Task 2, "
        "folder with clips.csv, or such a csv",
    )
    described = "write how the recordings were understood, to be edited (default: no file)"
    add_options(parser, ("--write-csv", Path, "FILE", described))

    parser = add_command(
        parsers,
        "features",
        features,
        "extract log-mel features into a feature store",
        "Extracts the features of a collection, once, on every core, into a folder that\n"
        "training reads. Run again after an interruption, it starts over. FIELD=VALUE, such as\n"
        "features.n_mels=64, changes what a feature is; --help-fields lists the fields.",
        usage=f"{program()} features ROOT STORE [options] [FIELD=VALUE ...]",
    )
    parser.add_argument("root", type=Path, help="the collection, as for validate")
    parser.add_argument("store", type=Path, help="folder of the feature store to make")
    parser.add_overrides(lambda _: describe_fields(_defaults()))
    dtypes = ("float16", "float32")
    add_options(
        parser,
        ("--workers", int, "N", "threads (default: one per core)"),
        ("--dtype", dtypes, None, "precision of the stored features", "float16"),
    )
    add_on_error(parser)


def add_on_error(parser: argparse.ArgumentParser) -> None:
    """What is to become of recordings that cannot be used."""
    text = "list all recordings that cannot be used, and stop; or leave them out and say so"
    add_options(parser, ("--on-error", ("stop", "skip"), None, text, "stop"))


def download(arguments: argparse.Namespace) -> int:
    """Fetches a data set."""
    from asdproto.data.download import download

    fetched = download(arguments.root, arguments.dataset, arguments.parts, server=arguments.server)
    for folder, files in fetched.items():
        what = f"{counted(files, 'file')} fetched" if files else "everything is there"
        say(f"{folder}: {what}")
    return 0


def validate(arguments: argparse.Namespace) -> int:
    """Prints every problem of a collection; 1 where it cannot be used."""
    from rich.console import Console

    from asdproto.data.collection import read_collection
    from asdproto.data.problems import errors_in, listed
    from asdproto.data.table import write_table
    from asdproto.data.validate import validate

    with Console(stderr=True).status("Reading"):
        collection = read_collection(arguments.root)
        problems = validate(collection)
    for line in listed(problems):
        say(line)
    say(collection.summary())
    if arguments.write_csv is not None:
        write_table(arguments.write_csv, collection.clips)
        say(f"written: {arguments.write_csv}")
    errors = len(errors_in(problems))
    if errors:
        say(f"{counted(errors, 'error')}, {counted(len(problems) - errors, 'notice')}")
        return 1
    say("no errors" + (f", {counted(len(problems), 'notice')}" if problems else ""))
    from asdproto.systems import choose

    kind, why = choose(collection.clips)
    say(f"can be trained: {kind}; {why}")
    return 0


def _defaults() -> Any:
    """What overrides change."""
    from asdproto.features import FeatureSettings

    fields = [("features", FeatureSettings, FeatureSettings())]
    return dataclasses.make_dataclass("Defaults", fields)()


def features(arguments: argparse.Namespace) -> int:
    """Extracts a feature store."""
    from asdproto.data.collection import read_collection
    from asdproto.data.extract import build_store

    settings = override(_defaults(), arguments.overrides)
    store = build_store(
        read_collection(arguments.root),
        arguments.store,
        settings.features,
        on_error=arguments.on_error,
        workers=arguments.workers,
        dtype=arguments.dtype,
    )
    _, frames, mels = store.features.shape
    say(
        f"{arguments.store}: {counted(len(store), 'clip')} of up to {frames} frames x {mels} mels, "
        f"{store.features.dtype}, {store.features.nbytes / 1e6:,.0f} MB"
    )
    return 0
