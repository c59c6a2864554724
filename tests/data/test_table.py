"""Collections that a csv describes: every fault is named by row and column."""

import os
import unicodedata

import hypothesis
import hypothesis.strategies as st
import pytest

from asdproto.data.collection import read_collection
from asdproto.data.dcase import Clip, name_fault, parse_name, path_fault
from asdproto.data.table import read_table, write_table
from asdproto.errors import DataError

# Of any content, the same in every run.
FEW = hypothesis.settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
WORDS = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="\\/")
)
NAMES = WORDS.map(str.strip).filter(lambda name: not name_fault(name))
HEADER = "file,machine_type,section,domain,split,state,attributes\n"
ROW = "a.wav,fan,00,source,train,normal,\n"


def table(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "clips.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_round_trip_of_awkward_values(tmp_path):
    clips = [Clip("=1+1.wav", "@SUM(A1)", "12", "target", "test", "anomaly", "-1")]
    path = tmp_path / "clips.csv"
    write_table(path, clips)
    assert read_table(path) == (clips, [])
    assert "\n'=1+1.wav,'@SUM(A1),12,target,test,anomaly,'-1\n" in path.read_text()
    assert os.listdir(tmp_path) == ["clips.csv"]
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match="found a file of another kind"):
        write_table(tmp_path / "a.wav", clips)


def test_optional_columns_other_columns_and_spreadsheet_habits(tmp_path):
    text = "﻿split, file,machine_type,recorded by\r\ntrain,.\\a\\1.wav,fan,me\r\n\r\n"
    [clip], problems = read_table(table(tmp_path, text))
    assert not problems
    assert clip == Clip("a/1.wav", "fan", "00", "", "train", "", "")
    [clip], _ = read_table(table(tmp_path, HEADER + "a.wav,fan,1,,train,,\n"))
    assert clip.section == "01"


@pytest.mark.parametrize(
    ("row", "column", "words"),
    [
        ("a\\..\\..\\b.wav,fan,00,source,train,normal,", "file", "without '..'"),
        ("a.wav,,00,source,train,normal,", "machine_type", "a name of at most 80 bytes"),
        ("a.wav,fan,a/b,source,train,normal,", "section", "'a/b'"),
        ("a.wav,fan,00,sauce,train,normal,", "domain", "'sauce'; expected one of source, target"),
        ("a.wav,fan,00,,train,ok,", "state", "'ok'; expected one of normal, anomaly, nothing"),
        ("a.wav,fan,00,,train,,a\x1b[2J", "attributes", "without control characters"),
        (".//good.wav,fan,00,,train,,", "file", "a second time; expected each file once; it stand"),
        ("a.wav,fan,00,source,train,normal,x,y", None, "8 cells; expected 7, as the header has"),
        (HEADER.strip(), None, "the header a second time"),
    ],
)
def test_each_fault_names_row_and_column_and_good_rows_are_kept(tmp_path, row, column, words):
    path = table(tmp_path, f"{HEADER}good.wav,fan,00,source,train,normal,\n\n{row}\n")
    clips, [problem] = read_table(path)
    assert [clip.path for clip in clips] == ["good.wav"]
    assert problem.file == f"{path}: row 4" + (f", column {column}" if column else "")
    assert words in str(problem)
    assert str(problem).isprintable()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rows"),
        ("file,machine_type\na.wav,fan\n", "Add split"),
        ("file,machine,split\na.wav,fan,train\n", "'machine' should read 'machine_type'"),
        ("machine_type;file\n", "Separate the columns by commas"),
        ("file," + HEADER + ROW, "Keep one column file"),
        (HEADER, "a header and no clip; expected a row for each clip"),
        (HEADER + 'a.wav,"fan,00\n', "a quotation mark that is never closed"),
        (HEADER + "ü.wav,fan,00,,train,,\n", "Save it again as csv in UTF-8"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, text, words):
    encoding = "latin-1" if "ü" in text else "utf-8"
    with pytest.raises(DataError, match=words) as caught:
        read_table(table(tmp_path, text, encoding))
    assert len(str(caught.value).splitlines()) == 1


def test_names_are_found_however_they_are_spelt(tmp_path):
    on_disk = unicodedata.normalize("NFD", "Lüfter.wav")
    (tmp_path / on_disk).touch()
    table(tmp_path, HEADER + unicodedata.normalize("NFC", on_disk) + ",fan,00,,train,normal,\n")
    collection = read_collection(tmp_path)
    assert [clip.path for clip in collection.clips] == [on_disk]
    assert collection.stamps[on_disk][1] > 0
    both = on_disk + ",fan,00,,train,normal,\n"
    with open(tmp_path / "clips.csv", "a") as stream:
        stream.write(both)
    assert "a second time" in read_collection(tmp_path).errors[0].found


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("nowhere", path)])
def test_a_csv_that_is_something_else_is_not_waited_for(tmp_path, make):
    make(tmp_path / "clips.csv")
    with pytest.raises(DataError, match=r"clips\.csv: found a folder, pipe, device or"):
        read_collection(tmp_path)


@FEW
@hypothesis.given(st.text(max_size=80) | st.from_regex(r"(section|normal|id)_[0-9a-z_]*\.wav"))
def test_any_name_is_parsed_or_refused(path):
    try:
        parsed = parse_name(path)
    except DataError as error:
        said = str(error)
        assert len(said.splitlines()) == 1
        assert len(said) < 1000
        return
    assert parsed.section.isdigit()
    assert parsed.machine_type not in (".", "..", "/")
    assert "/" not in parsed.machine_type


@FEW
@hypothesis.given(
    st.lists(
        st.builds(
            Clip,
            path=st.lists(NAMES, min_size=1, max_size=3).map(lambda p: "/".join(p) + ".wav"),
            machine_type=NAMES,
            section=NAMES.filter(lambda name: not name.isdigit()) | st.just("00"),
            domain=st.sampled_from(["source", "target", ""]),
            split=st.sampled_from(["train", "test"]),
            state=st.sampled_from(["normal", "anomaly", ""]),
            attributes=WORDS.map(str.strip).filter(lambda text: not path_fault(text)),
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda clip: clip.path,
    )
)
def test_any_table_that_is_written_is_read(tmp_path, clips):
    hypothesis.assume(all(clip.path[1:2] != ":" for clip in clips))
    write_table(tmp_path / "clips.csv", clips)
    assert read_table(tmp_path / "clips.csv") == (clips, [])
