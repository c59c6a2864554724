"""Files and folders that are whole or not there, checked reading, locks, checksums."""

import contextlib
import csv
import errno
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


def write_atomically(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Writes a file that is either whole or not there, also after a power cut.

    Args:
      path: The file; replaced as a whole if it exists.
      content: What it shall hold.
      sync: Wait for the disk. Without it a killed process still leaves whole files only, but a
        power cut may leave an empty one.

    Raises:
      OSError: Names ``path``.
    """
    with replacing(path, sync=sync) as stream:
        stream.write(content)


@contextlib.contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A stream to write to; what is written becomes the file ``path`` when the block ends.

    Args:
      path: The file; replaced as a whole if it exists, untouched if the block raises.
      sync: As for :func:`write_atomically`.

    Yields:
      The stream.

    Raises:
      OSError: Names ``path``.
    """
    work = beside(path)
    with naming(path):
        try:
            with open(work, "xb") as stream:
                yield stream
                stream.flush()
                if sync:
                    os.fsync(stream.fileno())
            os.replace(work, path)
        except BaseException:
            work.unlink(missing_ok=True)
            raise
    if sync:
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
    """Writes a file that a person has named.

    Devices, pipes and links are written through. A file that exists is replaced if it is empty or
    of the same kind as ``content``: both begin with the same line, or both are json objects with
    the same names.

    Args:
      path: The file; folders above it are made.
      content: What it shall hold.

    Raises:
      DataError: There is a file of another kind, such as a recording, or a folder.
      OSError: Names ``path``.
    """
    data = content.encode("utf-8", "backslashreplace")
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file() and not target.is_dir():
        with naming(path), open(target, "wb") as stream:
            stream.write(data)
        return
    if target.is_dir() or (target.exists() and not _same_kind(target.read_bytes(), data)):
        found = "a folder" if target.is_dir() else "a file of another kind"
        expected = "no file yet, or one that this command has written"
        raise DataError(path, found, expected, "Choose another name.")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, data)


def _same_kind(old: bytes, new: bytes) -> bool:
    if not old:
        return True
    if not new.startswith(b"{"):
        return old.partition(b"\n")[0] == new.partition(b"\n")[0]
    try:
        return set(json.loads(old)) == set(json.loads(new))
    except (ValueError, TypeError, RecursionError):
        return False


