"""The feature store: one memory-mapped array of all clips, a table of the clips, a manifest.

::

    features/
      features.npy    [clips, max_frames, mels], float16 or float32, zeros beyond a clip's frames
      table.csv       one row a clip: what is known of it, frames, checksum, source file's stamp
      manifest.json   settings, shape, versions, checksum of the table; written last

A folder without ``manifest.json`` is no store. Reading one needs NumPy and nothing else.
"""

import contextlib
import csv
import dataclasses
import importlib.metadata
import io
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asdproto.data.dcase import Clip
from asdproto.errors import StoreError
from asdproto.files import (
    beside,
    checksum,
    csv_text,
    json_checksum,
    read_json,
    replacing,
    sync_folder,
    write_atomically,
    write_json,
)

FORMAT = 1
FEATURES, TABLE, MANIFEST = "features.npy", "table.csv", "manifest.json"
DTYPES = ("float16", "float32")
# Size of a store over that of its clips without padding; see overlong.
MOST_PADDED = 4
CLIP_FIELDS = tuple(field.name for field in dataclasses.fields(Clip))
_COLUMNS = (*CLIP_FIELDS, "frames", "crc32", "bytes", "modified_ns", "note")
_AGAIN = "Delete this store and extract it again."
_verified: set[tuple[Any, ...]] = set()


