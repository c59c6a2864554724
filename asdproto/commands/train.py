"""``python -m asdproto train``: from recordings to a run folder."""

from __future__ import annotations

import argparse
import functools
import importlib
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from asdproto.arguments import SHARE, Parser, within
from asdproto.commands import add_command, add_options, program
from asdproto.commands.data import add_on_error
from asdproto.config import at_least, between, nearest
from asdproto.errors import printable
from asdproto.systems import KINDS, NEED_NO_DEVICE, PRESETS

if TYPE_CHECKING:
    from rich.console import Console

    from asdproto.data.collection import Collection
    from asdproto.data.dcase import Clip
    from asdproto.training.devices import Devices


def add(subparsers: Any) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "train",
        run,
        "train on a collection of recordings, score its test clips, write a report",
        "Trains on the normal clips of a collection, scores its test clips and writes\n"
        "a report. Stopped at any point, the same command continues from its last\n"
        "checkpoint; on a finished run it only reports. FIELD=VALUE, anywhere in the\n"
        "command, changes the system, such as pretrain.epochs=10.",
        usage=f"{program()} train DATA RUN [options] [FIELD=VALUE ...]",
    )
    parser.add_argument(
        "data",
        type=Path,
        help="the collection, as for validate, or a feature store",
    )
    parser.add_argument("workdir", type=Path, metavar="run", help="folder for all results")
    add_arguments(parser)


def add_arguments(parser: Parser, kind: str | None = None) -> None:
    """Adds the options of a command that trains one kind of system, or any where it is ``None``."""
    if kind is None:
        kinds = f"{', '.join(KINDS)}, or package.module:Class (default: what suits the recordings)"
        add_options(parser, ("--system", _kind, "KIND", kinds))
    else:
        parser.set_defaults(system=kind)
    presets = "to try, for CPUs, as published (default: small on a CPU, paper on an accelerator)"
    add_options(parser, ("--preset", PRESETS, None, presets))
    parser.add_argument(
        "--seeds",
        type=within(int, between(0, 4294967295)),
        nargs="+",
        default=[0],
        metavar="S",
        help="of everything random; several make one detector of as many members (default: 0)",
    )
    parser.add_argument(
        "--machines", nargs="+", metavar="TYPE", help="machine types to keep (default: all)"
    )
    shares = "share of normal clips that may be called anomalies (default: 0.1)"
    add_options(
        parser,
        ("--machine", str, "NAME", "type of all recordings (default: what folders say)"),
        ("--contamination", SHARE, "P", shares),
        ("--features", Path, "DIR", "of the features (default: features in the run folder)"),
        ("--save-seconds", within(float, at_least(0)), "S", "seconds between checkpoints", 60),
    )
    parser.add_argument(
        "--retrain", action="store_true", help="replace a run of other recordings or settings"
    )
    add_on_error(parser)
    add_device_arguments(parser)
    parser.add_overrides(lambda chosen: describe_systems(chosen or kind))


def _kind(text: str) -> str:
    """A kind of system; those that are a path are looked up when they are made."""
    if text not in KINDS and ":" not in text:
        near = nearest(text, KINDS)
        raise argparse.ArgumentTypeError(
            f"found {printable(text)}; expected one of {', '.join(KINDS)} or package.module:Class"
            f"{near}"
        )
    return text


