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
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asdproto.audio_info import AudioInfo, audio_statistics
from asdproto.data.dcase import Clip
from asdproto.data.identity import Stamp, identity_of
from asdproto.errors import DataError, plain_cell, some, spreadsheet_cell
from asdproto.files import (
    check_manifest,
    checksum,
    csv_text,
    differences,
    replacing,
    write_atomically,
    write_manifest,
)

FORMAT = 3
FEATURES, TABLE, MANIFEST = "features.npy", "table.csv", "manifest.json"
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
      stamp: Of its recording; ``(0, 0)`` where the features came as an array.
      audio: What its recording was; ``None`` where the features came as an array.
    """

    clip: Clip
    frames: int
    crc32: int
    stamp: Stamp = (0, 0)
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

    def read(self, index: int) -> np.ndarray:
        """A copy of one clip without its padding, float32, shape ``[frames, mels]``."""
        return np.array(self.features[index, : self.frames[index]], dtype=np.float32)

    def identity(self) -> dict[str, list[int]]:
        """As :meth:`asdproto.data.collection.Collection.identity`, of the recordings then."""
        return identity_of(self.clips, (row.stamp for row in self.rows))

    def audio_statistics(self) -> dict[str, dict[str, list[float]]]:
        """Machine type -> what its training recordings have in common, fit for json.

        As :func:`asdproto.audio_info.audio_statistics` says it; nothing is known of features that
        came as arrays.
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


def save_store(
    folder: Path,
    rows: Sequence[Row],
    blocks: Iterable[np.ndarray],
    *,
    settings: Any,
    columns: int,
    dtype: str,
    skipped: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the three files of a store, the manifest last.

    Args:
      folder: Where.
      rows: One for each clip.
      blocks: Features of each clip, ``dtype``, shape ``[frames, columns]``.
      settings: How they were made, a dictionary or a dataclass.
      columns: Numbers in a frame.
      dtype: ``"float16"`` or ``"float32"``.
      skipped: What was left out, for the manifest.

    Raises:
      OSError: The disk is full, for example; names the file.
    """
    shape = (len(rows), max(row.frames for row in rows), columns)
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    row_bytes = shape[1] * shape[2] * np.dtype(dtype).itemsize
    # Written, not mapped: a full disk is then an error, and not the end of the process.
    with replacing(folder / FEATURES) as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for block in blocks:
            stream.write(np.ascontiguousarray(block).data)
            stream.write(bytes(row_bytes - block.nbytes))
    lines: list[Iterable[Any]] = [_COLUMNS]
    for row in rows:
        known = row.frames, f"{row.crc32:08x}", *row.stamp
        audio = [getattr(row.audio, name, "") for name in _AUDIO_FIELDS]
        lines.append([*map(spreadsheet_cell, row.clip.fields()), *known, *audio])
    write_atomically(folder / TABLE, csv_text(lines).encode())
    about = {
        "format": FORMAT,
        "settings": _as_settings(settings),
        "dtype": dtype,
        "shape": shape,
        "skipped": list(skipped),
        "versions": versions(),
    }
    write_manifest(folder / MANIFEST, [TABLE], about)


def is_store(path: str | os.PathLike) -> bool:
    """Whether a folder holds a whole feature store."""
    return os.path.isfile(os.path.join(path, MANIFEST))


def open_store(path: str | os.PathLike, *, expect: Any = None) -> FeatureStore:
    """Open a store for reading; every clip is compared with its checksum.

    Args:
      path: Its folder.
      expect: Feature settings (a dictionary or a dataclass) that it must have been made with.

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

    manifest = check_manifest(root / MANIFEST, remedy=_AGAIN)
    if not os.path.isfile(root / FEATURES):  # opening a pipe would wait for a writer
        raise damaged(FEATURES, "no such file", "a whole store")
    if manifest.get("format") != FORMAT:
        raise damaged(MANIFEST, f"format {manifest.get('format')}", f"format {FORMAT}")
    shape, dtype, settings = tuple(manifest["shape"]), manifest["dtype"], manifest["settings"]
    rows = _read_rows(root / TABLE)
    try:
        features = np.lib.format.open_memmap(root / FEATURES, mode="r")
    except Exception as error:  # numpy parses the header, and has an error for each way to fail
        found = str(getattr(error, "strerror", None) or error)
        raise damaged(FEATURES, found, "whole features") from None
    if (features.shape, str(features.dtype), len(rows)) != (shape, dtype, shape[0]):
        found = f"{features.dtype} {features.shape} and {len(rows)} rows"
        raise damaged(FEATURES, found, f"{dtype} {shape} as the manifest says")
    if expect is not None:
        _check_settings(root, settings, _as_settings(expect))
    store = FeatureStore(root, features, rows, settings, manifest)
    store.verify()  # 0.2 seconds of processor time per GB
    return store


def _read_rows(table: Path) -> list[Row]:
    """The rows that :func:`save_store` wrote, which the manifest vouches for."""
    with open(table, newline="", encoding="utf-8") as stream:
        _, *lines = csv.reader(stream)
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
        clip = Clip(*map(plain_cell, cells[:clip_end]))
        rows.append(Row(clip, int(frames), int(crc32, 16), stamp, audio))
    return rows


def _as_settings(settings: Any) -> dict[str, Any]:
    """Settings as a dictionary that survives json."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        settings = dataclasses.asdict(settings)
    return json.loads(json.dumps(dict(settings)))


def _check_settings(folder: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse what was made with other settings."""
    different = [
        f"{name} is {there!r} in the store, {here!r} asked for"
        for name, there, here in differences(stored, wanted)
    ]
    if different:
        found = f"features made with other settings: {'; '.join(different)}"
        remedy = "Choose another folder, or delete this one to extract again."
        raise DataError(folder, found, "the settings asked for", remedy)


def versions(
    packages: Sequence[str] = ("asdproto", "numpy", "scipy", "librosa", "soundfile", "soxr"),
) -> dict[str, str]:
    """Versions of packages, by default of what features are computed with, where installed."""
    installed = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    return installed
