"""A collection without fault, then one fault at a time: each is found, and nothing else."""

import json
import os
import shutil

import numpy as np
import pytest
import soundfile

from asdproto.data.collection import read_collection
from asdproto.data.identity import changes
from asdproto.data.problems import Notice, errors_in, listed, overlong
from asdproto.data.table import write_table
from asdproto.data.validate import validate
from asdproto.errors import DataError
from tests.experiments.collection import write_collection

TRAIN = "fan/train/section_00_source_train_normal_0000_load_1.wav"
TEST = "fan/test/section_00_target_test_anomaly_0000_load_3.wav"
NEW = "fan/train/section_00_source_train_normal_0009_load_1.wav"


def add(root, name, seed=7):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng([seed, 1]).normal(0, 0.1, 32000)
    soundfile.write(root / name, noise, 16000)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """One section, all cells of the table, no fault."""
    root = tmp_path_factory.mktemp("template") / "dev_data"
    write_collection(root)
    shutil.rmtree(root / "pump")
    return root


@pytest.fixture
def root(template, tmp_path):
    return shutil.copytree(template, tmp_path / "dev_data")


def problems_of(root):
    return validate(read_collection(root))


def test_a_collection_without_fault_has_no_problem(root):
    assert problems_of(root) == problems_of(root / "fan") == []
    [problem] = problems_of(root / "fan/train")
    assert problem.found == "8 training clips and no test clip"
    assert "uav" not in read_collection(root).summary()
    assert read_collection(root).layout == "names"
    # What comes since 2025 and no system reads is left out.
    add(root, "fan/supplemental/section_00_noise_0001_.wav")
    assert problems_of(root) == []
    assert len(read_collection(root).clips) == 12


def added(name):
    return lambda root: add(root, name)


def remove(pattern):
    return lambda root: [file.unlink() for file in (root / "fan").glob(pattern)]


ANOMALY = "fan/train/section_00_source_train_anomaly_0002_load_1.wav"
FLAC = TRAIN.replace(".wav", ".flac")
NO_TARGET = "no target training clip, though 2 test clips are of that domain"
# What breaks the collection; severity and place of the problem, what is found.
FAULTS = {
    "name": (added("fan/train/n.wav"), "error: fan/train/n.wav", "no known form"),
    "anomaly": (added(ANOMALY), f"error: {ANOMALY}", "an anomaly in the training split"),
    "machine": (added("section_00_0.wav"), "error: section_00_0.wav", "no folder that says the m"),
    "no target": (remove("train/*target*"), "notice: fan section 00", NO_TARGET),
    "no training": (remove("train/*"), "error: fan section 00", "4 test clips and no training"),
    "one kind": (remove("test/*anom*"), "notice: fan section 00", "2 normal test clips and no"),
    # A name without labels is of a test clip.
    "no label": (added("fan/section_00_0.wav"), "notice: fan section 00", "1 of 5 test clips not"),
    "same name": (added(FLAC), f"error: {TRAIN}", f"the same name as {FLAC}"),
    "mp3": (lambda r: (r / "x.mp3").touch(), "notice: x.mp3", "a .mp3 file, which is not read"),
    # What only the recordings say.
    "copy": (lambda r: shutil.copy(r / TRAIN, r / NEW), f"notice: {NEW}", f"a copy of {TRAIN}"),
    "copy across": (
        lambda r: shutil.copy(r / TEST, r / TRAIN),
        f"error: {TRAIN}",
        f"a copy of {TEST}, across the splits",
    ),
    "link": (lambda r: os.symlink("no", r / NEW), f"error: {NEW}", "no readable file (No such fi"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found_and_nothing_else(root, name):
    damage, place, found = FAULTS[name]
    damage(root)
    [line] = listed(problems_of(root))
    assert line.startswith(place)
    assert found in line.partition("; expected ")[0]


def test_problems_are_listed_errors_first_and_shared_ones_once():
    problems = [
        Notice("a.zip", "an archive", "its files", "Unpack it."),
        *(DataError(f"{n:04}\n.wav", "such a name", "text", "Rename it.") for n in range(2000)),
        DataError("0.wav", "nothing", "a file", "Add it."),
    ]
    assert listed(problems) == [
        "error: 0.wav: found nothing; expected a file. Add it.",
        r"error: 0000\n.wav, 0001\n.wav, 0002\n.wav, ... (2000 in all): found such a name; "
        "expected text. Rename it.",
        "notice: a.zip: found an archive; expected its files. Unpack it.",
    ]


@pytest.mark.parametrize("table", [False, True])
def test_what_changed_in_a_collection_is_said_in_one_line(root, table):
    if table:
        write_table(root / "clips.csv", read_collection(root).clips)
    before = json.loads(json.dumps(read_collection(root).identity()))
    assert changes(before, read_collection(root).identity()) == ""
    (root / TEST).unlink()
    add(root, TRAIN, 8)
    add(root, NEW)
    text = changes(before, read_collection(root).identity())
    if table:  # says what is there
        assert text == f"2 files changed ({TEST}, {TRAIN})"
        csv = root / "clips.csv"
        csv.write_text(csv.read_text().replace(",load_2", ",load_5"))
        assert "3 described otherwise (" in changes(before, read_collection(root).identity())
    else:
        assert text == f"1 file added ({NEW}), 1 changed ({TRAIN}), 1 removed ({TEST})"


def test_overlong_clips_against_every_choice():
    rng = np.random.default_rng(1)
    for _ in range(200):
        frames = {str(i): int(n) for i, n in enumerate(rng.geometric(0.01, rng.integers(1, 40)))}
        left_out = {problem.file for problem in overlong(frames)}
        order = sorted(frames.values())
        # The longest prefix of the sorted lengths whose padded size is at most 4 times its own.
        fits = [n for n in range(len(order) + 1) if not n or order[n - 1] * n <= 4 * sum(order[:n])]
        taken = sorted(frames[name] for name in frames if name not in left_out)
        assert taken == order[: max(fits)]


def test_paths_that_are_no_collection(tmp_path):
    with pytest.raises(DataError, match="found nothing; expected a folder of recordings"):
        read_collection(tmp_path / "absent")
    with pytest.raises(DataError, match=r"found no \.wav or \.flac file"):
        read_collection(tmp_path)
    add(tmp_path, "a.wav")
    with pytest.raises(DataError, match="one recording; expected a folder"):
        read_collection(tmp_path / "a.wav")
    (tmp_path / "manifest.json").touch()
    with pytest.raises(DataError, match="found a feature store"):
        read_collection(tmp_path)


def test_folders_that_may_not_be_read(open_folder, nobody):
    for name in ("pump/a.wav", "pump/more/b.wav"):
        add(open_folder, name)
    os.chmod(open_folder / "pump/more", 0)
    with nobody():
        problems = problems_of(open_folder)
    os.chmod(open_folder / "pump/more", 0o755)
    assert [(p.file, p.found) for p in errors_in(problems)] == [
        ("pump/more", "a folder that cannot be read (Permission denied)")
    ]


def test_real_collections(real_data):
    problems = problems_of(real_data / "dcase2023_clips")
    # The excerpt has no target training clips.
    assert {problem.found.split(",")[0] for problem in problems} >= {"no target training clip"}
    assert not errors_in(problems)
    fan = read_collection(real_data / "mimii_fan_id_00")
    assert not fan.errors
    assert fan.summary().splitlines()[1] == (
        "mimii_fan_id_00: 17 to train on, 21 anomalous and 4 normal to score"
    )
