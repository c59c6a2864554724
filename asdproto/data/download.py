"""Fetches the DCASE Task 2 data sets from Zenodo, and puts them where the loader finds them.

::

    ROOT/dev_data/<machine type>/{train,test}/    development
    ROOT/eval_data/<machine type>/{train,test}/   additional training, and evaluation
    ROOT/.download/<data set>/<record>/           archives on their way, and lists of what came

An archive is fetched as ``NAME.part``, which a later run continues, and is called ``NAME`` once its
size and checksum are right. It is unpacked to ``NAME.tree``, and deleted once ``NAME.json`` lists
what came out of it. A part's trees move to their place when all of them are whole, so that no
machine type is ever seen with a few of its recordings.
"""

import hashlib
import json
import logging
import os
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from asdproto.data.dcase import name_fault, path_fault
from asdproto.errors import DataError, quoted
from asdproto.files import locked, naming, read_json, size_of, write_json

SERVER = "https://zenodo.org"
# Data set -> part -> number of its record. 2023 and 2024 name those that replace faulty ones.
RECORDS: Mapping[str, Mapping[str, int]] = {
    "dcase2020": {"development": 3678171, "additional": 3727685, "evaluation": 3841772},
    "dcase2021": {"development": 4562016, "additional": 4660992, "evaluation": 4884786},
    "dcase2022": {"development": 6355122, "additional": 6462969, "evaluation": 6586456},
    "dcase2023": {"development": 7882613, "additional": 7830345, "evaluation": 7860847},
    "dcase2024": {"development": 10902294, "additional": 11259435, "evaluation": 11363076},
    "dcase2025": {"development": 15097779, "additional": 15392814, "evaluation": 15519362},
}
FOLDERS = {"development": "dev_data", "additional": "eval_data", "evaluation": "eval_data"}

_WORK = ".download"
_CHUNK = 2**16  # of which a broken connection loses one
_TIMEOUT = 60  # seconds without a byte
_TRIES = 6  # in a row that bring nothing; the waits between them add up to a minute

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class _Archive:
    """A zip file of a record: what the record says of it, and where it is worked on."""

    name: str
    size: int
    checksum: str
    url: str
    work: Path
    target: Path

    def at(self, suffix: str = "") -> Path:
        """Itself, or what is made on its way."""
        return self.work / f"{self.name}{suffix}"

    def files(self) -> dict[str, int]:
        """Path and size of what came out of it; empty before it is unpacked."""
        if not self.at(".json").exists():
            return {}
        contents = read_json(self.at(".json"), remedy="Delete it, and run this again.")
        return contents["files"] if contents["checksum"] == self.checksum else {}

    def is_in(self, *folders: Path) -> bool:
        """Whether everything that came out of it is in one of some folders."""
        files = self.files()
        return bool(files) and all(
            any(size_of(folder / path) == size for folder in folders)
            for path, size in files.items()
        )


def download(
    root: str | os.PathLike,
    dataset: str = "dcase2022",
    parts: Sequence[str] = ("development",),
    *,
    server: str = SERVER,
    pause: float = 1.0,
    progress: bool = True,
) -> dict[Path, int]:
    """Fetch a data set, go on where an earlier call stopped, or find that everything is there.

    Args:
      root: Folder of one data set; made where missing.
      dataset: One of :data:`RECORDS`.
      parts: Of it: ``"development"``, ``"additional"`` (training), ``"evaluation"``.
      server: Where the records are asked for; they say themselves where their archives are.
      pause: Seconds before the second try after a connection broke; doubled for each further one.
      progress: Show bars.

    Returns:
      Folder (``root/dev_data``, ``root/eval_data``) -> how many files came into it now.

    Raises:
      DataError: The server has no such record or stays silent, a checksum is wrong, an archive is
        damaged or wants to write elsewhere, the folder holds other recordings, or another process
        works in it.
      OSError: The disk failed, or is full.
    """
    root = Path(root)
    for name, known in ((dataset, RECORDS), *((part, FOLDERS) for part in parts)):
        if name not in known:
            raise DataError("download", quoted(name), f"one of {', '.join(known)}", "Correct it.")
    _refuse_foreign(root, dataset, parts)
    work = root / _WORK / dataset
    work.mkdir(parents=True, exist_ok=True)
    fetched = {root / FOLDERS[part]: 0 for part in parts}
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not progress,
    )
    with locked(work, "lock"), requests.Session() as session, bars:
        missing: list[list[_Archive]] = []
        for part in dict.fromkeys(parts):
            record, target = RECORDS[dataset][part], root / FOLDERS[part]
            archives = _known(work / str(record), target)
            if not archives or not all(archive.is_in(target) for archive in archives):
                url = f"{server.rstrip('/')}/api/records/{record}"
                archives = _ask(session, url, pause, work / str(record), target)
            missing.append([archive for archive in archives if not archive.is_in(target)])
        for archives in missing:
            for archive in archives:
                if not archive.is_in(archive.at(".tree"), archive.target):
                    _fetch(session, archive, pause, bars)
                    _unpack(archive, bars)
                archive.at().unlink(missing_ok=True)
            for archive in archives:
                if archive.at(".tree").exists():
                    _move(archive.at(".tree"), archive.target)
                fetched[archive.target] += len(archive.files())
    return fetched


