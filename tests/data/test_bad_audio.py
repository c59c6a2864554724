"""Odd and broken recordings: validation and extraction take the same ones, and refuse the rest."""

import os
import shutil
import struct

import numpy as np
import pytest
import soundfile

from asdproto.data.collection import read_collection
from asdproto.data.extract import build_store
from asdproto.data.problems import CollectionError, errors_in
from asdproto.data.validate import validate
from asdproto.features import FeatureSettings

SETTINGS = FeatureSettings(n_mels=8, n_fft=512, hop_length=256)
NAME = "fan/train/section_00_source_train_normal_0009_v_9"


def noise(samples=2000, channels=1, seed=9):
    return np.random.default_rng(seed).uniform(-0.3, 0.3, (samples, channels))


def with_value(value, index=77):
    samples = noise()
    samples[index] = value
    return samples


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Two training and two test clips, all right."""
    root = tmp_path_factory.mktemp("template") / "dev_data"
    for number, name in enumerate(
        [
            "train/section_00_source_train_normal_0000_v_1",
            "train/section_00_target_train_normal_0000_v_2",
            "test/section_00_source_test_normal_0000_v_1",
            "test/section_00_target_test_anomaly_0000_v_2",
        ]
    ):
        path = root / f"fan/{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(seed=number), 16000)
    return root


def sound(samples=None, rate=16000, suffix=".wav", **how):
    """Writes a recording by soundfile."""

    def write(root):
        soundfile.write(
            root / (NAME + suffix), noise() if samples is None else samples, rate, **how
        )

    return write


def changed(change, suffix=".wav", **how):
    """Writes a recording, and changes its bytes."""

    def write(root):
        path = root / (NAME + suffix)
        sound(suffix=suffix, **{"format": "WAV", **how})(root)
        path.write_bytes(change(path.read_bytes()))

    return write


def field(position, layout, value):
    """A change of one field of a wav header."""
    return changed(
        lambda b: (
            b[:position] + struct.pack(layout, value) + b[position + struct.calcsize(layout) :]
        )
    )


def flip_middle(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]


def endless(content):
    """A header of flac that says 64 billion samples."""
    return content[:21] + bytes([content[21] | 15]) + b"\xff\xff\xff\xfe" + content[26:]


flac = {"suffix": ".flac", "format": "FLAC"}
TAKEN = {
    "8 bit": sound(subtype="PCM_U8"),
    "24 bit": sound(subtype="PCM_24", format="WAVEX"),
    "u-law": sound(subtype="ULAW"),
    "ADPCM": sound(subtype="MS_ADPCM"),
    "RF64": sound(format="RF64"),
    "big-endian": sound(format="WAV", endian="BIG"),
    "flac content in a wav": sound(format="FLAC"),
    "upper case": sound(suffix=".WAV", format="WAV"),
    "a single click": sound(with_value(0.5, 1001) * 0.01),
    "other chunks": changed(lambda b: b[:36] + b"LIST\3\0\0\0abc\0" + b[36:] + b"tail"),
    "a size that says streamed": field(40, "<I", 0xFFFFFFFF),
    "a name of any letters": lambda root: sound(suffix="_風, =1+1 😀 <b>.wav")(root),
    "a hidden file": lambda root: (root / "fan/train/._section_00.wav").write_bytes(b"x"),
}
NOTICED = {
    "8000 Hz": (sound(noise(1000), 8000), "8000 Hz in 1 recording"),
    "2 channels": (sound(noise(channels=2)), "2 channels in 1"),
    "8 channels, float": (sound(noise(channels=8), subtype="FLOAT"), "8 channels in 1"),
    "a dead channel": (sound(noise(channels=2) * [0, 1]), "channel 0 silent, channel 1 taken"),
    "beyond full scale": (sound(30000 * noise(), subtype="FLOAT"), "times full scale"),
    "clipped": (sound(np.clip(9 * noise(), -1, 1)), "% of the samples clipped"),
    "nearly silent": (sound(1e-5 * noise(), subtype="PCM_24"), "nearly silent"),
    "silence": (sound(np.zeros(2000)), "one value throughout"),
    "a constant voltage in flac": (sound(np.full(2000, 0.2), **flac), "one value throughout"),
    "another length": (sound(noise(5000)), "fan clips of"),
    "ogg": (sound(suffix=".ogg"), "a .ogg file, which is not read"),
}
REFUSED = {
    "2 GHz": (sound(rate=2**31 - 1), "4000 to 384000 Hz"),
    "mp3 content in a wav": (sound(format="MP3"), "MP3 audio"),
    "aiff content in a flac": (sound(suffix=".flac", format="AIFF"), "AIFF audio"),
    "no samples": (sound(np.zeros(0)), "no samples"),
    "too short once resampled": (sound(noise(1500), 48000), "500 samples at"),
    "much too long": (sound(noise(2000 * 60)), "much longer than the other"),
    "nan": (sound(with_value(np.nan), subtype="FLOAT"), "not finite"),
    "far beyond": (sound(with_value(1e300, 1999), subtype="DOUBLE"), "not finite"),
    "zero bytes": (changed(lambda b: b""), "0 bytes that do not decode"),
    "cut in its header": (changed(lambda b: b[:30]), "do not decode"),
    "cut before its samples": (changed(lambda b: b[:44]), "0 bytes of audio"),
    "cut by a byte": (changed(lambda b: b[:-1]), "truncated"),
    "big-endian cut": (changed(lambda b: b[:-9], endian="BIG"), "truncated"),
    "RF64 cut": (changed(lambda b: b[:-9], format="RF64"), "truncated"),
    "text": (changed(lambda b: b"not audio at all\n" * 99), "do not decode"),
    "a huge format chunk": (field(16, "<I", 0xFFFFFFF0), "do not decode"),
    "no channels": (field(22, "<H", 0), "do not decode"),
    "endless chunks": (changed(lambda b: b[:36] + b"junk\0\0\0\0" * 9999), "do not decode"),
    "flac cut": (changed(lambda b: b[:2500], **flac), "decoding ends early"),
    "flac damaged": (changed(flip_middle, **flac), "decoding ends early"),
    "flac too long": (changed(endless, **flac), "Cut it into clips"),
    "a pipe": (lambda root: os.mkfifo(root / f"{NAME}.wav"), "a folder, pipe, socket or device"),
    "a device": (lambda root: os.symlink("/dev/zero", root / f"{NAME}.wav"), "or device"),
    "a name on two lines": (sound(suffix="_a\nb.wav"), "such a name"),
    "a name not in UTF-8": (
        lambda root: os.rename(
            root / "fan/train/section_00_source_train_normal_0000_v_1.wav",
            os.fsencode(root / f"{NAME}\udcff.wav"),
        ),
        "such a name",
    ),
}
SAID = {name: words for name, (_, words) in {**NOTICED, **REFUSED}.items()}
WRITE = {**TAKEN, **{name: write for name, (write, _) in {**NOTICED, **REFUSED}.items()}}


@pytest.mark.parametrize("name", WRITE)
def test_validation_and_extraction_agree(template, tmp_path, name):
    root = shutil.copytree(template, tmp_path / "dev_data")
    WRITE[name](root)
    collection = read_collection(root)
    problems = validate(collection, settings=SETTINGS)
    errors = errors_in(problems)
    assert len(errors) == (name in REFUSED), list(map(str, problems))
    assert bool(problems) == (name not in TAKEN), list(map(str, problems))
    assert any(SAID.get(name, "") in str(problem) for problem in problems or [""])
    for problem in problems:
        assert len(str(problem).splitlines()) == 1
        assert str(problem).isprintable()
    if name not in REFUSED:
        store = build_store(collection, tmp_path / "store", SETTINGS, progress=False)
        assert np.isfinite(store.features).all()
        assert store.manifest["skipped"] == []
        return
    with pytest.raises(CollectionError) as caught:
        build_store(collection, tmp_path / "store", SETTINGS, progress=False)
    assert [error.file for error in caught.value.errors] == [errors[0].file]
    assert not (tmp_path / "store/manifest.json").exists()
