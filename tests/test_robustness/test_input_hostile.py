"""Hostile content: what is loaded never runs, and random damage ends in one line."""

import io
import os
import pickle
import struct
import tomllib
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asdproto.audio import decode
from asdproto.data.dcase import Clip
from asdproto.data.store import open_store
from asdproto.data.table import read_table, write_table
from asdproto.errors import DataError
from asdproto.features import FeatureSettings, file_features
from asdproto.files import read_arrays
from tests.stores import write_store

ROOT = Path(__file__).parents[2]


def test_lint_refuses_what_runs_data():
    """By pickle, marshal, eval, exec, yaml, archives, shells, and libraries that pickle."""
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    rules = {"S102", "S202", "S301", "S302", "S307", "S506", "S602", "TID251"}
    assert rules <= set(lint["select"])
    banned = lint["flake8-tidy-imports"]["banned-api"]
    assert {"pickle", "marshal", "shelve", "joblib", "dill"} <= set(banned)
    assert set(lint["per-file-ignores"]) == {"tests/*", "experiments/*"}
    assert not rules & set(lint["per-file-ignores"]["experiments/*"])


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickles_in_stores_and_arrays_are_refused_and_not_run(tmp_path):
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    np.savez(tmp_path / "arrays.npz", scores=trap)
    (tmp_path / "plain.npz").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    for name in ("arrays.npz", "plain.npz"):
        with pytest.raises(DataError, match=rf"{name}: found damage \(.*pickle"):
            read_arrays(tmp_path / name, remedy="Make it again.")
    clip = Clip("a.wav", "fan", "00", "", "train", "normal", "")
    store = write_store(tmp_path / "store", np.zeros((1, 4, 8)), [clip], settings={})
    np.save(store.root / "features.npy", trap, allow_pickle=True)
    with pytest.raises(DataError, match=r"features\.npy: found "):
        open_store(store.root)
    assert not (tmp_path / "sprung").exists()


# --- random damage; every input follows from its number

SETTINGS = FeatureSettings(n_mels=4, n_fft=256, hop_length=256)
NUMBERS = (0, 1, 3, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
TABLE = (
    "file,machine_type,section,domain,split,state,attributes\n"
    "a/1.wav,fan,00,source,train,normal,v_1\n"
    '"b, 2.wav","pump",01,target,test,anomaly,"v_""2"""\n'
)
PIECES = (
    b'"', b'""', b",", b"\n", b"\r", b"\0", b"..", b"/", b"\\", b"=", b"'", b"@", b"\t", b";",
    b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\x1b[2J", b"file", b"train",
    b".wav", b"a" * 200_000, b"9" * 5000, "²".encode(), "٣".encode(), "\u202e".encode(),
)  # fmt: skip


def sounds():
    """Recordings without fault, of many kinds."""
    rng, found = np.random.default_rng(0), []
    subtypes = ("PCM_U8", "PCM_16", "PCM_24", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM", "GSM610")
    kinds = [("WAV", subtype) for subtype in subtypes]
    kinds += [(kind, None) for kind in ("WAVEX", "RF64", "FLAC", "AIFF", "OGG", "MP3")]
    for kind, subtype in kinds:
        stream = io.BytesIO()
        samples = rng.uniform(-0.5, 0.5, (600, 1 if subtype else 2))
        soundfile.write(stream, samples, 16000, format=kind, subtype=subtype)
        found.append(stream.getvalue())
    return found


def damaged(content, rng, others):
    """A copy with one to four random changes, more of them near the beginning."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at = int(len(data) * rng.random() ** rng.integers(1, 9)) if data else 0
        other = others[rng.integers(len(others))]
        start, end, new = (
            (at, at + 1, rng.bytes(1)),
            (at, at + 4, struct.pack("<I", int(rng.choice(NUMBERS)))),
            (at, len(data), b""),
            (at, at + int(rng.integers(1, 50)), b""),
            (at, at, rng.bytes(int(rng.integers(1, 50)))),
            (at, at, other),
            (at, len(data), other[int(rng.integers(len(other))) :]),
        )[rng.integers(7)]
        data[start:end] = new
    return bytes(data)


def check_sound(path):
    """A recording holds as many finite samples as it says."""
    samples, info = decode(path)
    assert samples.dtype == np.float32
    assert samples.shape == (info.samples,)
    assert np.isfinite(samples).all()
    assert np.abs(samples).max() < 2**32
    if info.samples_at(16000) < 10**7:
        assert np.isfinite(file_features(path, SETTINGS)[0]).all()


def check_table(path):
    """The clips of a table that are taken are those of a table without fault."""
    clips, errors = read_table(path)
    write_table(path.with_name("again.csv"), clips)
    assert not clips or read_table(path.with_name("again.csv")) == (clips, [])
    if errors:
        raise errors[0]


def test_random_damage_is_refused_in_one_line(tmp_path):
    """And ends no process; FUZZ_INPUTS tries more."""
    count, taken, whole = int(os.environ.get("FUZZ_INPUTS", "300")), 0, sounds()
    for number in range(count):
        print(number, flush=True)  # the last one where a library ends the process
        rng = np.random.default_rng([4, number])
        if number % 3 == 0:
            path, check = tmp_path / "x.csv", check_table
            path.write_bytes(damaged(TABLE.encode(), rng, PIECES))
        else:
            path, check = tmp_path / ("x.wav" if number % 3 == 1 else "x.flac"), check_sound
            path.write_bytes(damaged(whole[rng.integers(len(whole))], rng, whole))
        said = ""
        try:
            check(path)
        except DataError as error:
            said = str(error)
        taken += not said
        assert said.isprintable(), said  # so it is one line
        assert len(said) < 1000
    assert count / 30 < taken < count - count / 30
