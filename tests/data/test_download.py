"""Downloads from a server that breaks, lies and goes away; archives that want to do harm."""

import errno
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import stat
import threading
import zipfile
import zlib

import numpy as np
import pytest

from asdproto.data.collection import read_collection
from asdproto.data.download import RECORDS, download
from asdproto.errors import DataError
from asdproto.files import locked

DEVELOPMENT = str(RECORDS["dcase2022"]["development"])
CLIPS = {
    "train": [f"section_00_source_train_normal_{index:04d}_m-n_W.wav" for index in range(10)],
    "test": [f"section_00_target_test_{state}_0000_m-n_Z.wav" for state in ("normal", "anomaly")],
}


def zipped(members):
    """The bytes of an archive of name (or ZipInfo) -> bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def machine(name, splits=("train", "test")):
    """An archive of one machine type, laid out as the real ones."""
    paths = [f"{name}/{split}/{clip}" for split in splits for clip in CLIPS[split]]
    members = {path: np.random.default_rng(zlib.crc32(path.encode())).bytes(8000) for path in paths}
    rows = [f"{path},m-n,{path.rpartition('_')[2][0]}" for path in members]
    members[f"{name}/attributes_00.csv"] = "\n".join(["file_name,d1p,d1v", *rows]).encode()
    return zipped(members)


class Server(http.server.ThreadingHTTPServer):
    """Records and their archives; ``faults`` are what happens to the next requests of an archive.

    A fault is a status, ``("cut", bytes)``, ``("endless",)``, ``("whole",)`` (no ranges), or
    something to call.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.records, self.faults, self.asked = {}, {}, []
        self.claims = {}  # name -> what the record says otherwise than it is

    def describe(self, record):
        return {
            "files": [
                {
                    "key": name,
                    "size": len(content),
                    "checksum": f"md5:{hashlib.md5(content).hexdigest()}",
                    "links": {"self": f"{self.url}/api/records/{record}/files/{name}/content"},
                }
                | self.claims.get(name, {})
                for name, content in self.records[record].items()
            ]
        }

    def handle_error(self, request, client_address):
        pass  # a client that has gone is what some tests are about


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        match = re.fullmatch(r"/api/records/(\d+)(?:/files/(.+)/content)?", self.path)
        record, name = match.groups()
        given = self.headers.get("Range", "")
        self.server.asked.append((name or record, given))
        faults = self.server.faults.get(name or record, [])
        fault = faults.pop(0) if faults else ()
        if callable(fault):
            fault = fault() and ()
        if isinstance(fault, int) or record not in self.server.records:
            self.send_error(fault or 404)
            return
        if name is None:
            content = json.dumps(self.server.describe(record)).encode()
        else:
            content = self.server.records[record][name]
        start = int(given[6:-1]) if given and fault != ("whole",) else 0
        self.send_response(206 if start else 200)
        if fault == ("endless",):
            content *= 3
        else:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: fault[1] if fault[:1] == ("cut",) else None])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        server.records[DEVELOPMENT] = {"dev_fan.zip": machine("fan"), "README.md": b"Read me."}
        yield server
        server.shutdown()
        thread.join()


def fetch(server, root, *parts, **options):
    parts = parts or ("development",)
    return download(root, parts=parts, server=server.url, pause=0.001, progress=False, **options)


def refused(words, server, root, *parts, **options):
    with pytest.raises(DataError, match=words):
        fetch(server, root, *parts, **options)


