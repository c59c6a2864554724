"""Shards: features of some clips, on their way from the workers of an extraction into a store.

A shard is one line of json, which says what was extracted how, and then the frames of its clips. It
is renamed into place when it is whole.
"""

import json
import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asdproto import features
from asdproto.data.store import check_settings
from asdproto.errors import DataError, StoreError
from asdproto.files import checksum, remove_abandoned, write_atomically

SHARD = "shard-"  # how their names begin
# What reading a damaged shard can raise.
DAMAGE = (ValueError, TypeError, KeyError, OverflowError, RecursionError)
# Clips of a shard: enough to hide the hand-over to a worker, little enough to lose.
_MOST, _FEWEST = 64, 8

_log = logging.getLogger(__name__)

# What the table says of a clip (frames, checksum, bytes, modification time, note); its features.
Done = tuple[tuple[Any, ...], np.ndarray]


@dataclass(frozen=True, slots=True)
class Piece:
    """Clips that become one shard."""

    root: str
    folder: str
    paths: list[str]
    plan: dict[str, Any]


def split(paths: list[str], workers: int) -> Iterator[list[str]]:
    """The paths of each shard; fewer towards the end, so that all workers end together."""
    first = 0
    while first < len(paths):
        last = first + min(_MOST, max(_FEWEST, -(-(len(paths) - first) // (4 * workers))))
        yield paths[first:last]
        first = last


def extract_piece(piece: Piece) -> tuple[str | None, list[DataError]]:
    """Extract some clips into a shard; where it is, and what is wrong with the others."""
    settings = features.FeatureSettings(**piece.plan["settings"])
    entries: list[list[Any]] = []
    blocks: list[np.ndarray] = []
    errors: list[DataError] = []
    shard = Path(piece.folder, SHARD + secrets.token_hex(8))
    try:
        for path in piece.paths:
            file = Path(piece.root, path)
            try:
                before = stamp_of(file)
                array, notes = features.file_features(file, settings)
                if stamp_of(file) != before:
                    found, expected = "a file that changed meanwhile", "files at rest"
                    raise DataError(file, found, expected, "Run this again.")
            except DataError as error:
                errors.append(error.at(path))
                continue
            except OSError as error:
                found = error.strerror or str(error)
                errors.append(DataError(path, found, "a readable file", "Check the collection."))
                continue
            block = array.astype(piece.plan["dtype"])
            entries.append([path, len(block), checksum(block), *before, "; ".join(notes)])
            blocks.append(block)
    finally:  # also when interrupted
        if blocks:
            head = json.dumps({"plan": piece.plan, "clips": entries}).encode() + b"\n"
            content = b"".join([head, *(block.tobytes() for block in blocks)])
            write_atomically(shard, content, sync=False)
    return str(shard) if blocks else None, errors


def read_shard(shard: Path, plan: dict[str, Any]) -> Iterator[tuple[str, Done]]:
    """Paths of a shard's clips, what is known of them, and their features, mapped and not read.

    Raises:
      StoreError: Its features are made with other settings.
      ValueError: The file is no whole shard; or one of :data:`DAMAGE`.
    """
    with open(shard, "rb") as stream:
        head = json.loads(stream.readline())
        offset = stream.tell()
    settings = {**head["plan"]["settings"], "dtype": head["plan"]["dtype"]}
    asked = {**plan["settings"], "dtype": plan["dtype"]}
    check_settings("an unfinished extraction", shard.parent, settings, asked)
    columns = features.FeatureSettings(**plan["settings"]).columns
    shape = (sum(entry[1] for entry in head["clips"]), columns)
    frames = np.memmap(shard, plan["dtype"], "r", offset, shape)
    first = 0
    for path, length, *rest in head["clips"]:
        yield path, ((length, *rest), frames[first : first + length])
        first += length


def done_before(path: Path, plan: dict[str, Any], wanted: set[str], root: Path) -> dict[str, Done]:
    """What an earlier run has left that is whole and still of the recordings as they are."""
    done: dict[str, Done] = {}
    remove_abandoned(path)
    for file in sorted(path.glob(f"{SHARD}*")):
        whole: dict[str, Done] = {}
        try:
            for clip, (entry, block) in read_shard(file, plan):
                _, crc32, *stamp, _ = entry
                if checksum(block) != crc32:
                    raise ValueError(f"features of {clip} that do not match their checksum")
                if clip in wanted and has_stamp(root / clip, stamp):
                    whole[clip] = entry, block
            done.update(whole)
        except StoreError:
            raise
        except DAMAGE as error:
            _log.warning("%s is damaged (%s): its clips are extracted again", file, error)
            file.unlink()
    return done


def remove_shards(path: Path) -> None:
    """Remove the shards of a store that is finished."""
    for shard in path.glob(f"{SHARD}*"):
        shard.unlink()


def stamp_of(file: Path) -> tuple[int, int]:
    """Size in bytes and modification time in nanoseconds: how a changed file is recognized."""
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns


def has_stamp(file: Path, stamp: Sequence[int]) -> bool:
    """Whether a file is there and as it was when it had this stamp."""
    try:
        return stamp_of(file) == tuple(stamp)
    except OSError:
        return False
