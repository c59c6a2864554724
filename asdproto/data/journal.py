"""What keeps an extraction safe while it runs: a journal, an array with a place for every clip.

::

    features/
      journal.jsonl           what is extracted, then one line for each finished clip
      features-<random>.npy   the array; ends as features.npy
      lock                    held by the one process that extracts
"""

import errno
import json
import logging
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asdproto.data.dcase import Clip
from asdproto.data.store import FEATURES, Row, differences, finish_store
from asdproto.errors import StoreError
from asdproto.features import FeatureSettings
from asdproto.files import checksum, write_atomically

JOURNAL, LOCK = "journal.jsonl", "lock"
_SYNC_BYTES = 2**26

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """The array that workers write into."""

    file: str
    offset: int
    max_frames: int
    mels: int
    dtype: str

    @property
    def clip_bytes(self) -> int:
        """Bytes of a clip's place."""
        return self.max_frames * self.mels * np.dtype(self.dtype).itemsize


def stamp(file: str | os.PathLike) -> tuple[int, int]:
    """Size in bytes and modification time in nanoseconds: how a changed file is recognized."""
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns


def check_folder(path: Path) -> None:
    """Refuse to extract into a folder that holds something else.

    Args:
      path: The folder, or nothing yet.

    Raises:
      StoreError: It is a file, or holds what no extraction leaves.
    """
    if path.exists() and not path.is_dir():
        raise StoreError(path, "a file", "a folder for the features", "Choose another path.")
    if not path.is_dir() or (path / JOURNAL).is_file():
        return
    # Before its journal exists an extraction holds nothing but an array.
    ours = (".", "features-", LOCK)
    found = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith(ours))
    if found:
        raise StoreError(
            path,
            f"a folder with other things in it ({', '.join(found[:3])})",
            "an empty folder, or a feature store",
            "Choose another folder.",
        )


class Journal:
    """The unfinished array, and the list of the clips that stand in it already.

    The first line says what is extracted and into which array; each further line is a finished
    clip. A line, or a block of the array, that did not reach the disk whole before a power cut
    fails its checksum and is done again.
    """

    def __init__(
        self,
        path: Path,
        plan: dict[str, Any],
        clips: list[Clip],
        stamps: list[tuple[int, int]],
        max_frames: int,
    ):
        self.path, self.plan = path, plan
        self.rows: dict[int, Row] = {}
        self.shape = (len(clips), max_frames, FeatureSettings(**plan["settings"]).columns)
        place = {clip.path: index for index, clip in enumerate(clips)}
        head, lines = self._read()
        old_file = self._array_file(head)
        old = None if old_file is None else np.load(old_file, mmap_mode="r", allow_pickle=False)
        # Clips that are done stay done if clips were added or taken out since.
        same = head.get("clips") == list(place) and old is not None and old.shape == self.shape
        if same and old_file is not None:
            file = old_file
        else:
            file = path / f"features-{secrets.token_hex(4)}.npy"
            self._create(file, plan["dtype"])
        array = np.load(file, mmap_mode="r+", allow_pickle=False)
        for line in lines:
            index = place.get(line["path"])
            frames = line["frames"]
            if old is None or index is None or tuple(line["stamp"]) != stamps[index]:
                continue
            block = old[line["index"], :frames]
            if frames > max_frames or checksum(block) != line["crc32"]:
                continue
            if not same:
                array[index, :frames] = block
            self.rows[index] = Row(
                clips[index], frames, line["crc32"], *stamps[index], line["note"]
            )
        array.flush()
        self.target = Target(str(file), array.offset, *self.shape[1:], plan["dtype"])
        del array, old
        head = {**plan, "array": file.name, "clips": list(place)}
        content = [head, *(self._line(index, row) for index, row in self.rows.items())]
        write_atomically(
            path / JOURNAL, b"".join(json.dumps(line).encode() + b"\n" for line in content)
        )
        for left in path.glob("features-*.npy"):
            if left != file:
                left.unlink()

    def _read(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The journal of an earlier run, if there is one; refuses one of other settings."""
        try:
            text = (self.path / JOURNAL).read_text()
        except FileNotFoundError:
            return {}, []
        lines = []
        for line in text.splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:  # cut off by the end of the run that wrote it
                break
        if not lines:
            return {}, []
        head = lines[0]
        different = differences(
            {**head["settings"], "dtype": head["dtype"]},
            {**self.plan["settings"], "dtype": self.plan["dtype"]},
        )
        if different:
            raise StoreError(
                self.path,
                "an unfinished extraction with other settings: " + "; ".join(different),
                "the settings asked for",
                "Choose another folder, or delete this one to begin again.",
            )
        return head, lines[1:]

    def _array_file(self, head: dict[str, Any]) -> Path | None:
        # The last step but one of an extraction gives the array its final name.
        for name in (head.get("array", ""), FEATURES):
            if name and (self.path / name).is_file():
                return self.path / name
        return None

    def _create(self, file: Path, dtype: str) -> None:
        array = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=self.shape)
        size, offset = array.nbytes, array.offset
        del array
        if not hasattr(os, "posix_fallocate"):
            return
        with open(file, "r+b") as stream:
            try:
                os.posix_fallocate(stream.fileno(), 0, offset + size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    return  # the file system cannot reserve space; a full disk shows later
                file.unlink()
                raise StoreError(
                    self.path,
                    "too little space on the disk",
                    f"{size / 2**30:.1f} GiB for {self.shape[0]} clips",
                    "Free some, or choose another disk.",
                ) from None

    @staticmethod
    def _line(index: int, row: Row) -> dict[str, Any]:
        return {
            "index": index,
            "path": row.clip.path,
            "frames": row.frames,
            "crc32": row.crc32,
            "stamp": (row.bytes, row.modified_ns),
            "note": row.note,
        }

    def __enter__(self) -> "Journal":
        self.stream = open(self.path / JOURNAL, "a")
        self.array = open(self.target.file, "r+b", buffering=0)
        self.writer = ThreadPoolExecutor(1, "features-to-disk")
        self.unsynced = 0
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.shutdown(wait=True, cancel_futures=True)
        self.array.close()
        self.stream.close()

    def add(self, index: int, row: Row) -> None:
        """Note that a clip's features stand in the array."""
        self.rows[index] = row
        self.stream.write(json.dumps(self._line(index, row)) + "\n")
        self.stream.flush()
        # The disk works while the cores do, instead of after them.
        self.unsynced += 1
        if self.unsynced * self.target.clip_bytes >= _SYNC_BYTES:
            self.unsynced = 0
            self.writer.submit(os.fsync, self.array.fileno())

    def finish(self, rows: list[Row]) -> None:
        """Make the folder a store."""
        os.replace(self.target.file, self.path / FEATURES)
        finish_store(self.path, rows, shape=self.shape, **self.plan)
        (self.path / JOURNAL).unlink()
