"""``python -m asdproto score``: recordings to ranked scores and decisions."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdproto import signals
from asdproto.arguments import within
from asdproto.commands import add_command, add_options, program
from asdproto.config import at_least, strictly_between
from asdproto.errors import DataError, counted, printable, some

if TYPE_CHECKING:
    from asdproto.data.dcase import Clip
    from asdproto.results.run_folder import ScoredClip
    from asdproto.systems.detector import Detector

# Recordings whose features are held at once.
_PIECE = 256
# And their frames, padded to the longest: half a GB at 128 mel bands.
_FRAMES = 2**21
# Seconds between two looks at a watched folder, and looks at which a file must be the same.
_INTERVAL, _LOOKS = 1.0, 5
_ALARM_SECONDS = 60  # that the command of an alarm may take

# A recording and what a collection says of it, if it says anything.
Found = tuple[Path, "Clip | None"]


def add(parsers: dict[str, Any]) -> None:
    """Adds the command."""
    parser = add_command(
        parsers,
        "score",
        score,
        "score recordings with a trained run, the most anomalous first",
        "Scores recordings with a detector of a finished run, the most anomalous first.\n"
        "Scores are identical to those computed during training. Machine type and section\n"
        "are those of clips.csv, or of names and the nearest known folder. A recording that\n"
        "cannot be read is named, the others are scored, and the exit code is 1.",
        usage=f"{program()} score RUN PATH ... [options]\n"
        f"       {program()} score RUN --watch FOLDER [options]",
    )
    parser.add_argument("workdir", type=Path, metavar="run", help="folder of the run")
    parser.add_argument(
        "paths", type=Path, nargs="*", metavar="path", help="recording, folder, or csv of clips"
    )
    add_options(
        parser,
        (
            "--detector",
            str,
            "NAME",
            "of the run, such as pretrain or knn (default: the run's result)",
        ),
        ("--machine-type", str, "NAME", "of all recordings (default: as described above)"),
        ("--section", str, "NN", "of all recordings (default: as described above)"),
        ("--top", within(int, at_least(1)), "N", "print the first N rows only (default: all)"),
        ("--csv", Path, "FILE", "write all rows, unrounded, to this file too (default: none)"),
        ("--report", Path, "FILE", "write a web page about the recordings (default: none)"),
        (
            "--watch",
            Path,
            "FOLDER",
            "score the recordings in this folder and those to come, until Ctrl-C; rows are added "
            "to --csv, and what is in it already is not scored again (default: off)",
        ),
        (
            "--on-alarm",
            str,
            "COMMAND",
            "with --watch: run COMMAND FILE for every anomaly, with the row as json on its "
            "standard input (default: none)",
        ),
    )
    parser.add_argument(
        "--sort",
        choices=("score", "name"),
        default="score",
        help="order of the rows: highest score first, or by name",
    )
    parser.add_argument(
        "--format", choices=("table", "csv", "jsonl"), default="table", help="format of the rows"
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--threshold",
        type=within(float, strictly_between(-math.inf, math.inf)),
        metavar="X",
        help="scores above X are anomalies (default: one for each machine type, from its training "
        "clips)",
    )
    group.add_argument(
        "--contamination",
        type=within(float, strictly_between(0, 1)),
        metavar="P",
        help="share of normal clips that may be called anomalies (default: as trained)",
    )


def score(arguments: argparse.Namespace) -> int:
    """Scores recordings; 1 where one could not be."""
    workdir = arguments.workdir
    _check_usage(arguments)
    recordings, failed = find_recordings(arguments.paths)
    if failed and not recordings:
        raise failed[0]
    from asdproto.training.devices import use_compilation_cache

    use_compilation_cache()
    from asdproto.systems.detector import Detector

    detector = Detector.load(workdir, arguments.detector)
    scorer = _Scorer(detector, arguments)
    if arguments.watch is not None:
        return _watch(scorer, arguments)
    rows, errors = scorer.score(recordings)
    failed += errors
    rows.sort(key=lambda row: row.file if arguments.sort == "name" else -row.score)
    # Files first: whatever happens to the screen, they are written; and the screen all the same.
    if arguments.csv is not None:
        failed += _attempt(lambda: write_csv(arguments.csv, rows))
    shown = rows if arguments.top is None else rows[: arguments.top]
    print_rows(shown, arguments.format)
    left_out = f", {counted(len(rows) - len(shown), 'row')} not shown" if shown != rows else ""
    _say(_summary(rows) + left_out, arguments.format)
    for line in scorer.limits({row.machine_type for row in rows}):
        _say(line, arguments.format)
    _print_notes(rows)
    if arguments.report is not None and rows:
        from asdproto.commands.scored_page import write_scored_page

        page, name = arguments.report, detector.name_
        unwritten = _attempt(lambda: write_scored_page(page, workdir, name, rows))
        failed += unwritten
        if not unwritten:
            _say(f"written: {printable(str(page))}", arguments.format)
    for error in failed:
        _complain(error)
    return 1 if failed else 0


def _check_usage(arguments: argparse.Namespace) -> None:
    from asdproto.results.run_folder import MANIFEST

    remedy = "See score --help."
    if not arguments.workdir.is_dir():
        raise DataError(arguments.workdir, "no such folder", "the folder of a run", "Check it.")
    if bool(arguments.paths) == bool(arguments.watch):
        found = "recordings and --watch" if arguments.watch else "no recording"
        raise DataError("the command", found, "recordings, or --watch FOLDER", remedy)
    if arguments.watch and arguments.report:
        raise DataError("the command", "--watch and --report", "one of them", remedy)
    if arguments.on_alarm and not arguments.watch:
        raise DataError("the command", "--on-alarm alone", "--watch with it", remedy)
    if arguments.csv is not None and arguments.csv == arguments.report:
        raise DataError("the command", "one file for --csv and --report", "two", remedy)
    if arguments.csv is not None and (arguments.csv.parent / MANIFEST).is_file():
        expected = "a file of your own"
        raise DataError(arguments.csv, "a file of a detector", expected, "Choose another name.")


def _attempt(write: Callable[[], Any]) -> list[Exception]:
    try:
        write()
    except (DataError, OSError) as error:
        return [error]
    return []


def _complain(error: Exception) -> None:
    from asdproto.commands import message

    print(f"error: {printable(message(error))}", file=sys.stderr)


class _Scorer:
    """A detector with the options of the command."""

    def __init__(self, detector: Detector, arguments: argparse.Namespace):
        self._detector, self._threshold = detector, arguments.threshold
        self._machine_type, self._section = arguments.machine_type, arguments.section
        self._limits = detector.limits(arguments.contamination)

    def score(self, recordings: Iterable[Found]) -> tuple[list[ScoredClip], list[Exception]]:
        """Rows of the recordings that can be scored, and the errors of the others."""
        thresholds = {machine: one.threshold for machine, one in self._limits.items()}
        if self._threshold is not None:
            thresholds = dict.fromkeys(thresholds, self._threshold)
        rows: list[ScoredClip] = []
        errors: list[Exception] = []
        read: list[Any] = []
        longest = 0
        for path, clip in recordings:
            signals.check()
            try:
                recording = self._read(path, clip)
            except DataError as error:
                errors.append(error)
                continue
            frames = max(len(array) for array in recording.features)
            longest = max(longest, frames)
            if len(read) == _PIECE or longest * (len(read) + 1) > _FRAMES:
                rows += self._detector.score_recordings(read, thresholds)
                read, longest = [], frames
            read.append(recording)
        return rows + self._detector.score_recordings(read, thresholds), errors

    def _read(self, path: Path, clip: Clip | None) -> Any:
        """Features of a recording; what a collection says of it holds where it is known here."""
        known = self._detector.sections
        machine, section = self._machine_type, self._section
        if clip is not None and machine is None and clip.machine_type in dict(known):
            machine = clip.machine_type
            if section is None and (machine, clip.section) in known:
                section = clip.section
        recording = self._detector.read(path, machine_type=machine, section=section)
        if clip is None:
            return recording
        told = dataclasses.replace(recording.clip, domain=clip.domain, state=clip.state)
        return recording._replace(clip=told)

    def limits(self, machines: Iterable[str]) -> list[str]:
        """What the limit of each machine type rests on, a line each."""
        lines = []
        for machine in sorted(machines):
            limit = self._limits[machine]
            if self._threshold is None:
                where = f"limit {limit.threshold:.4g} of {self._detector.name_}, above it"
                clips = counted(limit.clips, "held-out normal clip")
                lines.append(f"{printable(machine)}: {where} {100 * limit.above:.3g} % of {clips}")
                if limit.caution:
                    lines[-1] += f"; caution: {limit.caution}"
        return lines


def find_recordings(paths: Sequence[Path]) -> tuple[list[Found], list[Exception]]:
    """The recordings among the paths, below folders and in tables; errors of those without any."""
    from asdproto.data.collection import read_collection

    recordings: dict[Path, Clip | None] = {}
    errors: list[Exception] = []
    for path in paths:
        if os.path.isdir(path) or path.suffix.lower() == ".csv":
            try:
                collection = read_collection(path, labels=False)
            except DataError as error:
                errors.append(error)
                continue
            clips = {clip.path: clip for clip in collection.clips}
            # Where there is no csv, any name will do.
            names = list(clips) if collection.layout == "csv" else list(collection.stamps)
            for name in names:
                file = collection.root / name
                recordings[file] = recordings.get(file) or clips.get(name)
            errors += [error for error in collection.errors if error.file not in names]
        elif os.path.lexists(path):
            recordings.setdefault(path, None)
        else:
            found, expected = "no such file", "a recording or a folder"
            errors.append(DataError(path, found, expected, "Check the path."))
    return list(recordings.items()), errors


# --- watching


def arrivals(folder: Path, scored: Mapping[str, str]) -> Iterator[list[Path]]:
    """New recordings in and below a folder as they are complete, possibly none, forever.

    A file is taken for complete when its size and time have stayed the same for five looks, a
    second apart. A file that changes later comes again.

    Args:
      folder: The folder.
      scored: Path of what is scored already -> time of that file.
    """
    from asdproto.data.collection import walk

    looks: dict[Path, tuple[Any, int]] = {}  # stamp, and how many looks have seen it
    while True:
        before, looks = looks, {}
        for name, stamp in walk(folder)[0].items():
            path = folder / name
            last, count = before.get(path, (None, 0))
            looks[path] = stamp, count + 1 if stamp == last else 1
        ready = [path for path, (_, count) in looks.items() if count == _LOOKS]
        yield [path for path in ready if scored.get(printable(str(path))) != time_of(path)]
        _pause()


def _pause() -> None:
    time.sleep(_INTERVAL)


def time_of(path: Path) -> str:
    """When a file was written, as rows of a watched folder say it; ``""`` where it is gone."""
    try:
        seconds = path.stat().st_mtime
    except OSError:
        return ""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="milliseconds")


def _watch(scorer: _Scorer, arguments: argparse.Namespace) -> int:
    scored = {} if arguments.csv is None else _continued(arguments.csv)
    rows: list[ScoredClip] = []
    if arguments.format == "table":
        print(f"watching {printable(str(arguments.watch))}; Ctrl-C ends", file=sys.stderr)
    try:
        for paths in arrivals(arguments.watch, scored):
            times = {str(path): time_of(path) for path in paths}
            recordings, _ = find_recordings(paths)
            new, errors = scorer.score(recordings)
            if new:
                timed = [(times[row.file], row) for row in new]
                if arguments.csv is not None:
                    _append(arguments.csv, timed)
                print_rows(new, arguments.format, head=not rows, times=times)
                sys.stdout.flush()
                _print_notes(new)
                rows += new
                for row in new:
                    if row.decision and arguments.on_alarm:
                        _alarm(arguments.on_alarm, times[row.file], row)
            for error in errors:
                _complain(error)
    except KeyboardInterrupt as stop:
        raise signals.Stopped(signals.code(stop) - 128, _summary(rows)) from None
    return 0


def _continued(path: Path) -> dict[str, str]:
    """File and time of the rows that a csv of a watched folder holds already."""
    from asdproto.errors import plain_cell
    from asdproto.files import csv_text, read_csv, write_atomically, write_output

    columns = _columns(times=True)
    if path.exists() and not path.is_file():  # a pipe or a device keeps nothing
        return {}
    if not path.exists() or not path.stat().st_size:
        write_output(path, csv_text([columns]))
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if not whole.startswith(csv_text([columns]).encode()):
        remedy = "Choose another file for --csv."
        raise DataError(path, "other columns", "a csv that --watch has written", remedy)
    if whole != content:  # a kill has cut the last row
        write_atomically(path, whole)
    return {plain_cell(cells[1]): cells[0] for _, cells in read_csv(path, escaped=False)[1:]}


def _append(path: Path, rows: Sequence[tuple[str, ScoredClip]]) -> None:
    from asdproto.files import append, csv_text
    from asdproto.results.run_folder import csv_cells

    append(path, csv_text([when, *csv_cells(row)] for when, row in rows))


def _alarm(command: str, when: str, row: ScoredClip) -> None:
    """Runs a person's command; whatever becomes of it, watching goes on."""
    text = json.dumps({"time": when, **dataclasses.asdict(row)})
    try:
        words = [*shlex.split(command), row.file]
        subprocess.run(words, input=text, text=True, timeout=_ALARM_SECONDS, check=True)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        print(f"note: --on-alarm: {printable(str(error))}", file=sys.stderr)


