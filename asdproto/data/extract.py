"""From a collection of recordings to a feature store, once, on every core.

An extraction that is interrupted, even killed, goes on where it stopped when it is run again: each
finished clip stands in a journal with the checksum of its features and the stamp of its source.
"""

import contextlib
import errno
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import BinaryIO

import numpy as np
from threadpoolctl import threadpool_limits

from asdproto import features
from asdproto.data.dcase import Clip
from asdproto.data.journal import JOURNAL, LOCK, Journal, Target, check_folder, stamp
from asdproto.data.store import (
    CLIP_FIELDS,
    MANIFEST,
    FeatureStore,
    Row,
    as_settings,
    check_dtype,
    open_store,
)
from asdproto.errors import DataError, StoreError
from asdproto.files import checksum, locked

# What a worker takes at a time: enough to hide the hand-over, little enough to lose.
_CHUNK_CLIPS, _CHUNK_BYTES = 64, 2**24
# Fewer clips than that are not worth a process of their own.
_WORKER_WORTH = 16
# Starting a pool costs about a second, in which one process extracts some 300 clips.
_POOL_WORTH = 500
# So many headers tell whether reading them waits for the disk; if so, several wait at once.
_HEADERS_TRIED, _HEADERS_AT_ONCE = 100, 8

_log = logging.getLogger(__name__)


class ExtractionError(StoreError):
    """Some recordings cannot be used. The others' features are kept for the next run.

    Attributes:
      errors: One for each bad recording.
      done: How many clips have features.
    """

    def __init__(self, path: str | os.PathLike, errors: Sequence[DataError], done: int):
        self.errors = list(errors)
        listed = "".join(f"\n  {error}" for error in self.errors)
        super().__init__(
            path,
            f"{_count(self.errors, 'recording')} without features:{listed}\n",
            "audio that can be used in every file",
            f"Repair them, or take them out of the collection, and run this again: the features "
            f"of the other {done} clips are kept.",
        )
        self.done = done

    def __reduce__(self):
        return type(self), (self.file, self.errors, self.done)


@dataclass(frozen=True, slots=True)
class _Job:
    """One clip to extract: where it is read, where its features go, what its file looked like."""

    index: int
    file: str
    stamp: tuple[int, int]


def build_store(
    clips: Sequence[Clip],
    root: str | os.PathLike,
    path: str | os.PathLike,
    settings: features.FeatureSettings | None = None,
    *,
    workers: int | None = None,
    dtype: str = "float16",
    progress: bool = True,
) -> FeatureStore:
    """Extract the features of a collection, or open them if that is done already.

    Args:
      clips: What to extract, in the order of the store.
      root: Folder that the clips' paths are relative to.
      path: Folder of the store.
      settings: Defaults to :class:`asdproto.features.FeatureSettings`.
      workers: Processes; by default one for each available core, and none but this one for a
        small collection.
      dtype: ``"float16"`` or ``"float32"``.
      progress: Show a progress bar, and say at the end which clips were converted.

    Returns:
      The store, open. Clips shorter than the longest are padded with zeros.

    Raises:
      ExtractionError: Names every recording that cannot be used, after all others are done.
      StoreError: The folder holds a store of other settings, of other clips, or of source files
        that have changed since; or something else; or another process is extracting into it.
      KeyboardInterrupt: Passed on once the finished clips are safe.
    """
    settings = features.FeatureSettings() if settings is None else settings
    check_dtype(dtype)
    root, path, clips = Path(root), Path(path), list(clips)
    if not clips:
        raise StoreError(root, "no clips to extract", "at least one", "Check the collection.")
    repeated = [name for name, count in Counter(clip.path for clip in clips).items() if count > 1]
    if repeated:
        raise StoreError(repeated[0], "the clip twice", "each clip once", "Remove one of them.")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, found {workers}")
    features.filterbank(settings)  # wrong settings fail here, before anything is written

    if (path / MANIFEST).is_file():
        return _open_same(path, clips, root, settings, dtype)
    check_folder(path)
    path.mkdir(parents=True, exist_ok=True)
    with locked(path, LOCK), _Progress(progress, len(clips)) as shown:
        if (path / MANIFEST).is_file():  # finished by the process that held the lock
            return _open_same(path, clips, root, settings, dtype)
        rows, errors = _extract(clips, root, path, settings, dtype, workers, shown)
        if errors:
            raise ExtractionError(path, errors, len(rows))
        _say_notes(rows, shown)
    (path / LOCK).unlink(missing_ok=True)
    return open_store(path, expect=settings)


