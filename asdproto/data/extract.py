"""From a collection of recordings to a feature store, once, on every core.

What is extracted waits in a file without a name, which is gone with the process: an extraction
that is interrupted, or killed, starts again.
"""

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
from asdproto.data.identity import Stamp, changes, identity_of, stamp_of
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
from asdproto.errors import DataError, StoreError, counted, printable, some
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
      StoreError: The folder holds a store of other settings, of another collection or of
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
        check_folder(path, (".", FEATURES, TABLE), "a feature store", error=StoreError)
        path.mkdir(parents=True, exist_ok=True)
        with locked(path, LOCK):
            remove_abandoned(path)
            if not is_store(path):  # else another process has just finished it
                with _spool(path) as spool, _Bar(progress, len(collection.clips)) as bar:
                    extraction = _Extraction(path, spool, settings, dtype)
                    extraction.run(collection, workers, bar)
                    extraction.save(collection, on_error)
                    bar.say_notes(extraction.rows, settings.sample_rate)
    store = open_store(path, expect=settings)
    if reason := _difference(store, collection, dtype, on_error):
        expected = "a store of this collection as it is now"
        remedy = "Choose another folder, or delete this one to extract again."
        raise StoreError(path, reason, expected, remedy)
    return store


def _spool(path: Path) -> IO[bytes]:
    return tempfile.TemporaryFile(dir=path)


class _Extraction:
    """Features on their way: rows, and the frames of each in one file.

    Args:
      path: Folder of the store.
      spool: The file.
      settings: Feature settings.
      dtype: Of the store.
    """

    def __init__(
        self, path: Path, spool: IO[bytes], settings: features.FeatureSettings, dtype: str
    ):
        self._path, self._spool, self._settings, self._dtype = path, spool, settings, dtype
        self.rows: list[Row] = []
        self.errors: list[Problem] = []

    def run(self, collection: Collection, workers: int | None, bar: "_Bar") -> None:
        """Extract all clips that no error concerns."""

        def extract(clip: Clip) -> tuple[Row, np.ndarray] | Problem:
            file = collection.root / clip.path
            try:
                frames, info = features.file_features(file, self._settings)
            except DataError as error:
                return as_problem(error, clip.path)
            stamp = collection.stamps[clip.path]
            if stamp_of(file) != stamp:
                found, expected = "a file that changed meanwhile", "files at rest"
                return Problem(clip.path, found, expected, "Run this again.")
            block = frames.astype(self._dtype)
            return Row(clip, len(block), checksum(block), stamp, info), block

        for done in parallel(extract, collection.usable(), workers):
            if isinstance(done, Problem):
                self.errors.append(done)
            else:
                row, block = done
                with naming(self._path):
                    self._spool.write(block.data)
                self.rows.append(row)
            bar.advance()
        self._spool.flush()

    def save(self, collection: Collection, on_error: str) -> None:
        """Write the store, without what cannot be used if that is to be left out."""
        blocks = self._blocks()
        errors = [*self.errors, *(p for p in self._compare(blocks) if p.is_error)]
        kept = leave_out([row.clip for row in self.rows], {error.file for error in errors})
        if not kept or (errors and on_error == "stop"):
            raise CollectionError(collection.path, errors)
        # A section may have lost all of its training clips.
        lost = [problem for problem in label_problems(kept) if problem.is_error]
        kept = leave_out(kept, {problem.file for problem in lost})
        skipped = [_left_out(collection, error) for error in (*collection.errors, *errors, *lost)]
        paths = {clip.path for clip in kept}
        rows = [row for row in self.rows if row.clip.path in paths]
        save_store(
            self._path,
            rows,
            (blocks[row.clip.path] for row in rows),
            columns=self._settings.columns,
            skipped=skipped,
            settings=as_settings(self._settings),
            dtype=self._dtype,
        )
        if skipped:
            names = some([entry["file"] for entry in skipped])
            faults = f"{counted(len(skipped), 'fault')} left out ({names})"
            warnings.warn(printable(f"{faults}; {self._path / MANIFEST} lists all"), stacklevel=4)

    def _blocks(self) -> dict[str, np.ndarray]:
        """Frames of each clip, mapped and not read."""
        if not self.rows:
            return {}
        shape = sum(row.frames for row in self.rows), self._settings.columns
        frames = np.memmap(self._spool, self._dtype, "r", shape=shape)
        ends = np.cumsum([row.frames for row in self.rows])
        return {
            row.clip.path: frames[end - row.frames : end]
            for row, end in zip(self.rows, ends, strict=True)
        }

    def _compare(self, blocks: Mapping[str, np.ndarray]) -> Iterator[Problem]:
        """What shows between clips: copies, and lengths that do not fit into one store."""
        yield from padded({row.clip.path: row.frames for row in self.rows})
        alike: dict[Any, list[Clip]] = defaultdict(list)
        for row in self.rows:
            if row.audio is not None and not row.audio.is_constant:  # silence is no copy of silence
                alike[row.frames, row.crc32].append(row.clip)
        for clips in alike.values():
            same = [
                clip for clip in clips if np.array_equal(blocks[clip.path], blocks[clips[0].path])
            ]
            yield from copies({clips[0].path: same})


def _left_out(collection: Collection, error: DataError) -> dict[str, Any]:
    stamp = collection.stamps.get(error.file, (0, 0))  # none of a section, or a row of a csv
    return {"file": error.file, "found": error.found, "stamp": list(stamp)}


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
    changed = [
        file for file, stamp in skipped.items() if any(stamp) and not _is(collection, file, stamp)
    ]
    return f"recordings left out that changed since: {some(changed)}" if changed else ""


def _is(collection: Collection, file: str, stamp: Stamp) -> bool:
    return collection.stamps.get(file) == stamp


class _Bar:
    """A progress bar on the standard error stream, or nothing."""

    def __init__(self, show: bool, total: int):
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("clips"),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not show,
        )
        self._task = self._bar.add_task("Extracting features", total=total)

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self) -> None:
        """One clip more is done."""
        self._bar.advance(self._task)

    def say_notes(self, rows: Sequence[Row], sample_rate: int) -> None:
        """One line above the bar for everything that was odd about recordings."""
        notes: dict[str, list[str]] = defaultdict(list)
        for row in rows:
            for note in row.audio.notes(sample_rate) if row.audio else ():
                notes[note].append(row.clip.path)
        for note, paths in notes.items():
            text = f"{counted(len(paths), 'clip')}: {note} ({some(paths)})"
            if not self._bar.disable:
                self._bar.console.print(printable(text), highlight=False, markup=False)
