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

import contextlib
import itertools
import multiprocessing
import os
import platform
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from asdproto import features
from asdproto.arguments import Parser, within
from asdproto.config import at_least
from asdproto.data.collection import Collection, read_collection
from asdproto.data.extract import build_store
from asdproto.data.store import versions
from experiments.benchmarks.timing import interleave, ratios, spread
from experiments.common import processor, run_main, write_json

SETTINGS = features.FeatureSettings()
CONTROL_SECONDS = 2.0
GENERATED = 64  # different recordings; more clips than that are links to them


def generate(root: Path, seed: int = 0) -> None:
    """Writes recordings of colored noise with a hum, 10 s each."""
    import soundfile

    for index in range(GENERATED):
        rng = np.random.default_rng([seed, index])
        audio = np.cumsum(rng.normal(size=160_000)) * 1e-3 + rng.normal(size=160_000) * 0.05
        audio += 0.2 * np.sin(2 * np.pi * 50 * np.arange(160_000) / 16_000)
        name = f"{index:04}.wav"
        soundfile.write(root / name, np.clip(audio, -1, 1), 16_000, subtype="PCM_16")


def repeat(files: Sequence[Path], folder: Path, number: int) -> Collection:
    """Makes a collection of a wanted size out of links to the recordings there are."""
    folder.mkdir()
    for index in range(number):
        source = files[index % len(files)]
        os.symlink(source.resolve(), folder / f"{index:06}{source.suffix.lower()}")
    return read_collection(folder)


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

    def turns(function: Callable[[Path], np.ndarray]) -> Callable[[], None]:
        following = itertools.cycle(files)

        def turn() -> None:
            for file in itertools.islice(following, batch):
                function(file)

        return turn

    with threadpool_limits(limits=1):
        wall, cpu = interleave({"plain": turns(plain), "ours": turns(ours)}, rounds)
    return {
        "plain_clips_per_second": spread([batch / seconds for seconds in wall["plain"]]),
        "clips_per_second": spread([batch / seconds for seconds in wall["ours"]]),
        "speedup": ratios(wall["plain"], wall["ours"]),
        "speedup_cpu_time": ratios(cpu["plain"], cpu["ours"]),
    }


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
    files: Sequence[Path], folder: Path, *, workers: int, number: int, rounds: int
) -> dict[str, Any]:
    """Extraction with one worker and with several, in turns."""
    few = max(1, number // 4)
    # By workers and size, one a round.
    seconds: dict[tuple[int, int], list[float]] = defaultdict(list)
    cpu_seconds: dict[tuple[int, int], list[float]] = defaultdict(list)
    controls = []
    links = {size: folder / f"links-{size}" for size in (few, number)}
    linked = {size: repeat(files, links[size], size) for size in links}
    for turn in range(rounds):
        for count in (1, workers) if turn % 2 else (workers, 1):
            for size in links:
                store = folder / "store"
                started, cpu_started = time.perf_counter(), cpu_time()
                build_store(linked[size], store, SETTINGS, workers=count, progress=False)
                seconds[count, size].append(time.perf_counter() - started)
                cpu_seconds[count, size].append(cpu_time() - cpu_started)
                shutil.rmtree(store)
        controls.append(control(workers, CONTROL_SECONDS))

    def rates(taken: dict[tuple[int, int], list[float]], count: int) -> list[float]:
        pairs = zip(taken[count, number], taken[count, few], strict=True)
        return [(number - few) / max(1e-9, long - short) for long, short in pairs]

    one, many = rates(seconds, 1), rates(seconds, workers)
    starts = [t - few / rate for t, rate in zip(seconds[workers, few], many, strict=True)]
    return {
        "workers": workers,
        "clips": number,
        "clips_per_second_1": spread(one),
        f"clips_per_second_{workers}": spread(many),
        "efficiency": ratios(many, [rate * workers for rate in one]),
        "efficiency_cpu_time": ratios(rates(cpu_seconds, workers), rates(cpu_seconds, 1)),
        "efficiency_with_start": ratios(
            seconds[1, number], [workers * taken for taken in seconds[workers, number]]
        ),
        "start_seconds": spread(starts),
        "control_efficiency": spread([together / alone for alone, together in controls]),
    }


def disk(files: Sequence[Path]) -> dict[str, Any]:
    """Megabytes and files per second, read whole, cold and from the page cache."""
    files = list(dict.fromkeys(file.resolve() for file in files))
    result: dict[str, Any] = {}
    cold = hasattr(os, "posix_fadvise")
    for file in files if cold else ():
        with open(file, "rb") as stream:
            with contextlib.suppress(OSError):
                os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    for name in ("cold", "cached") if cold else ("cached",):
        started = time.perf_counter()
        size = sum(len(file.read_bytes()) for file in files)
        taken = time.perf_counter() - started
        result[name] = {
            "megabytes_per_second": round(size / taken / 1e6, 1),
            "files_per_second": round(len(files) / taken, 1),
        }
    return result


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = Parser(prog="python -m experiments.benchmarks.features", description=__doc__)
    count = within(int, at_least(1))
    add = parser.add_argument
    add("--data", type=Path, metavar="ROOT", help="recordings to use")
    add("--out", type=Path, metavar="JSON", help="write the results there too")
    add("--rounds", type=count, default=30, help="turns on one core")
    add("--batch", type=count, default=16, help="clips in a turn")
    add("--clips", type=within(int, at_least(2)), default=10_000, help="clips in a store")
    add("--repeats", type=count, default=7, help="stores of each kind")
    add("--workers", type=count, default=2, help="processes")
    args = parser.parse_args(arguments)
    console = Console()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench_features.") as scratch:
        folder = Path(scratch)
        root = args.data
        if root is None:
            root = folder / "data"
            root.mkdir()
            generate(root)
        collection = read_collection(root)
        files = [collection.root / clip.path for clip in collection.clips]
        result: dict[str, Any] = {
            "processor": processor(),
            "cores": os.cpu_count(),
            "load_before": round(load, 2),
            "versions": {"python": platform.python_version(), **versions()},
            "data": "generated noise" if args.data is None else args.data.name,
            "recordings": len(files),
            "largest_difference_db": round(max(compare(file) for file in files[:5]), 5),
        }
        console.print(f"{result['processor']}, {result['cores']} cores, load {load:.2f} before")
        result["disk"] = disk(files)
        result["one_core"] = one_core(files, args.rounds, args.batch)
        result["processes"] = processes(
            files, folder, workers=args.workers, number=args.clips, rounds=args.repeats
        )
    report(console, result)
    if args.out is not None:
        write_json(args.out, result)
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
    run_main(main)
