"""From a collection of recordings to a feature store, once, on every core.

Workers leave what they finish as shards, and a store is put together from them at the end::

    features/
      shard-<random>   features of some clips; see asdproto.data.shards
      .lock            held by the one process that extracts

An extraction that is interrupted, even killed, goes on where it stopped when it is run again. A
shard that is damaged, or whose recordings have changed, is done again. The shards take as much
space as the store, until it is finished.
"""

import contextlib
import functools
import hashlib
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asdproto import features
from asdproto.data import validate
from asdproto.data.dcase import Clip
from asdproto.data.pool import Bar, count_workers, run
from asdproto.data.shards import (
    SHARD,
    Done,
    Piece,
    done_before,
    extract_piece,
    has_stamp,
    read_shard,
    remove_shards,
    split,
    stamp_of,
)
from asdproto.data.store import (
    CLIP_FIELDS,
    FEATURES,
    MANIFEST,
    TABLE,
    FeatureStore,
    Row,
    as_settings,
    check_dtype,
    open_store,
    save_store,
)
from asdproto.data.validate import Problem
from asdproto.errors import StoreError, counted, printable, some
from asdproto.files import check_folder, is_full, locked

LOCK = ".lock"
# Starting a pool costs about a second, in which one process extracts some 500 clips.
_POOL_WORTH = 500
_MOST_LISTED = 200  # faults in an error


class ExtractionError(StoreError):
    """Something in a collection cannot be used. What is extracted is kept for the next run.

    Attributes:
      errors: One for each fault: :class:`asdproto.errors.DataError` or
        :class:`asdproto.data.validate.Problem`.
      done: How many clips have features.
    """

    def __init__(self, path: str | os.PathLike, errors: Sequence[Any], done: int):
        self.errors = list(errors)
        self.done = done
        listed = "".join(f"\n  {error}" for error in self.errors[:_MOST_LISTED])
        if len(self.errors) > _MOST_LISTED:
            listed += f"\n  and {len(self.errors) - _MOST_LISTED} more"
        found = f"{counted(len(self.errors), 'fault')}:{listed}\n"
        remedy = "Repair them and run this again, or leave them out with on_error='skip'."
        if done:
            remedy += f" The features of {counted(done, 'clip')} are kept."
        super().__init__(path, found, "a collection without", remedy)

    def __reduce__(self):
        return type(self), (self.file, self.errors, self.done)


def extract_collection(
    source: str | os.PathLike,
    path: str | os.PathLike,
    settings: features.FeatureSettings | None = None,
    *,
    on_error: str = "stop",
    workers: int | None = None,
    dtype: str = "float16",
    progress: bool = True,
) -> FeatureStore:
    """Extract the features of a collection, however it is described, or open them.

    Refuses what :func:`asdproto.data.validate.validate` calls an error, and takes all else. Faults
    of names, folders, tables and labels show before any work.

    Args:
      source: As for :func:`asdproto.data.table.load_collection`.
      path: Folder of the store.
      settings: As for :func:`build_store`, like the arguments below.
      on_error: ``"stop"`` lists all faults and makes no store. ``"skip"`` leaves out the clips
        concerned, and those of sections that cannot be used; a warning counts them and the
        manifest lists them under ``"skipped"``.
      workers: Processes.
      dtype: Of the store.
      progress: Show a bar.

    Returns:
      The store, open.

    Raises:
      ExtractionError: The faults, all of them.
      DataError: As :func:`asdproto.data.validate.survey` and :func:`build_store`.
    """
    root, clips, errors = usable_clips(source, settings, on_error=on_error)
    return build_store(
        clips,
        root,
        path,
        settings,
        on_error=on_error,
        skipped=errors,
        workers=workers,
        dtype=dtype,
        progress=progress,
    )


def usable_clips(
    source: str | os.PathLike,
    settings: features.FeatureSettings | None = None,
    *,
    on_error: str = "stop",
) -> tuple[Path, list[Clip], list[Problem]]:
    """The clips of a collection that names, folders, tables and labels allow to use.

    Args:
      source: As for :func:`extract_collection`, like the arguments below.
      settings: Feature settings.
      on_error: ``"stop"`` or ``"skip"``.

    Returns:
      The root of the clips' paths, the clips, and the errors that left out others.

    Raises:
      ExtractionError: All faults of the collection, those of recordings too, with ``"stop"``.
      DataError: Nothing can be read.
    """
    _check_on_error(on_error)
    root, clips, problems = validate.survey(source)
    errors = [problem for problem in problems if problem.is_error]
    if errors and on_error == "stop":
        every = validate.validate(source, settings=settings)
        raise ExtractionError(source, [problem for problem in every if problem.is_error], 0)
    return root, validate.leave_out(clips, {error.file for error in errors}), errors


