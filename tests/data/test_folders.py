"""Recordings under any names: what their folders are taken to say."""

import os
from pathlib import Path

import pytest

from asdproto.data.collection import read_collection
from asdproto.data.folders import place_of


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


# Root and paths below it -> what each is.
LAYOUTS = {
    "recordings of one machine": ("pump", {"a.wav": "pump 00 train normal"}),
    "words of DCASE in other words": (
        *(
            "pump",
            {"latest.wav": "pump 00 train normal", "default_001.wav": "pump 00 train normal"},
        ),
    ),
    "a fault in a name": (
        "pump",
        {
            "1.wav": "pump 00 train normal",
            "2.wav": "pump 00 train normal",
            "broken_3.wav": "pump 00 test anomaly",
            "normal_then_broken.wav": "pump 00 test anomaly",
        },
    ),
    "a folder for each machine": (
        "plant",
        {"fan/recordings/1.wav": "fan 00 train normal", "pump/x/1.flac": "pump 00 train normal"},
    ),
    "states": (
        "pump",
        {"normal/1.wav": "pump 00 train normal", "abnormal/2.wav": "pump 00 test anomaly"},
    ),
    "the root is a state's folder": ("pump/healthy", {"1.wav": "pump 00 train normal"}),
    "MIMII": (
        "0_dB_fan",
        {
            "fan/id_00/normal/1.wav": "fan 00 train normal",
            "fan/id_02/normal/1.wav": "fan 02 train normal",
            "fan/id_02/abnormal/2.wav": "fan 02 test anomaly",
        },
    ),
    "MIMII without id": (
        "mimii",
        {"fan/normal/1.wav": "fan 00 train normal", "fan/abnormal/2.wav": "fan 00 test anomaly"},
    ),
    "days": (
        "plant",
        {f"fan/{day}/1.wav": "fan 00 train normal" for day in ("monday", "2024-05-01", "day 3")},
    ),
    "days of one machine": (
        "fan",
        {f"{day}/1.wav": "fan 00 train normal" for day in ("2024-05-01", "of_tuesday")},
    ),
    "states beside each other": (
        "plant",
        {
            "pump_normal/1.wav": "pump 00 train normal",
            "pump_abnormal/2.wav": "pump 00 test anomaly",
        },
    ),
    "splits above machines": (
        "plant",
        {
            "train/fan/1.wav": "fan 00 train normal",
            "test/fan/good/2.wav": "fan 00 test normal",
            "test/fan/3.wav": "fan 00 test ",
            "train/pump/4.wav": "pump 00 train normal",
        },
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_obvious_folders_are_understood(tmp_path, name):
    root, expected = LAYOUTS[name]
    touch(tmp_path / root, *expected)
    assert understood(tmp_path / root) == expected


def test_two_spellings_of_a_name_are_one_machine(tmp_path):
    touch(tmp_path, "Lu\u0308fter/a.wav", "L\u00fcfter/b.wav")
    assert {text.split()[0] for text in understood(tmp_path).values()} == {"L\u00fcfter"}


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


KNOWN = [("valve", "00"), ("pump", "00"), ("pump", "02"), ("fan", "00")]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/x/fan/dev_data/valve/a.wav", ("valve", "00")),
        ("/x/valve/of_monday/pump/section_02_0001.wav", ("pump", "02")),
        ("/x/pump/id_02/normal/a.wav", ("pump", "02")),
        ("/x/fan_abnormal/a.wav", ("fan", "00")),
        ("/x/fan/section_07_0001.wav", ("fan", "07")),
        ("/x/pump/a.wav", ("pump", "")),
        ("/x/other/a.wav", ("", "")),
    ],
)
def test_the_nearest_known_folder_names_the_machine(path, expected):
    assert place_of(Path(path), KNOWN) == expected


def test_a_detector_of_one_machine_needs_no_folder():
    assert place_of(Path("/x/a.wav"), [("valve", "01")]) == ("valve", "01")