def everything(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def unzipped(*archives):
    found = {}
    for archive in archives:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            found |= {name: opened.read(name) for name in opened.namelist()}
    return found


# --- what comes, and where it is


def test_a_data_set_comes_whole_and_what_was_lost_comes_again(server, tmp_path):
    archives = {f"dev_{name}.zip": machine(name) for name in ("fan", "ToyCar")}
    server.records[DEVELOPMENT] = archives
    root = tmp_path / "new" / "root"
    made = fetch(server, root)
    assert everything(root / "dev_data") == unzipped(*archives.values())
    assert made == {root / "dev_data": 2 * 13}
    collection = read_collection(root / "dev_data")
    assert collection.errors == []
    assert {clip.machine_type for clip in collection.clips} == {"fan", "ToyCar"}
    # Neither archives nor trees are left; a second call asks nobody.
    assert not [path for path in root.rglob("*") if path.suffix in (".zip", ".part", ".tree")]
    server.asked.clear()
    assert fetch(server, root) == {root / "dev_data": 0}
    assert server.asked == []
    os.truncate(root / "dev_data/fan/test" / CLIPS["test"][0], 10)
    assert fetch(server, root) == {root / "dev_data": 13}
    assert [name for name, _ in server.asked] == [DEVELOPMENT, "dev_fan.zip"]
    assert everything(root / "dev_data") == unzipped(*archives.values())


def test_parts_of_the_evaluation_share_a_folder(server, tmp_path):
    numbers = RECORDS["dcase2022"]
    train, test = machine("fan", ["train"]), machine("fan", ["test"])
    server.records[str(numbers["additional"])] = {"eval_data_fan_train.zip": train}
    server.records[str(numbers["evaluation"])] = {"eval_data_fan_test.zip": test}
    fetch(server, tmp_path, "additional")
    fetch(server, tmp_path, "evaluation", "additional")
    assert everything(tmp_path / "eval_data") == unzipped(train, test)
    assert [name for name, _ in server.asked].count("eval_data_fan_train.zip") == 1
    assert not (tmp_path / "dev_data").exists()


# --- networks


def test_a_broken_connection_is_continued_where_it_broke_also_by_a_later_call(server, tmp_path):
    noise = np.random.default_rng(0).bytes(9 * 2**16)
    server.records[DEVELOPMENT] = {"dev_fan.zip": zipped({"fan/train/x.wav": noise})}
    cut = ("cut", 2**16 + 10000)
    server.faults["dev_fan.zip"] = [cut, *[503] * 6]
    refused("found HTTP 503.*what has come is kept", server, tmp_path)
    assert not (tmp_path / "dev_data").exists()
    # It breaks more often than it is tried in vain; then the server starts from the beginning.
    server.faults["dev_fan.zip"] = [*[cut] * 7, ("whole",)]
    fetch(server, tmp_path)
    ranges = [given for name, given in server.asked if name == "dev_fan.zip"]
    assert ranges[:7] == ["", *[f"bytes={2**16}-"] * 6]
    assert ranges[7:] == [f"bytes={part * 2**16}-" for part in range(2, 9)]
    assert everything(tmp_path / "dev_data") == {"fan/train/x.wav": noise}


def test_what_is_not_there_is_not_asked_for_twice(server, tmp_path):
    server.faults[DEVELOPMENT] = [404]
    refused("HTTP 404 Not Found", server, tmp_path)
    assert server.asked == [(DEVELOPMENT, "")]
    server.server_close()  # nobody listens any more
    refused(r"a connection that fails \(ConnectionError\)", server, tmp_path)


def test_other_bytes_than_the_record_names_are_refused_and_fetched_anew(server, tmp_path):
    right = server.records[DEVELOPMENT]["dev_fan.zip"]
    wrong = right[:-9000] + bytes(9000)
    expected, found = (hashlib.md5(content).hexdigest() for content in (right, wrong))
    server.claims["dev_fan.zip"] = {"checksum": f"md5:{expected}"}
    server.records[DEVELOPMENT]["dev_fan.zip"] = wrong
    refused(f"found bytes with md5:{found}.*{expected}", server, tmp_path)
    server.faults["dev_fan.zip"] = [("endless",)]
    refused(f"found more than {len(right):,} bytes", server, tmp_path)
    assert not (tmp_path / "dev_data").exists()
    server.records[DEVELOPMENT]["dev_fan.zip"] = right
    fetch(server, tmp_path)
    assert server.asked[-1] == ("dev_fan.zip", "")
    assert everything(tmp_path / "dev_data") == unzipped(right)


def test_a_record_that_is_not_one_is_refused(server, tmp_path):
    for claim, message in (
        ({"key": "../dev_fan.zip"}, "a file named '../dev_fan.zip'"),
        ({"key": "dev_fan.tar"}, "none of them"),
        ({"links": {}}, "none of them"),
    ):
        server.claims["dev_fan.zip"] = claim
        refused(message, server, tmp_path)


# --- archives


LINK = zipfile.ZipInfo("fan/train")
LINK.create_system, LINK.external_attr = 3, (stat.S_IFLNK | 0o777) << 16


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"fan/../../../x.wav": b"1"}, "a path inside the archive's own folder"),
        ({"TMP/x.wav": b"1"}, "a path inside the archive's own folder"),
        ({"fan\\..\\x.wav": b"1"}, "without control characters and backslashes"),
        ({LINK: b"/etc/passwd"}, "no links and no devices"),
        ({"fan/x.wav": b"1", "fan/./x.wav": b"2"}, "each name once"),
        ({}, "recordings"),
    ],
)
def test_an_archive_that_may_do_harm_is_refused_whole(server, tmp_path, members, expected):
    if "TMP/x.wav" in members:
        members = {f"{tmp_path}/x.wav": b"1"}
    good = {f"fan/train/{CLIPS['train'][0]}": b"1"} if members else {}
    server.records[DEVELOPMENT] = {"dev_fan.zip": zipped(good | members)}
    refused(rf"dev_fan\.zip: found .*{expected}", server, tmp_path / "a" / "b" / "root")
    files = [path.name for path in tmp_path.rglob("*") if not path.is_dir() or path.is_symlink()]
    assert sorted(files) == ["dev_fan.zip", "record.json"]


