"""Fetches the DCASE Task 2 data sets from Zenodo, and puts them where the loader finds them.

::

    ROOT/dev_data/<machine type>/{train,test}/    development
    ROOT/eval_data/<machine type>/{train,test}/   additional training, and evaluation
    ROOT/.download/<data set>/<record>/           archives on their way, and what has come

Pooch fetches an archive, again where the connection breaks, and checks it. It is unpacked beside
its place and moved there, so that no machine type is ever seen with a few of its recordings, and
deleted once ``NAME.done`` says that it came. A later run goes on with archives that are missing.
"""

import os
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pooch
import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from asdproto.data.dcase import name_fault
from asdproto.errors import DataError, quoted
from asdproto.files import locked, naming, read_json, write_json

SERVER = "https://zenodo.org"
# Data set -> part -> number of its record. 2023 and 2024 name those that replace faulty ones.
RECORDS = {
    "dcase2020": {"development": 3678171, "additional": 3727685, "evaluation": 3841772},
    "dcase2021": {"development": 4562016, "additional": 4660992, "evaluation": 4884786},
    "dcase2022": {"development": 6355122, "additional": 6462969, "evaluation": 6586456},
    "dcase2023": {"development": 7882613, "additional": 7830345, "evaluation": 7860847},
    "dcase2024": {"development": 10902294, "additional": 11259435, "evaluation": 11363076},
    "dcase2025": {"development": 15097779, "additional": 15392814, "evaluation": 15519362},
}
FOLDERS = {"development": "dev_data", "additional": "eval_data", "evaluation": "eval_data"}

_WORK = ".download"
_TIMEOUT = 60  # seconds without a byte
_TRIES = 5  # after the first


def download(
    root: str | os.PathLike,
    dataset: str = "dcase2022",
    parts: Sequence[str] = ("development",),
    *,
    server: str = SERVER,
    progress: bool = True,
) -> dict[Path, int]:
    """Fetch a data set, what is missing of it, or find that everything is there.

    Args:
      root: Folder of one data set; made where missing.
      dataset: One of :data:`RECORDS`.
      parts: Of it: ``"development"``, ``"additional"`` (training), ``"evaluation"``.
      server: Where the records are asked for; they say themselves where their archives are.
      progress: Show bars.

    Returns:
      Folder (``root/dev_data``, ``root/eval_data``) -> how many files came into it now.

    Raises:
      DataError: The server has no such record or stays silent, a checksum is wrong, an archive is
        damaged, the folder holds other recordings, or another process works in it.
      OSError: The disk failed, or is full.
    """
    root = Path(root)
    for name, known in ((dataset, [*RECORDS]), *((part, [*FOLDERS]) for part in parts)):
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
    with locked(work, "lock"), bars:
        for part in dict.fromkeys(parts):
            folder = work / str(RECORDS[dataset][part])
            for name, about in _missing(server, folder).items():
                archive = _fetch(folder / name, about, bars)
                fetched[root / FOLDERS[part]] += _unpack(archive, root / FOLDERS[part], bars)
                (folder / f"{name}.done").touch()
                archive.unlink()
    return fetched


def _refuse_foreign(root: Path, dataset: str, parts: Sequence[str]) -> None:
    """Refuses a folder whose recordings would be mixed with those to come."""
    others = sorted({path.name for path in (root / _WORK).glob("*")} - {dataset})
    if others:
        remedy = "Choose another folder."
        raise DataError(root, f"{others[0]} in it", "one data set in one folder", remedy)
    records = RECORDS[dataset].items()
    begun = [part for part, record in records if (root / _WORK / dataset / str(record)).exists()]
    ours = {FOLDERS[part] for part in begun}
    for folder in {FOLDERS[part] for part in parts} - ours:
        if (root / folder).is_dir() and any((root / folder).iterdir()):
            found = "files that this command did not put there"
            expected = "a folder that is new, or that this command has made"
            raise DataError(root / folder, found, expected, "Choose another folder.")


