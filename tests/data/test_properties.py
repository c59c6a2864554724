"""Names and tables of any content: what is taken survives, what is refused is said in one line."""

import hypothesis
import hypothesis.strategies as st

from asdproto.data.dcase import Clip, name_fault, parse_name, path_fault
from asdproto.data.table import read_table, write_table
from asdproto.errors import DataError

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
def test_what_is_written_is_read(tmp_path, clips):
    hypothesis.assume(all(clip.path[1:2] != ":" for clip in clips))
    write_table(tmp_path / "clips.csv", clips)
    assert read_table(tmp_path / "clips.csv") == (clips, [])