def _refuse_foreign(root: Path, dataset: str, parts: Iterable[str]) -> None:
    """Refuses a folder whose recordings would be mixed with those to come."""
    lists = (root / _WORK).glob("*/*/*.zip.json")
    ours = {(path.parents[1].name, path.parent.name) for path in lists}
    others = sorted({name for name, _ in ours} - {dataset})
    if others:
        remedy = "Choose another folder."
        raise DataError(root, f"{others[0]} in it", "one data set in one folder", remedy)
    records = {(dataset, str(record)): part for part, record in RECORDS[dataset].items()}
    filled = {FOLDERS[part] for key, part in records.items() if key in ours}
    for folder in {FOLDERS[part] for part in parts} - filled:
        if (root / folder).is_dir() and any((root / folder).iterdir()):
            found = "files that this command did not put there"
            expected = "a folder that is new, or that this command has made"
            raise DataError(root / folder, found, expected, "Choose another folder.")


def _known(work: Path, target: Path) -> list[_Archive]:
    """The archives of a record as an earlier call was told; none where there was no such call."""
    if not (work / "record.json").exists():
        return []
    record = read_json(work / "record.json", remedy="Delete it, and run this again.")
    return [_Archive(**archive, work=work, target=target) for archive in record["archives"]]


def _ask(
    session: requests.Session, url: str, pause: float, work: Path, target: Path
) -> list[_Archive]:
    """Asks the server for the archives of a record, and notes them."""

    def attempt() -> bytes:
        with session.get(url, timeout=_TIMEOUT) as response:
            response.raise_for_status()
            return response.content

    answer = _patiently(attempt, url, pause)
    try:
        files = json.loads(answer)["files"]
        archives: list[dict[str, Any]] = [
            {
                "name": str(file["key"]),
                "size": int(file["size"]),
                "checksum": str(file["checksum"]),
                "url": str(file["links"]["self"]),
            }
            for file in files
            if str(file["key"]).endswith(".zip")
        ]
    except (ValueError, TypeError, KeyError):
        archives = []
    if not archives:
        expected = "the record's zip files with key, size, checksum and links"
        raise DataError(url, "none of them", expected, "Open it in a browser: has it moved?")
    for archive in archives:
        name = archive["name"]
        if fault := name_fault(name):
            raise DataError(url, f"a file named {quoted(name)}", fault, "Report it.")
    work.mkdir(exist_ok=True)
    write_json(work / "record.json", {"archives": archives})
    return _known(work, target)


def _patiently(
    attempt: Callable[[], _Result], url: str, pause: float, reached: Callable[[], int] = lambda: 0
) -> _Result:
    """Tries until it works; gives up after some tries in a row that brought nothing more.

    ``attempt`` raises what requests raises, ``reached`` says how many bytes have come.
    """
    failures, best = 0, reached()
    while True:
        try:
            return attempt()
        except requests.RequestException as error:
            if error.response is not None:
                code = error.response.status_code
                found = f"HTTP {code} {error.response.reason}"
                if code < 500 and code != 429:
                    remedy = "Open it in a browser: has it moved, or does it need a login?"
                    raise DataError(url, found, "a file that anybody may fetch", remedy) from error
            else:
                found = f"a connection that fails ({type(error).__name__})"
            if reached() > best:
                failures, best = 0, reached()
            failures += 1
            if failures == _TRIES:
                remedy = "Check the network and run this again: what has come is kept."
                raise DataError(url, found, "an answer", remedy) from error
            _log.info("%s: %s; trying again", url, found)
        time.sleep(pause * 2 ** (failures - 1))


