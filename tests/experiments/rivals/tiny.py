"""Rivals small enough for tests, and clips for them."""

import dataclasses

import numpy as np

from asdproto.data.dcase import Clip
from asdproto.features import FeatureSettings
from asdproto.systems import preset
from experiments import table1
from tests.stores import write_store

FEATURES = FeatureSettings(n_mels=8, n_fft=16, hop_length=8)
WAVEFORMS = dataclasses.replace(FEATURES, waveform=True)
FRAMES = 20
KINDS = {
    name: kind for name, kind in table1.KINDS.items() if kind.startswith("experiments.rivals.")
}


def clips():
    """Two machine types of two sections; source and target differ in their attributes."""
    made = []
    for machine in ("fan", "valve"):
        for section in ("00", "01"):
            train = [("source", "train", "normal", f"spd_{i % 2}_n_{i % 3}") for i in range(10)]
            train += [("target", "train", "normal", f"spd_{2 + i % 2}") for i in range(4)]
            test = [
                (domain, "test", state, "")
                for domain in ("source", "target")
                for state in ("normal", "anomaly")
                for _ in range(2)
            ]
            for number, (domain, split, state, attributes) in enumerate(train + test):
                path = f"{machine}/{split}/{section}_{number:02}_{state}.wav"
                made.append(Clip(path, machine, section, domain, split, state, attributes))
    return made


def make_store(folder, settings=FEATURES):
    """Noise with a level of its own in every section; anomalies have one band raised."""
    rng = np.random.default_rng(0)
    made = clips()
    features = rng.standard_normal((len(made), FRAMES, settings.columns))
    for row, clip in zip(features, made, strict=True):
        level = 2 * (clip.machine_type == "fan") + (clip.section == "00")
        row[:, : FEATURES.n_mels] *= 3
        row[:, level : level + 2] += 12 - 4 * (clip.domain == "target")
        row[:, 6] += 15 * (clip.state == "anomaly")
        row[:, FEATURES.n_mels :] *= 0.1
    return write_store(folder, features, made, settings=settings, dtype="float32")


def system(kind, **changes):
    """A kind of system at a few epochs."""
    made = preset(KINDS[kind], "quick")
    stage = dataclasses.replace(made.stage, epochs=2, batch_size=8)
    if kind == "dgmix":
        changes = {"finetune": dataclasses.replace(stage, epochs=1), "projector": (8, 8), **changes}
    size = {"width": 8} if hasattr(made, "width") else {}
    crop, features = (FRAMES, WAVEFORMS) if kind == "stgram" else (16, FEATURES)
    return dataclasses.replace(
        made, features=features, stage=stage, crop=crop, hop=4, **size, **changes
    )
