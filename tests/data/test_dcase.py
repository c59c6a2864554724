import collections
import csv
import subprocess
import sys

import numpy as np
import pytest

from asdproto.data.attributes import attribute_pairs, disagreement, read_attributes
from asdproto.data.dcase import Clip, assign_classes, class_key, parse_name, scan, survey
from asdproto.errors import DataError


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")


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
        parsed = parse_name(name)
        assert parsed.split == "test"
        # Taken together the fields say everything the path does.
        assert name == (
            f"{parsed.machine_type}/test/section_{parsed.section}_{parsed.domain}_{parsed.split}_"
            f"{parsed.state}_{parsed.index}_{parsed.attributes}.wav"
        )
        classes.add((parsed.machine_type, parsed.section, parsed.domain, parsed.attributes))
        cells[parsed.machine_type, parsed.section, parsed.domain, parsed.state] += 1
    assert set(cells.values()) == {50}
    assert len(cells) == 7 * 3 * 2 * 2
    counts = collections.Counter((machine, domain) for machine, _, domain, _ in classes)
    assert {key: counts[key] for key in CLASSES} == CLASSES


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        # machine type, section, domain, split, state, index, attributes
        (
            "fan/train/section_00_source_train_normal_0000_m-n_W.wav",
            ("fan", "00", "source", "train", "normal", "0000", "m-n_W"),
        ),
        (
            "valve/test/section_02_target_test_anomaly_0049_v1pat_04_v2pat_05.wav",
            ("valve", "02", "target", "test", "anomaly", "0049", "v1pat_04_v2pat_05"),
        ),
        (
            "x/test/section_01_source_test_normal_0003.flac",
            ("x", "01", "source", "test", "normal", "0003", ""),
        ),
        ("fan/test/section_03_0000.wav", ("fan", "03", "", "test", "", "0000", "")),
        # 2020
        (
            "pump/train/normal_id_00_00000001.wav",
            ("pump", "00", "", "train", "normal", "00000001", ""),
        ),
        (
            "pump/test/anomaly_id_06_00000101.wav",
            ("pump", "06", "", "test", "anomaly", "00000101", ""),
        ),
        ("pump/test/id_01_00000000.wav", ("pump", "01", "", "test", "", "00000000", "")),
        # 2021
        (
            "fan/source_test/section_00_source_test_normal_0000.wav",
            ("fan", "00", "source", "test", "normal", "0000", ""),
        ),
        (
            "fan/target_test/section_03_target_test_0007.wav",
            ("fan", "03", "target", "test", "", "0007", ""),
        ),
        ("fan/target_test/section_03_0007.wav", ("fan", "03", "target", "test", "", "0007", "")),
        (
            "gearbox/train/section_00_source_train_normal_0001_strength_1_ambient.wav",
            ("gearbox", "00", "source", "train", "normal", "0001", "strength_1_ambient"),
        ),
        # 2023 and later, with the raw level
        (
            "dev_data/raw/ToyCar/train/section_00_target_train_normal_0009_car_D2_spd_34V.wav",
            ("ToyCar", "00", "target", "train", "normal", "0009", "car_D2_spd_34V"),
        ),
        (
            "ToyCar/raw/train/section_00_target_train_normal_0009_car_D2.wav",
            ("ToyCar", "00", "target", "train", "normal", "0009", "car_D2"),
        ),
        ("eval_data/Vacuum/test/section_00_0005.wav", ("Vacuum", "00", "", "test", "", "0005", "")),
        # 2024
        (
            "3DPrinter/train/section_00_source_train_normal_0000_noAttribute.wav",
            ("3DPrinter", "00", "source", "train", "normal", "0000", ""),
        ),
        # 2025
        (
            "AutoTrash/train/section_00_source_train_normal_0000_.wav",
            ("AutoTrash", "00", "source", "train", "normal", "0000", ""),
        ),
        (
            "AutoTrash/train/section_00_source_train_normal_0000_mode_2_.wav",
            ("AutoTrash", "00", "source", "train", "normal", "0000", "mode_2"),
        ),
        (
            "AutoTrash/supplemental/section_00_machine_0001_.wav",
            ("AutoTrash", "00", "", "supplemental", "", "0001", ""),
        ),
        (
            "section_00_source_test_normal_0001.WAV",
            ("", "00", "source", "test", "normal", "0001", ""),
        ),
        ("C/Test/section_00_0005.wav", ("C", "00", "", "test", "", "0005", "")),
        # No machine type is called so: scores are filed under its name.
        ("../section_00_0005.wav", ("", "00", "", "", "", "0005", "")),
    ],
)
def test_grammar_of_every_year(path, expected):
    parsed = parse_name(path)
    assert (
        parsed.machine_type,
        parsed.section,
        parsed.domain,
        parsed.split,
        parsed.state,
        parsed.index,
        parsed.attributes,
    ) == expected


