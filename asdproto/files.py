"""Files that are whole or not there, reading them safely, folders of one process, checksums."""

import contextlib
import csv
import errno
import io
import json
import logging
import os
import re
import secrets
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from asdproto.errors import DataError, some

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_log = logging.getLogger(__name__)


def write_atomically(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Write a file that is either whole or not there, also after a power cut.

    Args:
      path: The file; replaced as a whole if it exists.
      content: What it shall hold.
      sync: Wait for the disk. Without it a killed process still leaves whole files only, but a
        power cut may leave an empty one.

    Raises:
      OSError: Names ``path``; where the disk is full, also how much space is missing.
    """
    with replacing(path, len(content), sync=sync) as stream:
        stream.write(content)


@contextlib.contextmanager
def replacing(path: Path, size: int, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A stream to write to; what is written becomes the file ``path`` when the block ends.

    Args:
      path: The file; replaced as a whole if it exists, untouched if the block raises.
      size: Bytes that will be written, reserved beforehand where the file system can do that.
      sync: As for :func:`write_atomically`.

    Yields:
      The stream.

    Raises:
      OSError: Names ``path``; where the disk is full, also how much space is missing.
    """
    work = beside(path)
    with naming(path, size):
        try:
            with open(work, "xb") as stream:
                _reserve(stream, size)
                yield stream
                stream.flush()
                if sync:
                    os.fsync(stream.fileno())
            os.replace(work, path)
        except BaseException:
            work.unlink(missing_ok=True)  # before the free space is counted
            raise
    if sync:
        sync_folder(path.parent)


def append(path: Path, text: str) -> None:
    """Add lines to the end of a file.

    Raises:
      OSError: Names ``path``; where the disk is full, also how much space is missing.
    """
    with naming(path, len(text)), open(path, "a", encoding="utf-8") as stream:
        stream.write(text)


@contextlib.contextmanager
def naming(path: Path, size: int) -> Iterator[None]:
    """Errors of writing say which file it is, and on a full disk how much space is missing.

    Args:
      path: The file, or the folder of what is written.
      size: Bytes that are written.
    """
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise OSError(error.errno, _space(error, path, size), str(path)) from None
        unnamed = error.filename is None or f".{path.name}." in str(error.filename)
        if error.errno and unnamed:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def _reserve(stream: BinaryIO, size: int) -> None:
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(stream.fileno(), 0, size)
        except OSError as error:
            if error.errno in _FULL:  # other file systems cannot reserve space
                raise


def _space(error: OSError, path: Path, size: int) -> str:
    status = os.statvfs(path.parent)
    missing = size - status.f_bavail * status.f_frsize
    needed = f"{error.strerror}; {size:,} bytes are needed"
    # Where none are missing, a quota or a limit of the process is at work.
    return f"{needed}, {missing:,} of them are missing" if missing > 0 else needed


def is_full(error: OSError) -> bool:
    """Whether an error says that there is no space left."""
    return error.errno in _FULL


def beside(path: Path) -> Path:
    """A new name in the same folder, hidden, for work on what will be ``path``."""
    # tempfile would make it readable by its owner alone, which a shared store must not be.
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def check_folder(
    path: Path, ours: tuple[str, ...], wanted: str, *, error: type[DataError] = DataError
) -> None:
    """Refuse to write into a folder that holds something else.

    Args:
      path: The folder, which need not be there.
      ours: How the names begin that may be in it.
      wanted: What the folder may hold, for the message.
      error: What to raise.

    Raises:
      DataError: There is a file, or something else in the folder.
    """
    expected, remedy = f"an empty folder, or {wanted}", "Choose another folder."
    if path.exists() and not path.is_dir():
        raise error(path, "a file", expected, remedy)
    names = os.listdir(path) if path.exists() else []
    others = sorted(name for name in names if not name.startswith(ours))
    if others:
        found = f"a folder with other things in it ({some(others)})"
        raise error(path, found, expected, remedy)


def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes were writing into a folder, where nobody else writes now."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.[0-9a-f]{8}", path.name) and path.is_file():
            path.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Bytes of a file; -1 where there is none."""
    return path.stat().st_size if path.is_file() else -1


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(
    path: str | os.PathLike, *, remedy: str, error: type[DataError] = DataError
) -> dict[str, Any]:
    """Read a json file that holds an object.

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
    """Read every array of an npz file; pickled objects are refused.

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
    """Read the rows of a csv.

    Args:
      path: The file, in UTF-8.
      escaped: Whether :func:`spreadsheet_cell` made the cells, so that its apostrophes come off.
      error: What to raise where it cannot be read.

    Returns:
      For each row that is not empty the number of its last line, from 1, and its cells, with no
      white space about them.

    Raises:
      DataError: The file is missing, binary, or breaks the rules of quotation marks.
    """
    number, rows = 0, []
    try:
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


def spreadsheet_cell(text: str) -> str:
    """A cell that no spreadsheet runs as a formula: an apostrophe stands before ``=``, ``+``...

    The apostrophe is what spreadsheets themselves mark a text with; :func:`plain_cell` takes it
    off again, so every text survives a round trip.
    """
    return f"'{text}" if re.match(r"'*[=+\-@\t\r]", text) else text


def plain_cell(text: str) -> str:
    """The text that :func:`spreadsheet_cell` was given."""
    return text[1:] if re.match(r"'+[=+\-@\t\r]", text) else text


def write_json(path: Path, value: Any) -> None:
    """Writes a value as json by :func:`write_atomically`."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """The rows of a csv as text, a line for each."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an npz file that is either whole or not there; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


def _unreadable(reason: OSError) -> str:
    if isinstance(reason, FileNotFoundError):
        return "no such file"
    return reason.strerror or str(reason)


def checksum(frames: np.ndarray) -> int:
    """CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(frames).view(np.uint8).data)


def json_checksum(value: Any) -> int:
    """CRC-32 of a value that json can hold; tuples count as lists, the order of keys not at all."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


@contextlib.contextmanager
def locked(path: Path, name: str) -> Iterator[None]:
    """Keep every other process from working in a folder; a killed one's lock is void.

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
