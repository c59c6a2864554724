"""File names and folders of every year of DCASE Task 2."""

import collections
import re

import numpy as np
import pytest

from asdproto.data.dcase import Clip, assign_classes, attribute_pairs, class_key, parse_name
from asdproto.errors import DataError

# field.md's counts, which are the paper's except for the toy machines.
CLASSES = {
    ("ToyCar", "source"): 16,
    ("ToyTrain", "source"): 16,
    ("bearing", "source"): 17,
    ("fan", "source"): 6,
    ("fan", "target"): 5,
    ("gearbox", "source"): 13,
    ("slider", "source"): 12,
    ("valve", "source"): 9,
    ("valve", "target"): 8,
}


def test_every_real_name_of_2022_parses_and_gives_the_published_class_counts(real_data):
    names = (real_data / "dcase2022/dev_test_filenames.txt").read_text().split()
    assert len(names) == 4200
    classes, cells = set(), collections.Counter()
    for name in names:
        clip = parse_name(name)
        start = f"{clip.machine_type}/test/section_{clip.section}_{clip.domain}_test_{clip.state}_"
        assert re.fullmatch(f"{start}[0-9]{{4}}_{re.escape(clip.attributes)}.wav", name)
        classes.add(class_key(clip))
        cells[clip.machine_type, clip.section, clip.domain, clip.state] += 1
    assert set(cells.values()) == {50}
    assert len(cells) == 7 * 3 * 2 * 2
    counts = collections.Counter((machine, domain) for machine, _, domain, _ in classes)
    assert {key: counts[key] for key in CLASSES} == CLASSES


LABELED = "section_00_source_train_normal_0001"
NAMES = {
    # machine type, section, domain, split, state, attributes
    f"fan/train/{LABELED}_m-n_W.wav": ("fan", "00", "source", "train", "normal", "m-n_W"),
    "v/test/section_02_target_test_anomaly_0049_v1pat_04.flac": (
        *("v", "02", "target", "test", "anomaly", "v1pat_04"),
    ),
    "fan/test/section_03_0000.wav": ("fan", "03", "", "test", "", ""),
    # 2020
    "pump/train/normal_id_00_00000001.wav": ("pump", "00", "", "train", "normal", ""),
    "pump/test/anomaly_id_06_00000101.wav": ("pump", "06", "", "test", "anomaly", ""),
    "pump/test/id_01_00000000.wav": ("pump", "01", "", "test", "", ""),
    # 2021
    "fan/source_test/section_00_0000.wav": ("fan", "00", "source", "test", "", ""),
    "fan/target_test/section_03_target_test_0007.wav": ("fan", "03", "target", "test", "", ""),
    # 2023, with the raw level
    f"dev_data/raw/A/train/{LABELED}_a_1.wav": ("A", "00", "source", "train", "normal", "a_1"),
    # 2024 and 2025
    f"P/train/{LABELED}_noAttribute.wav": ("P", "00", "source", "train", "normal", ""),
    f"P/train/{LABELED}_mode_2_.wav": ("P", "00", "source", "train", "normal", "mode_2"),
    "P/supplemental/section_00_machine_0001_.wav": ("P", "00", "", "supplemental", "", ""),
    # Only the name; and no machine type is called "..", as scores are filed under it.
    f"{LABELED}.WAV": ("", "00", "source", "train", "normal", ""),
    "../section_00_0005.wav": ("", "00", "", "", "", ""),
    # One spelling of letters that have two.
    f"Lu\u0308fter/train/{LABELED}.wav": ("L\u00fcfter", "00", "source", "train", "normal", ""),
}


@pytest.mark.parametrize("path", NAMES)
def test_grammar_of_every_year(path):
    assert parse_name(path) == Clip(path, *NAMES[path])


def test_other_names_are_refused_by_name():
    for name, words in (
        ("fan/train/section_00_source_train_normal_0000.mp3", "expected section_NN_"),
        ("fan/train/section_٠٠_source_train_normal_0009.wav", "expected section_NN_"),
        ("fan/test/section_00_source_train_normal_0000.wav", "a source clip in the folder 'test'"),
        ("fan/target_test/section_00_source_test_normal_0000.wav", "in the folder 'target_test'"),
    ):
        with pytest.raises(DataError, match=f"^{name}: found .*{words}"):
            parse_name(name)


def test_attribute_pairs():
    assert attribute_pairs("") == ()
    assert attribute_pairs("n-lv_L1_wt_-0.5") == (("n-lv", "L1"), ("wt", "-0.5"))
    assert attribute_pairs("strength_1_ambient") == (("strength", "1"), ("ambient", ""))


def test_classes_against_a_plain_loop():
    rng = np.random.default_rng(3)
    parts = (["a", "b"], ["00", "01"], ["source", "target"], ["", "x_1", "x_2"])
    keys = [tuple(map(rng.choice, parts)) for _ in range(200)]
    clips = [Clip("x.wav", *key[:3], "train", "normal", key[3]) for key in keys]
    labels, classes = assign_classes(clips)
    assert labels.dtype == np.int32
    assert classes == sorted(set(keys))
    assert [classes[label] for label in labels] == keys
