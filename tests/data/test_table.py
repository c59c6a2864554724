import os

import numpy as np
import pytest

from asdproto.data.attributes import read_attributes
from asdproto.data.dcase import Clip
from asdproto.data.store import write_store
from asdproto.data.table import (
    TableError,
    load_collection,
    plain_clips,
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
        ("a.wav,,00,source,train,normal,", "machine_type", "a name of at most 80 bytes"),
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


ROW = "a.wav,fan,00,source,train,normal,\n"


@pytest.mark.parametrize(
    ("content", "place", "words"),
    [
        ("file\tmachine_type\tsplit\na.wav\tfan\ttrain\n", "row 1", "Separate the columns by com"),
        ("file;machine_type;split\na.wav;fan;train\n", "row 1", "Separate the columns by commas"),
        (HEADER + ROW + '"b.wav,fan,00,source,train,normal,\n' * 9, "row 3", "never closed|csv"),
        (HEADER + '"b.wav,fan\n' + ROW * 5000, "row 2", "more than 131,072 characters"),
        (HEADER + '"b.wav,fan\n' + ROW * 9, "row 2", "never closed"),
        (HEADER + '"b"c.wav,fan,00,,train,,\n', "row 2", "Close the quotation marks"),
        (HEADER + f"{'x' * 140_000}.wav,fan,00,,train,,\n", "row 2", "131,072 characters"),
        (HEADER + f"{'x' * 90_000}.mp3,fan,00,,train,,\n", "row 2, column file", "90004 char"),
        (HEADER + 'a.wav,"fa\nn",00,,train,,\n', "row 3, column machine_type", "without control"),
        (HEADER + 'a.wav,fan,00,,train,,"v\n1"\n', "row 3, column attributes", "without control"),
        (HEADER + "a\0.wav,fan,00,,train,,\n", "row 2, column file", "without control"),
        (HEADER + "a\x1b[2J.wav,fan,00,,train,,\n", "row 2, column file", r"\\x1b\[2J"),
        (HEADER.replace("split", "sp\u2028lit"), "row 1", r"'sp\\u2028lit' should read 'split'"),
        (HEADER + ROW + HEADER, "row 3", "the header a second time"),
        ("file," + HEADER + ROW, "row 1", "Keep one column file"),
        (HEADER + "a.wav,..,00,,train,,\n", "row 2, column machine_type", "'..'"),
        (HEADER + "a.wav,.,00,,train,,\n", "row 2, column machine_type", "'.'"),
        (HEADER + "a.wav,fan,..,,train,,\n", "row 2, column section", "'..'"),
        (HEADER + f"a.wav,{'x' * 81},00,,train,,\n", "row 2, column machine_type", "80 bytes"),
        (HEADER + f"a.wav,fan,{'é' * 41},,train,,\n", "row 2, column section", "80 bytes"),
        (HEADER + "a\\..\\..\\b.wav,fan,00,,train,,\n", "row 2, column file", "without '..'"),
        (HEADER + "a/../../b.wav,fan,00,,train,,\n", "row 2, column file", "without '..'"),
        (HEADER + "\\\\host\\a.wav,fan,00,,train,,\n", "row 2, column file", "relative"),
        (HEADER + "C:\\a.wav,fan,00,,train,,\n", "row 2, column file", "relative"),
        (HEADER + ROW + "./a.wav,fan,00,,test,,\n", "row 3, column file", "a second time"),
        (HEADER + ROW + ".//a.wav,fan,00,,test,,\n", "row 3, column file", "a second time"),
        (HEADER + "x/a.wav,fan,00,,test,,\nx//./a.wav,fan,00,,test,,\n", "row 3", "row 2 already"),
    ],
)
def test_a_csv_that_is_wrong_is_named_in_one_short_line(tmp_path, content, place, words):
    path = table(tmp_path, content)
    with pytest.raises(TableError, match=words) as caught:
        read_table(path)
    assert caught.value.file.startswith(f"{path}: {place}")
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("plain", "cell"),
    [
        ("=1+1.wav", "'=1+1.wav"),
        ("+1.wav", "'+1.wav"),
        ("-1.wav", "'-1.wav"),
        ("@SUM(A1).wav", "'@SUM(A1).wav"),
        ("'=1.wav", "''=1.wav"),
        ("'quoted'.wav", "'quoted'.wav"),
        ("a=1.wav", "a=1.wav"),
    ],
)
def test_no_cell_is_a_formula(tmp_path, plain, cell):
    clip = Clip(plain, plain, "00", "", "train", "", plain)
    write_table(tmp_path / "clips.csv", [clip])
    lines = (tmp_path / "clips.csv").read_text().splitlines()
    assert lines[1] == f"{cell},{cell},00,,train,,{cell}"
    assert read_table(tmp_path / "clips.csv") == [clip]


def test_a_csv_that_is_a_pipe_or_may_not_be_read(tmp_path):
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("nowhere", path)):
        path = tmp_path / make.__name__.strip("<>") / "clips.csv"
        path.parent.mkdir()
        make(path)
        for collection in (path, path.parent):  # and does not wait for a writer
            if not (make is os.mkdir and collection is path):
                with pytest.raises(DataError, match=r"clips\.csv: found a folder, pipe, device or"):
                    load_collection(collection)
    os.mkfifo(tmp_path / "attributes_00.csv")
    with pytest.raises(DataError, match=r"00\.csv: found a folder, pipe, device or"):
        read_attributes(tmp_path / "attributes_00.csv")


def test_files_that_are_no_csv(tmp_path):
    with pytest.raises(TableError, match="no such file"):
        read_table(tmp_path / "absent.csv")
    with pytest.raises(TableError, match=r"UTF-8, after line 0; .* Save it again as csv"):
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

    # Recordings whose names say nothing: normal ones of one machine.
    plain = tmp_path / "pump" / "normal"
    plain.mkdir(parents=True)
    for name in ("b.wav", "a.flac"):
        (plain / name).touch()
    root, clips = load_collection(plain)
    assert root == plain
    assert clips == [
        Clip(name, "pump", "00", "", "train", "normal", "") for name in ("a.flac", "b.wav")
    ]
    # Never where a name or a folder may speak of faults.
    for name in ("abnormal_1.wav", "section_00_source_train_normal_0000.wav", "x/1.wav"):
        (plain / name).parent.mkdir(exist_ok=True)
        (plain / name).touch()
        assert plain_clips(plain) == []
        (plain / name).unlink()
    assert plain_clips(plain) == clips

    write_store(tmp_path / "store", np.zeros((1, 4, 8)), [clip], settings={})
    with pytest.raises(DataError, match="a feature store"):
        load_collection(tmp_path / "store")
    with pytest.raises(DataError, match="found nothing"):
        load_collection(tmp_path / "absent")
