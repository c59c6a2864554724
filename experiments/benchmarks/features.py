"""Speed of feature extraction: against a plain librosa loop, and over workers.

    python -m experiments.benchmarks.features --out experiments/results/features_cpu.json
    python -m experiments.benchmarks.features --data DCASE_ROOT

Two measurements on the same recordings (10 s of 16-bit noise at 16 kHz, or those of ``--data``):

- **One core.** The loop that everybody writes (``librosa.load``, ``feature.melspectrogram``,
  ``power_to_db`` for each file) and ours (``features.file_features``, stored as float16) take
  turns on the same handful of files, in one process with one thread. The values of both are
  compared before anything is timed.
- **Stores.** ``build_store`` with one worker and with several, in turns. Where other work shares
  the cores, look at the CPU time that the several take, too.
"""

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asdproto import features
from asdproto.arguments import Parser, within
from asdproto.config import at_least
from asdproto.data.collection import Collection, read_collection
from asdproto.data.extract import build_store
from asdproto.data.store import versions
from experiments.benchmarks.timing import interleave, ratios, run_parts, spread
from experiments.common import processor, run_main

SETTINGS = features.FeatureSettings()
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


def plain(file: Path) -> np.ndarray:
    """The loop's body that everybody writes."""
    import librosa

    audio, rate = librosa.load(file, sr=SETTINGS.sample_rate)
    mel = librosa.feature.melspectrogram(
        y=audio,
        sr=rate,
        n_fft=SETTINGS.n_fft,
        hop_length=SETTINGS.hop_length,
        n_mels=SETTINGS.n_mels,
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
        "speedup_to_plain": ratios(wall["plain"], wall["ours"]),
        "speedup_to_plain_cpu_time": ratios(cpu["plain"], cpu["ours"]),
    }


def stores(
    files: Sequence[Path], folder: Path, workers: int, number: int, rounds: int
) -> dict[str, Any]:
    """Extraction of a whole store with one worker and with several, in turns."""
    linked = repeat(files, folder / "links", number)

    def extraction(count: int) -> Callable[[], None]:
        def extract() -> None:
            build_store(linked, folder / "store", SETTINGS, workers=count, progress=False)
            shutil.rmtree(folder / "store")

        return extract

    wall, cpu = interleave({"one": extraction(1), "several": extraction(workers)}, rounds)
    return {
        "workers": workers,
        "clips": number,
        "clips_per_second_one": spread([number / seconds for seconds in wall["one"]]),
        "clips_per_second_several": spread([number / seconds for seconds in wall["several"]]),
        "speedup": ratios(wall["one"], wall["several"]),
        "cpu_time_to_one": ratios(cpu["several"], cpu["one"]),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = Parser(prog="python -m experiments.benchmarks.features", description=__doc__)
    count = within(int, at_least(1))
    add = parser.add_argument
    add("--data", type=Path, metavar="ROOT", help="recordings to use")
    add("--out", type=Path, metavar="JSON", help="write the results there too")
    add("--rounds", type=count, default=30, help="turns on one core")
    add("--batch", type=count, default=16, help="clips in a turn")
    add("--clips", type=within(int, at_least(2)), default=2_000, help="clips of a store")
    add("--repeats", type=count, default=7, help="stores of each kind")
    add("--workers", type=count, default=2, help="threads")
    args = parser.parse_args(arguments)
    load = round(os.getloadavg()[0], 2)
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
            "load_before": load,
            "versions": versions(),
            "data": "generated noise" if args.data is None else args.data.name,
            "recordings": len(files),
            "largest_difference_db": round(max(compare(file) for file in files[:5]), 5),
        }
        print(f"{result['processor']}, {result['cores']} cores, load {load} before")
        print(f"largest difference: {result['largest_difference_db']} dB")
        parts = {
            "one_core": lambda: one_core(files, args.rounds, args.batch),
            "stores": lambda: stores(files, folder, args.workers, args.clips, args.repeats),
        }
        run_parts(list(parts), lambda name: parts[name](), result, args.out)
    return result


if __name__ == "__main__":
    run_main(main)
