"""The feature store: one memory-mapped array of all clips, a table of the clips, a manifest.

::

    features/
      features.npy    [clips, max_frames, mels], float16 or float32, zeros beyond a clip's frames
      table.csv       one row a clip: what is known of it, frames, checksum, source file, its audio
      manifest.json   settings, shape, versions, checksum of the table; written last

A folder without ``manifest.json`` is no store. Reading one needs NumPy and nothing else.
"""

import contextlib
import csv
import dataclasses
import functools
import importlib.metadata
import io
import json
import os
import shutil
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asdproto.audio_info import AudioInfo, audio_statistics
from asdproto.data.dcase import Clip
from asdproto.data.identity import identity_of
from asdproto.errors import DataError, some
from asdproto.files import (
    checksum,
    csv_text,
    json_checksum,
    read_json,
    replacing,
    write_atomically,
    write_json,
)

FORMAT = 2
FEATURES, TABLE, MANIFEST = "features.npy", "table.csv", "manifest.json"
DTYPES = ("float16", "float32")
# Size of a store over that of its clips without padding; see overlong.
MOST_PADDED = 4
_CLIP_FIELDS = tuple(field.name for field in dataclasses.fields(Clip))
_AUDIO_FIELDS = tuple(field.name for field in dataclasses.fields(AudioInfo))
_COLUMNS = (*_CLIP_FIELDS, "frames", "crc32", "bytes", "modified_ns", *_AUDIO_FIELDS)
_AGAIN = "Delete this store and extract it again."


@dataclass(frozen=True, slots=True)
class Row:
    """One clip of a store.

    Attributes:
      clip: What is known of it.
      frames: Its frames.
      crc32: Checksum of these frames as stored.
      stamp: Size in bytes and modification time in nanoseconds of its source file; ``(0, 0)``
        where the features came as an array.
      audio: What its recording was; ``None`` where the features came as an array.
    """

    clip: Clip
    frames: int
    crc32: int
    stamp: tuple[int, int] = (0, 0)
    audio: AudioInfo | None = None


@dataclass(frozen=True)
class FeatureStore:
    """An open feature store.

    Attributes:
      root: Its folder.
      features: Memory map, shape ``[clips, max_frames, mels]``; zeros beyond a clip's frames.
      rows: What is known of each clip, in the order of the array.
      settings: The feature settings as a plain dictionary.
      manifest: Everything ``manifest.json`` says.
    """

    root: Path
    features: np.ndarray
    rows: Sequence[Row]
    settings: dict[str, Any]
    manifest: dict[str, Any]

    def __len__(self) -> int:
        return len(self.rows)

    @functools.cached_property
    def clips(self) -> list[Clip]:
        """The clips, in the order of the array."""
        return [row.clip for row in self.rows]

    @functools.cached_property
    def frames(self) -> np.ndarray:
        """Frames of each clip, int32, shape ``[clips]``."""
        return np.array([row.frames for row in self.rows], np.int32)

    @property
    def dtype(self) -> np.dtype:
        """float16 or float32: what features of a recording must be rounded to, to equal these."""
        return self.features.dtype

    def read(self, index: int) -> np.ndarray:
        """One clip without its padding.

        Args:
          index: Position in :attr:`clips`.

        Returns:
          float32, shape ``[frames, mels]``, a copy.
        """
        return np.array(self.features[index, : self.frames[index]], dtype=np.float32)

    def identity(self) -> dict[str, list[int]]:
        """As :meth:`asdproto.data.collection.Collection.identity`, of the recordings then.

        Where features came as arrays, their checksum stands for the modification time.
        """
        stamps = [row.stamp if any(row.stamp) else (0, row.crc32) for row in self.rows]
        return identity_of(self.clips, stamps)

    def audio_statistics(self) -> dict[str, dict[str, list[float]]]:
        """What the training recordings of each machine type have in common.

        Returns:
          Machine type -> :func:`asdproto.audio.audio_statistics`, fit for json; without those
          whose features came as arrays.
        """
        infos: dict[str, list[AudioInfo]] = defaultdict(list)
        for row in self.rows:
            if row.clip.split == "train" and row.audio is not None:
                infos[row.clip.machine_type].append(row.audio)
        return {machine_type: audio_statistics(own) for machine_type, own in infos.items()}

    def verify(self) -> None:
        """Compare every clip with its checksum.

        Raises:
          DataError: Names the damaged clips.
        """
        damaged = [
            row.clip.path
            for row, features in zip(self.rows, self.features, strict=True)
            if checksum(features[: row.frames]) != row.crc32
        ]
        if damaged:
            found = f"damage in {len(damaged)} of {len(self)} clips ({some(damaged)})"
            expected = "features that match their checksums"
            raise DataError(self.root / FEATURES, found, expected, _AGAIN)


