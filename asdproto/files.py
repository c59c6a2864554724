"""Files that are whole or not there, folders that one process works in, checksums."""

import contextlib
import logging
import os
import secrets
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from asdproto.errors import StoreError

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
