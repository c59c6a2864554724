"""What tells a collection from another, and from itself when it has changed."""

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from asdproto.data.dcase import Clip
from asdproto.errors import counted, some

# Size in bytes and modification time in nanoseconds: how a changed file is recognized.
Stamp = tuple[int, int]


def stamp_of(file: Path) -> Stamp:
    """Size and modification time of a file; ``(0, 0)`` where there is none."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return 0, 0
    return status.st_size, status.st_mtime_ns


def identity_of(clips: Iterable[Clip], stamps: Iterable[Stamp]) -> dict[str, list[int]]:
    """The identity of clips whose files have these stamps, fit for json.

    Returns:
      Path of each clip -> its size in bytes, its modification time in nanoseconds, and a checksum
      of what is known about it.
    """
    return {
        clip.path: [*stamp, zlib.crc32("\0".join(clip.fields()[1:]).encode())]
        for clip, stamp in zip(clips, stamps, strict=True)
    }


def is_identity(value: Mapping[str, object]) -> bool:
    """Whether it is what :func:`identity_of` says of clips, by its shape."""
    return all(
        isinstance(entry, list) and len(entry) == 3 and all(isinstance(x, int) for x in entry)
        for entry in value.values()
    )


def changes(before: Mapping[str, Sequence[int]], now: Mapping[str, Sequence[int]]) -> str:
    """Say in one line what changed between two identities.

    Returns:
      Such as ``"3 files added (c.wav, d.wav, e.wav), 1 changed (a.wav)"``; ``""`` where nothing
      did.
    """
    both = [path for path in now if path in before]
    groups = {
        "added": [path for path in now if path not in before],
        "changed": [path for path in both if list(before[path][:2]) != list(now[path][:2])],
        "described otherwise": [path for path in both if before[path][2] != now[path][2]],
        "removed": [path for path in before if path not in now],
    }
    said: list[str] = []
    for what, paths in groups.items():
        if paths:
            number = str(len(paths)) if said else counted(len(paths), "file")
            said.append(f"{number} {what} ({some(sorted(paths))})")
    return ", ".join(said)
