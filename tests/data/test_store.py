"""The store: what is written is read, what is damaged or of others is named."""

import dataclasses
import os
import shutil

import numpy as np
import pytest

from asdproto.audio_info import AudioInfo
from asdproto.data.dcase import Clip
from asdproto.data.store import Row, open_store, save_store
from asdproto.errors import DataError
from asdproto.files import checksum
from tests.stores import write_store
from tests.test_robustness import damage


def clips(number):
    return [
        Clip(f"fan/train/{i}.wav", "fan", "00", "source", "train", "normal", f"a_{i}")
        for i in range(number)
    ]


def arrays(lengths=(4, 9, 6)):
    rng = np.random.default_rng(0)
    return [rng.normal(-30, 9, (n, 8)).astype(np.float32) for n in lengths]


def test_what_recordings_were_is_kept(tmp_path):
    audio = [
        AudioInfo(16000, 4800, level=-31.25, peak=0.5),
        AudioInfo(8000, 2400, channels=2, channel=1, level=-20.5, peak=1.0, clipped=0.25),
        AudioInfo(16000, 4800, level=-200.0, is_constant=True),
    ]
    known = [dataclasses.replace(clips(1)[0], path="=1+1.wav", attributes="-1"), *clips(3)[1:]]
    rows = [
        Row(clip, len(array), checksum(array), (100, 7), info)
        for clip, array, info in zip(known, arrays(), audio, strict=True)
    ]
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


def pipe(path):
    path.unlink()
    os.mkfifo(path)  # reading it would wait for a writer


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (".", shutil.rmtree, "found nothing; expected a feature store"),
        ("manifest.json", damage.missing, "s: found an extraction that has not ended"),
        ("manifest.json", damage.flip, "manifest.json: found "),
        ("table.csv", damage.missing, "table.csv: found no such file"),
        ("table.csv", damage.flip, "table.csv: found other content"),
        ("features.npy", pipe, "features.npy: found no such file"),
        ("features.npy", damage.flip, r"features.npy: found damage in 1 of 3 clips \(fan/train/1"),
        ("features.npy", damage.cut, "features.npy: .* expected whole features"),
    ],
)
def test_damage_is_named_in_one_line_with_its_file(tmp_path, name, change, words):
    write_store(tmp_path / "s", arrays(), clips(3), settings={})
    change(tmp_path / "s" / name)
    with pytest.raises(DataError, match=words) as caught:
        open_store(tmp_path / "s")
    assert len(str(caught.value).splitlines()) == 1
