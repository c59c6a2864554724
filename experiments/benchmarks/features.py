"""Speed of feature extraction: against a plain librosa loop, over processes, against the disk.

    python -m experiments.benchmarks.features --out experiments/results/features_cpu.json
    python -m experiments.benchmarks.features --data DCASE_ROOT

Three measurements on the same recordings (10 s of 16-bit noise at 16 kHz, or those of ``--data``):

- **One core.** The loop that everybody writes (``librosa.load``, ``feature.melspectrogram``,
  ``power_to_db`` for each file) and ours (``features.file_features``, stored as float16) take
  turns on the same handful of files, in one process with one thread. The values of both are
  compared before anything is timed.
- **Processes.** ``build_store`` with one worker and with several, in turns, each over a few and
  over many clips. The difference of the two gives the rate of the going machinery (hand-over
  and writing count); what starting the processes costs stands beside it. A
  control says what the machine itself gives: the bare arithmetic, no file and no hand-over, in as
  many processes. Where that is not 1, other work shares the cores; the efficiency in CPU time
  (what a clip costs with one worker, over what it costs with several) is free of that.
- **Disk.** All files read as bytes, dropped from the page cache before and not.

Measured (AMD EPYC, 2 cores, ``experiments/results/features_cpu.json``): 3.1 times the plain loop
on one core (769 against 251 clips/s), in wall time as in CPU time, values within 1e-4 dB. Two
workers reach 0.94 of twice one worker's rate (quartiles 0.89 and 0.97; 0.99 in CPU time).
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from asdproto import features
from asdproto.data.dcase import Clip
from asdproto.data.extract import build_store
from asdproto.data.store import versions
from asdproto.data.table import load_collection
from asdproto.files import write_atomically

SETTINGS = features.FeatureSettings()
CONTROL_SECONDS = 2.0
GENERATED = 64  # different recordings; more clips than that are links to them


def generate(root: Path, seed: int = 0) -> list[Clip]:
    """Writes recordings of colored noise with a hum, 10 s each."""
    import soundfile

    clips = []
    for index in range(GENERATED):
        rng = np.random.default_rng([seed, index])
        audio = np.cumsum(rng.normal(size=160_000)) * 1e-3 + rng.normal(size=160_000) * 0.05
        audio += 0.2 * np.sin(2 * np.pi * 50 * np.arange(160_000) / 16_000)
        name = f"{index:04}.wav"
        soundfile.write(root / name, np.clip(audio, -1, 1), 16_000, subtype="PCM_16")
        clips.append(Clip(name, "noise", "00", "source", "train", "normal", ""))
    return clips


def repeat(clips: Sequence[Clip], root: Path, folder: Path, number: int) -> list[Clip]:
    """Makes a collection of a wanted size out of links to the recordings there are."""
    folder.mkdir()
    result = []
    for index in range(number):
        source = root / clips[index % len(clips)].path
        name = f"{index:06}{source.suffix.lower()}"
        os.symlink(source.resolve(), folder / name)
        result.append(Clip(name, "bench", "00", "source", "train", "normal", ""))
    return result


def plain(file: Path, mels: int = SETTINGS.n_mels) -> np.ndarray:
    """The loop's body that everybody writes."""
    import librosa

    audio, rate = librosa.load(file, sr=SETTINGS.sample_rate)
    mel = librosa.feature.melspectrogram(
        y=audio, sr=rate, n_fft=SETTINGS.n_fft, hop_length=SETTINGS.hop_length, n_mels=mels
    )
    return librosa.power_to_db(mel)


def ours(file: Path) -> np.ndarray:
    """What a worker of an extraction does with a file, but for writing the result."""
    return features.file_features(file, SETTINGS)[0].astype(np.float16)


def compare(file: Path) -> float:
    """Largest difference in dB between both, on plain mel filters and above librosa's floor."""
    settings = features.FeatureSettings(scale="mel")
    theirs = plain(file).T
    own = features.file_features(file, settings)[0]
    loud = theirs > theirs.max() - 60
    return float(np.abs(own - theirs)[loud].max())