def _extract(
    clips: list[Clip],
    root: Path,
    path: Path,
    settings: features.FeatureSettings,
    dtype: str,
    workers: int | None,
    shown: "_Progress",
) -> tuple[list[Row], list[DataError]]:
    """Do what is left to do; with no error among the clips, leave a whole store."""
    if workers is None:
        workers = _cores() if len(clips) >= _POOL_WORTH else 1
    with _Workers(min(workers, -(-len(clips) // _WORKER_WORTH)), settings) as pool:
        if not (path / JOURNAL).is_file():  # else there may be little left to do
            pool.start()
        stamps, frames, errors = _look(clips, root, settings, shown)
        if not frames:
            return [], list(errors.values())
        plan = {"settings": as_settings(settings), "dtype": dtype}
        with Journal(path, plan, clips, stamps, max(frames.values())) as journal:
            jobs = [
                _Job(index, str(root / clip.path), stamps[index])
                for index, clip in enumerate(clips)
                if index in frames and index not in journal.rows
            ]
            shown.start(len(frames), len(frames) - len(jobs))
            with contextlib.closing(pool.run(jobs, journal.target)) as results:
                for done in results:
                    clip = clips[done.index]
                    if done.error is None:
                        row = Row(clip, done.frames, done.crc32, *stamps[done.index], done.note)
                        journal.add(done.index, row)
                    else:
                        errors[done.index] = _relative(done.error, clip)
                    shown.advance()
            rows = [journal.rows[index] for index in sorted(journal.rows)]
            if not errors:
                journal.finish(rows)
    return rows, [errors[index] for index in sorted(errors)]


def _look(
    clips: list[Clip], root: Path, settings: features.FeatureSettings, shown: "_Progress"
) -> tuple[list[tuple[int, int]], dict[int, int], dict[int, DataError]]:
    """Read every header: each clip's stamp, the frames of those that can be used, the errors."""
    stamps = [(0, 0)] * len(clips)
    frames: dict[int, int] = {}
    errors: dict[int, DataError] = {}

    def look(index: int) -> None:
        clip = clips[index]
        file = root / clip.path
        try:
            stamps[index] = stamp(file)
            samples = features.audio_info(file).samples_at(settings.sample_rate)
            if samples < settings.n_fft:
                raise features.too_short(file, samples, settings)
            frames[index] = settings.frames(samples)
        except OSError:
            errors[index] = DataError(
                clip.path, "no such file", f"a recording below {root}", "Check the collection."
            )
        except DataError as error:
            errors[index] = _relative(error, clip)

    # Threads wait for a slow disk together, but only get in each other's way on a fast one.
    began, worked = time.perf_counter(), time.process_time()
    for index in range(min(_HEADERS_TRIED, len(clips))):
        look(index)
        shown.look()
    waits = time.process_time() - worked < (time.perf_counter() - began) / 2
    rest = range(_HEADERS_TRIED, len(clips))
    with ThreadPoolExecutor(_HEADERS_AT_ONCE, "headers") as pool:
        for _ in (pool.map if waits else map)(look, rest):
            shown.look()
    return stamps, frames, errors


def _relative(error: DataError, clip: Clip) -> DataError:
    return DataError(clip.path, error.found, error.expected, error.remedy)


# --- the workers


@dataclass(frozen=True, slots=True)
class _Result:
    index: int
    frames: int = 0
    crc32: int = 0
    note: str = ""
    error: DataError | None = None


class _Workers:
    """Processes that extract, or none but this one.

    Attributes:
      count: How many.
    """

    def __init__(self, count: int, settings: features.FeatureSettings):
        self.count, self.settings = count, settings
        self.pool: ProcessPoolExecutor | None = None

    def start(self) -> None:
        """Start the processes, without waiting for them."""
        if self.pool is not None or self.count <= 1:
            return
        # A fork of a process that holds a started accelerator backend may hang.
        context = multiprocessing.get_context("spawn")
        self.stop = context.Event()
        self.pool = ProcessPoolExecutor(
            self.count,
            mp_context=context,
            initializer=_start_worker,
            initargs=(self.settings, features.filterbank(self.settings), self.stop),
        )
        self.pool.submit(os.getpid)  # the first task starts them all

    def run(self, jobs: list[_Job], target: Target) -> Generator[_Result, None, None]:
        """Extract; results in the order in which they are done."""
        chunks = _chunks(jobs, self.count)
        if len(jobs) > _WORKER_WORTH:
            self.start()
        if self.pool is None:
            # The products are too small to share; one thread also makes them the same everywhere.
            with threadpool_limits(limits=1), open(target.file, "r+b", buffering=0) as stream:
                for job in jobs:
                    yield _extract_one(job, self.settings, target, stream)
            return
        flying: set[Future] = set()
        try:
            while True:
                while len(flying) < 3 * self.count and (chunk := next(chunks, None)):
                    flying.add(self.pool.submit(_extract_chunk, chunk, target))
                if not flying:
                    break
                done, flying = wait(flying, return_when=FIRST_COMPLETED)
                for future in done:
                    yield from future.result()
        except BrokenProcessPool:
            raise StoreError(
                Path(target.file).parent,
                "a worker process that ended abruptly",
                "workers that live",
                "Run this again, with fewer workers if memory was short: what is done is kept. A "
                "script of your own must do its work under if __name__ == '__main__'.",
            ) from None

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.stop.set()  # after an interrupt the workers end with the clip they have in hand
            self.pool.shutdown(wait=True, cancel_futures=True)


def _chunks(jobs: list[_Job], workers: int) -> Iterator[list[_Job]]:
    """Pieces of the work, smaller towards its end, so that all workers end together."""
    first = 0
    while first < len(jobs):
        most = min(_CHUNK_CLIPS, -(-(len(jobs) - first) // (4 * workers)))
        last, size = first, 0
        while last < min(first + most, len(jobs)) and size < _CHUNK_BYTES:
            size += jobs[last].stamp[0]
            last += 1
        yield jobs[first:last]
        first = last


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


_worker: tuple[features.FeatureSettings, Event] | None = None


def _start_worker(settings: features.FeatureSettings, bank: np.ndarray, stop: Event) -> None:
    """Make a fresh process a worker: one thread, no interrupts, gone when its parent is."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    threading.Thread(target=_end_with_parent, daemon=True).start()
    features.share_filterbank(settings, bank)
    _worker = (settings, stop)
    import scipy.fft  # noqa: F401

    threadpool_limits(limits=1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _extract_chunk(jobs: list[_Job], target: Target) -> list[_Result]:
    assert _worker is not None
    settings, stop = _worker
    with open(target.file, "r+b", buffering=0) as stream:
        return [_extract_one(job, settings, target, stream) for job in jobs if not stop.is_set()]


def _extract_one(
    job: _Job, settings: features.FeatureSettings, target: Target, stream: BinaryIO
) -> _Result:
    """Compute one clip's features and write them in their place."""
    try:
        array, notes = features.file_features(job.file, settings)
        if len(array) > target.max_frames or stamp(job.file) != job.stamp:
            raise DataError(
                job.file, "a file that changed meanwhile", "files at rest", "Run this again."
            )
    except (DataError, OSError) as error:
        if not isinstance(error, DataError):
            error = DataError(job.file, str(error), "readable audio", "Check the file.")
        return _Result(job.index, error=error)
    # The whole place, padding too: a longer clip may have stood there before an interruption.
    place = np.zeros((target.max_frames, target.mels), dtype=target.dtype)
    block = place[: len(array)]
    block[:] = array
    written = os.pwrite(stream.fileno(), place.data, target.offset + job.index * place.nbytes)
    if written != place.nbytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target.file)
    return _Result(job.index, len(block), checksum(block), "; ".join(notes))


# --- a store that is there already


def _open_same(
    path: Path, clips: list[Clip], root: Path, settings: features.FeatureSettings, dtype: str
) -> FeatureStore:
    """Open a finished store, if it is of these clips, settings and files."""
    store = open_store(path, expect=settings)
    found = _clip_differences(store, clips)
    if store.manifest["dtype"] != dtype:
        found = f"{store.manifest['dtype']} features, {dtype} asked for"
    if not found:
        changed = []
        for clip, old in zip(clips, store.stamps, strict=True):
            try:
                same = stamp(root / clip.path) == old
            except OSError:
                same = False
            if not same:
                changed.append(clip.path)
        if changed and any(old != (0, 0) for old in store.stamps):
            found = f"features of {_count(changed, 'recording')} changed since: {_some(changed)}"
    if found:
        raise StoreError(
            path,
            found,
            "a store of this collection as it is now",
            "Choose another folder, or delete this one to extract again.",
        )
    return store


def _clip_differences(store: FeatureStore, clips: list[Clip]) -> str:
    if store.clips == clips:
        return ""
    stored, asked = ({clip.path: clip for clip in group} for group in (store.clips, clips))
    parts = []
    for name, missing in (
        ("no longer in the collection", [path for path in stored if path not in asked]),
        ("not in the store", [path for path in asked if path not in stored]),
    ):
        if missing:
            parts.append(f"{len(missing)} {name} ({_some(missing)})")
    for path in asked:
        if path in stored and stored[path] != asked[path]:
            fields = [f for f in CLIP_FIELDS if getattr(stored[path], f) != getattr(asked[path], f)]
            parts.append(f"{path} with another {fields[0]}")
            break
    return "other clips: " + ("; ".join(parts) or "the same in another order")


def _count(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}" + ("s" if len(things) != 1 else "")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


# --- what the user sees


class _Progress:
    """A bar for the headers, a bar for the clips; or nothing."""

    def __init__(self, show: bool, clips: int):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            Task,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Rate(ProgressColumn):
            """Computed when drawn; rich goes through its last thousand samples for it."""

            def render(self, task: Task) -> Text:
                return Text(f"{task.speed:.0f} clips/s" if task.speed else "")

        self.show = show
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not show,
        )
        self.task = self.bar.add_task("Reading headers", total=clips)

    def __enter__(self) -> "_Progress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def look(self) -> None:
        """One header more."""
        self.bar.advance(self.task)

    def start(self, total: int, done: int) -> None:
        """Begin with the clips, of which some are done already."""
        self.bar.remove_task(self.task)
        self.task = self.bar.add_task("Extracting features", total=total, completed=done)
        if done:
            self.say(f"{done} of {total} clips are done already.")

    def advance(self) -> None:
        """One clip more."""
        self.bar.advance(self.task)

    def say(self, text: str) -> None:
        """One line above the bar, or into the log where there is none."""
        if self.show:
            self.bar.console.print(text, highlight=False, markup=False)
        else:
            _log.info("%s", text)


def _say_notes(rows: Sequence[Row], shown: _Progress) -> None:
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            notes.setdefault(row.note, []).append(row.clip.path)
    for note, paths in notes.items():
        shown.say(f"{_count(paths, 'clip')}: {note} ({_some(paths)})")