# --- writing


def _columns(*, times: bool = False) -> list[str]:
    from asdproto.results.run_folder import COLUMNS

    return [*(["time"] if times else []), *COLUMNS]


def write_csv(path: Path, rows: Sequence[ScoredClip]) -> None:
    """Writes scored recordings, with all digits, to a file that a person has named."""
    from asdproto.files import csv_text, write_output
    from asdproto.results.run_folder import csv_cells

    write_output(path, csv_text([_columns(), *map(csv_cells, rows)]))


def print_rows(
    rows: Sequence[ScoredClip],
    format_: str,
    *,
    head: bool = True,
    times: Mapping[str, str] | None = None,
) -> None:
    """Prints scored recordings in a ``--format``, one line each, below the titles if ``head``.

    ``times`` says when each file was written, where that is asked for.
    """
    if format_ == "jsonl":
        for row in rows:
            when = {} if times is None else {"time": times[row.file]}
            print(json.dumps({**when, **dataclasses.asdict(row)}))
    elif format_ == "csv":
        from asdproto.results.run_folder import csv_cells

        writer = csv.writer(sys.stdout, lineterminator="\n")
        if head:
            writer.writerow(_columns(times=times is not None))
        for row in rows:
            writer.writerow([*([] if times is None else [times[row.file]]), *csv_cells(row)])
    else:
        terminal = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if terminal else None
        color = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        for line in table_lines(rows, width, head=head, color=color, times=times):
            print(line)


