"""What the experiment modules share: arguments, devices, the feature store, the end of a run."""

import argparse
import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from asdproto.data.store import FeatureStore, open_store
from asdproto.errors import DataError
from asdproto.features import FeatureSettings
from asdproto.results.result_files import write_results
from asdproto.results.tables import print_table
from asdproto.training.devices import Devices, start_distributed, use_compilation_cache, use_devices


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Which devices and processes a run uses."""
    group = parser.add_argument_group("devices")
    group.add_argument("--devices", type=int, metavar="N", help="use the first N devices only")
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="address of process 0, for runs over several processes; TPU pods, SLURM and GKE are "
        "recognized without",
    )
    group.add_argument("--processes", type=int, metavar="N", help="number of processes")
    group.add_argument("--process-id", type=int, metavar="I", help="this process's number, from 0")
    group.add_argument(
        "--host-features",
        action="store_true",
        help="keep features in host memory and prefetch crops, even where they fit on the device",
    )
    group.add_argument(
        "--loop",
        choices=("scan", "dispatch"),
        help="one call an epoch, or one a step; what suits the backend by default",
    )


def start_devices(args: argparse.Namespace) -> Devices:
    """Joins other processes where there are any and takes the devices."""
    start_distributed(args.coordinator, args.processes, args.process_id)
    use_compilation_cache()
    return use_devices(args.devices)


def features_of(
    data: Path, folder: Path, settings: FeatureSettings, console: Console | None, main: bool = True
) -> FeatureStore:
    """Feature store of a collection, extracted into ``folder`` unless it is there already.

    Args:
      data: Collection in a DCASE layout, or with a csv that describes it; or a feature store.
      folder: Where the store goes.
      settings: Feature settings.
      console: Where progress goes.
      main: Whether this process extracts; the others wait for it.
    """
    if (data / "manifest.json").is_file() and (data / "features.npy").is_file():
        return open_store(data, expect=settings)
    if main:
        from asdproto.data.extract import build_store
        from asdproto.data.table import load_collection

        root, clips = load_collection(data)
        store = build_store(clips, root, folder, settings, progress=console is not None)
    if _several_processes():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("features")
    return store if main else open_store(folder, expect=settings)


def _several_processes() -> bool:
    import jax

    return jax.process_count() > 1


def finish(workdir: Path, results: dict[str, Any], console: Console) -> None:
    """Writes ``results.json``, the report, and prints the table."""
    write_results(workdir / "results.json", results)
    show(workdir, results, console)


def only_reports(workdir: Path, console: Console) -> bool:
    """Whether the work folder holds a finished run; if so, shows it."""
    finished = workdir / "results.json"
    if not finished.exists():
        return False
    console.print(f"{workdir} is finished; this only reports", highlight=False, soft_wrap=True)
    show(workdir, json.loads(finished.read_text()), console)
    return True


def show(workdir: Path, results: dict[str, Any], console: Console) -> None:
    """Prints the table of a finished run and says where everything is."""
    from asdproto.results.page import write_report

    if results["systems"]:
        print_table(results, console=console)
    page = write_report(workdir)
    console.print(f"Report:  {page}", highlight=False, soft_wrap=True)
    console.print(
        f"Scores:  {workdir / 'scores'}   Figures: {workdir / 'results.json'}",
        highlight=False,
        soft_wrap=True,
    )


@contextlib.contextmanager
def plain_errors(resumes: bool = True) -> Iterator[None]:
    """Turns expected errors into one message and an exit code, and Ctrl-C into a short goodbye."""
    from asdproto.config import ConfigError
    from asdproto.training.checkpoint import CheckpointError
    from asdproto.training.loop import DivergedError

    try:
        yield
    except (DataError, ConfigError, CheckpointError, DivergedError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        after = "goes on from the last checkpoint" if resumes else "trains from the start"
        print(f"interrupted; the same command {after}", file=sys.stderr)
        raise SystemExit(130) from None


def run_main(main: Callable[[list[str] | None], Any], *, resumes: bool = True) -> None:
    """Runs an experiment module as a command; ``resumes`` says whether it keeps checkpoints."""
    with plain_errors(resumes):
        # One line a warning: the place in our code means nothing to the person who reads it.
        warnings.showwarning = _one_line
        main(None)


def _one_line(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"{category.__name__}: {message}", file=sys.stderr)