def write_store(
    path: str | os.PathLike,
    features: np.ndarray | Sequence[np.ndarray],
    clips: Sequence[Clip],
    *,
    frames: Sequence[int] | np.ndarray | None = None,
    settings: Any,
    dtype: str = "float16",
) -> FeatureStore:
    """Make a store from arrays that somebody computed.

    Args:
      path: Folder to make; it must not hold a store yet.
      features: Shape ``[clips, max_frames, mels]``, or a sequence of ``[frames, mels]``.
      clips: One for each.
      frames: Frames that count in each clip, for the array form; all of them by default.
      settings: A dictionary, or a dataclass, that says how the features were made.
      dtype: ``"float16"`` or ``"float32"``.

    Returns:
      The store, open.

    Raises:
      DataError: The folder is taken, shapes disagree, or a value is not finite as ``dtype``.
    """
    path = Path(path)
    check_dtype(dtype)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(path, "something there already", "a new folder", "Choose another folder.")
    counts = [len(array) for array in features] if frames is None else [int(n) for n in frames]
    if not len(features) == len(clips) == len(counts) > 0:
        found = f"{len(features)} arrays, {len(clips)} clips and {len(counts)} counts of frames"
        raise DataError(path, found, "as many of each, at least one", "Correct them.")
    mels = np.shape(features[0])[-1]
    rows, blocks = [], []
    for clip, array, count in zip(clips, features, counts, strict=True):
        block = np.asarray(array)
        if block.ndim != 2 or block.shape[1] != mels or not 0 < count <= len(block):
            found = f"features of shape {block.shape}, of which {count} frames count"
            expected = f"shape [frames, {mels}] and at least one frame"
            raise DataError(clip.path, found, expected, "Correct the array or the count.")
        with np.errstate(over="ignore"):
            block = block[:count].astype(dtype)
        if not np.isfinite(block).all():
            found = f"values that are not finite as {dtype}"
            remedy = "Correct the features, or choose dtype float32."
            raise DataError(clip.path, found, "finite values", remedy)
        rows.append(Row(clip, count, checksum(block)))
        blocks.append(block)
    path.mkdir(parents=True, exist_ok=True)
    try:
        save_store(path, rows, blocks, settings=as_settings(settings), columns=mels, dtype=dtype)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return open_store(path)


def overlong(frames: Mapping[str, int]) -> list[str]:
    """Clips so much longer than the others that a store would hold padding in the main.

    All clips of a store are as long as its longest, on disk and on the devices that train, where
    one rectangular array makes a crop a single gather. That wastes nothing while lengths are alike,
    so what is limited is how unlike they may be.

    Args:
      frames: Length of each clip.

    Returns:
      Those to leave out, longest first, so that the others take at most 4 times their own size.
    """
    order, total, longest = sorted(frames, key=frames.__getitem__), sum(frames.values()), []
    while order and frames[order[-1]] * len(order) > MOST_PADDED * total:
        longest.append(order.pop())
        total -= frames[longest[-1]]
    return longest