def table_lines(
    rows: Sequence[ScoredClip],
    width: int | None,
    *,
    head: bool = True,
    color: bool = False,
    times: Mapping[str, str] | None = None,
) -> list[str]:
    """A table of one line a recording, below the titles if ``head``, anomalies red if ``color``.

    Long names lose their beginning to fit the width, in columns, as long as they can still be told
    apart; ``None`` cuts nothing.
    """
    columns = {
        "time": [] if times is None else [times[row.file][:19] for row in rows],
        "file": [printable(row.file) for row in rows],
        "machine": [printable(row.machine_type) for row in rows],
        "sec": [printable(row.section) for row in rows],
        "score": [f"{row.score:.4g}" for row in rows],
        "limit": [f"{row.threshold:.4g}" for row in rows],
        "decision": ["anomaly" if row.decision else "normal" for row in rows],
        "pct": [f"{row.percentile:.0f}" for row in rows],
        "nearest class": [printable(_beyond_section(row)) for row in rows],
    }
    columns = {title: texts for title, texts in columns.items() if any(texts)}
    sizes = {title: max(map(len, [title, *texts])) for title, texts in columns.items()}
    if width is not None:
        spare = width - sum(sizes.values()) - 2 * (len(columns) - 1)
        for title, least in (("nearest class", 13), ("file", 16), ("machine", 7)):
            if spare < 0 and title in columns:
                wanted = max(least, sizes[title] + spare)
                size = next(
                    size
                    for size in range(min(wanted, sizes[title]), sizes[title] + 1)
                    if _are_told_apart(columns[title], size)
                )
                spare += sizes[title] - size
                sizes[title] = size
    lines = []
    red = [False, *(color and bool(row.decision) for row in rows)]
    for index, is_red in enumerate(red):
        parts = []
        for title, texts in columns.items():
            text = _shortened(texts[index - 1] if index else title, sizes[title])
            right = title in ("score", "limit", "pct")
            parts.append(text.rjust(sizes[title]) if right else text.ljust(sizes[title]))
        line = "  ".join(parts).rstrip()
        lines.append(f"\x1b[1;31m{line}\x1b[0m" if is_red else line)
    return lines if head else lines[1:]


