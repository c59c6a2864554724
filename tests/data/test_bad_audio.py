"""Odd and broken recordings: validation and extraction take the same ones, and refuse the rest.

``tests/test_audio.py`` has more of how single files are damaged.
"""

import os

import numpy as np
import pytest
import soundfile

from asdproto.data.collection import read_collection
from asdproto.data.extract import build_store
from asdproto.data.problems import errors_in
from asdproto.data.validate import validate
from asdproto.features import FeatureSettings

RNG = np.random.default_rng(9)
SETTINGS = FeatureSettings(n_mels=8, n_fft=512, hop_length=256)
ADDED = "train/section_00_source_train_normal_0009_v_9"
WHOLE = (
    "train/section_00_source_train_normal_0000_v_1",
    "train/section_00_target_train_normal_0000_v_2",
    "test/section_00_source_test_normal_0000_v_1",
    "test/section_00_target_test_anomaly_0000_v_2",
)


def noise(samples=2000, channels=1):
    return RNG.uniform(-0.3, 0.3, (samples, channels))


def with_value(value, index=77):
    samples = noise()
    samples[index] = value
    return samples


def sound(samples=None, rate=16000, suffix=".wav", **how):
    """Writes a recording."""

    def write(path):
        samples_or_noise = noise() if samples is None else samples
        soundfile.write(os.fsencode(f"{path}{suffix}"), samples_or_noise, rate, **how)

    return write


def changed(change, suffix=".wav", **how):
    """Writes a recording, and changes its bytes."""

    def write(path):
        sound(suffix=suffix, **how)(path)
        file = path.with_suffix(suffix)
        file.write_bytes(change(file.read_bytes()))

    return write


def endless(content):
    """A header of flac that says 64 billion samples."""
    return content[:21] + bytes([content[21] | 15]) + b"\xff\xff\xff\xfe" + content[26:]


TAKEN = {
    "8 bit": sound(subtype="PCM_U8"),
    "ADPCM": sound(subtype="MS_ADPCM"),
    "flac content in a wav": sound(format="FLAC"),
    "upper case": sound(suffix=".WAV", format="WAV"),
    "a single click": sound(with_value(0.5, 1001) * 0.01),
    "a name of any letters": sound(suffix="_風, =1+1 😀 <b>.wav"),
}
NOTICED = {
    "8000 Hz": (sound(noise(1000), 8000), "8000 Hz in 1 recording"),
    "8 channels, float": (sound(noise(channels=8), subtype="FLOAT"), "8 channels in 1"),
    "a dead channel": (sound(noise(channels=2) * [0, 1]), "channel 0 silent, channel 1 taken"),
    "clipped": (sound(np.clip(9 * noise(), -1, 1)), "% of the samples clipped"),
    "a constant voltage": (sound(np.full(2000, 0.2), suffix=".flac"), "one value throughout"),
    "another length": (sound(noise(5000)), "clips of"),
}
REFUSED = {
    "2 GHz": (sound(rate=2**31 - 1), "4000 to 384000 Hz"),
    "mp3 content in a wav": (sound(format="MP3"), "MP3 audio"),
    "too short once resampled": (sound(noise(1500), 48000), "500 samples at"),
    "much too long": (sound(noise(2000 * 60)), "much longer than the other"),
    "nan": (sound(with_value(np.nan), subtype="FLOAT"), "not finite"),
    "far beyond": (sound(with_value(1e300, 1999), subtype="DOUBLE"), "not finite"),
    "zero bytes": (changed(lambda b: b""), "0 bytes that do not decode"),
    "cut by a byte": (changed(lambda b: b[:-1]), "truncated"),
    "big-endian cut": (changed(lambda b: b[:-9], format="WAV", endian="BIG"), "truncated"),
    "endless chunks": (changed(lambda b: b[:36] + b"junk\0\0\0\0" * 9999), "do not decode"),
    "flac too long": (changed(endless, ".flac"), "Cut it into clips"),
    "a pipe": (lambda path: os.mkfifo(f"{path}.wav"), "a folder, pipe, socket or device"),
    "a name on two lines": (sound(suffix="_a\nb.wav"), "such a name"),
    "a name not in UTF-8": (sound(suffix="\udcff.wav"), "such a name"),
}
SAID = {name: words for name, (_, words) in {**NOTICED, **REFUSED}.items()}
WRITE = {**TAKEN, **{name: write for name, (write, _) in {**NOTICED, **REFUSED}.items()}}


def test_validation_and_extraction_agree(tmp_path):
    """A machine type for each kind of recording, beside four that are all right."""
    root = tmp_path / "dev_data"
    for machine, write in WRITE.items():
        for folder in ("train", "test"):
            (root / machine / folder).mkdir(parents=True)
        for path in WHOLE:
            sound()(root / machine / path)
        write(root / machine / ADDED)
    collection = read_collection(root)
    problems = validate(collection, settings=SETTINGS)
    assert all(str(problem).isprintable() for problem in problems)
    refused, others = {error.file for error in errors_in(problems)}, problems
    for machine in WRITE:
        of_it = [one for one in problems if one.file.startswith(f"{machine}/{ADDED}")]
        said = list(map(str, of_it))
        assert len(errors_in(of_it)) == (machine in REFUSED), said
        assert bool(of_it) == (machine not in TAKEN), said
        assert any(SAID.get(machine, "") in text for text in said or [""]), said
        others = [one for one in others if one not in of_it]
    [other] = others
    assert other.found == "16000 Hz in 4 recordings of 8000 Hz, others at 8000 Hz"
    with pytest.warns(UserWarning, match=f"{len(REFUSED)} faults left out"):
        store = build_store(
            collection, tmp_path / "store", SETTINGS, on_error="skip", progress=False
        )
    assert {entry["file"] for entry in store.manifest["skipped"]} == refused
    assert len(store) == len(WRITE) * (len(WHOLE) + 1) - len(REFUSED)
    assert np.isfinite(store.features).all()