@pytest.mark.parametrize(
    "name",
    [
        "00000004.flac",
        "section_00_source_train_normal_0000x.wav",
        "section_0_source_train_normal_0000.wav",
        "section_00_sauce_train_normal_0000.wav",
        "section_00_source_train_broken_0000.wav",
        "section_00_source_train_normal_0000.mp3",
        "normal_id_xx_00000001.wav",
        "",
    ],
)
def test_other_names_are_refused_by_name(name):
    with pytest.raises(DataError, match="expected section_NN_") as caught:
        parse_name(f"fan/train/{name}")
    assert name in str(caught.value)
    assert "csv" in caught.value.remedy


def test_a_folder_that_contradicts_the_name_is_refused():
    with pytest.raises(DataError, match="a train clip in the folder 'test'"):
        parse_name("fan/test/section_00_source_train_normal_0000.wav")
    with pytest.raises(DataError, match="a source clip in the folder 'target_test'"):
        parse_name("fan/target_test/section_00_source_test_normal_0000.wav")


def test_scan_of_a_root_a_machine_folder_and_a_split_folder(tmp_path):
    root = tmp_path / "dev_data"
    touch(
        root,
        "fan/train/section_00_source_train_normal_0001_m-n_W.wav",
        "fan/train/section_00_source_train_normal_0000_m-n_X.wav",
        "fan/test/section_00_target_test_anomaly_0000_m-n_Z.flac",
        "pump/train/normal_id_02_00000000.wav",
        "fan/train/._section_00_source_train_normal_0000_m-n_X.wav",
        "fan/train/readme.txt",
    )
    clips = scan(root)
    assert clips == [
        Clip(
            "fan/test/section_00_target_test_anomaly_0000_m-n_Z.flac",
            "fan", "00", "target", "test", "anomaly", "m-n_Z",
        ),
        Clip(
            "fan/train/section_00_source_train_normal_0000_m-n_X.wav",
            "fan", "00", "source", "train", "normal", "m-n_X",
        ),
        Clip(
            "fan/train/section_00_source_train_normal_0001_m-n_W.wav",
            "fan", "00", "source", "train", "normal", "m-n_W",
        ),
        Clip("pump/train/normal_id_02_00000000.wav", "pump", "02", "", "train", "normal", ""),
    ]  # fmt: skip
    assert clips[0].name == "section_00_target_test_anomaly_0000_m-n_Z.flac"
    for below, cut in (("fan", "fan/"), ("fan/train", "fan/train/")):
        expected = [c.path.removeprefix(cut) for c in clips if c.path.startswith(cut)]
        found = scan(root / below)
        assert [clip.path for clip in found] == expected
        assert {clip.machine_type for clip in found} == {"fan"}


def test_scan_says_what_is_wrong(tmp_path):
    with pytest.raises(DataError, match="found nothing; expected a folder"):
        scan(tmp_path / "absent")
    with pytest.raises(DataError, match=r"no \.wav or \.flac file"):
        scan(tmp_path)
    touch(tmp_path, "fan/train/a.wav", "fan/train/b.wav")
    with pytest.raises(DataError, match=r"1 more like it.*validate") as caught:
        scan(tmp_path)
    assert caught.value.file == str(tmp_path / "fan/train/a.wav")
    loose = tmp_path / "dev_data"
    touch(loose, "section_00_source_train_normal_0000.wav")
    with pytest.raises(DataError, match="no folder that says the machine type"):
        scan(loose)
    touch(tmp_path / "x", "pump/normal_id_00_00000000.wav")
    with pytest.raises(DataError, match="says the split"):
        scan(tmp_path / "x")


def test_supplemental_clips_only_on_request(tmp_path):
    touch(
        tmp_path,
        "m/train/section_00_source_train_normal_0000_.wav",
        "m/supplemental/section_00_machine_0001_.wav",
        "m/supplemental/section_00_noise_0001_.wav",
    )
    assert [clip.split for clip in scan(tmp_path)] == ["train"]
    extra = [clip for clip in scan(tmp_path, supplemental=True) if clip.split == "supplemental"]
    assert [(clip.name, clip.state) for clip in extra] == [
        ("section_00_machine_0001_.wav", "normal"),
        ("section_00_noise_0001_.wav", ""),
    ]