def _are_told_apart(texts: Sequence[str], size: int) -> bool:
    different = set(texts)
    return len({_shortened(text, size) for text in different}) == len(different)


def _shortened(text: str, size: int) -> str:
    return text if len(text) <= size else "…" + text[len(text) - size + 1 :]


def _beyond_section(row: ScoredClip) -> str:
    """A row's nearest class without the machine type and section that stand in the row."""
    return row.nearest_class.removeprefix(f"{row.machine_type} {row.section}").strip()


def _print_notes(rows: Sequence[ScoredClip]) -> None:
    """What is odd about recordings; what several share is one line."""
    files = defaultdict(list)
    for row in rows:
        for note in filter(None, row.note.split("; ")):
            files[note].append(row.file)
    for note, names in files.items():
        text = f"{counted(len(names), 'recording')}: {note} ({some(names)})"
        print(f"note: {printable(text)}", file=sys.stderr)


def _summary(rows: Sequence[ScoredClip]) -> str:
    anomalies = sum(row.decision for row in rows)
    return f"{anomalies} of {counted(len(rows), 'recording')} above their threshold"


def _say(text: str, format_: str) -> None:
    """Prints a sentence where it does not disturb the data."""
    print(text, file=sys.stdout if format_ == "table" else sys.stderr)
