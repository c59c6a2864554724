"""From a collection of recordings to a feature store, once, on every core.

What is extracted waits in a file without a name, which is gone with the process: an extraction
that is interrupted, or killed, starts again.
"""

import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from asdproto import features
from asdproto.audio_info import AudioInfo
from asdproto.data.collection import Collection
from asdproto.data.dcase import Clip
from asdproto.data.identity import changes, identity_of, stamp_of
from asdproto.data.parallel import parallel
from asdproto.data.problems import (
    CollectionError,
    copies,
    errors_in,
    label_problems,
    leave_out,
    overlong,
)
from asdproto.data.store import (
    FEATURES,
    MANIFEST,
    TABLE,
    FeatureStore,
    Row,
    is_store,
    open_store,
    save_store,
)
from asdproto.errors import DataError, counted, printable, some
from asdproto.files import check_folder, checksum, locked, naming, remove_abandoned

LOCK = ".lock"


def build_store(
    collection: Collection,
    path: Path,
    settings: features.FeatureSettings | None = None,
    *,
    on_error: str = "stop",
    workers: int | None = None,
    dtype: str = "float16",
    progress: bool = True,
) -> FeatureStore:
    """Extract the features of a collection, or open them if that is done already.

    Refuses what :func:`asdproto.data.validate.validate` calls an error, and takes all else. Faults
    of names, folders, tables and labels show before any work.

    Args:
      collection: What :func:`asdproto.data.collection.read_collection` returned.
      path: Folder of the store.
      settings: Defaults to :class:`asdproto.features.FeatureSettings`.
      on_error: ``"stop"`` lists all faults and makes no store. ``"skip"`` leaves out the clips
        concerned, and those of sections that cannot be used; a warning counts them and the
        manifest lists them under ``"skipped"``.
      workers: Threads; by default one for each available core.
      dtype: ``"float16"`` or ``"float32"``.
      progress: Show a progress bar, and say at the end which clips were converted.

    Returns:
      The store, open. Clips shorter than the longest are padded with zeros.

    Raises:
      CollectionError: Everything that cannot be used.
      DataError: The folder holds a store of other settings, of another collection or of
        recordings that have changed since; or something else.
      DataError: Another process is extracting into the folder.
      OSError: The disk is full.
    """
    settings = features.FeatureSettings() if settings is None else settings
    if on_error not in ("stop", "skip"):
        raise ValueError(f"on_error must be 'stop' or 'skip', found {on_error!r}")
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype must be 'float16' or 'float32', found {dtype!r}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, found {workers}")
    path = Path(path)
    features.filterbank(settings)  # wrong settings fail here, before anything is written
    if on_error == "stop":
        collection.check()
    if not is_store(path):
        check_folder(path, (".", FEATURES, TABLE), "a feature store")
        path.mkdir(parents=True, exist_ok=True)
        with naming(path), locked(path, LOCK), tempfile.TemporaryFile(dir=path) as spool:
            remove_abandoned(path)
            rows, errors = _extract(collection, spool, settings, dtype, workers, progress)
            blocks = _blocks(spool, rows, settings.columns, dtype)
            rows, skipped = _usable(collection, rows, errors, on_error)
            save_store(
                path,
                rows,
                (blocks[row.clip.path] for row in rows),
                settings=settings,
                columns=settings.columns,
                dtype=dtype,
                skipped=[
                    # No stamp is that of a section, or of a row of a csv.
                    {"file": e.file, "found": e.found, "stamp": list(collection.stamp(e.file))}
                    for e in skipped
                ],
            )
        if skipped:
            names = some([error.file for error in skipped])
            text = f"{counted(len(skipped), 'fault')} left out ({names})"
            warnings.warn(printable(f"{text}; {path / MANIFEST} lists all"), stacklevel=2)
        if progress:
            _say_notes(rows, settings.sample_rate)
    store = open_store(path, expect=settings)
    if reason := _difference(store, collection, dtype, on_error):
        expected = "a store of this collection as it is now"
        remedy = "Choose another folder, or delete this one to extract again."
        raise DataError(path, reason, expected, remedy)
    return store