@pytest.mark.parametrize("change", [-10, 10], ids=["more inside", "less inside"])
def test_no_more_and_no_less_is_unpacked_than_the_archive_states(server, tmp_path, change):
    content = bytearray(zipped({"fan/train/x.wav": bytes(1000)}))
    directory = content.index(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = (1000 + change).to_bytes(4, "little")
    server.records[DEVELOPMENT] = {"dev_fan.zip": bytes(content)}
    refused("found damage", server, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".zip"]
    assert not (tmp_path / "dev_data").exists()


def test_an_interrupted_unpacking_starts_anew_and_is_never_taken_for_whole(server, tmp_path):
    archives = {f"dev_{name}.zip": machine(name) for name in ("fan", "valve")}
    # The second archive breaks off in its middle, as at a power cut: fan is whole by then.
    broken = bytearray(archives["dev_valve.zip"])
    broken[len(broken) // 2] ^= 255
    server.records[DEVELOPMENT] = archives | {"dev_valve.zip": bytes(broken)}
    refused("found damage", server, tmp_path)
    work = tmp_path / ".download" / "dcase2022" / DEVELOPMENT
    assert any((work / "dev_valve.zip.tree").rglob("*.wav")), "some of it was unpacked"
    assert not (tmp_path / "dev_data").exists()
    stray = work / "dev_valve.zip.tree" / "valve" / "train" / "section_00_0000.wav"
    stray.write_bytes(b"half")
    server.records[DEVELOPMENT] = archives
    server.asked.clear()
    fetch(server, tmp_path)
    assert [name for name, _ in server.asked] == [DEVELOPMENT, "dev_valve.zip"]
    assert everything(tmp_path / "dev_data") == unzipped(*archives.values())


def test_a_move_that_was_interrupted_goes_on(server, tmp_path):
    archive = server.records[DEVELOPMENT]["dev_fan.zip"]
    fetch(server, tmp_path)
    tree = tmp_path / ".download" / "dcase2022" / DEVELOPMENT / "dev_fan.zip.tree"
    (tree / "fan").mkdir(parents=True)
    shutil.move(tmp_path / "dev_data/fan/test", tree / "fan/test")
    server.asked.clear()
    fetch(server, tmp_path)
    assert [name for name, _ in server.asked] == [DEVELOPMENT]
    assert everything(tmp_path / "dev_data") == unzipped(archive)
    assert not tree.exists()


# --- disks and folders


def test_a_disk_that_fills_up_meanwhile_is_named(server, make_disk):
    small_disk = make_disk("512k")
    server.faults["dev_fan.zip"] = [lambda: (small_disk / "other").write_bytes(bytes(450_000))]
    with pytest.raises(OSError) as caught:
        fetch(server, small_disk)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename.endswith("dev_fan.zip.part")
    (small_disk / "other").unlink()
    fetch(server, small_disk)
    assert server.asked[-1][1].startswith("bytes="), "what had come is kept"


def test_recordings_are_not_mixed(server, tmp_path):
    other = tmp_path / "dev_data" / "fan" / "train" / "section_00_source_train_normal_0000.wav"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"mine")
    refused("files that this command did not put there", server, tmp_path)
    assert server.asked == []
    assert everything(tmp_path) == {other.relative_to(tmp_path).as_posix(): b"mine"}
    shutil.rmtree(tmp_path / "dev_data")
    fetch(server, tmp_path)
    expected = "found dcase2022 in it; expected one data set in one folder"
    refused(expected, server, tmp_path, dataset="dcase2023")


def test_unknown_names_and_a_second_process_are_refused(server, tmp_path):
    refused("one of dcase2020, dcase2021", server, tmp_path, dataset="dcase2019")
    refused("found 'all'; expected one of development", server, tmp_path, "all")
    work = tmp_path / ".download" / "dcase2022"
    work.mkdir(parents=True)
    with locked(work, "lock"):
        refused("another process", server, tmp_path)


# --- the command


def test_the_command(server, tmp_path, call):
    command = ["download", "--root", tmp_path, "--server", server.url]
    code, out, err = call(*command)
    assert code == 0
    assert out.startswith(f"{tmp_path / 'dev_data'}: 13 files fetched\n")
    assert "dev_fan.zip" in err
    assert call(*command)[:2] == (0, f"{tmp_path / 'dev_data'}: everything is there\n")
