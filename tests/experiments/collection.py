"""A collection in the layout and under the names of DCASE 2022, made in a moment."""

import collections
from pathlib import Path

import numpy as np
import soundfile

RATE, SECONDS = 16_000, 2.0
# Of each machine: two source attributes of three clips each, two target attributes of one.
TRAIN = [("source", "load_1"), ("source", "load_2")] * 3 + [
    ("target", "load_3"),
    ("target", "load_4"),
]
TEST = [
    (domain, state, f"load_{load}")
    for domain, load in (("source", 1), ("target", 3))
    for state in ("normal", "anomaly")
]


def _write_clip(path: Path, pitch: float, seed: int) -> None:
    """A hum of a few harmonics in noise."""
    rng = np.random.default_rng(seed)
    seconds = np.arange(int(SECONDS * RATE)) / RATE
    hum = sum(np.sin(2 * np.pi * pitch * n * seconds + rng.uniform(0, 6)) / n for n in (1, 2, 3))
    audio = 0.1 * hum + 0.02 * rng.standard_normal(len(seconds))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, RATE, subtype="PCM_16")


def write_collection(root: Path) -> None:
    """24 clips: two machines, eight training and four test clips each."""
    seed = 0
    for machine, base in (("fan", 200.0), ("pump", 700.0)):
        counts: collections.Counter = collections.Counter()
        clips = [("train", domain, "normal", attributes) for domain, attributes in TRAIN]
        clips += [("test", *clip) for clip in TEST]
        for split, domain, state, attributes in clips:
            kind = f"{domain}_{split}_{state}"
            name = f"section_00_{kind}_{counts[kind]:04d}_{attributes}.wav"
            counts[kind] += 1
            pitch = base * (1 + 0.2 * int(attributes[-1])) * (1.1 if state == "anomaly" else 1)
            _write_clip(root / machine / split / name, pitch, seed)
            seed += 1