@contextlib.contextmanager
def new_folder(path: Path, kind: str, mark: str | None = None) -> Iterator[Path]:
    """A folder to fill, which becomes ``path`` as a whole when the block ends.

    Nothing that exists is changed: an earlier result stays if it has the same files, so that the
    same command can be repeated, and is refused if it differs.

    Args:
      path: The folder; folders above it are made.
      kind: What the folder holds, for messages.
      mark: A file that only folders of this kind have; without it, any folder that is not empty is
        refused.

    Yields:
      A hidden folder beside ``path``; what killed processes have left there is removed.

    Raises:
      DataError: There is a file, or a folder that is not empty and no such result.
    """
    exists = path.is_dir() and any(path.iterdir())
    if not (exists and mark is not None and (path / mark).is_file()):
        check_folder(path, (), f"the same {kind}")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, path.name)
    work = beside(path)
    with naming(path):
        work.mkdir()
    try:
        yield work
        if exists:
            made = (file.relative_to(work) for file in work.rglob("*") if file.is_file())
            other = [str(name) for name in made if not _same_bytes(work / name, path / name)]
            if other:
                found, expected = f"another {kind} ({some(sorted(other))})", "the same one"
                raise DataError(path, found, expected, "Choose another folder.")
        else:
            with naming(path):
                os.rename(work, path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _same_bytes(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def check_folder(
    path: Path, ours: tuple[str, ...], wanted: str, *, error: type[DataError] = DataError
) -> None:
    """Refuses to write into a folder that holds something else.

    Args:
      path: The folder, which need not be there.
      ours: How the names begin that may be in it.
      wanted: What the folder may hold, for the message.
      error: What to raise.

    Raises:
      DataError: There is a file, or something else in the folder.
    """
    expected, remedy = f"no folder, an empty one, or {wanted}", "Choose another folder."
    if path.exists() and not path.is_dir():
        raise error(path, "a file", expected, remedy)
    names = os.listdir(path) if path.exists() else []
    others = sorted(name for name in names if not name.startswith(ours))
    if others:
        found = f"a folder with other things in it ({some(others)})"
        raise error(path, found, expected, remedy)


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Removes what killed processes were making in a folder, or of one name in it."""
    pattern = r".+" if name is None else re.escape(name)
    for path in folder.iterdir():
        if re.fullmatch(rf"\.{pattern}\.[0-9a-f]{{8}}", path.name):
            if path.is_dir() and name is not None:
                shutil.rmtree(path, ignore_errors=True)
            elif path.is_file():
                path.unlink(missing_ok=True)


def beside(path: Path) -> Path:
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


# --- manifests


def write_manifest(path: Path, names: Iterable[str], about: Mapping[str, Any]) -> None:
    """Writes what ties the files of a folder together; to be written last.

    Args:
      path: The json file, in the folder.
      names: Files of the folder, relative to it.
      about: What else it says; anything that json holds.
    """
    files = {name: _size_and_checksum(path.parent / name) for name in sorted(names)}
    manifest = {**about, "files": files}
    write_json(path, {**manifest, "checksum": json_checksum(manifest)})


def check_manifest(
    path: Path, *, remedy: str, error: type[DataError] = DataError
) -> dict[str, Any]:
    """What :func:`write_manifest` was given as ``about``; every file that it names is checked.

    Raises:
      DataError: The manifest or a file that it names is missing, damaged, or another one.
    """
    manifest = read_json(path, remedy=remedy, error=error)
    own = manifest.pop("checksum", None)
    files = manifest.get("files")
    if own != json_checksum(manifest) or not isinstance(files, dict):
        raise error(path, "a manifest that was changed", "one that this program wrote", remedy)
    for name, expected in files.items():
        file = path.parent / name
        try:
            found = _size_and_checksum(file)
        except OSError as reason:
            raise error(file, _unreadable(reason), f"the file of {path.name}", remedy) from None
        if found != expected:
            raise error(file, "other content", f"that which {path.name} names", remedy)
    return {name: value for name, value in manifest.items() if name != "files"}


def _size_and_checksum(path: Path) -> list[int]:
    content = path.read_bytes()
    return [len(content), zlib.crc32(content)]


def checksum(array: np.ndarray) -> int:
    """CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data)


def json_checksum(value: Any) -> int:
    """CRC-32 of a value that json can hold; tuples count as lists, the order of keys not at all."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


# --- reading


def read_json(
    path: str | os.PathLike, *, remedy: str, error: type[DataError] = DataError
) -> dict[str, Any]:
    """Reads a json file that holds an object.

    Args:
      path: The file.
      remedy: What to do where it cannot be read.
      error: What to raise then.

    Returns:
      The object.

    Raises:
      DataError: The file is missing, cut, binary, or holds something else than an object.
    """
    expected = "a json object"
    try:
        _check_regular(path)
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as reason:
        raise error(path, _unreadable(reason), expected, remedy) from None
    except (ValueError, RecursionError) as reason:
        raise error(path, f"text that is not json ({reason})", expected, remedy) from None
    if not isinstance(value, dict):
        raise error(path, f"a json {type(value).__name__}", expected, remedy)
    return value


def read_arrays(
    path: str | os.PathLike,
    names: Sequence[str] = (),
    *,
    remedy: str,
    error: type[DataError] = DataError,
) -> dict[str, np.ndarray]:
    """Reads every array of an npz file; pickled objects are refused.

    Args:
      path: The file.
      names: Arrays that it must hold.
      remedy: What to do where it cannot be read.
      error: What to raise then.

    Returns:
      The arrays by name.

    Raises:
      DataError: The file is missing, damaged, no npz file, or lacks an array.
    """
    expected = "an npz file" + (f" of {', '.join(names)}" if names else "")
    try:
        _check_regular(path)
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
    except OSError as reason:
        raise error(path, _unreadable(reason), expected, remedy) from None
    except Exception as reason:  # zipfile, zlib and numpy each have their own for damaged bytes
        raise error(path, f"damage ({reason})", expected, remedy) from None
    lacking = [name for name in names if name not in arrays]
    if lacking:
        raise error(path, f"no array {', '.join(lacking)}", expected, remedy)
    return arrays


def read_csv(
    path: str | os.PathLike, *, escaped: bool = True, error: type[DataError] = DataError
) -> list[tuple[int, list[str]]]:
    """Reads the rows of a csv.

    Args:
      path: The file, in UTF-8.
      escaped: Whether the cells were made by :func:`asdproto.errors.spreadsheet_cell`, so that its
        apostrophes come off.
      error: What to raise where it cannot be read.

    Returns:
      For each row that is not empty the number of its last line, from 1, and its cells, with no
      white space about them.

    Raises:
      DataError: The file is missing, binary, or breaks the rules of quotation marks.
    """
    number, rows = 0, []
    try:
        _check_regular(path)
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            for cells in reader:
                number = reader.line_num
                texts = [cell.strip() for cell in cells]
                rows.append((number, [plain_cell(text) for text in texts] if escaped else texts))
    except OSError as reason:
        remedy = "Check the path and its permissions."
        raise error(path, _unreadable(reason), "a csv", remedy) from None
    except UnicodeDecodeError:
        found = f"bytes that are not UTF-8, after line {number}"
        raise error(path, found, "a csv in UTF-8", "Save it again as csv in UTF-8.") from None
    except csv.Error as reason:
        found = _CSV_FAULTS.get(str(reason).partition(" (")[0], str(reason))
        remedy = "Close the quotation marks, or double those that belong to the text."
        raise error(f"{path}: row {number + 1}", found, "a csv", remedy) from None
    return [(number, cells) for number, cells in rows if any(cells)]


_CSV_FAULTS = {
    "unexpected end of data": "a quotation mark that is never closed",
    "field larger than field limit": f"a cell of more than {csv.field_size_limit():,} characters",
}


def _check_regular(path: str | os.PathLike) -> None:
    """Opening a pipe would wait for a writer."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "a folder, pipe, socket or device")


def _unreadable(reason: OSError) -> str:
    if isinstance(reason, FileNotFoundError):
        return "no such file"
    return reason.strerror or str(reason)


def is_full(error: OSError) -> bool:
    """Whether an error says that there is no space left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def size_of(path: Path) -> int:
    """Bytes of a file; -1 where there is none."""
    return path.stat().st_size if path.is_file() else -1


@contextlib.contextmanager
def locked(path: Path, name: str) -> Iterator[None]:
    """Keeps every other process from working in a folder; a killed one's lock is void.

    Args:
      path: The folder.
      name: Of the lock file in it, which is gone afterwards.

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
