"""Files and folders that are whole or not there, checked reading, locks, checksums."""

import contextlib
import csv
import errno
import filecmp
import io
import json
import logging
import os
import re
import secrets
import shutil
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from asdproto.errors import DataError, plain_cell, some

_log = logging.getLogger(__name__)


# --- writing


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file by :func:`replacing`."""
    with replacing(path) as stream:
        stream.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream to write to; what is written becomes the file when the block ends.

    The file is either whole or not there, also after a power cut; one that exists is replaced, and
    left as it was if the block raises.

    Args:
      path: The file.

    Raises:
      OSError: Names ``path``.
    """
    work = temporary_path(path)
    with naming(path):
        try:
            with open(work, "xb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(work, path)
        except BaseException:
            work.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


def append(path: Path, text: str) -> None:
    """Adds lines to the end of a file; errors of writing name it."""
    with naming(path), open(path, "a", encoding="utf-8") as stream:
        stream.write(text)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of writing say which file it is, not which hidden one is in the making."""
    try:
        yield
    except OSError as error:
        if error.filename is None or f".{path.name}." in str(error.filename):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from None
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes a value as json by :func:`write_atomically`."""
    write_atomically(path, json_text(value).encode())


def json_text(value: Any) -> str:
    """A value as the text of a json file."""
    return json.dumps(value, indent=1) + "\n"


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an npz file that is whole or not there; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """The rows of a csv as text, a line for each."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_output(path: Path, content: str) -> None:
    """Writes a file that a person has named; folders above it are made.

    Devices, pipes and links are written through. A file that exists is replaced if it is empty or
    of the same kind as ``content``: both begin with the same line, or both are json objects with
    the same names.

    Raises:
      DataError: There is a file of another kind, such as a recording, or a folder.
      OSError: Names ``path``.
    """
    data = content.encode("utf-8", "backslashreplace")
    target = Path(os.path.realpath(path))
    found = "a folder" if target.is_dir() else ""
    if target.is_file() and not _same_kind(target, data):
        found = "a file of another kind"
    if found:
        expected = "no file yet, or one that this command has written"
        raise DataError(path, found, expected, "Choose another name.")
    if target.exists() and not target.is_file():
        with naming(path), open(target, "wb") as stream:
            stream.write(data)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, data)


def _same_kind(path: Path, content: bytes) -> bool:
    with open(path, "rb") as stream:
        line = stream.readline()
    if not content.startswith(b"{") or not line:
        return line in (b"", content[: content.find(b"\n") + 1])
    try:
        return set(json.loads(path.read_bytes())) == set(json.loads(content))
    except (ValueError, TypeError, RecursionError):
        return False


@contextlib.contextmanager
def new_folder(path: Path, kind: str, mark: str | None = None) -> Iterator[Path]:
    """A hidden folder to fill, which becomes ``path`` as a whole when the block ends.

    Nothing that exists is changed: an earlier result stays if it has the same files, so that the
    same command can be repeated. What killed processes have left is removed.

    Args:
      path: The folder; folders above it are made.
      kind: What the folder holds, for messages.
      mark: A file that only folders of this kind have.

    Raises:
      DataError: There is a file, another result, or a folder that is not empty and has no ``mark``.
    """
    exists = path.is_dir() and any(path.iterdir())
    if not (exists and mark is not None and (path / mark).is_file()):
        check_folder(path, (), f"the same {kind}")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, path.name)
    work = temporary_path(path)
    with naming(path):
        work.mkdir()
    try:
        yield work
        if exists:
            made = [str(one.relative_to(work)) for one in work.rglob("*") if one.is_file()]
            _, different, missing = filecmp.cmpfiles(work, path, made, shallow=False)
            if different or missing:
                found = f"another {kind} ({some(sorted([*different, *missing]))})"
                raise DataError(path, found, "the same one", "Choose another folder.")
        else:
            with naming(path):
                os.rename(work, path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_folder(path: Path, ours: tuple[str, ...], wanted: str) -> None:
    """Refuses to write into a folder with names in it that do not begin as ``ours`` do.

    Raises:
      DataError: There is such a folder, or a file; ``wanted`` says what may be there.
    """
    expected, remedy = f"no folder, an empty one, or {wanted}", "Choose another folder."
    if path.exists() and not path.is_dir():
        raise DataError(path, "a file", expected, remedy)
    names = os.listdir(path) if path.exists() else []
    others = sorted(name for name in names if not name.startswith(ours))
    if others:
        found = f"a folder with other things in it ({some(others)})"
        raise DataError(path, found, expected, remedy)


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Removes what killed processes were making in a folder, or of one name in it."""
    pattern = r".+" if name is None else re.escape(name)
    for path in folder.iterdir():
        if re.fullmatch(rf"\.{pattern}\.[0-9a-f]{{8}}", path.name):
            if path.is_dir() and name is not None:
                shutil.rmtree(path, ignore_errors=True)
            elif path.is_file():
                path.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """A new name in the same folder, hidden, for work on what will be ``path``."""
    # tempfile would make it readable by its owner alone, which a shared store must not be.
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- json that knows what it held, and manifests


def checked(value: Mapping[str, Any], free: Sequence[str] = ()) -> dict[str, Any]:
    """A json object with a checksum of all its fields but those that are ``free``."""
    fixed = {name: one for name, one in value.items() if name not in free}
    return {**value, "checksum": json_checksum(fixed)}


def read_checked(path: Path, free: Sequence[str] = (), *, remedy: str) -> dict[str, Any]:
    """What :func:`checked` was given, of a json file.

    Raises:
      DataError: The file is missing, damaged, or another one.
    """
    value = read_json(path, remedy=remedy)
    saved = value.pop("checksum", None)
    if saved != checked(value, free)["checksum"]:
        expected = "what its checksum says"
        raise DataError(path, "other content than was saved", expected, remedy)
    return value


def write_manifest(path: Path, names: Iterable[str], about: Mapping[str, Any]) -> None:
    """Writes what ties files of a folder together, and is about them; to be written last."""
    contents = {name: (path.parent / name).read_bytes() for name in sorted(names)}
    files = {name: _size_and_checksum(content) for name, content in contents.items()}
    write_json(path, checked({**about, "files": files}))


def check_manifest(path: Path, *, remedy: str) -> dict[str, Any]:
    """What :func:`write_manifest` was given as ``about``; every file that it names is checked.

    Raises:
      DataError: The manifest or a file that it names is missing, damaged, or another one.
    """
    about = read_checked(path, remedy=remedy)
    files = about.pop("files", None)
    if not isinstance(files, dict):
        raise DataError(path, "no list of files", "one that this program wrote", remedy)
    for name, expected in files.items():
        content = read_bytes(path.parent / name, f"the file of {path.name}", remedy)
        if expected != _size_and_checksum(content):
            wanted = f"that which {path.name} names"
            raise DataError(path.parent / name, "other content", wanted, remedy)
    return about


def _size_and_checksum(content: bytes) -> list[int]:
    return [len(content), zlib.crc32(content)]


def checksum(array: np.ndarray) -> int:
    """CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data)


def json_checksum(value: Any) -> int:
    """CRC-32 of a value that json can hold; tuples count as lists, the order of keys not at all."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def differences(here: Any, there: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted names of fields that differ between nested dictionaries, and both values."""
    if isinstance(here, dict) and isinstance(there, dict):
        for key in {**here, **there}:
            yield from differences(here.get(key), there.get(key), f"{name}.{key}".lstrip("."))
    elif here != there:
        yield name, here, there


# --- reading


def read_bytes(path: str | os.PathLike, expected: str, remedy: str) -> bytes:
    """The content of a file; the writer of a pipe would be waited for.

    Raises:
      DataError: It is missing, no regular file, or cannot be read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError(errno.EINVAL, "a folder, pipe, socket or device")
        return Path(path).read_bytes()
    except OSError as reason:
        missing = isinstance(reason, FileNotFoundError)
        found = "no such file" if missing else reason.strerror or str(reason)
        raise DataError(path, found, expected, remedy) from None


def read_json(path: str | os.PathLike, *, remedy: str) -> dict[str, Any]:
    """The object in a json file.

    Raises:
      DataError: The file is missing, cut, binary, or holds something else than an object.
    """
    content = read_bytes(path, "a json object", remedy)
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError) as reason:
        found = f"text that is not json ({reason})"
        raise DataError(path, found, "a json object", remedy) from None
    if not isinstance(value, dict):
        raise DataError(path, f"a json {type(value).__name__}", "a json object", remedy)
    return value


def read_arrays(
    path: str | os.PathLike, names: Sequence[str] = (), *, remedy: str
) -> dict[str, np.ndarray]:
    """Every array of an npz file, by name; pickled objects are refused.

    Raises:
      DataError: The file is missing, damaged, no npz file, or lacks an array of ``names``.
    """
    expected = "an npz file" + (f" of {', '.join(names)}" if names else "")
    content = read_bytes(path, expected, remedy)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = dict(archive)
    except Exception as reason:  # zipfile, zlib and numpy each have their own for damaged bytes
        raise DataError(path, f"damage ({reason})", expected, remedy) from None
    lacking = [name for name in names if name not in arrays]
    if lacking:
        raise DataError(path, f"no array {', '.join(lacking)}", expected, remedy)
    return arrays


def read_csv(path: str | os.PathLike, *, escaped: bool = True) -> list[tuple[int, list[str]]]:
    """The rows of a csv in UTF-8 that are not empty.

    Returns:
      For each row the number of its last line, from 1, and its cells, with no white space about
      them and, if they are ``escaped``, without :func:`asdproto.errors.spreadsheet_cell`'s
      apostrophes.

    Raises:
      DataError: The file is missing, binary, or breaks the rules of quotation marks.
    """
    content = read_bytes(path, "a csv", "Check the path and its permissions.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        before = content.count(b"\n", 0, reason.start)
        found = f"bytes that are not UTF-8, after line {before}"
        raise DataError(path, found, "a csv in UTF-8", "Save it again as csv in UTF-8.") from None
    reader, rows = csv.reader(io.StringIO(text, newline=""), strict=True), []
    last = 0
    try:
        for row in reader:
            last = reader.line_num
            cells = [cell.strip() for cell in row]
            if any(cells):
                rows.append((last, [plain_cell(cell) for cell in cells] if escaped else cells))
    except csv.Error as reason:
        found = _CSV_FAULTS.get(str(reason).partition(" (")[0], str(reason))
        remedy = "Close the quotation marks, or double those that belong to the text."
        raise DataError(f"{path}: row {last + 1}", found, "a csv", remedy) from None
    return rows


_CSV_FAULTS = {
    "unexpected end of data": "a quotation mark that is never closed",
    "field larger than field limit": f"a cell of more than {csv.field_size_limit():,} characters",
}


@contextlib.contextmanager
def locked(path: Path, name: str) -> Iterator[None]:
    """Keeps others from working in a folder, by a lock file that is gone with this process.

    Raises:
      DataError: Another process holds the lock.
    """
    import fcntl

    with open(path / name, "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            has_lock = os.path.samestat(os.fstat(stream.fileno()), os.stat(path / name))
        except (BlockingIOError, FileNotFoundError):
            has_lock = False
        except OSError:
            _log.info("%s: this file system has no locks; going on without", path)
            has_lock = True
        if not has_lock:  # held by another process, or just removed by one that has ended
            remedy = "Wait for it to end, or choose another folder."
            raise DataError(path, "another process working in it", "one at a time", remedy)
        try:
            yield
        finally:
            (path / name).unlink(missing_ok=True)
