"""Extraction: right, the same with any number of workers, and over again after every stop."""

import dataclasses
import os
import threading
import time
import warnings

import numpy as np
import pytest
import soundfile

from asdproto.data import extract
from asdproto.data.collection import read_collection
from asdproto.data.extract import build_store
from asdproto.data.parallel import parallel
from asdproto.data.problems import CollectionError
from asdproto.errors import DataError
from asdproto.features import FeatureSettings, file_features
from asdproto.files import locked

SETTINGS = FeatureSettings(n_mels=16, n_fft=512, hop_length=256)
FILES = ["features.npy", "manifest.json", "table.csv"]


def collection(root):
    """Clips of growing length, one of them with two channels, the last at another rate."""
    rng = np.random.default_rng(0)
    folder = root / "fan/train"
    folder.mkdir(parents=True)
    for i in range(6):
        rate = 8000 if i == 5 else 16000
        audio = rng.normal(0, 0.1, size=(int(0.2 * rate * (1 + i / 6)), 1 + (i == 1)))
        soundfile.write(
            folder / f"section_00_source_train_normal_{i:04}_v_{i % 3}.wav", audio, rate
        )
    return read_collection(root)


def build(clips, path, settings=SETTINGS, **more):
    return build_store(clips, path, settings, **{"progress": False, **more})


def test_the_store_holds_what_single_files_give_with_any_number_of_workers(tmp_path, capfd):
    """And says which of them were converted."""
    made = collection(tmp_path / "data")
    settings = dataclasses.replace(SETTINGS, waveform=True)
    store = build(made, tmp_path / "store", settings, dtype="float32", workers=2)
    assert store.clips == made.clips
    assert store.settings == dataclasses.asdict(settings)
    for index, clip in enumerate(made.clips):
        alone, info = file_features(made.root / clip.path, settings)
        np.testing.assert_array_equal(store.read(index), alone)
        assert store.rows[index].audio == info
        assert not store.features[index, len(alone) :].any()
    assert store.features.shape[1:] == (store.frames.max(), settings.columns)
    assert store.identity() == made.identity()
    build(made, tmp_path / "other", settings, dtype="float32", workers=1, progress=True)
    said = " ".join(capfd.readouterr().err.split())
    assert f"1 clip: 2 channels, channel 0 taken ({made.clips[1].path})" in said
    assert "1 clip: 8000 Hz, resampled to 16000 Hz" in said
    assert sorted(os.listdir(store.root)) == FILES
    for name in FILES:
        assert (store.root / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_finished_store_is_opened_and_one_of_something_else_is_refused(tmp_path, monkeypatch):
    made = collection(tmp_path / "data")
    build(made, tmp_path / "store")
    monkeypatch.setattr(extract, "parallel", lambda *_: pytest.fail("extracted again"))
    assert build(made, tmp_path / "store").clips == made.clips

    def refused(words, made=made, settings=SETTINGS, **more):
        with pytest.raises(DataError, match=words) as caught:
            build(made, tmp_path / "store", settings, **more)
        assert "Choose another folder, or delete this one" in caught.value.remedy

    refused("n_mels is 16 in the store, 20 asked", settings=FeatureSettings(n_mels=20))
    refused("float16 features, float32 asked", dtype="float32")
    refused("in another order", dataclasses.replace(made, clips=made.clips[::-1]))
    soundfile.write(made.root / made.clips[1].path, np.full(3000, 0.2), 16000)
    refused(r"1 file changed \(.*_0001_v_1.wav\)", read_collection(made.root))


def test_a_section_that_loses_its_training_clips_is_left_out(tmp_path):
    """Until the recording at fault is another one."""
    root, store = collection(tmp_path / "data").root, tmp_path / "store"
    bad = root / "fan" / "train" / "section_01_source_train_normal_0000_v_0.wav"
    bad.write_bytes(b"x")
    test = root / "fan" / "test" / bad.name.replace("train", "test")
    test.parent.mkdir()
    soundfile.write(test, np.random.default_rng(5).normal(0, 0.1, 4000), 16000)
    stray = bad.with_name("x.wav")
    stray.touch()
    with pytest.raises(CollectionError, match=r"x\.wav"):  # before any work
        build(read_collection(root), store)
    assert not store.exists()
    stray.unlink()
    made = read_collection(root)
    with pytest.raises(CollectionError, match=bad.name):
        build(made, store)
    with pytest.warns(UserWarning, match="2 faults left out"):
        built = build(made, store, on_error="skip")
    assert {clip.section for clip in built.clips} == {"00"}
    assert [entry["file"] for entry in built.manifest["skipped"]][1] == "fan section 01"
    assert build(made, store, on_error="skip").clips == built.clips
    with pytest.raises(DataError, match="2 faults left out"):
        build(made, store)
    bad.write_bytes(b"xy")
    with pytest.raises(DataError, match="recordings left out that changed since"):
        build(read_collection(root), store, on_error="skip")


def test_a_recording_that_changes_while_it_is_read_is_not_taken(tmp_path):
    made = collection(tmp_path / "data")
    path = made.root / made.clips[3].path
    soundfile.write(path, np.full(9000, 0.3), 16000)
    with pytest.raises(CollectionError, match="a file that changed meanwhile"):
        build(made, tmp_path / "store")


def test_stopped_while_the_store_is_written(tmp_path, monkeypatch):
    made = collection(tmp_path / "data")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("asdproto.data.store.write_manifest", stop)
        with pytest.raises(KeyboardInterrupt):
            build(made, tmp_path / "store")
    assert (tmp_path / "store/table.csv").exists()
    build(made, tmp_path / "store").verify()
    assert sorted(os.listdir(tmp_path / "store")) == FILES


def test_folders_and_arguments_that_are_refused(tmp_path):
    made = collection(tmp_path / "data")
    store, full = tmp_path / "store", tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").touch()
    for path, wrong, words in (
        (full, {}, r"other things in it \(thesis.txt\)"),
        (store, {"workers": 0}, "workers must be at least 1, found 0"),
        (store, {"dtype": "int8"}, "'int8'"),
        (store, {"settings": FeatureSettings(n_mels=600)}, "mel filters are narrower"),
    ):
        with pytest.raises(ValueError, match=words):
            build(made, path, **wrong)
    assert not store.exists()
    store.mkdir()
    with locked(store, extract.LOCK), pytest.raises(DataError, match="another process"):
        build(made, store)


def test_threads_leave_the_filters_of_warnings_as_they_were():
    """Two that change them in turn, as libraries do that are loaded at the same time."""
    before, step = list(warnings.filters), threading.Barrier(2, timeout=10)

    def change(first):
        if not first:
            step.wait()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step.wait()
            step.wait()
        if first:
            step.wait()

    list(parallel(change, [True, False], workers=2))
    assert warnings.filters == before


def test_an_interrupt_begins_nothing_new():
    begun = []

    def work(item):
        begun.append(item)
        if item == 3:
            raise KeyboardInterrupt
        time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        list(parallel(work, range(100), workers=2))
    assert len(begun) < 50
