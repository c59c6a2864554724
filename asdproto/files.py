"""Files that are whole or not there, reading them safely, folders of one process, checksums."""

import contextlib
import io
import json
import logging
import os
import secrets
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asdproto.errors import DataError, StoreError

_log = logging.getLogger(__name__)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either whole or not there, also after a power cut."""
    work = beside(path)
    try:
        with open(work, "xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(work, path)
    except BaseException:
        work.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def beside(path: Path) -> Path:
    """A new name in the same folder, hidden, for work on what will be ``path``."""
    # tempfile would make it readable by its owner alone, which a shared store must not be.
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


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
      The object; ``null`` is None.

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


@contextlib.contextmanager
def locked(path: Path, name: str) -> Iterator[None]:
    """Keep every other process from working in a folder; a killed one's lock is void.

    Args:
      path: The folder.
      name: Of the lock file in it.

    Raises:
      StoreError: Another process holds the lock.
    """
    import fcntl

    with open(path / name, "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                path,
                "another process working in it",
                "one at a time",
                "Wait for it to end, or choose another folder.",
            ) from None
        except OSError:
            _log.info("%s: this file system has no locks; going on without", path)
        yield