def one_core(files: Sequence[Path], rounds: int, batch: int) -> dict[str, Any]:
    """Clips/s of the plain loop and of ours, in turns on the same files."""
    from threadpoolctl import threadpool_limits

    wall: dict[str, list[float]] = {"plain": [], "ours": []}
    cpu: dict[str, list[float]] = {"plain": [], "ours": []}
    with threadpool_limits(limits=1):
        for function in (plain, ours):
            for file in files[:3]:
                function(file)
        for turn in range(rounds):
            chosen = [files[(turn * batch + k) % len(files)] for k in range(batch)]
            order: list[tuple[str, Callable]] = [("plain", plain), ("ours", ours)]
            for name, function in order if turn % 2 else order[::-1]:
                started = time.perf_counter(), time.process_time()
                for file in chosen:
                    function(file)
                wall[name].append(batch / (time.perf_counter() - started[0]))
                cpu[name].append(batch / (time.process_time() - started[1]))
    ratios = [own / theirs for own, theirs in zip(wall["ours"], wall["plain"], strict=True)]
    cpu_ratios = [own / theirs for own, theirs in zip(cpu["ours"], cpu["plain"], strict=True)]
    return {
        "plain_clips_per_second": spread(wall["plain"]),
        "clips_per_second": spread(wall["ours"]),
        "speedup": spread(ratios),
        "speedup_cpu_time": spread(cpu_ratios),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, four significant digits."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive")
        if len(values) > 1
        else (values[0],) * 3
    )
    figures = {"median": middle, "low": low, "high": high}
    return {name: float(f"{value:.4g}") for name, value in figures.items()}


def cpu_time() -> float:
    """CPU seconds of this process and of all that it has started and seen end."""
    usage = os.times()
    return usage.user + usage.system + usage.children_user + usage.children_system


def _spin(seconds: float) -> int:
    """Bare arithmetic of the extraction, as often as it goes in so many seconds."""
    from threadpoolctl import threadpool_limits

    audio = np.random.default_rng(0).normal(size=160_000).astype(np.float32)
    with threadpool_limits(limits=1):
        features.log_mel(audio, SETTINGS)
        number, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            features.log_mel(audio, SETTINGS)
            number += 1
    return number


def control(workers: int, seconds: float) -> tuple[float, float]:
    """Spectrograms per second of one busy process, and of each of several at once."""
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_spin, [0.2] * workers))  # started and warm
        alone = pool.submit(_spin, seconds).result() / seconds
        together = sum(pool.map(_spin, [seconds] * workers)) / seconds / workers
    return alone, together


