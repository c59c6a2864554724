import numpy as np
import pytest

from asdproto.data.dcase import Clip
from asdproto.data.store import write_store
from asdproto.data.table import (
    TableError,
    load_collection,
    read_table,
    survey_table,
    write_table,
)
from asdproto.errors import DataError

HEADER = "file,machine_type,section,domain,split,state,attributes\n"


def table(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "clips.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_round_trip_of_awkward_values(tmp_path):
    clips = [
        Clip("a/ü, 1.wav", "pump, big", "00", "source", "train", "normal", 'note_"x"'),
        Clip("b.FLAC", "pump, big", "lab-3", "", "test", "", ""),
        Clip("c/d/e.wav", "fan", "12", "target", "test", "anomaly", "v_0.5"),
    ]
    write_table(tmp_path / "clips.csv", clips)
    assert read_table(tmp_path / "clips.csv") == clips
    assert [file.name for file in tmp_path.iterdir()] == ["clips.csv"]


def test_optional_columns_other_columns_and_spreadsheet_habits(tmp_path):
    path = table(
        tmp_path,
        "machine_type;file\n",
    )
    with pytest.raises(TableError, match="Separate the columns by commas"):
        read_table(path)
    path = table(
        tmp_path, "﻿split, file,machine_type,recorded by\r\ntrain,.\\a\\1.wav,fan,me\r\n\r\n"
    )
    assert read_table(path) == [Clip("a/1.wav", "fan", "00", "", "train", "", "")]
    path = table(tmp_path, HEADER + "a.wav,fan,1,,train,,\n")
    assert read_table(path)[0].section == "01"


@pytest.mark.parametrize(
    ("row", "column", "words"),
    [
        ("a.mp3,fan,00,source,train,normal,", "file", r"'a\.mp3'"),
        (",fan,00,source,train,normal,", "file", "''"),
        ("/data/a.wav,fan,00,source,train,normal,", "file", "relative"),
        ("../a.wav,fan,00,source,train,normal,", "file", "without '..'"),
        ("a.wav,,00,source,train,normal,", "machine_type", "a short name"),
        ("a.wav,a/b,00,source,train,normal,", "machine_type", "'a/b'"),
        ("a.wav,fan,00,sauce,train,normal,", "domain", "'sauce'; expected one of source, target"),
        (
            "a.wav,fan,00,source,training,normal,",
            "split",
            "'training'; expected one of train, test",
        ),
        (
            "a.wav,fan,00,source,train,ok,",
            "state",
            "'ok'; expected one of normal, anomaly, nothing",
        ),
        ("good.wav,fan,00,source,train,normal,", "file", "a second time.*row 2 already"),
    ],
)
def test_each_fault_names_row_and_column(tmp_path, row, column, words):
    path = table(tmp_path, f"{HEADER}good.wav,fan,00,source,train,normal,\n\n{row}\n")
    with pytest.raises(TableError, match=words) as caught:
        read_table(path)
    assert caught.value.file == f"{path}: row 4, column {column}"


def test_faults_are_all_found_and_good_rows_kept(tmp_path):
    path = table(
        tmp_path,
        HEADER
        + "a.wav,fan,00,source,train,normal,\n"
        + "b.wav,,00,sauce,train,normal,\n"
        + "c.wav,fan,00,source,train,normal,x,y\n"
        + "d.wav,fan,00,source,test,anomaly,\n",
    )
    clips, errors = survey_table(path)
    assert [clip.path for clip in clips] == ["a.wav", "d.wav"]
    assert [error.file.rpartition(": ")[2] for error in errors] == [
        "row 3, column machine_type",
        "row 3, column domain",
        "row 4",
    ]
    assert "8 cells" in errors[2].found
    with pytest.raises(TableError, match="2 more faults follow"):
        read_table(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rows"),
        ("file,machine_type\na.wav,fan\n", "Add split"),
        ("file,machine,split\na.wav,fan,train\n", "'machine' should read 'machine_type'"),
        ("file,machine_type,split,domains\na.wav,fan,train,\n", "'domains' should read 'domain'"),
        (HEADER, "no clips"),
    ],
)
def test_headers_that_cannot_be_used(tmp_path, text, words):
    with pytest.raises(TableError, match=words):
        read_table(table(tmp_path, text))


def test_files_that_are_no_csv(tmp_path):
    with pytest.raises(TableError, match="no such file"):
        read_table(tmp_path / "absent.csv")
    with pytest.raises(TableError, match="Save it again as csv in UTF-8"):
        read_table(table(tmp_path, HEADER + "ü.wav,fan,00,source,train,normal,\n", "latin-1"))


def test_a_collection_however_it_is_described(tmp_path):
    clip = Clip("x/1.wav", "fan", "00", "source", "train", "normal", "")
    (tmp_path / "csv").mkdir()
    write_table(tmp_path / "csv/clips.csv", [clip])
    write_table(tmp_path / "csv/other.csv", [clip, Clip("y.wav", "fan", "00", "", "test", "", "")])
    assert load_collection(tmp_path / "csv") == (tmp_path / "csv", [clip])
    root, clips = load_collection(tmp_path / "csv/other.csv")
    assert (root, len(clips)) == (tmp_path / "csv", 2)

    folder = tmp_path / "dcase/fan/train"
    folder.mkdir(parents=True)
    (folder / "section_00_source_train_normal_0000.wav").touch()
    root, clips = load_collection(tmp_path / "dcase")
    assert root == tmp_path / "dcase"
    assert [c.machine_type for c in clips] == ["fan"]

    write_store(tmp_path / "store", np.zeros((1, 4, 8)), [clip], settings={})
    with pytest.raises(DataError, match="a feature store"):
        load_collection(tmp_path / "store")
    with pytest.raises(DataError, match="found nothing"):
        load_collection(tmp_path / "absent")
