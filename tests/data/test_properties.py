"""Names and tables of any content: what is taken survives, what is refused is said in one line."""

import hypothesis
import hypothesis.strategies as st
import pytest

from asdproto.data.attributes import read_attributes
from asdproto.data.dcase import Clip, name_fault, parse_name, path_fault
from asdproto.data.table import read_table, write_table
from asdproto.errors import DataError, plain_cell, spreadsheet_cell

# The same ones in every run.
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
HEADER = "file,machine_type,section,domain,split,state,attributes"


def in_one_line(error):
    text = str(error)
    return len(text.splitlines()) == 1 and len(text) < 1000 and text.encode()


def result_or_refusal(function, argument):
    """What a function returns, or its error: a DataError, as any other ends the test."""
    try:
        return function(argument), None
    except DataError as error:
        return None, error


@FEW
@hypothesis.given(
    section=st.from_regex("[0-9]{2,3}", fullmatch=True),
    domain=st.sampled_from(["source", "target"]),
    split=st.sampled_from(["train", "test"]),
    state=st.sampled_from(["normal", "anomaly"]),
    index=st.from_regex("[0-9]{1,8}", fullmatch=True),
    attributes=WORDS.map(lambda text: text.strip("_")).filter(lambda t: t.lower() != "noattribute"),
    machine=NAMES.filter(lambda name: name.lower() not in ("raw", "dev_data", "eval_data")),
    suffix=st.sampled_from([".wav", ".flac", ".WAV"]),
)
def test_a_name_says_what_it_was_made_of(
    section, domain, split, state, index, attributes, machine, suffix
):
    hypothesis.assume(
        machine.lower() not in ("train", "test", "source_test", "target_test", "supplemental")
    )
    tail = f"_{attributes}" if attributes else ""
    path = f"{machine}/{split}/section_{section}_{domain}_{split}_{state}_{index}{tail}{suffix}"
    parsed = parse_name(path)
    assert parsed.machine_type == machine
    assert (parsed.section, parsed.domain, parsed.split) == (section, domain, split)
    assert (parsed.state, parsed.attributes) == (state, attributes)


@FEW
@hypothesis.given(st.text(max_size=80) | st.from_regex(r"(section|normal|id)_[0-9a-z_]*\.wav"))
def test_any_name_is_parsed_or_refused(path):
    parsed, refused = result_or_refusal(parse_name, path)
    if refused is not None:
        assert in_one_line(refused)
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
def test_what_is_written_is_read(tmp_path, clips):
    hypothesis.assume(all(clip.path[1:2] != ":" for clip in clips))
    write_table(tmp_path / "clips.csv", clips)
    assert read_table(tmp_path / "clips.csv") == (clips, [])


@FEW
@hypothesis.given(
    st.binary(max_size=300)
    | st.text(max_size=300).map(lambda text: f"{HEADER}\n{text}".encode(errors="surrogatepass"))
    | st.lists(
        st.lists(st.sampled_from(['"', "a.wav", "train", ",", "\n", "..", "fan", "=", "\0"]))
    ).map(lambda rows: "\n".join([HEADER, *(",".join(row) for row in rows)]).encode())
)
@pytest.mark.parametrize("read", [read_table, read_attributes])
def test_any_csv_is_read_or_refused(tmp_path, read, content):
    path = tmp_path / "clips.csv"
    path.write_bytes(content)
    found, refused = result_or_refusal(read, path)
    assert refused is None or in_one_line(refused)
    if found is not None and read is read_table:
        clips, errors = found
        assert all(in_one_line(error) for error in errors)
        for clip in clips:
            assert ".." not in clip.path.split("/")
            assert not clip.path.startswith("/")
            assert not name_fault(clip.machine_type)


@FEW
@hypothesis.given(st.text())
def test_cells_survive_and_are_no_formulas(text):
    assert plain_cell(spreadsheet_cell(text)) == text
    assert spreadsheet_cell(text)[:1] not in ("=", "+", "-", "@", "\t", "\r")
