"""Extraction: right, the same with any number of workers, and safe against every way to stop it."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import soundfile

from asdproto import features
from asdproto.data import extract
from asdproto.data.dcase import Clip, scan
from asdproto.data.extract import ExtractionError, build_store
from asdproto.data.store import open_store
from asdproto.errors import DataError, StoreError
from asdproto.features import FeatureSettings, file_features
from asdproto.files import locked

SETTINGS = FeatureSettings(n_mels=16, n_fft=512, hop_length=256)


def collection(root, number=6, seconds=0.2, seed=0):
    """Clips of growing length, one of them with two channels, one at another rate."""
    rng = np.random.default_rng(seed)
    folder = root / "fan/train"
    folder.mkdir(parents=True)
    for i in range(number):
        rate = 8000 if i == 2 else 16000
        audio = rng.normal(0, 0.1, size=(int(rate * seconds * (1 + i / number)), 1 + (i == 1)))
        soundfile.write(
            folder / f"section_00_source_train_normal_{i:04}_v_{i % 3}.wav", audio, rate
        )
    return scan(root)


def build(clips, tmp_path, name="store", **more):
    return build_store(
        clips, tmp_path / "data", tmp_path / name, SETTINGS, **{"progress": False, **more}
    )


def count_calls(monkeypatch):
    calls = []
    real = features.file_features

    def counted(path, settings):
        calls.append(os.path.basename(path))
        return real(path, settings)

    monkeypatch.setattr(features, "file_features", counted)
    return calls


def test_the_store_holds_samples_where_asked(tmp_path):
    clips = collection(tmp_path / "data")
    settings = dataclasses.replace(SETTINGS, waveform=True)
    store = build_store(clips, tmp_path / "data", tmp_path / "store", settings, progress=False)
    assert store.features.shape[2] == settings.columns == SETTINGS.n_mels + SETTINGS.hop_length
    alone, _ = file_features(tmp_path / "data" / clips[0].path, settings)
    np.testing.assert_array_equal(store.read(0), alone.astype(np.float16).astype(np.float32))


def test_the_store_holds_what_single_files_give(tmp_path):
    clips = collection(tmp_path / "data")
    store = build(clips, tmp_path, dtype="float32")
    assert store.clips == clips
    assert store.settings == SETTINGS.as_dict()
    for index, clip in enumerate(clips):
        alone, notes = file_features(tmp_path / "data" / clip.path, SETTINGS)
        np.testing.assert_array_equal(store.read(index), alone)
        assert store.notes[index] == "; ".join(notes)
        assert not store.features[index, len(alone) :].any()
    assert store.features.shape[1] == store.frames.max() > store.frames.min()
    assert [bool(note) for note in store.notes] == [False, True, True, False, False, False]
    assert sorted(file.name for file in store.root.iterdir()) == [
        "features.npy",
        "manifest.json",
        "table.csv",
    ]
    store.verify()


def test_two_processes_give_the_same_bytes_as_none(tmp_path):
    clips = collection(tmp_path / "data", 40, 0.1)
    build(clips, tmp_path, "one", workers=1)
    build(clips, tmp_path, "two", workers=2)
    for name in ("features.npy", "table.csv", "manifest.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_finished_store_is_opened_not_made_again(tmp_path, monkeypatch):
    clips = collection(tmp_path / "data")
    build(clips, tmp_path)
    calls = count_calls(monkeypatch)
    assert build(clips, tmp_path).clips == clips
    assert calls == []


def test_a_finished_store_of_something_else_is_refused(tmp_path):
    clips = collection(tmp_path / "data")
    build(clips, tmp_path)
    before = {file: file.read_bytes() for file in (tmp_path / "store").iterdir()}

    def refused(words, clips=clips, settings=SETTINGS, **more):
        with pytest.raises(StoreError, match=words) as caught:
            build_store(
                clips, tmp_path / "data", tmp_path / "store", settings, progress=False, **more
            )
        assert caught.value.file == str(tmp_path / "store")
        assert "Choose another folder, or delete this one" in caught.value.remedy

    refused(
        "n_mels is 16 in the store, 20 asked", settings=dataclasses.replace(SETTINGS, n_mels=20)
    )
    refused("float16 features, float32 asked", dtype="float32")
    refused(r"1 no longer in the collection \(.*_0005_v_2.wav\)", clips=clips[:-1])
    refused(
        r"1 not in the store \(fan/new.wav\)",
        clips=[*clips, dataclasses.replace(clips[0], path="fan/new.wav")],
    )
    refused("in another order", clips=clips[::-1])
    other = dataclasses.replace(clips[3], attributes="v_9")
    refused("_0003_v_0.wav with another attributes", clips=[*clips[:3], other, *clips[4:]])
    changed = tmp_path / "data" / clips[4].path
    os.utime(changed, ns=(1, 1))
    refused("features of 1 recording changed since: .*_0004_")
    changed.unlink()
    refused("1 recording changed since")
    assert {file: file.read_bytes() for file in (tmp_path / "store").iterdir()} == before


def test_every_bad_recording_is_named_and_the_good_ones_are_kept(tmp_path, monkeypatch):
    clips = collection(tmp_path / "data", 8)
    paths = [tmp_path / "data" / clip.path for clip in clips]
    whole = paths[0].read_bytes()
    paths[0].write_bytes(whole[:-100])  # truncated
    soundfile.write(paths[3], np.zeros(100), 16000)  # shorter than a window
    audio = np.zeros(9000, np.float32)
    audio[5] = np.nan
    soundfile.write(paths[5], audio, 16000, subtype="FLOAT")  # seen only when read in full
    paths[6].unlink()
    with pytest.raises(ExtractionError) as caught:
        build(clips, tmp_path)
    assert [error.file for error in caught.value.errors] == [clips[i].path for i in (0, 3, 5, 6)]
    message = str(caught.value)
    for words in ("truncated", "100 samples", "not finite", "No such file", "4 clips are kept"):
        assert words in message
    with pytest.raises(StoreError, match="has not ended"):
        open_store(tmp_path / "store")

    # Two are repaired, two taken out; only the repaired ones are computed.
    paths[0].write_bytes(whole)
    soundfile.write(paths[5], np.full(20000, 0.1), 16000)  # the longest now
    left = [clip for i, clip in enumerate(clips) if i not in (3, 6)]
    calls = count_calls(monkeypatch)
    store = build(left, tmp_path)
    assert sorted(calls) == [clips[0].name, clips[5].name]
    assert store.clips == left
    fresh = build(left, tmp_path, "fresh")
    np.testing.assert_array_equal(store.features, fresh.features)
    assert store.checksums == fresh.checksums
    store.verify()


def test_nothing_but_bad_recordings(tmp_path):
    (tmp_path / "data").mkdir()
    clips = [Clip("a.wav", "fan", "00", "", "train", "normal", "")]
    with pytest.raises(ExtractionError, match="No such file"):
        build(clips, tmp_path)


def interrupted(clips, tmp_path, monkeypatch, after, how=KeyboardInterrupt):
    """Extract in this process and stop after some clips."""
    real = features.file_features
    done = []

    def stopping(path, settings):
        if len(done) == after:
            raise how
        done.append(path)
        return real(path, settings)

    with monkeypatch.context() as patch:
        patch.setattr(features, "file_features", stopping)
        with pytest.raises(how):
            build(clips, tmp_path)


def test_an_interrupted_extraction_goes_on(tmp_path, monkeypatch):
    clips = collection(tmp_path / "data")
    interrupted(clips, tmp_path, monkeypatch, 4)
    with pytest.raises(StoreError, match="has not ended"):
        open_store(tmp_path / "store")
    calls = count_calls(monkeypatch)
    store = build(clips, tmp_path)
    assert calls == [clip.name for clip in clips[4:]]
    np.testing.assert_array_equal(store.features, build(clips, tmp_path, "fresh").features)


def test_an_unfinished_extraction_of_other_settings_is_refused(tmp_path, monkeypatch):
    clips = collection(tmp_path / "data")
    interrupted(clips, tmp_path, monkeypatch, 4)
    other = dataclasses.replace(SETTINGS, scale="mel")
    with pytest.raises(StoreError, match="unfinished extraction with other settings: scale is"):
        build_store(clips, tmp_path / "data", tmp_path / "store", other, progress=False)
    with pytest.raises(StoreError, match="dtype is 'float16' in the store, 'float32' asked"):
        build(clips, tmp_path, dtype="float32")
    calls = count_calls(monkeypatch)
    build(clips, tmp_path)
    assert len(calls) == 2


def test_clips_that_changed_meanwhile_are_done_again(tmp_path, monkeypatch):
    clips = collection(tmp_path / "data")
    interrupted(clips, tmp_path, monkeypatch, 5)
    path = tmp_path / "data" / clips[1].path
    soundfile.write(path, np.full(2000, 0.2), 16000)
    calls = count_calls(monkeypatch)
    store = build(clips, tmp_path)
    assert calls == [clips[i].name for i in (1, 5)]
    np.testing.assert_array_equal(store.features, build(clips, tmp_path, "fresh").features)


def test_a_file_that_changes_while_it_is_read_is_not_taken(tmp_path, monkeypatch):
    clips = collection(tmp_path / "data")
    real = features.file_features

    def changing(path, settings):
        found = real(path, settings)
        if path.name == clips[3].name:
            soundfile.write(path, np.full(9000, 0.3), 16000)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(features, "file_features", changing)
        with pytest.raises(ExtractionError, match="a file that changed meanwhile") as caught:
            build(clips, tmp_path)
    assert [error.file for error in caught.value.errors] == [clips[3].path]
    store = build(clips, tmp_path)
    np.testing.assert_array_equal(store.features, build(clips, tmp_path, "fresh").features)


def flip(content):
    return content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:20],
        lambda content: content[:-5],
        flip,
        lambda content: b"{}\n",
        lambda content: b"[1]\n",
        lambda content: content.replace(b'"clips": [[', b'"clips": [7, ['),
        lambda content: content.replace(b'"clips": [[', b'"clips": [[[], '),
        lambda content: content.replace(b'.wav", ', b'.wav", -'),
        lambda content: content.replace(b'.wav", ', b'.wav", 99999999999999999999'),
        lambda content: bytes(range(256)) * 8,
    ],
)
def test_a_damaged_shard_is_done_again_and_said(tmp_path, monkeypatch, caplog, damage):
    clips = collection(tmp_path / "data")
    interrupted(clips, tmp_path, monkeypatch, 4)
    (shard,) = (tmp_path / "store").glob("shard-*")
    shard.write_bytes(damage(shard.read_bytes()))
    calls = count_calls(monkeypatch)
    store = build(clips, tmp_path)
    assert len(calls) == 6
    assert f"{shard} is damaged" in caplog.text
    assert "extracted again" in caplog.text
    np.testing.assert_array_equal(store.features, build(clips, tmp_path, "fresh").features)


@pytest.mark.parametrize("last", ["features.npy", "table.csv", "manifest.json", "shard-", ".lock"])
def test_stopped_in_the_last_step(tmp_path, monkeypatch, last):
    clips = collection(tmp_path / "data")
    replace, unlink = os.replace, pathlib.Path.unlink

    def stop_at_replace(source, target):
        replace(source, target)
        if os.path.basename(target) == last:
            raise KeyboardInterrupt

    def stop_at_unlink(path, **more):
        if last in ("shard-", ".lock") and path.name.startswith(last):
            raise KeyboardInterrupt
        unlink(path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop_at_replace)
        patch.setattr(pathlib.Path, "unlink", stop_at_unlink)
        with pytest.raises(KeyboardInterrupt):
            build(clips, tmp_path)
    if last in ("features.npy", "table.csv"):
        with pytest.raises(StoreError, match="has not ended"):
            open_store(tmp_path / "store")
    calls = count_calls(monkeypatch)
    store = build(clips, tmp_path)
    assert calls == []
    store.verify()
    assert sorted(file.name for file in store.root.iterdir()) == [
        "features.npy",
        "manifest.json",
        "table.csv",
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_keeps_what_is_done_and_says_what_is_needed(tmp_path, small_disk, workers):
    clips = collection(tmp_path / "data", 60, 0.2)  # 25 KB each, in shards of 8 and more
    settings = dataclasses.replace(SETTINGS, waveform=True)

    def extract_to(store):
        build_store(clips, tmp_path / "data", store, settings, workers=workers, progress=False)

    with pytest.raises(OSError, match=r"No space left on device; .*") as caught:
        extract_to(small_disk / "store")
    words = str(caught.value)
    assert caught.value.filename.startswith(str(small_disk / "store"))
    assert "No space left on device" in words
    assert not [name for name in os.listdir(small_disk / "store") if name.startswith(".")]
    kept = listed(small_disk / "store")
    assert "all 60 clips" not in words or kept
    # More room: only the rest is done.
    shutil.copytree(small_disk / "store", tmp_path / "store")
    extract_to(tmp_path / "store")
    open_store(tmp_path / "store").verify()


def test_one_process_at_a_time(tmp_path):
    clips = collection(tmp_path / "data")
    (tmp_path / "store").mkdir()
    with (
        locked(tmp_path / "store", extract.LOCK),
        pytest.raises(DataError, match="another process"),
    ):
        build(clips, tmp_path)
    build(clips, tmp_path)


def test_folders_and_arguments_that_are_refused(tmp_path):
    clips = collection(tmp_path / "data")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").touch()
    with pytest.raises(StoreError, match=r"other things in it \(thesis.txt\)"):
        build(clips, tmp_path, "full")
    with pytest.raises(StoreError, match="found a file"):
        build(clips, tmp_path, "full/thesis.txt")
    with pytest.raises(StoreError, match="no clips"):
        build([], tmp_path)
    with pytest.raises(StoreError, match="the clip twice"):
        build([*clips, clips[0]], tmp_path)
    with pytest.raises(ValueError, match="workers must be at least 1, found 0"):
        build(clips, tmp_path, workers=0)
    with pytest.raises(StoreError, match="'int8'"):
        build(clips, tmp_path, dtype="int8")
    with pytest.raises(ValueError, match="mel filters are narrower"):
        build_store(clips, tmp_path / "data", tmp_path / "store", FeatureSettings(n_mels=600))
    assert not (tmp_path / "store").exists()


def test_progress_says_what_was_converted(tmp_path, capfd):
    clips = collection(tmp_path / "data")
    build(clips, tmp_path, progress=True)
    said = " ".join(capfd.readouterr().err.split())
    assert (
        "1 clip: 2 channels, channel 0 taken (fan/train/section_00_source_train_normal_0001" in said
    )
    assert "1 clip: 8000 Hz, resampled to 16000 Hz" in said
    assert "6/6" in said


SCRIPT = textwrap.dedent(
    """
    import sys, time
    from asdproto import features
    from asdproto.data.dcase import scan
    from asdproto.data.extract import build_store
    root, store, workers, pause = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    real = features.file_features
    def slow(path, settings):
        time.sleep(pause)
        return real(path, settings)
    # Workers import this file as well, so they are slow too.
    features.file_features = slow
    if __name__ == "__main__":
        settings = features.FeatureSettings(n_mels=16, n_fft=512, hop_length=256)
        build_store(scan(root), root, store, settings, workers=workers, progress=False)
    """
)


def listed(store):
    """Clips of the shards that are there."""
    return [
        entry[0]
        for shard in store.glob("shard-*")
        for entry in json.loads(shard.read_bytes().partition(b"\n")[0])["clips"]
    ]


def start_slow(tmp_path, workers, lines, pause=0.02):
    """Start an extraction in another process; return it when some clips are done."""
    (tmp_path / "script.py").write_text(SCRIPT)
    store = tmp_path / "store"
    process = subprocess.Popen(
        [
            sys.executable,
            tmp_path / "script.py",
            tmp_path / "data",
            store,
            str(workers),
            str(pause),
        ],
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    limit = time.monotonic() + 60
    while len(listed(store)) < lines:
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < limit
        time.sleep(0.01)
    return process, store


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc")
@pytest.mark.parametrize(("workers", "lines", "at_most"), [(1, 3, 40), (2, 20, 99)])
def test_killed_and_run_again_only_the_rest_is_done(tmp_path, monkeypatch, workers, lines, at_most):
    clips = collection(tmp_path / "data", 100, 0.1)
    process, store = start_slow(tmp_path, workers, lines)
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as stream:
        children = [int(pid) for pid in stream.read().split()]
    assert len(children) >= (2 if workers == 2 else 0)
    process.kill()
    assert process.wait(30) == -signal.SIGKILL
    process.stderr.close()
    # Workers whose parent is gone end by themselves.
    limit = time.monotonic() + 10
    while any(alive(pid) for pid in children):
        assert time.monotonic() < limit
        time.sleep(0.02)
    done = listed(store)
    assert lines <= len(done) <= at_most
    calls = count_calls(monkeypatch)
    resumed = build(clips, tmp_path)
    assert sorted(calls) == sorted(clip.name for clip in clips if clip.path not in done)
    assert len(calls) == 100 - len(done)
    monkeypatch.undo()
    fresh = build(clips, tmp_path, "fresh")
    np.testing.assert_array_equal(resumed.features, fresh.features)
    resumed.verify()


def test_interrupt_from_the_keyboard_stops_all_and_keeps_what_is_done(tmp_path):
    clips = collection(tmp_path / "data", 100, 0.1)
    process, store = start_slow(tmp_path, 2, 16)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the workers too
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert b"KeyboardInterrupt" in errors
    assert errors.count(b"Traceback") == 1  # the workers end in silence
    assert 16 <= len(listed(store)) < 100
    build(clips, tmp_path).verify()


def test_a_worker_that_dies_is_said(tmp_path):
    clips = collection(tmp_path / "data", 40, 0.1)
    (tmp_path / "script.py").write_text(
        SCRIPT.replace(
            "time.sleep(pause)", "path.name.endswith('_0030_v_0.wav') and __import__('os')._exit(3)"
        )
    )
    result = subprocess.run(
        [sys.executable, tmp_path / "script.py", tmp_path / "data", tmp_path / "store", "2", "0"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    assert "a worker process that ended abruptly" in result.stderr
    assert "what is done is kept" in result.stderr
    assert build(clips, tmp_path).clips == clips


def test_real_recordings_of_three_lengths_and_eight_channels(tmp_path, real_data):
    clips = [
        dataclasses.replace(clip, path=f"dcase2023_clips/{clip.path}")
        for clip in scan(real_data / "dcase2023_clips")
    ]
    folder = real_data / "mimii_fan_id_00"
    clips += [
        Clip(file.relative_to(real_data).as_posix(), "fan", "00", "", "test", state, "")
        for state in ("normal", "abnormal")
        for file in sorted((folder / state).glob("*.flac"))
        + sorted((folder / "eight_channel").glob(f"{state}_*.wav"))
    ]
    assert len(clips) == 28 + 40 + 2
    store = build_store(clips, real_data, tmp_path / "store", progress=False)
    store.verify()
    assert store.features.shape == (70, 376, 128)
    assert set(store.frames.tolist()) == {313, 376}
    assert sum(note.startswith("8 channels") for note in store.notes) == 2
    assert np.isfinite(store.features).all()


def test_errors_of_a_recording_cross_process_borders(tmp_path):
    import pickle

    error = ExtractionError("x", [DataError("f", "a", "b", "c")], 3)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert again.errors[0].file == "f"