def _extract(
    collection: Collection,
    spool: IO[bytes],
    settings: features.FeatureSettings,
    dtype: str,
    workers: int | None,
    progress: bool,
) -> tuple[list[Row], list[DataError]]:
    """Write the frames of every usable clip to a file; its row, or what is wrong with it."""
    from rich.console import Console
    from rich.progress import track

    def extract(clip: Clip) -> tuple[Row, np.ndarray] | DataError:
        file, stamp = collection.root / clip.path, collection.stamps[clip.path]
        try:
            frames, info = features.file_features(file, settings)
            if stamp_of(file) != stamp:
                found, expected = "a file that changed meanwhile", "files at rest"
                raise DataError(file, found, expected, "Run this again.")
        except DataError as error:
            return error.at(clip.path)
        block = frames.astype(dtype)
        return Row(clip, len(block), checksum(block), stamp, info), block

    rows, errors = [], []
    clips = collection.usable()
    console = Console(stderr=True)
    for result in track(
        parallel(extract, clips, workers),
        "Extracting features",
        len(clips),
        console=console,
        disable=not progress,
    ):
        if isinstance(result, DataError):
            errors.append(result)
        else:
            rows.append(result[0])
            spool.write(result[1].data)
    spool.flush()
    return rows, errors


def _blocks(
    spool: IO[bytes], rows: Sequence[Row], columns: int, dtype: str
) -> dict[str, np.ndarray]:
    """Path of each clip -> its frames in the file."""
    ends = np.cumsum([row.frames for row in rows])
    if not rows:
        return {}
    frames = np.memmap(spool, dtype, "r", shape=(int(ends[-1]), columns))
    return {r.clip.path: frames[end - r.frames : end] for r, end in zip(rows, ends, strict=True)}


def _usable(
    collection: Collection,
    rows: list[Row],
    errors: list[DataError],
    on_error: str,
) -> tuple[list[Row], list[DataError]]:
    """The rows to store, and why others are left out; an error where nothing is to be left out."""
    errors = [*errors, *errors_in(_compare(rows))]
    clips = leave_out([row.clip for row in rows], {error.file for error in errors})
    if not clips or (errors and on_error == "stop"):
        raise CollectionError(collection.path, errors)
    # A section may have lost all of its training clips.
    lost = errors_in(label_problems(clips))
    usable = set(leave_out(clips, {error.file for error in lost}))
    rows = [row for row in rows if row.clip in usable]
    return rows, [*collection.errors, *errors, *lost]


def _compare(rows: Sequence[Row]) -> Iterator[DataError]:
    """What shows between clips: copies, and lengths that do not fit into one store."""
    yield from overlong({row.clip.path: row.frames for row in rows})
    # Level, peak and checksum of two different recordings are not all the same.
    alike: dict[tuple[int, AudioInfo], list[Clip]] = defaultdict(list)
    for row in rows:
        if row.audio is not None and not row.audio.is_constant:  # silence is no copy of silence
            alike[row.crc32, row.audio].append(row.clip)
    yield from copies(alike)


def _difference(store: FeatureStore, collection: Collection, dtype: str, on_error: str) -> str:
    """What keeps a store from being that of a collection; ``""`` if nothing does."""
    skipped = {entry["file"]: tuple(entry["stamp"]) for entry in store.manifest["skipped"]}
    before, clips = store.identity(), leave_out(collection.clips, skipped)
    now = identity_of(clips, map(collection.stamp, (clip.path for clip in clips)))
    if text := changes(before, now):
        return f"features of the collection before it changed: {text}"
    if list(now) != list(before):
        return "the same clips in another order"
    if store.features.dtype != dtype:
        return f"{store.features.dtype} features, {dtype} asked for"
    if skipped and on_error == "stop":
        return f"{counted(len(skipped), 'fault')} left out ({some(list(skipped))})"
    changed = [file for file, stamp in skipped.items() if collection.stamp(file) != stamp]
    return f"recordings left out that changed since: {some(changed)}" if changed else ""


def _say_notes(rows: Sequence[Row], sample_rate: int) -> None:
    """One line for everything that was odd about recordings."""
    notes: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for note in row.audio.notes(sample_rate) if row.audio else ():
            notes[note].append(row.clip.path)
    for note, paths in notes.items():
        text = f"{counted(len(paths), 'clip')}: {note} ({some(paths)})"
        print(printable(text), file=sys.stderr)