def save_store(
    folder: Path,
    rows: Sequence[Row],
    blocks: Iterable[np.ndarray],
    *,
    settings: dict,
    columns: int,
    dtype: str,
    skipped: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the three files of a store, the manifest last.

    Args:
      folder: Where.
      rows: One for each clip.
      blocks: Features of each clip, ``dtype``, shape ``[frames, mels]``.
      settings: How they were made.
      columns: Numbers in a frame.
      dtype: Of the store.
      skipped: What was left out, for the manifest.

    Raises:
      OSError: The disk is full, for example; names the file.
    """
    shape = (len(rows), max(row.frames for row in rows), columns)
    about = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    row_bytes = shape[1] * shape[2] * np.dtype(dtype).itemsize
    # Written, not mapped: a full disk is then an error, and not the end of the process.
    with replacing(folder / FEATURES) as stream:
        np.lib.format.write_array_header_1_0(stream, about)
        for block in blocks:
            stream.write(np.ascontiguousarray(block).data)
            stream.write(bytes(row_bytes - block.nbytes))
    lines: list[Iterable[Any]] = [_COLUMNS]
    for row in rows:
        audio = [""] * len(_AUDIO_FIELDS) if row.audio is None else dataclasses.astuple(row.audio)
        known = row.frames, f"{row.crc32:08x}", *row.stamp
        lines.append([*dataclasses.astuple(row.clip), *known, *audio])
    table = csv_text(lines).encode()
    manifest = {
        "format": FORMAT,
        "settings": settings,
        "dtype": dtype,
        "shape": shape,
        "skipped": list(skipped),
        "table_crc32": f"{zlib.crc32(table):08x}",
        "versions": versions(),
    }
    manifest["crc32"] = f"{json_checksum(manifest):08x}"
    write_atomically(folder / TABLE, table)
    write_json(folder / MANIFEST, manifest)


def is_store(path: str | os.PathLike) -> bool:
    """Whether a folder holds a whole feature store."""
    return os.path.isfile(os.path.join(path, MANIFEST))


def open_store(path: str | os.PathLike, *, expect: Any = None, verify: bool = True) -> FeatureStore:
    """Open a store for reading.

    Args:
      path: Its folder.
      expect: Feature settings (a dictionary or a dataclass) that it must have been made with.
      verify: Compare every clip with its checksum: 0.2 seconds of processor time per GB, about
        twice what a copy from the disk's cache takes.

    Returns:
      The store.

    Raises:
      DataError: There is no complete store, it is damaged, or its settings differ.
    """
    root = Path(path)
    if not is_store(root):
        found = "an extraction that has not ended" if root.is_dir() else "nothing"
        remedy = "Run the extraction, again with the same settings if it was interrupted."
        raise DataError(root, found, "a feature store", remedy)

    def damaged(name: str, found: str, expected: str) -> DataError:
        return DataError(root / name, found, expected, _AGAIN)

    for name in (TABLE, FEATURES):
        if not os.path.isfile(root / name):  # opening a pipe would wait for a writer
            raise damaged(name, "no such file", "a whole store")
    manifest = read_json(root / MANIFEST, remedy=_AGAIN)
    own = manifest.pop("crc32", None)
    if own != f"{json_checksum(manifest):08x}":
        raise damaged(MANIFEST, "a manifest that was changed", "as written")
    if manifest.get("format") != FORMAT:
        raise damaged(MANIFEST, f"format {manifest.get('format')}", f"format {FORMAT}")
    shape, dtype, settings = tuple(manifest["shape"]), manifest["dtype"], manifest["settings"]
    table = (root / TABLE).read_bytes()
    if f"{zlib.crc32(table):08x}" != manifest["table_crc32"]:
        raise damaged(TABLE, "a table that was changed", "the one written")
    rows = _read_rows(table)
    try:
        features = np.lib.format.open_memmap(root / FEATURES, mode="r")
    except Exception as error:  # numpy parses the header, and has an error for each way to fail
        found = str(getattr(error, "strerror", None) or error)
        raise damaged(FEATURES, found, "whole features") from None
    if (features.shape, str(features.dtype), len(rows)) != (shape, dtype, shape[0]):
        found = f"{features.dtype} {features.shape} and {len(rows)} rows"
        raise damaged(FEATURES, found, f"{dtype} {shape} as the manifest says")
    if expect is not None:
        _check_settings(root, settings, as_settings(expect))
    store = FeatureStore(root, features, rows, settings, manifest)
    if verify:
        store.verify()
    return store


def _read_rows(table: bytes) -> list[Row]:
    """The rows that :func:`save_store` wrote, which the table's checksum vouches for."""
    _, *lines = csv.reader(io.StringIO(table.decode(), newline=""))
    clip_end, audio_start = len(_CLIP_FIELDS), len(_COLUMNS) - len(_AUDIO_FIELDS)
    rows = []
    for cells in lines:
        frames, crc32, size, modified_ns = cells[clip_end:audio_start]
        audio = None
        if cells[audio_start]:
            *counts, level, peak, clipped, constant = cells[audio_start:]
            levels = float(level), float(peak), float(clipped)
            audio = AudioInfo(*map(int, counts), *levels, constant == "True")  # type: ignore
        stamp = int(size), int(modified_ns)
        rows.append(Row(Clip(*cells[:clip_end]), int(frames), int(crc32, 16), stamp, audio))
    return rows


def as_settings(settings: Any) -> dict[str, Any]:
    """Settings as a dictionary that survives json."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        settings = dataclasses.asdict(settings)
    return json.loads(json.dumps(dict(settings)))


def _check_settings(folder: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse what was made with other settings; a switch unknown to a store was off."""
    different = [
        f"{key} is {stored.get(key)!r} in the store, {wanted.get(key)!r} asked for"
        for key in sorted({*stored, *wanted})
        if key not in wanted or stored.get(key, False) != wanted[key]
    ]
    if different:
        found = f"features made with other settings: {'; '.join(different)}"
        remedy = "Choose another folder, or delete this one to extract again."
        raise DataError(folder, found, "the settings asked for", remedy)


def check_dtype(dtype: str) -> None:
    """Refuse types that a store cannot hold."""
    if dtype not in DTYPES:
        raise DataError("dtype", repr(dtype), f"one of {', '.join(DTYPES)}", "Pass one of them.")


def versions(
    packages: Sequence[str] = ("asdproto", "numpy", "scipy", "librosa", "soundfile", "soxr"),
) -> dict[str, str]:
    """Versions of packages, by default of what features are computed with, where installed."""
    installed = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    return installed