def processes(
    clips: Sequence[Clip], root: Path, folder: Path, *, workers: int, number: int, rounds: int
) -> dict[str, Any]:
    """Extraction with one worker and with several, in turns."""
    few = max(1, number // 4)
    seconds: dict[tuple[int, int], list[float]] = {}
    cpu_seconds: dict[tuple[int, int], list[float]] = {}
    controls = []
    (folder / "links").mkdir()
    linked = {size: repeat(clips, root, folder / f"links/{size}", size) for size in (few, number)}
    for turn in range(rounds):
        for count in (1, workers) if turn % 2 else (workers, 1):
            for size in (few, number):
                store = folder / "store"
                started, cpu_started = time.perf_counter(), cpu_time()
                build_store(
                    linked[size], folder / f"links/{size}", store, SETTINGS,
                    workers=count, progress=False,
                )  # fmt: skip
                seconds.setdefault((count, size), []).append(time.perf_counter() - started)
                cpu_seconds.setdefault((count, size), []).append(cpu_time() - cpu_started)
                shutil.rmtree(store)
        controls.append(control(workers, CONTROL_SECONDS))

    def rates(taken: dict[tuple[int, int], list[float]], count: int) -> list[float]:
        pairs = zip(taken[count, number], taken[count, few], strict=True)
        return [(number - few) / max(1e-9, long - short) for long, short in pairs]

    one, many = rates(seconds, 1), rates(seconds, workers)
    cpu = zip(rates(cpu_seconds, 1), rates(cpu_seconds, workers), strict=True)
    whole = [
        single / (workers * several)
        for single, several in zip(seconds[1, number], seconds[workers, number], strict=True)
    ]
    return {
        "workers": workers,
        "clips": number,
        "clips_per_second_1": spread(one),
        f"clips_per_second_{workers}": spread(many),
        "efficiency": spread([b / a / workers for a, b in zip(one, many, strict=True)]),
        "efficiency_cpu_time": spread([b / a for a, b in cpu]),
        "efficiency_with_start": spread(whole),
        "start_seconds": spread(
            [t - few / rate for t, rate in zip(seconds[workers, few], many, strict=True)]
        ),
        "control_efficiency": spread([together / alone for alone, together in controls]),
    }


def disk(files: Sequence[Path]) -> dict[str, Any]:
    """Megabytes and files per second, read whole, cold and from the page cache."""
    files = list(dict.fromkeys(file.resolve() for file in files))
    result: dict[str, Any] = {}
    for name in ("cold", "cached"):
        if name == "cold":
            if not hasattr(os, "posix_fadvise"):
                continue
            for file in files:
                with open(file, "rb") as stream:
                    with contextlib.suppress(OSError):
                        os.fsync(stream.fileno())
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        size = sum(len(file.read_bytes()) for file in files)
        taken = time.perf_counter() - started
        result[name] = {
            "megabytes_per_second": round(size / taken / 1e6, 1),
            "files_per_second": round(len(files) / taken, 1),
        }
    return result


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="experiments.benchmarks.features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, metavar="ROOT", help="recordings to use")
    parser.add_argument("--out", type=Path, metavar="JSON", help="write the results there too")
    parser.add_argument("--rounds", type=int, default=30, help="turns on one core (default 30)")
    parser.add_argument("--batch", type=int, default=16, help="clips in a turn (default 16)")
    parser.add_argument("--clips", type=int, default=10_000, help="clips in a store (10000)")
    parser.add_argument("--repeats", type=int, default=7, help="stores of each kind (default 7)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    args = parser.parse_args(arguments)
    for name in ("rounds", "batch", "clips", "repeats", "workers"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, found {getattr(args, name)}")

    # Here, since it imports jax: worker processes, which load this module anew, go without.
    from experiments.common import processor

    console = Console()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench_features.") as scratch:
        folder = Path(scratch)
        if args.data is None:
            root = folder / "data"
            root.mkdir()
            clips = generate(root)
        else:
            root, clips = load_collection(args.data)
        files = [root / clip.path for clip in clips]
        result: dict[str, Any] = {
            "processor": processor(),
            "cores": os.cpu_count(),
            "load_before": round(load, 2),
            "versions": {"python": platform.python_version(), **versions()},
            "data": "generated noise" if args.data is None else args.data.name,
            "recordings": len(clips),
            "largest_difference_db": round(max(compare(file) for file in files[:5]), 5),
        }
        console.print(f"{result['processor']}, {result['cores']} cores, load {load:.2f} before")
        result["disk"] = disk(files)
        result["one_core"] = one_core(files, args.rounds, args.batch)
        result["processes"] = processes(
            clips, root, folder, workers=args.workers, number=args.clips, rounds=args.repeats
        )
    report(console, result)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.out, (json.dumps(result, indent=1) + "\n").encode())
        console.print(f"Written to {args.out}")
    return result


def report(console: Console, result: dict[str, Any]) -> None:
    """Prints what was measured and how."""

    def show(value: dict[str, float], digits: int = 2) -> str:
        low, middle, high = (f"{value[key]:.{digits}f}" for key in ("low", "median", "high"))
        return f"{middle} ({low} to {high})"

    core, many = result["one_core"], result["processes"]
    workers = many["workers"]
    console.print("Median and quartiles over interleaved turns.", highlight=False)
    for name, text in (
        ("plain librosa loop, one core", f"{show(core['plain_clips_per_second'], 0)} clips/s"),
        ("ours, one core", f"{show(core['clips_per_second'], 0)} clips/s"),
        ("ours / plain, wall time", show(core["speedup"])),
        ("ours / plain, CPU time", show(core["speedup_cpu_time"])),
        ("largest difference in value", f"{result['largest_difference_db']} dB"),
        ("store, 1 worker", f"{show(many['clips_per_second_1'], 0)} clips/s"),
        (f"store, {workers} workers", f"{show(many[f'clips_per_second_{workers}'], 0)} clips/s"),
        (f"efficiency of {workers} workers", show(many["efficiency"])),
        ("  in CPU time, whoever shares the cores", show(many["efficiency_cpu_time"])),
        ("  start of the processes included", show(many["efficiency_with_start"])),
        ("  the machine's own, bare arithmetic", show(many["control_efficiency"])),
        ("start of the processes", f"{show(many['start_seconds'])} s"),
        *(
            (f"disk, {name}", f"{d['megabytes_per_second']} MB/s, {d['files_per_second']} files/s")
            for name, d in result["disk"].items()
        ),
    ):
        console.print(f"  {name:40} {text}", highlight=False)


if __name__ == "__main__":
    main()