def _missing(server: str, folder: Path) -> dict[str, dict[str, str]]:
    """Name -> url and checksum of the archives of a record that have not come yet."""

    def is_done(name: str) -> bool:
        return (folder / f"{name}.done").exists()

    if (folder / "record.json").exists():
        known = read_json(folder / "record.json", remedy="Delete it, and run this again.")
        if all(map(is_done, known)):
            return {}
    url = f"{server.rstrip('/')}/api/records/{folder.name}"
    try:
        answer = requests.get(url, timeout=_TIMEOUT)
        answer.raise_for_status()
        archives = {
            str(file["key"]): {"url": file["links"]["self"], "checksum": file["checksum"]}
            for file in answer.json()["files"]
            if str(file["key"]).endswith(".zip")
        }
    except requests.RequestException as error:
        raise _unreachable(url, error) from error
    except (ValueError, TypeError, KeyError):
        archives = {}
    if not archives or any(map(name_fault, archives)):
        found, expected = "none, or odd names", "the record's zip files with checksums and links"
        raise DataError(url, found, expected, "Open it in a browser: has it moved?")
    folder.mkdir(exist_ok=True)
    write_json(folder / "record.json", archives)
    return {name: about for name, about in archives.items() if not is_done(name)}


class _Bar:
    """A bar as pooch moves it."""

    def __init__(self, bars: Progress, name: str):
        self._bars, self._task = bars, bars.add_task(name, total=None)

    @property
    def total(self) -> None:
        """Bytes to come; to be set."""

    @total.setter
    def total(self, size: int) -> None:
        self._bars.reset(self._task, total=size)

    def update(self, size: int) -> None:
        """So many more bytes have come."""
        self._bars.advance(self._task, size)

    def reset(self) -> None:
        """Begins anew."""
        self._bars.reset(self._task)

    def close(self) -> None:
        """The bar stays."""


def _fetch(archive: Path, about: dict[str, str], bars: Progress) -> Path:
    """Fetches an archive, unless it is there, and checks it."""
    pooch.get_logger().setLevel("WARNING")  # bars say the rest
    for leftover in archive.parent.glob("tmp*"):  # of a process that was killed
        leftover.unlink()
    fetcher = pooch.create(
        path=archive.parent,
        base_url="",
        registry={archive.name: about["checksum"]},
        urls={archive.name: about["url"]},
        retry_if_failed=_TRIES,
    )
    downloader = pooch.HTTPDownloader(
        progressbar=_Bar(bars, archive.name), chunk_size=2**16, timeout=_TIMEOUT
    )
    with naming(archive):
        try:
            return Path(fetcher.fetch(archive.name, downloader=downloader))
        except requests.RequestException as error:
            raise _unreachable(about["url"], error) from error
        except ValueError as error:  # its checksum
            found, expected = f"other bytes ({error})", f"those with {about['checksum']}"
            raise DataError(about["url"], found, expected, "Run this again.") from error


def _unreachable(url: str, error: Any) -> DataError:
    found = f"a connection that fails ({type(error).__name__})"
    if error.response is not None:
        found = f"HTTP {error.response.status_code} {error.response.reason}"
    remedy = "Check the network and run this again: archives that have come are kept."
    return DataError(url, found, "a file that anybody may fetch", remedy)


def _unpack(archive: Path, target: Path, bars: Progress) -> int:
    """Unpacks an archive into a folder; returns how many files it had.

    Members cannot leave the folder: zipfile drops what would lead out of their names.
    """
    tree = archive.with_name(f"{archive.name}.tree")
    shutil.rmtree(tree, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as zipped, naming(tree):
            members = zipped.infolist()
            bar = bars.add_task(
                f"{archive.name}, unpacking", total=sum(member.file_size for member in members)
            )
            for member in members:
                zipped.extract(member, tree)
                bars.advance(bar, member.file_size)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        archive.unlink()
        remedy = "Run this again: it is fetched anew. Report it if that does not help."
        raise DataError(archive, f"damage ({error})", "a whole zip archive", remedy) from error
    os.sync()  # once, and not once a file: what is said to have come is on the disk
    _move(tree, target)
    return sum(not member.is_dir() for member in members)


def _move(source: Path, target: Path) -> None:
    """Moves a tree to its place; folders that are there already take in what is new."""
    if source.is_dir() and target.is_dir():
        for entry in sorted(source.iterdir()):
            _move(entry, target / entry.name)
        source.rmdir()
    else:
        os.replace(source, target)