def _check_on_error(on_error: str) -> None:
    if on_error not in ("stop", "skip"):
        raise ValueError(f"on_error must be 'stop' or 'skip', found {on_error!r}")


def build_store(
    clips: Sequence[Clip],
    root: str | os.PathLike,
    path: str | os.PathLike,
    settings: features.FeatureSettings | None = None,
    *,
    on_error: str = "stop",
    skipped: Sequence[Problem] = (),
    workers: int | None = None,
    dtype: str = "float16",
    progress: bool = True,
) -> FeatureStore:
    """Extract the features of some clips, or open them if that is done already.

    Args:
      clips: What to extract, in the order of the store.
      root: Folder that the clips' paths are relative to.
      path: Folder of the store.
      settings: Defaults to :class:`asdproto.features.FeatureSettings`.
      on_error: What to do with recordings that cannot be used: ``"stop"`` after all others are
        done, or ``"skip"`` them, as for :func:`extract_collection`.
      skipped: What was left out before, for the manifest.
      workers: Processes; by default one for each available core, and none but this one for a
        small collection.
      dtype: ``"float16"`` or ``"float32"``.
      progress: Show a progress bar, and say at the end which clips were converted.

    Returns:
      The store, open. Clips shorter than the longest are padded with zeros.

    Raises:
      ExtractionError: Names every recording that cannot be used, after all others are done.
      StoreError: The folder holds a store of other settings, of other clips, or of source files
        that have changed since; or something else.
      DataError: Another process is extracting into the folder.
      OSError: The disk is full; what is done is kept.
      KeyboardInterrupt: Passed on once the finished clips are safe.
    """
    settings = features.FeatureSettings() if settings is None else settings
    check_dtype(dtype)
    _check_on_error(on_error)
    root, path, clips = Path(root), Path(path), list(clips)
    if not clips:
        raise StoreError(root, "no clips to extract", "at least one", "Check the collection.")
    repeated = [name for name, count in Counter(clip.path for clip in clips).items() if count > 1]
    if repeated:
        raise StoreError(repeated[0], "the clip twice", "each clip once", "Remove one of them.")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, found {workers}")
    features.filterbank(settings)  # wrong settings fail here, before anything is written

    if not (path / MANIFEST).is_file():
        ours = (".", SHARD, FEATURES, TABLE)
        check_folder(path, ours, "a feature store", error=StoreError)
        path.mkdir(parents=True, exist_ok=True)
        with locked(path, LOCK):
            if not (path / MANIFEST).is_file():  # else another process has just finished it
                plan = {"settings": as_settings(settings), "dtype": dtype}
                skip = None if on_error == "stop" else list(skipped)
                _extract(clips, root, path, plan, skip, workers, progress)
    return _open_same(path, clips, root, settings, dtype, on_error)


def _extract(
    clips: list[Clip],
    root: Path,
    path: Path,
    plan: dict[str, Any],
    skipped: list[Problem] | None,
    workers: int | None,
    show: bool,
) -> None:
    """Do what is left to do; with no error among the clips, leave a whole store.

    Where ``skipped`` is a list, clips with errors are left out and added to it.
    """
    settings = features.FeatureSettings(**plan["settings"])
    done = done_before(path, plan, {clip.path for clip in clips}, root)
    todo = [clip.path for clip in clips if clip.path not in done]
    workers = workers or count_workers(len(todo), worth=_POOL_WORTH)
    pieces = [Piece(str(root), str(path), paths, plan) for paths in split(todo, workers)]
    bank = features.filterbank(settings)
    share = functools.partial(features.share_filterbank, settings, bank)
    errors: list[Any] = []
    with Bar(show, "Extracting features", len(clips), len(done)) as bar:
        results = run(extract_piece, pieces, workers, initialize=share)
        with _naming_space(path, len(clips), done), contextlib.closing(results):
            for shard, failed in results:
                errors += failed
                fresh = {} if shard is None else dict(read_shard(Path(shard), plan))
                done.update(fresh)
                bar.advance(len(failed) + len(fresh))
        kept = [clip for clip in clips if clip.path in done]
        errors += [problem for problem in _compare(kept, done) if problem.is_error]
        kept = validate.leave_out(kept, {error.file for error in errors})
        if not kept or (errors and skipped is None):
            order = {clip.path: index for index, clip in enumerate(clips)}
            errors.sort(key=lambda error: order[error.file])
            raise ExtractionError(path, errors, len(done))
        if errors:  # a section may have lost all of its training clips
            before = {problem.file for problem in validate.labels(clips) if problem.is_error}
            lost = [p for p in validate.labels(kept) if p.is_error and p.file not in before]
            errors += lost
            kept = validate.leave_out(kept, {problem.file for problem in lost})
        left_out = [_left_out(root, error) for error in [*(skipped or ()), *errors]]
        rows = [Row(clip, *done[clip.path][0]) for clip in kept]
        blocks = (done[clip.path][1] for clip in kept)
        save_store(path, rows, blocks, columns=settings.columns, skipped=left_out, **plan)
        remove_shards(path)
        _say_notes(rows, bar)
    if left_out:
        names = some([entry["file"] for entry in left_out])
        faults = f"{counted(len(left_out), 'fault')} left out ({names})"
        warnings.warn(printable(f"{faults}; {path / MANIFEST} lists all"), stacklevel=3)