def test_attribute_file_fills_in_where_the_name_is_silent(tmp_path):
    touch(
        tmp_path,
        "fan/test/section_03_0000.wav",
        "fan/test/section_03_0001.wav",
        "fan/train/section_03_source_train_normal_0000_m-n_W.wav",
        "pump/train/normal_id_00_00000000.wav",
        "pump/test/normal_id_00_00000000.wav",
        "pump/test/id_00_00000001.wav",
    )
    (tmp_path / "fan/attributes_03.csv").write_text(
        "file_name,d1p,d1v,d2p,d2v\n"
        "fan/test/section_03_0000.wav,m-n,X,lv,2\n"
        "fan/train/section_03_source_train_normal_0000_m-n_W.wav,m-n,CONTRADICTED\n"
        "\n"
    )
    # The same base name stands in both splits in 2020; a row without folders means either.
    (tmp_path / "pump/attributes_00.csv").write_text(
        "file_name,d1p,d1v\npump/test/normal_id_00_00000000.wav,vel,7\nid_00_00000001.wav,vel,9\n"
    )
    attributes = {clip.path: clip.attributes for clip in scan(tmp_path)}
    assert attributes == {
        "fan/test/section_03_0000.wav": "m-n_X_lv_2",
        "fan/test/section_03_0001.wav": "",
        "fan/train/section_03_source_train_normal_0000_m-n_W.wav": "m-n_W",
        "pump/train/normal_id_00_00000000.wav": "",
        "pump/test/normal_id_00_00000000.wav": "vel_7",
        "pump/test/id_00_00000001.wav": "vel_9",
    }
    assert {clip.path: clip.attributes for clip in scan(tmp_path / "fan/test")} == {
        "section_03_0000.wav": "m-n_X_lv_2",
        "section_03_0001.wav": "",
    }
    (tmp_path / "pump/attributes_00.csv").write_text("name\nx\n")
    with pytest.raises(DataError, match="found the header 'name'; expected file_name"):
        scan(tmp_path)


def test_official_attribute_files(real_data):
    files = sorted((real_data / "dcase2022/ground_truth_attributes").glob("*/*.csv"))
    assert len(files) == 21
    swapped = collections.Counter()
    for file in files:
        rows = read_attributes(file)
        with open(file, newline="") as stream:
            full_names = [cells[-1] for cells in list(csv.reader(stream))[1:]]
        assert len(rows) == len(full_names) == 200
        for row, full_name in zip(rows, full_names, strict=True):
            assert row.pairs
            named = parse_name(full_name).attributes
            text, values_agree = disagreement(row, named)
            assert values_agree or not text
            swapped[file.parent.name, file.stem] += bool(text)
            # An independent reading: each value of the row is a word of the full name.
            assert all(value in named.split("_") for _, value in row.pairs)
    # Valve 05 files the only value of a ragged row under the first key whichever it is.
    assert +swapped == {("valve", "attributes_05"): 32}


def test_disagreement_tells_values_from_keys():
    row = read_row("v1pat", "05")
    assert disagreement(row, "v1pat_05_v2pat_04") == ("", False)
    assert disagreement(row, "v2pat_05")[1] is True
    text, agree = disagreement(row, "v1pat_04")
    assert text == "v1pat is '05' here and '04' in the name"
    assert agree is False
    assert disagreement(read_row("speed", "28V"), "car_A1_spd_28V")[0] == ""


def read_row(*cells):
    from asdproto.data.attributes import AttributeRow

    return AttributeRow(2, "x.wav", tuple(zip(cells[::2], cells[1::2], strict=True)))


def test_attribute_pairs():
    assert attribute_pairs("") == ()
    assert attribute_pairs("n-lv_L1_wt_-0.5") == (("n-lv", "L1"), ("wt", "-0.5"))
    assert attribute_pairs("strength_1_ambient") == (("strength", "1"), ("ambient", ""))


def test_classes_against_a_plain_loop():
    rng = np.random.default_rng(3)
    clips = [
        Clip(f"{i}.wav", rng.choice(["a", "b"]), rng.choice(["00", "01"]),
             rng.choice(["source", "target"]), "train", "normal", rng.choice(["", "x_1", "x_2"]))
        for i in range(200)
    ]  # fmt: skip
    labels, classes = assign_classes(clips)
    assert labels.dtype == np.int32
    assert classes == sorted({class_key(clip) for clip in clips})
    assert len(classes) == 24
    for clip, label in zip(clips, labels, strict=True):
        assert classes[label] == (clip.machine_type, clip.section, clip.domain, clip.attributes)
    labels, classes = assign_classes(clips, key=lambda clip: clip.machine_type)
    assert classes == ["a", "b"]
    assert [classes[label] for label in labels] == [clip.machine_type for clip in clips]


def test_real_collections_scan(real_data):
    clips = scan(real_data / "uavmix/dev_data")
    assert len(clips) == 531
    train = [clip for clip in clips if clip.split == "train"]
    assert {clip.state for clip in train} == {"normal"}
    assert collections.Counter(clip.domain for clip in train)["target"] == 30
    cells = collections.Counter(
        (clip.section, clip.domain, clip.state) for clip in clips if clip.split == "test"
    )
    assert set(cells.values()) == {20}
    assert len(cells) == 12
    clips = scan(real_data / "dcase2023_clips")
    assert len(clips) == 28
    assert set(collections.Counter(clip.machine_type for clip in clips).values()) == {4}
    assert all(clip.attributes for clip in clips)
    clips, errors = survey(real_data / "mimii_fan_id_00")
    assert not clips
    assert len(errors) == 42


def test_reading_names_tables_and_stores_needs_numpy_alone():
    code = (
        "import sys, asdproto.data.dcase, asdproto.data.table, asdproto.data.store\n"
        "heavy = {'librosa', 'soundfile', 'scipy', 'sklearn', 'jax', 'flax', 'rich'}\n"
        "sys.exit(','.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