@dataclass(frozen=True)
class FeatureStore:
    """An open feature store.

    Attributes:
      root: Its folder.
      features: Memory map, shape ``[clips, max_frames, mels]``; zeros beyond a clip's frames.
      frames: Frames of each clip, int32, shape ``[clips]``.
      clips: The clips, in the order of the array.
      settings: The feature settings as a plain dictionary.
      manifest: Everything ``manifest.json`` says.
      stamps: Size in bytes and modification time in nanoseconds of each clip's source file;
        ``(0, 0)`` where the features came as arrays.
      notes: What was done to a clip's audio (channel taken, rate converted), ``""`` mostly.
      checksums: CRC-32 of each clip's frames as stored.
    """

    root: Path
    features: np.ndarray
    frames: np.ndarray
    clips: list[Clip]
    settings: dict[str, Any]
    manifest: dict[str, Any]
    stamps: list[tuple[int, int]]
    notes: list[str]
    checksums: list[int]

    def __len__(self) -> int:
        return len(self.clips)

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

    def verify(self) -> None:
        """Compare every clip with its checksum.

        Raises:
          StoreError: Names every damaged clip.
        """
        damaged = [
            clip.path
            for index, clip in enumerate(self.clips)
            if checksum(self.features[index, : self.frames[index]]) != self.checksums[index]
        ]
        if damaged:
            found = f"damage in {len(damaged)} of {len(self)} clips: {', '.join(damaged)}"
            expected = "features that match their checksums"
            raise StoreError(self.root / FEATURES, found, expected, _AGAIN)


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
      StoreError: The folder is taken, shapes disagree, or a value is not finite as ``dtype``.
    """
    path = Path(path)
    check_dtype(dtype)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise StoreError(path, "something there already", "a new folder", "Choose another folder.")
    if len(features) != len(clips) or (frames is not None and len(frames) != len(clips)):
        found = f"{len(features)} arrays and {len(clips)} clips"
        expected = "one array, and one count of frames, for each clip"
        raise StoreError(path, found, expected, "Pass lists of equal length.")
    if not len(clips):
        raise StoreError(path, "no clips", "at least one", "Pass some.")
    counts = [len(array) for array in features] if frames is None else [int(n) for n in frames]
    mels = np.shape(features[0])[-1]
    rows, blocks = [], []
    for clip, array, count in zip(clips, features, counts, strict=True):
        block = np.asarray(array)
        if block.ndim != 2 or block.shape[1] != mels or not 0 < count <= len(block):
            found = f"features of shape {block.shape}, of which {count} frames count"
            expected = f"shape [frames, {mels}] and at least one frame"
            raise StoreError(clip.path, found, expected, "Correct the array or the count.")
        with np.errstate(over="ignore"):
            block = block[:count].astype(dtype)
        if not np.isfinite(block).all():
            found = f"values that are not finite as {dtype}"
            remedy = "Correct the features, or choose dtype float32."
            raise StoreError(clip.path, found, "finite values", remedy)
        rows.append(Row(clip, count, checksum(block)))
        blocks.append(block)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = beside(path)
    work.mkdir()
    try:
        save_store(work, rows, blocks, settings=as_settings(settings), columns=mels, dtype=dtype)
        os.replace(work, path)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    sync_folder(path.parent)
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


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table of a store."""

    clip: Clip
    frames: int
    crc32: int
    bytes: int = 0
    modified_ns: int = 0
    note: str = ""


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
      OSError: Names the file, such as on a full disk.
    """
    shape = (len(rows), max(row.frames for row in rows), columns)
    header = io.BytesIO()
    about = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, about)
    row_bytes = shape[1] * shape[2] * np.dtype(dtype).itemsize
    # Written, not mapped: a full disk is then an error, and not the end of the process.
    with replacing(folder / FEATURES) as stream:
        stream.write(header.getvalue())
        for block in blocks:
            stream.write(np.ascontiguousarray(block).data)
            stream.write(bytes(row_bytes - block.nbytes))
    lines: list[Iterable[Any]] = [_COLUMNS]
    for row in rows:
        source = row.bytes, row.modified_ns, row.note
        lines.append([*dataclasses.astuple(row.clip), row.frames, f"{row.crc32:08x}", *source])
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


def open_store(path: str | os.PathLike, *, expect: Any = None, verify: bool = True) -> FeatureStore:
    """Open a store for reading.

    Args:
      path: Its folder.
      expect: Feature settings (a dictionary or a dataclass) that it must have been made with.
      verify: Compare every clip with its checksum, once for each state of the file in a process:
        0.2 seconds of processor time per GB, about twice what a copy from the disk's cache takes.

    Returns:
      The store.

    Raises:
      StoreError: There is no complete store, it is damaged, or its settings differ.
    """
    root = Path(path)
    if not (root / MANIFEST).is_file():
        found = "an extraction that has not ended" if root.is_dir() else "nothing"
        remedy = "Run the extraction, again with the same settings if it was interrupted."
        raise StoreError(root, found, "a feature store", remedy)

    def damaged(name: str, found: str, expected: str) -> StoreError:
        return StoreError(root / name, found, expected, _AGAIN)

    manifest = read_json(root / MANIFEST, remedy=_AGAIN, error=StoreError)
    own = manifest.pop("crc32", None)
    if own is not None and own != f"{json_checksum(manifest):08x}":
        raise damaged(MANIFEST, "a manifest that was changed", "as written")
    try:
        format_, table_crc = manifest["format"], manifest["table_crc32"]
        shape, dtype, settings = tuple(manifest["shape"]), manifest["dtype"], manifest["settings"]
    except (KeyError, TypeError) as error:
        raise damaged(MANIFEST, repr(error), "a whole manifest") from None
    if format_ != FORMAT:
        raise damaged(MANIFEST, f"format {format_}", f"format {FORMAT}")
    try:
        table = (root / TABLE).read_bytes()
    except OSError as error:
        raise damaged(TABLE, str(error.strerror), "a table") from None
    if f"{zlib.crc32(table):08x}" != table_crc:
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
        check_settings("features made", root, settings, as_settings(expect))
    store = FeatureStore(
        root=root,
        features=features,
        frames=np.array([row.frames for row in rows], dtype=np.int32),
        clips=[row.clip for row in rows],
        settings=settings,
        manifest=manifest,
        stamps=[(row.bytes, row.modified_ns) for row in rows],
        notes=[row.note for row in rows],
        checksums=[row.crc32 for row in rows],
    )
    status = os.stat(root / FEATURES)
    state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, table_crc)
    if verify and state not in _verified:
        store.verify()
        _verified.add(state)
    return store


def _read_rows(table: bytes) -> list[Row]:
    _, *lines = csv.reader(io.StringIO(table.decode(), newline=""))
    return [
        Row(Clip(*clip), int(frames), int(crc32, 16), int(size), int(modified_ns), note)
        for *clip, frames, crc32, size, modified_ns, note in lines
    ]


def as_settings(settings: Any) -> dict[str, Any]:
    """Settings as a dictionary that survives json."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        settings = dataclasses.asdict(settings)
    return json.loads(json.dumps(dict(settings)))


def check_settings(
    what: str, folder: Path, stored: Mapping[str, Any], asked: Mapping[str, Any]
) -> None:
    """Refuse what was made with other settings; a switch unknown to a store was off."""

    def show(settings: Mapping[str, Any], key: str) -> str:
        return repr(settings[key]) if key in settings else "nothing"

    different = [
        f"{key} is {show(stored, key)} in the store, {show(asked, key)} asked for"
        for key in sorted({*stored, *asked})
        if key not in asked or stored.get(key, False) != asked[key]
    ]
    if different:
        found = f"{what} with other settings: {'; '.join(different)}"
        remedy = "Choose another folder, or delete this one to extract again."
        raise StoreError(folder, found, "the settings asked for", remedy)


def check_dtype(dtype: str) -> None:
    """Refuse types that a store cannot hold."""
    if dtype not in DTYPES:
        raise StoreError("dtype", repr(dtype), f"one of {', '.join(DTYPES)}", "Pass one of them.")


def versions(
    packages: Sequence[str] = ("asdproto", "numpy", "scipy", "librosa", "soundfile", "soxr"),
) -> dict[str, str]:
    """Versions of packages, by default of what features are computed with, where installed."""
    installed = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    return installed