def _fetch(session: requests.Session, archive: _Archive, pause: float, bars: Progress) -> None:
    """Fetches what is missing of an archive, and checks its size and its checksum."""
    if size_of(archive.at()) == archive.size:  # it was checked before it got its name
        return
    part = archive.at(".part")
    bar = bars.add_task(archive.name, total=archive.size)

    def attempt() -> None:
        with open(part, "ab") as stream:
            have = stream.tell()
            if have > archive.size:
                wrong(f"{have:,} bytes")
            if have < archive.size:
                # A server that compresses once more would count other bytes than the archive's.
                headers = {"Accept-Encoding": "identity"}
                if have:
                    headers["Range"] = f"bytes={have}-"
                with session.get(
                    archive.url, headers=headers, stream=True, timeout=_TIMEOUT
                ) as response:
                    response.raise_for_status()
                    if response.status_code != 206:  # everything, from its beginning
                        have = 0
                        stream.truncate(0)
                    for chunk in response.iter_content(_CHUNK):
                        if have + len(chunk) > archive.size:
                            wrong(f"more than {archive.size:,} bytes")
                        with naming(part):
                            stream.write(chunk)
                        have += len(chunk)
                        bars.update(bar, completed=have)
        if have < archive.size:
            raise requests.ConnectionError("the answer ends too early")

    def wrong(found: str) -> None:
        part.unlink()
        expected = f"the {archive.size:,} bytes with {archive.checksum} that the record names"
        remedy = "Run this again: it is fetched from its beginning."
        raise DataError(archive.url, found, expected, remedy)

    _patiently(attempt, archive.url, pause, lambda: max(0, size_of(part)))
    algorithm, _, digest = archive.checksum.partition(":")
    with open(part, "rb") as stream:
        computed = hashlib.file_digest(stream, algorithm).hexdigest()
    if computed != digest.lower():
        wrong(f"bytes with {algorithm}:{computed}")
    os.replace(part, archive.at())
    bars.update(bar, completed=archive.size)


def _unpack(archive: _Archive, bars: Progress) -> None:
    """Unpacks an archive into its tree, and lists what is in it once all of it is."""
    tree = archive.at(".tree")
    archive.at(".json").unlink(missing_ok=True)
    if tree.exists():
        shutil.rmtree(tree)
    try:
        with zipfile.ZipFile(archive.at()) as zipped:
            members = _members(archive.at(), zipped.infolist())
            files = {name: member.file_size for name, member in members.items()}
            bar = bars.add_task(f"{archive.name}, unpacking", total=sum(files.values()))
            for name, member in members.items():
                path = tree / name
                path.parent.mkdir(parents=True, exist_ok=True)
                # zipfile reads no more than the size that the archive states for a member.
                with zipped.open(member) as source, naming(path), open(path, "wb") as stream:
                    shutil.copyfileobj(source, stream, _CHUNK)
                    if stream.tell() != member.file_size:
                        raise zipfile.BadZipFile(f"{name} is too short")
                bars.advance(bar, member.file_size)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        archive.at().unlink()
        remedy = "Run this again: it is fetched anew. Report it if that does not help."
        raise DataError(archive.at(), f"damage ({error})", "a whole zip archive", remedy) from error
    os.sync()  # once, and not once a file: a list on the disk says that its files are, too
    write_json(archive.at(".json"), {"checksum": archive.checksum, "files": files})


def _members(file: Path, infos: Iterable[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Path -> member, for the files of an archive; an archive that may do harm is refused whole."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        path = PurePosixPath(info.filename)
        fault = ""
        if path.is_absolute() or ".." in path.parts:
            fault = "a path inside the archive's own folder"
        elif stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            fault = "files and folders, no links and no devices"
        elif info.flag_bits & 1:
            fault = "files without a password"
        elif str(path) in members:
            fault = "each name once"
        fault = fault or path_fault(info.orig_filename)
        if fault:
            remedy = "Nothing is unpacked from it; report it."
            raise DataError(file, quoted(info.orig_filename), fault, remedy)
        if not info.is_dir():
            members[str(path)] = info
    if not members:
        raise DataError(file, "an empty archive", "recordings", "Report it.")
    return members


def _move(source: Path, target: Path) -> None:
    """Moves a tree to its place; folders that are there already take in what is new."""
    if source.is_dir() and target.is_dir():
        for entry in sorted(source.iterdir()):
            _move(entry, target / entry.name)
        source.rmdir()
    else:
        os.replace(source, target)