def describe_systems(kind: str | None, size: str = "small") -> str:
    """What overrides can change in a kind of system at a preset, or in every kind."""
    from asdproto.config import describe_fields
    from asdproto.systems import preset

    kinds = (kind,) if kind else tuple(KINDS)
    return "\n".join(f"{k}, preset {size}:\n{describe_fields(preset(k, size))}\n" for k in kinds)


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Which devices and processes a run uses."""
    group = parser.add_argument_group("devices")
    steps = "record N steps of every stage, after those that compile, in profile/ of the run"
    add_options(
        group,
        ("--devices", int, "N", "use the first N devices only (default: all)"),
        ("--processes", int, "N", "number of processes (default: detected)"),
        ("--process-id", int, "I", "this process's number, from 0 (default: detected)"),
        ("--coordinator", str, "HOST:PORT", "address of process 0 (default: found in clusters)"),
        ("--profile", within(int, at_least(0)), "N", steps, 0),
        ("--loop", ("scan", "dispatch"), None, "a call an epoch or a step (default: by device)"),
    )
    group.add_argument(
        "--host-features",
        action="store_true",
        help="keep features in host memory, even where they fit on the device",
    )


def start_devices(arguments: argparse.Namespace) -> Devices:
    """The devices of a run."""
    from asdproto.training.devices import use_compilation_cache, use_devices

    use_compilation_cache()
    return use_devices(arguments.devices)


def run(arguments: argparse.Namespace) -> int:
    """Trains, scores and reports, with other processes where there are any."""
    # What a base install lacks is missed before JAX is set up, which may be too old for it there.
    importlib.import_module("flax")

    from asdproto.training.processes import joined

    processes = arguments.coordinator, arguments.processes, arguments.process_id
    if arguments.system not in NEED_NO_DEVICE:
        with joined(*processes):
            return _run(arguments)
    if arguments.process_id:
        print(f"{arguments.system} needs no device; process 0 does all of it")
        return 0
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from asdproto.config import ConfigError, override
    from asdproto.data.store import is_store
    from asdproto.results.run_folder import write_results
    from asdproto.systems import choose, preset
    from asdproto.systems.inputs import check_contamination
    from asdproto.systems.remake import fuse_with_spectra
    from asdproto.systems.run import features_of, train_run, train_yardsticks
    from asdproto.systems.workdir import run_settings
    from asdproto.training.devices import RunOptions
    from asdproto.training.processes import agree_on, alone, is_main

    console, devices = Console(quiet=not is_main()), None
    workdir, seeds, machines = arguments.workdir, arguments.seeds, arguments.machines
    read = functools.cache(lambda: _read(arguments))  # only process 0 needs the recordings
    kind = arguments.system
    if kind is None:
        kind, why = alone(lambda: choose(read().clips))
        console.out(f"System:   {kind}; {why}", highlight=False)
    name = arguments.preset
    if name is None:
        devices = start_devices(arguments)
        name = "small" if devices.local[0].platform == "cpu" else "paper"
    overrides = list(arguments.overrides)
    if arguments.contamination is not None:
        overrides.append(f"quantile={check_contamination(arguments.contamination)}")
    system = override(preset(kind, name), overrides)
    if len(set(seeds)) < len(seeds):
        raise ConfigError("--seeds: found one twice; expected different ones")
    command = run_settings(system, seeds, machines)
    agree_on(command, workdir)
    if alone(lambda: _is_finished(arguments, command, read().identity, console)):
        return 0
    devices = devices or start_devices(arguments)
    chosen = "" if arguments.preset else ", chosen for this device; --preset changes it"
    console.out(f"Preset:   {name}{chosen}", highlight=False)
    # Before all features are extracted.
    alone(lambda: system.check_clips([clip for clip in read().clips if clip.split == "train"]))
    extract = functools.partial(
        features_of,
        read().source if is_main() else arguments.data,
        console=console,
        on_error=arguments.on_error,
    )
    store = extract(arguments.features or workdir / "features", system.features)
    spectra, summary = preset("spectral", "small"), None
    if system.is_fused and not alone(lambda: is_store(arguments.data)):
        summary = extract(workdir / "summary", spectra.features)
    options = RunOptions(
        workdir=workdir,
        devices=devices,
        console=console if is_main() else None,
        loop=arguments.loop,
        resident=False if arguments.host_features else None,
        save_seconds=arguments.save_seconds,
        profile=arguments.profile,
    )
    results = train_run(
        system,
        store,
        options,
        seeds=seeds,
        machines=machines,
        root=read().root if is_main() else None,
        collection=read().identity if is_main() else None,
    )
    if not is_main():
        return 0
    results = {**results, "preset": name}
    if summary is not None:
        results["systems"] |= fuse_with_spectra(spectra, summary, options, machines=machines)
    finish(workdir, results, console)
    yardsticks = train_yardsticks(system, store, options, machines=machines)
    results["systems"] |= yardsticks
    results["yardsticks"] = list(yardsticks)
    if yardsticks:
        console.out("To compare with, without training:", highlight=False)
        finish(workdir, results, console)
    else:
        write_results(workdir, results)
    return 0


class _Recordings(NamedTuple):
    """What a run is trained on.

    Attributes:
      source: The collection, or the folder of a feature store.
      clips: Its clips of the machine types to keep.
      identity: What tells them from others.
      root: Folder of the recordings; ``None`` where only their features are given.
    """

    source: Collection | Path
    clips: list[Clip]
    identity: dict[str, list[int]]
    root: Path | None


def _read(arguments: argparse.Namespace) -> _Recordings:
    from asdproto.data.collection import check_machines, read_collection
    from asdproto.data.store import is_store, open_store
    from asdproto.errors import DataError

    data, machines = arguments.data, arguments.machines
    source: Collection | Path = data
    root = data.parent if data.is_file() else data
    if is_store(data):
        store, root = open_store(data), None
        clips, identity = store.clips, store.identity()
    elif not data.exists() and (arguments.workdir / "config.json").exists():
        expected = f"the recordings that {arguments.workdir} was trained on"
        remedy = f"Correct the path; {program()} report {arguments.workdir} needs none."
        raise DataError(data, "nothing", expected, remedy)
    else:
        source = read_collection(data, labels=arguments.machine is None)
        if arguments.machine is not None:
            source = source.of_machine(arguments.machine)
        if arguments.on_error == "stop":
            source.check()
        clips, identity = source.usable(), source.identity()
    check_machines(data, clips, machines)
    clips = [clip for clip in clips if machines is None or clip.machine_type in machines]
    return _Recordings(source, clips, {clip.path: identity[clip.path] for clip in clips}, root)


# --- a run that is there already


def _is_finished(
    arguments: argparse.Namespace,
    command: dict[str, Any],
    identity: Mapping[str, Sequence[int]],
    console: Console,
) -> bool:
    """Whether the run folder holds this run, finished, which is then only reported."""
    from asdproto.errors import DataError
    from asdproto.systems.workdir import check_workdir

    workdir = arguments.workdir
    try:
        check_workdir(workdir, command, identity)
    except DataError:
        if not arguments.retrain or not (workdir / "config.json").exists():
            raise
        _remove_run(workdir)
        return False
    return report_if_finished(workdir, console)


def _remove_run(workdir: Path) -> None:
    """Removes what a run has left but its features; its configuration last, which says whose."""
    from asdproto.data.store import is_store
    from asdproto.files import locked
    from asdproto.systems.run import LOCK

    with locked(workdir, LOCK):
        for name in ("results.json", "report.html", "metrics.jsonl"):
            (workdir / name).unlink(missing_ok=True)
        for name in ("scores", "checkpoints", "features", "summary"):
            if name in ("scores", "checkpoints") or is_store(workdir / name):
                shutil.rmtree(workdir / name, ignore_errors=True)
        (workdir / "config.json").unlink(missing_ok=True)


def report_if_finished(workdir: Path, console: Console) -> bool:
    """Whether the run folder holds a finished run; if so, shows it."""
    from asdproto.errors import DataError
    from asdproto.results.run_folder import read_results

    finished = workdir / "results.json"
    if not finished.exists() or not (workdir / "config.json").exists():
        return False
    try:
        results = read_results(workdir)
    except DataError as error:
        warnings.warn(f"{finished}: found {error.found}; it is made again", stacklevel=2)
        return False
    if "yardsticks" not in results:  # what is fitted to compare with comes last
        return False
    console.out(printable(f"{workdir} is finished; this only reports"), highlight=False)
    _show(workdir, results, console)
    return True


# --- the end of a run


def finish(workdir: Path, results: dict[str, Any], console: Console) -> None:
    """Writes ``results.json`` and the report, prints the table and says where everything is."""
    from asdproto.results.run_folder import write_results

    write_results(workdir, results)
    _show(workdir, results, console)


def _show(workdir: Path, results: dict[str, Any], console: Console) -> None:
    from asdproto.results.page import write_report
    from asdproto.results.tables import print_table

    if results["systems"]:
        print_table(results, console=console)
    page = write_report(workdir)
    for line in (
        f"Report:  {page}",
        f"Scores:  {workdir / 'scores'}   Figures: {workdir / 'results.json'}",
        f"Score recordings with it:  python -m asdproto score {workdir} FILE_OR_FOLDER",
    ):
        console.out(printable(line), highlight=False)
