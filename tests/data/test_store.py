"""The store: what is written is read, what is damaged or of others is named."""

import dataclasses
import os

import numpy as np
import pytest

from asdproto.audio_info import AudioInfo
from asdproto.data.dcase import Clip
from asdproto.data.store import Row, open_store, save_store
from asdproto.errors import DataError
from asdproto.features import FeatureSettings
from asdproto.files import checksum
from tests.stores import write_store


def clips(number):
    return [
        Clip(f"fan/train/{i}.wav", "fan", "00", "source", "train", "normal", f"a_{i}")
        for i in range(number)
    ]


def arrays(lengths=(4, 9, 6)):
    rng = np.random.default_rng(0)
    return [rng.normal(-30, 9, (n, 8)).astype(np.float32) for n in lengths]


def test_what_is_written_is_read(tmp_path):
    features = arrays()
    store = write_store(tmp_path / "s", features, clips(3), settings=FeatureSettings(n_mels=8))
    assert (store.features.shape, store.features.dtype) == ((3, 9, 8), "float16")
    for index, array in enumerate(features):
        np.testing.assert_array_equal(store.read(index), array.astype("float16").astype("float32"))
    with pytest.raises(DataError, match="n_mels is 8 in the store, 128 asked for") as caught:
        open_store(tmp_path / "s", expect=FeatureSettings())
    assert "scale" not in caught.value.found
    with pytest.raises(DataError, match="found nothing; expected a feature store"):
        open_store(tmp_path / "other")


def test_what_recordings_were_is_kept(tmp_path):
    audio = [
        AudioInfo(16000, 4800, level=-31.25, peak=0.5),
        AudioInfo(8000, 2400, channels=2, channel=1, level=-20.5, peak=1.0, clipped=0.25),
        AudioInfo(16000, 4800, level=-200.0, is_constant=True),
    ]
    rows = [
        Row(clip, len(array), checksum(array), (100 + i, 7), audio[i])
        for i, (clip, array) in enumerate(zip(clips(3), arrays(), strict=True))
    ]
    clip = dataclasses.replace(rows[0].clip, path="=1+1.wav", attributes="-1")
    rows[0] = dataclasses.replace(rows[0], clip=clip)
    save_store(tmp_path, rows, arrays(), settings={}, columns=8, dtype="float32")
    assert "'=1+1.wav,fan,00,source,train,normal,'-1," in (tmp_path / "table.csv").read_text()
    store = open_store(tmp_path)
    assert store.rows == rows
    assert store.audio_statistics() == {
        "fan": {
            "sample_rates": [8000, 16000],
            "channels": [1, 2],
            "level": [-31.2, -20.5],
            "clipped": [0.0, 0.25],
        }
    }
    assert [entry[:2] for entry in store.identity().values()] == [[100, 7], [101, 7], [102, 7]]


def damage_the_last_clip(content):
    return content[: -9 * 8 * 2] + b"\x55" + content[-9 * 8 * 2 + 1 :]


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("manifest.json", None, "an extraction that has not ended"),
        ("manifest.json", lambda content: content.replace(b"float16", b"float32"), "other content"),
        ("table.csv", None, "no such file"),
        ("table.csv", lambda content: content.replace(b"00", b"01", 1), "other content"),
        ("features.npy", os.mkfifo, "no such file"),
        ("features.npy", damage_the_last_clip, r"damage in 1 of 3 clips \(fan/train/2\.wav\)"),
        ("features.npy", lambda content: content[:200], "expected whole features"),
    ],
)
def test_damage_is_named_in_one_line_with_its_file(tmp_path, name, damage, words):
    write_store(tmp_path / "s", arrays(), clips(3), settings={})
    file = tmp_path / "s" / name
    content = file.read_bytes()
    if damage in (None, os.mkfifo):
        file.unlink()
    if damage is os.mkfifo:
        os.mkfifo(file)  # reading it would wait for a writer
    elif damage is not None:
        file.write_bytes(damage(content))
    with pytest.raises(DataError, match=words) as caught:
        open_store(tmp_path / "s")
    assert len(str(caught.value).splitlines()) == 1
    assert name in str(caught.value) or damage is None
