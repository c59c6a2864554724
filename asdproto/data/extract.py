"""From a collection of recordings to a feature store, once, on every core.

What is extracted waits in a file without a name, which is gone with the process: an extraction
that is interrupted, or killed, starts again.
"""

import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from asdproto import features
from asdproto.data.collection import Collection
from asdproto.data.dcase import Clip
from asdproto.data.identity import changes, identity_of, stamp_of
from asdproto.data.parallel import parallel
from asdproto.data.problems import (
    CollectionError,
    Problem,
    as_problem,
    copies,
    label_problems,
    leave_out,
)
from asdproto.data.store import (
    FEATURES,
    MANIFEST,
    TABLE,
    FeatureStore,
    Row,
    as_settings,
    check_dtype,
    is_store,
    open_store,
    save_store,
)
from asdproto.data.validate import padded
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
    check_dtype(dtype)
    if on_error not in ("stop", "skip"):
        raise ValueError(f"on_error must be 'stop' or 'skip', found {on_error!r}")
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
            _save(path, collection, rows, errors, spool, settings, dtype, on_error)
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
) -> tuple[list[Row], list[Problem]]:
    """Write the frames of every usable clip to a file; its row, or what is wrong with it."""
    from rich.console import Console
    from rich.progress import track

    def extract(clip: Clip) -> tuple[Row, np.ndarray] | Problem:
        file = collection.root / clip.path
        try:
            frames, info = features.file_features(file, settings)
        except DataError as error:
            return as_problem(error, clip.path)
        stamp = collection.stamps[clip.path]
        if stamp_of(file) != stamp:
            found, expected = "a file that changed meanwhile", "files at rest"
            return Problem(clip.path, found, expected, "Run this again.")
        block = frames.astype(dtype)
        return Row(clip, len(block), checksum(block), stamp, info), block

    rows, errors = [], []
    clips = collection.usable()
    results = parallel(extract, clips, workers)
    console = Console(stderr=True)
    for result in track(
        results, "Extracting features", len(clips), console=console, disable=not progress
    ):
        if isinstance(result, Problem):
            errors.append(result)
        else:
            rows.append(result[0])
            spool.write(result[1].data)
    spool.flush()
    return rows, errors


def _save(
    path: Path,
    collection: Collection,
    rows: Sequence[Row],
    errors: Sequence[Problem],
    spool: IO[bytes],
    settings: features.FeatureSettings,
    dtype: str,
    on_error: str,
) -> None:
    """Write the store, without what cannot be used if that is to be left out."""
    blocks: dict[str, np.ndarray] = {}
    if rows:
        shape = sum(row.frames for row in rows), settings.columns
        frames = np.memmap(spool, dtype, "r", shape=shape)
        ends = np.cumsum([row.frames for row in rows])
        blocks = {
            r.clip.path: frames[end - r.frames : end] for r, end in zip(rows, ends, strict=True)
        }
    errors = [*errors, *(problem for problem in _compare(rows, blocks) if problem.is_error)]
    kept = leave_out([row.clip for row in rows], {error.file for error in errors})
    if not kept or (errors and on_error == "stop"):
        raise CollectionError(collection.path, errors)
    # A section may have lost all of its training clips.
    lost = [problem for problem in label_problems(kept) if problem.is_error]
    kept = leave_out(kept, {problem.file for problem in lost})
    skipped = [
        {
            "file": error.file,
            "found": error.found,
            # None of a section, or of a row of a csv.
            "stamp": list(collection.stamps.get(error.file, (0, 0))),
        }
        for error in (*collection.errors, *errors, *lost)
    ]
    usable = set(kept)
    rows = [row for row in rows if row.clip in usable]
    save_store(
        path,
        rows,
        (blocks[row.clip.path] for row in rows),
        columns=settings.columns,
        skipped=skipped,
        settings=as_settings(settings),
        dtype=dtype,
    )
    if skipped:
        names = some([str(error["file"]) for error in skipped])
        text = f"{counted(len(skipped), 'fault')} left out ({names}); {path / MANIFEST} lists all"
        warnings.warn(printable(text), stacklevel=3)


def _compare(rows: Sequence[Row], blocks: Mapping[str, np.ndarray]) -> Iterator[Problem]:
    """What shows between clips: copies, and lengths that do not fit into one store."""
    yield from padded({row.clip.path: row.frames for row in rows})
    alike: dict[Any, list[Clip]] = defaultdict(list)
    for row in rows:
        if row.audio is not None and not row.audio.is_constant:  # silence is no copy of silence
            alike[row.frames, row.crc32].append(row.clip)
    for key, (first, *others) in alike.items():
        original = blocks[first.path]
        same = [clip for clip in others if np.array_equal(blocks[clip.path], original)]
        yield from copies({key: [first, *same]})


def _difference(store: FeatureStore, collection: Collection, dtype: str, on_error: str) -> str:
    """What keeps a store from being that of a collection; ``""`` if nothing does."""
    skipped = {entry["file"]: tuple(entry["stamp"]) for entry in store.manifest["skipped"]}
    clips = leave_out(collection.clips, skipped)
    now = identity_of(clips, [collection.stamps[clip.path] for clip in clips])
    if text := changes(store.identity(), now):
        return f"features of the collection before it changed: {text}"
    if list(now) != list(store.identity()):
        return "the same clips in another order"
    if store.dtype != dtype:
        return f"{store.dtype} features, {dtype} asked for"
    if skipped and on_error == "stop":
        return f"{counted(len(skipped), 'fault')} left out ({some(list(skipped))})"
    stamps = collection.stamps
    changed = [file for file, stamp in skipped.items() if stamps.get(file, (0, 0)) != stamp]
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
