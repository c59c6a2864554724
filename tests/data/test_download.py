"""Downloads from a server that breaks, lies and goes away; archives that are damaged."""

import errno
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import threading
import zipfile
import zlib

import numpy as np
import pooch
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
    """Records and their archives; ``faults`` are what happens to the next requests of a name.

    A fault is a status, a number of bytes after which the connection breaks, below 0, or something
    to call.
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
        self.server.asked.append(name or record)
        faults = self.server.faults.get(name or record, [])
        fault = faults.pop(0) if faults else None
        if callable(fault):
            fault = fault() and None
        if (fault or 0) > 0 or record not in self.server.records:
            self.send_error(fault or 404)
            return
        if name is None:
            content = json.dumps(self.server.describe(record)).encode()
        else:
            content = self.server.records[record][name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content if fault is None else content[:-fault])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(pooch.core.time, "sleep", lambda _: None)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        server.records[DEVELOPMENT] = {"dev_fan.zip": machine("fan"), "README.md": b"Read me."}
        yield server
        server.shutdown()
        thread.join()


def fetch(server, root, *parts, **options):
    parts = parts or ("development",)
    return download(root, parts=parts, server=server.url, progress=False, **options)


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


def test_a_data_set_comes_whole_and_once(server, tmp_path, call):
    archives = {f"dev_{name}.zip": machine(name) for name in ("fan", "ToyCar")}
    server.records[DEVELOPMENT] = archives | {"README.md": b"Read me."}
    root = tmp_path / "new" / "root"
    command = ("download", "--root", root, "--server", server.url)
    code, out, err = call(*command)
    assert (code, out.splitlines()[0]) == (0, f"{root / 'dev_data'}: 26 files fetched")
    assert "dev_fan.zip" in err
    assert everything(root / "dev_data") == unzipped(*archives.values())
    collection = read_collection(root / "dev_data")
    assert collection.errors == []
    assert {clip.machine_type for clip in collection.clips} == {"fan", "ToyCar"}
    # Neither archives nor trees are left; a second call asks nobody.
    assert not [path for path in root.rglob("*") if path.suffix in (".zip", ".tree")]
    server.asked.clear()
    assert call(*command)[:2] == (0, f"{root / 'dev_data'}: everything is there\n")
    assert server.asked == []


def test_parts_of_the_evaluation_share_a_folder(server, tmp_path):
    numbers = RECORDS["dcase2022"]
    train, test = machine("fan", ["train"]), machine("fan", ["test"])
    server.records[str(numbers["additional"])] = {"eval_data_fan_train.zip": train}
    server.records[str(numbers["evaluation"])] = {"eval_data_fan_test.zip": test}
    fetch(server, tmp_path, "additional")
    fetch(server, tmp_path, "evaluation", "additional")
    assert everything(tmp_path / "eval_data") == unzipped(train, test)
    assert server.asked.count("eval_data_fan_train.zip") == 1
    assert not (tmp_path / "dev_data").exists()


# --- networks and archives


def test_a_broken_connection_is_tried_again_also_by_a_later_call(server, tmp_path):
    archives = {f"dev_{name}.zip": machine(name) for name in ("fan", "valve")}
    server.records[DEVELOPMENT] = archives
    server.faults = {"dev_fan.zip": [-9000, 503], "dev_valve.zip": [503] * 6}
    refused("dev_valve.*found HTTP 503", server, tmp_path)
    assert everything(tmp_path / "dev_data") == unzipped(archives["dev_fan.zip"])
    server.asked.clear()
    (tmp_path / f".download/dcase2022/{DEVELOPMENT}/tmp_killed").write_bytes(b"half")
    fetch(server, tmp_path)
    assert server.asked == [DEVELOPMENT, "dev_valve.zip"]
    assert everything(tmp_path / "dev_data") == unzipped(*archives.values())
    assert not list((tmp_path / ".download").rglob("tmp*"))


def test_a_server_without_records_is_named(server, tmp_path):
    server.faults[DEVELOPMENT] = [404]
    refused("HTTP 404 Not Found", server, tmp_path)
    for claim in ({"key": "../dev_fan.zip"}, {"key": "dev_fan.tar"}, {"links": {}}):
        server.claims["dev_fan.zip"] = claim
        refused("found none, or odd names", server, tmp_path)
    server.server_close()  # nobody listens any more
    refused(r"a connection that fails \(ConnectionError\)", server, tmp_path)
    assert not (tmp_path / "dev_data").exists()


def test_other_bytes_than_the_record_names_are_refused_and_fetched_anew(server, tmp_path):
    right = server.records[DEVELOPMENT]["dev_fan.zip"]
    expected = hashlib.md5(right).hexdigest()
    server.claims["dev_fan.zip"] = {"checksum": f"md5:{expected}"}
    server.records[DEVELOPMENT]["dev_fan.zip"] = right[:-9000] + bytes(9000)
    refused(f"found other bytes .*; expected those with md5:{expected}", server, tmp_path)
    assert not (tmp_path / "dev_data").exists()
    server.records[DEVELOPMENT]["dev_fan.zip"] = right
    fetch(server, tmp_path)
    assert everything(tmp_path / "dev_data") == unzipped(right)


def test_an_archive_writes_nothing_elsewhere(server, tmp_path):
    members = {"fan/../../../x.wav": b"1", f"{tmp_path}/x.wav": b"2", "fan/y.wav": b"3"}
    server.records[DEVELOPMENT] = {"dev_fan.zip": zipped(members)}
    root = tmp_path / "a" / "b" / "root"
    fetch(server, root)
    assert all(path.is_relative_to(root / "dev_data") for path in tmp_path.rglob("*.wav"))


def test_a_damaged_archive_is_never_taken_for_whole(server, tmp_path):
    """It breaks off in its middle, and what was unpacked of it is not seen."""
    archives = {f"dev_{name}.zip": machine(name) for name in ("fan", "valve")}
    broken = bytearray(archives["dev_valve.zip"])
    broken[len(broken) // 2] ^= 255
    server.records[DEVELOPMENT] = archives | {"dev_valve.zip": bytes(broken)}
    refused("found damage", server, tmp_path)
    assert everything(tmp_path / "dev_data") == unzipped(archives["dev_fan.zip"])
    server.records[DEVELOPMENT] = archives
    fetch(server, tmp_path)
    assert everything(tmp_path / "dev_data") == unzipped(*archives.values())


def test_a_move_that_was_interrupted_is_done_again(server, tmp_path, monkeypatch):
    archive, replace = server.records[DEVELOPMENT]["dev_fan.zip"], os.replace
    (tmp_path / "dev_data/fan").mkdir(parents=True)
    folder = tmp_path / ".download/dcase2022" / DEVELOPMENT
    folder.mkdir(parents=True)

    def stop(source, target):
        if str(target).endswith("train"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        fetch(server, tmp_path)
    monkeypatch.undo()
    server.asked.clear()
    fetch(server, tmp_path)
    assert server.asked == [DEVELOPMENT]  # the archive is there
    assert everything(tmp_path / "dev_data") == unzipped(archive)


# --- disks and folders


def test_a_disk_that_fills_up_meanwhile_is_named(server, make_disk):
    small_disk = make_disk("512k")
    server.faults["dev_fan.zip"] = [lambda: (small_disk / "other").write_bytes(bytes(450_000))]
    with pytest.raises(OSError) as caught:
        fetch(server, small_disk)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename.endswith("dev_fan.zip")
    (small_disk / "other").unlink()
    fetch(server, small_disk)


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
