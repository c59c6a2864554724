import json
import os
import stat
import threading

import numpy as np
import pytest

from asdproto.errors import DataError, html_text, plain_cell, printable, spreadsheet_cell
from asdproto.files import (
    new_folder,
    read_arrays,
    read_csv,
    read_json,
    write_arrays,
    write_atomically,
    write_output,
)
from tests.test_robustness import damage


@pytest.mark.parametrize("read", [read_json, read_arrays, read_csv])
def test_what_is_no_file_is_said_and_not_waited_for(tmp_path, read):
    more = {} if read is read_csv else {"remedy": "Look elsewhere."}
    with pytest.raises(DataError, match="nowhere: found no such file"):
        read(tmp_path / "nowhere", **more)
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    os.symlink("/dev/zero", tmp_path / "zeros")  # which never end
    for name in (".", "pipe", "zeros"):
        with pytest.raises(DataError, match="found a folder, pipe, socket or device"):
            read(tmp_path / name, **more)


def test_a_damaged_array_file_is_refused(tmp_path):
    path = tmp_path / "standardization.npz"
    write_arrays(path, {"mean": np.arange(300.0)})
    with pytest.raises(DataError, match=r"standardization.npz: found no array std.* Train again\."):
        read_arrays(path, ("mean", "std"), remedy="Train again.")
    damage.flip(path)
    with pytest.raises(DataError, match="found damage"):
        read_arrays(path, ("mean",), remedy="")


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "config.json"
    write_atomically(path, b"whole")
    with pytest.raises(OSError, match="No such file") as caught:
        write_atomically(tmp_path / "absent" / "file", b"x")
    assert caught.value.filename == str(tmp_path / "absent" / "file")  # not the hidden one's name
    with pytest.raises(TypeError):
        write_atomically(path, "no bytes")
    assert (os.listdir(tmp_path), path.read_bytes()) == (["config.json"], b"whole")


def test_an_output_replaces_its_own_kind_only(tmp_path):
    table, other = "file,score\na,1\n", "file,score\nb,2\n"
    path = tmp_path / "new" / "scores.csv"
    write_output(path, table)
    write_output(path, other)
    assert path.read_text() == other
    write_output(tmp_path / "results.json", '{"auc": 1}')
    write_output(tmp_path / "results.json", '{"auc": 2}')
    assert json.loads((tmp_path / "results.json").read_text()) == {"auc": 2}
    for foreign in (b"RIFF....WAVE", b"machine,score\n", b'{"other": 1}'):
        (tmp_path / "foreign").write_bytes(foreign)
        for content in (table, '{"auc": 1}'):
            with pytest.raises(DataError, match=r"foreign: found a file of another kind"):
                write_output(tmp_path / "foreign", content)
        assert (tmp_path / "foreign").read_bytes() == foreign
    with pytest.raises(DataError, match="found a folder"):
        write_output(tmp_path, table)


def test_devices_pipes_and_links_are_written_through(tmp_path):
    write_output(tmp_path / "a", "x\n1\n")
    (tmp_path / "link").symlink_to("a")
    write_output(tmp_path / "link", "x\n2\n")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a").read_text() == "x\n2\n"
    os.mkfifo(tmp_path / "pipe")
    received = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_output(tmp_path / "pipe", "through")
    reader.join(10)
    assert received == ["through"]
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


def make(path, content="1"):
    with new_folder(path, "export", "made.json") as work:
        (work / "model").write_text(content)
        (work / "made.json").write_text("{}")


def test_a_folder_appears_as_a_whole_or_not_at_all(tmp_path):
    out = tmp_path / "above" / "out"
    with pytest.raises(TypeError):
        make(out, None)
    assert list(out.parent.iterdir()) == []
    abandoned = out.parent / ".out.0123abcd"  # by a process that was killed
    abandoned.mkdir()
    (abandoned / "model").write_text("half")
    make(out)
    assert sorted(path.name for path in out.parent.rglob("*")) == ["made.json", "model", "out"]
    (out / "report.html").write_text("added later")
    make(out)  # the same command again
    with pytest.raises(DataError, match=r"out: found another export \(model\)"):
        make(out, "2")
    assert (out / "model").read_text() == "1"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_texts_are_escaped_for_where_they_go():
    text = "=1\x1b[2J\u202e\u200b\n<b>\udcff"
    assert printable(text) == r"=1\x1b[2J\u202e\u200b\n<b>\udcff"
    assert html_text(text) == r"=1\x1b[2J\u202e\u200b\n&lt;b&gt;\udcff"
    assert spreadsheet_cell("a\udcff") == r"a\udcff"
    for start in ("=", "+", "-", "@", "\t", "\r", "'="):
        assert spreadsheet_cell(start) == f"'{start}"
        assert plain_cell(f"'{start}") == start
    assert spreadsheet_cell("a=1") == "a=1"
