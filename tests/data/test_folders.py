"""Recordings under any names: what their folders are taken to say."""

import os

import pytest

from asdproto.data.collection import read_collection


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")


def understood(root):
    """Path -> machine type, section, split and state, and nothing that is an error."""
    collection = read_collection(root)
    assert collection.layout == "folders"
    assert not collection.errors
    return {
        clip.path: f"{clip.machine_type} {clip.section} {clip.split} {clip.state}"
        for clip in collection.clips
    }


PUMP, FAN = "pump 00 train normal", "fan 00 train normal"
BROKEN_PUMP, BROKEN_FAN = "pump 00 test anomaly", "fan 00 test anomaly"
# Root -> what the paths below it are.
LAYOUTS = {
    # Words that are parts of words of DCASE.
    "pump": {PUMP: ["a.wav", "latest.wav", "default_001.wav"]},
    "a/pump": {PUMP: ["1.wav", "2.wav"], BROKEN_PUMP: ["broken_3.wav", "normal_then_broken.wav"]},
    "pump/healthy": {PUMP: ["1.wav"]},
    # MIMII, with and without id.
    "0_dB_fan": {
        FAN: ["fan/id_00/normal/1.wav"],
        "fan 02 train normal": ["fan/id_02/normal/1.wav"],
        "fan 02 test anomaly": ["fan/id_02/abnormal/2.wav"],
    },
    "mimii": {FAN: ["fan/normal/1.wav"], BROKEN_FAN: ["fan/abnormal/2.wav"]},
    # Two spellings of one name.
    "spellings": {"L\u00fcfter 00 train normal": ["Lu\u0308fter/a.wav", "L\u00fcfter/b.wav"]},
    "days": {FAN: ["fan/monday/1.wav", "fan/2024-05-01/1.wav", "fan/day 3/1.wav"]},
    "states": {PUMP: ["pump_normal/1.wav"], BROKEN_PUMP: ["pump_abnormal/2.wav"]},
    "splits": {
        FAN: ["train/fan/1.wav"],
        "fan 00 test normal": ["test/fan/good/2.wav"],
        "fan 00 test ": ["test/fan/3.wav"],
        PUMP: ["train/pump/4.wav"],
    },
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_obvious_folders_are_understood(tmp_path, name):
    expected = {path: what for what, paths in LAYOUTS[name].items() for path in paths}
    touch(tmp_path / name, *expected)
    assert understood(tmp_path / name) == expected


def test_some_normal_recordings_are_kept_to_be_scored(tmp_path):
    normal = [f"fan/normal/{number}.wav" for number in range(20)]
    touch(tmp_path, *normal, *(f"fan/abnormal/{number}.wav" for number in range(3)))
    before = understood(tmp_path)
    kept = {path for path in normal if before[path] == "fan 00 test normal"}
    assert len(kept) == 3  # as many as anomalies, at most a fifth
    assert kept != set(sorted(normal)[:3])  # not those of the first day
    # Those that are kept stay so, but for as many as there are new recordings.
    touch(tmp_path, "fan/normal/20.wav")
    after = understood(tmp_path)
    assert len(kept & {path for path in normal if after[path] == "fan 00 test normal"}) >= 2
    # Nothing is moved where there are normal recordings to score.
    touch(tmp_path, "fan/test/normal/1.wav")
    assert sum(text == "fan 00 test normal" for text in understood(tmp_path).values()) == 1


def test_what_nobody_recorded_is_passed_over(tmp_path):
    touch(
        tmp_path,
        *("pump/a.wav", "pump/._a.wav", "__MACOSX/pump/b.wav", "pump/Thumbs.db", ".git/x.wav"),
    )
    (tmp_path / "empty/folders").mkdir(parents=True)
    os.symlink(tmp_path, tmp_path / "pump/circle")
    collection = read_collection(tmp_path)
    assert [clip.path for clip in collection.clips] == ["pump/a.wav"]
    assert [problem.file for problem in collection.problems] == ["pump section 00"]  # untested


def test_what_was_understood_is_said_in_two_lines(tmp_path):
    machines = [f"m{chr(97 + number)}x" for number in range(9)]
    touch(tmp_path, *(f"{machine}/normal/{n}.wav" for machine in machines for n in range(2)))
    touch(tmp_path, "max/abnormal/1.wav", "max/id_04/test/1.wav")
    lines = read_collection(tmp_path).summary().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("20 recordings, told apart by their folders")
    assert lines[1].startswith(
        "max: 2 to train on, 1 anomalous and 1 unlabeled to score, in 2 sections; mbx: 2 to train"
    )
    assert lines[1].endswith("and 3 more")