@contextlib.contextmanager
def _naming_space(path: Path, clips: int, done: dict[str, Done]) -> Iterator[None]:
    """Say on a full disk how much is needed for all that is left, not for one shard."""
    try:
        yield
    except OSError as error:
        if not is_full(error) or not done:
            raise
        each = sum(block.nbytes for _, block in done.values()) / len(done)
        needed = round(each * (2 * clips - len(done)))
        message = f"{error.strerror}; all {clips} clips need about {needed:,} bytes more"
        raise OSError(error.errno, message, str(path)) from None


def _compare(clips: list[Clip], done: dict[str, Done]) -> Iterator[Problem]:
    """What shows between clips: copies, and lengths that do not fit into one store."""
    yield from validate.padded({clip.path: done[clip.path][0][0] for clip in clips})
    same: dict[Any, list[Clip]] = defaultdict(list)
    for clip in clips:
        (frames, crc32, *_, note), _ = done[clip.path]
        if features.CONSTANT not in note:  # silence is no copy of silence
            same[frames, crc32].append(clip)
    copies: dict[Any, list[Clip]] = defaultdict(list)
    for group in same.values():
        if len(group) > 1:
            for clip in group:
                digest = hashlib.blake2b(np.ascontiguousarray(done[clip.path][1]).data).digest()
                copies[digest].append(clip)
    yield from validate.copies(copies)


def _left_out(root: Path, error: Any) -> dict[str, Any]:
    try:
        stamp = stamp_of(root / error.file)
    except (OSError, ValueError):  # a section, or a row of a csv
        stamp = (0, 0)
    return {"file": error.file, "found": error.found, "bytes": stamp[0], "modified_ns": stamp[1]}


# --- a store that is there already


def _open_same(
    path: Path,
    clips: list[Clip],
    root: Path,
    settings: features.FeatureSettings,
    dtype: str,
    on_error: str,
) -> FeatureStore:
    """Open a finished store, if it is of these clips, settings and files."""
    store = open_store(path, expect=settings)
    # Left by a process that was killed in its last step.
    remove_shards(path)
    (path / LOCK).unlink(missing_ok=True)
    skipped = {entry["file"]: entry for entry in store.manifest.get("skipped", ())}
    reason = _clip_differences(store, validate.leave_out(clips, skipped))
    if store.dtype != dtype:
        reason = f"{store.dtype} features, {dtype} asked for"
    if not reason and skipped and on_error == "stop":
        reason = f"{counted(len(skipped), 'fault')} left out ({some(list(skipped))})"
    if not reason:
        stamps = {clip.path: stamp for clip, stamp in zip(store.clips, store.stamps, strict=True)}
        stamps |= {file: (old["bytes"], old["modified_ns"]) for file, old in skipped.items()}
        changed = [
            file
            for file, stamp in stamps.items()
            if stamp != (0, 0) and not has_stamp(root / file, stamp)
        ]
        if changed:
            recordings = counted(len(changed), "recording")
            reason = f"features of {recordings} changed since: {some(changed)}"
    if reason:
        expected = "a store of this collection as it is now"
        remedy = "Choose another folder, or delete this one to extract again."
        raise StoreError(path, reason, expected, remedy)
    return store


def _clip_differences(store: FeatureStore, clips: list[Clip]) -> str:
    if store.clips == clips:
        return ""
    stored, asked = ({clip.path: clip for clip in group} for group in (store.clips, clips))
    parts = []
    if gone := [path for path in stored if path not in asked]:
        parts.append(f"{len(gone)} no longer in the collection ({some(gone)})")
    if new := [path for path in asked if path not in stored]:
        parts.append(f"{len(new)} not in the store ({some(new)})")
    for path in asked:
        if path in stored and stored[path] != asked[path]:
            fields = [f for f in CLIP_FIELDS if getattr(stored[path], f) != getattr(asked[path], f)]
            parts.append(f"{path} with another {fields[0]}")
            break
    return "other clips: " + ("; ".join(parts) or "the same in another order")


def _say_notes(rows: Sequence[Row], bar: Bar) -> None:
    notes: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.note:
            notes[row.note].append(row.clip.path)
    for note, paths in notes.items():
        bar.say(f"{counted(len(paths), 'clip')}: {note} ({some(paths)})")
