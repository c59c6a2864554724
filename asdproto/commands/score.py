"""``python -m asdproto score``: recordings to ranked scores and decisions."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdproto.arguments import within
from asdproto.commands import add_command, add_options, count
from asdproto.config import at_least, strictly_between
from asdproto.errors import DataError, printable, spreadsheet_cell

if TYPE_CHECKING:
    from asdproto.results.run_folder import ScoredClip
    from asdproto.systems.detector import Detector

COLUMNS = (
    "file",
    "machine_type",
    "section",
    "score",
    "threshold",
    "decision",
    "margin",
    "nearest_class",
)
# Recordings whose features are held at once.
_PIECE = 256
# And their frames, padded to the longest: half a GB at 128 mel bands.
_FRAMES = 2**21
# Seconds between two looks at a watched folder.
_INTERVAL = 1.0


def add(subparsers: Any) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "score",
        score,
        "score recordings with a trained run, the most anomalous first",
        "Scores recordings with a detector of a finished run, the most anomalous first. Scores\n"
        "are identical to those computed during training. Machine type and section are read off\n"
        "names and folders where they follow DCASE Task 2. A recording that cannot be read is\n"
        "named, the others are scored, and the exit code is 1.",
    )
    parser.add_argument("workdir", type=Path, metavar="run", help="folder of the run")
    parser.add_argument("paths", type=Path, nargs="*", metavar="path", help="recording or folder")
    add_options(
        parser,
        (
            "--watch",
            Path,
            "FOLDER",
            "score the recordings in this folder and those to come, until Ctrl-C (default: off)",
        ),
        (
            "--detector",
            str,
            "NAME",
            "which of the run's detectors, such as pretrain or knn (default: the run's result)",
        ),
        ("--machine-type", str, "NAME", "of all recordings (default: read off names and folders)"),
        ("--section", str, "NN", "of all recordings (default: read off names)"),
        ("--top", within(int, at_least(1)), "N", "print the first N rows only (default: all)"),
        ("--csv", Path, "FILE", "write all rows, unrounded, to this file too (default: no file)"),
        (
            "--report",
            Path,
            "FILE",
            "write a web page of the most anomalous recordings to this file: spectrogram, player, "
            "where in time the score comes from (default: no page)",
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
        help="share of normal clips that may be called anomalies, in (0, 1); sets the threshold "
        "from the training clips' scores (default: as trained, 0.1 unless changed)",
    )


def score(arguments: argparse.Namespace) -> int:
    """Scores recordings; 1 where one could not be."""
    workdir = arguments.workdir
    if not workdir.is_dir():
        raise DataError(workdir, "no such folder", "the folder of a run", "Check the path.")
    if bool(arguments.paths) == bool(arguments.watch):
        found = "recordings and --watch" if arguments.watch else "no recording"
        expected = "recordings or folders, or --watch FOLDER"
        raise DataError("the command", found, expected, "Give one of the two.")
    if arguments.watch and arguments.report:
        raise DataError("the command", "--watch and --report", "one of them", "Leave one out.")
    paths, failed = _recordings(arguments.paths)
    if failed and not paths:
        raise failed[0]
    from asdproto.training.devices import use_compilation_cache

    use_compilation_cache()
    from asdproto.systems.detector import Detector

    detector = Detector.load(workdir, arguments.detector)
    thresholds = _thresholds(detector, arguments)
    if arguments.watch is not None:
        return _watch(detector, thresholds, arguments)
    rows, errors = score_paths(detector, paths, thresholds, arguments)
    failed += errors
    rows.sort(key=lambda row: row["file"] if arguments.sort == "name" else -row["score"])
    shown = rows if arguments.top is None else rows[: arguments.top]
    print_rows(shown, arguments.format)
    # The table first: whatever happens to the file, it is not lost.
    left_out = f", {count(len(rows) - len(shown), 'row')} not shown" if shown != rows else ""
    _say(_summary(rows) + left_out, arguments.format)
    for error in failed:
        print(f"error: {error}", file=sys.stderr)
    if arguments.csv is not None:
        write_csv(arguments.csv, rows)
    if arguments.report is not None and rows:
        from asdproto.commands.scored_page import write_scored_page

        write_scored_page(arguments.report, workdir, detector.name_, rows)
        _say(f"written: {arguments.report}", arguments.format)
    return 1 if failed else 0


def score_paths(
    detector: Detector,
    paths: Sequence[Path],
    thresholds: Mapping[str, float],
    arguments: argparse.Namespace,
) -> tuple[list[dict[str, Any]], list[Exception]]:
    """Rows of the recordings that can be scored, and the errors of the others."""
    rows: list[dict[str, Any]] = []
    errors: list[Exception] = []
    read: list[Any] = []
    longest = 0
    for path in paths:
        try:
            recording = detector.read(
                path, machine_type=arguments.machine_type, section=arguments.section
            )
        except DataError as error:
            errors.append(error)
            continue
        frames = max(len(array) for array in recording.features)
        longest = max(longest, frames)
        if len(read) == _PIECE or longest * (len(read) + 1) > _FRAMES:
            rows += map(_as_row, detector.score_recordings(read, thresholds))
            read, longest = [], frames
        read.append(recording)
    rows += map(_as_row, detector.score_recordings(read, thresholds))
    return rows, errors


def _as_row(clip: ScoredClip) -> dict[str, Any]:
    return {**dataclasses.asdict(clip), "margin": clip.score - clip.threshold}


def _thresholds(detector: Detector, arguments: argparse.Namespace) -> dict[str, float]:
    if arguments.threshold is not None:
        return {machine: arguments.threshold for machine, _ in detector.sections}
    return detector.thresholds(arguments.contamination)


def _recordings(paths: Sequence[Path]) -> tuple[list[Path], list[Exception]]:
    """The files among the paths and below the folders among them; errors of paths without any."""
    from asdproto.data.collection import walk

    files: list[Path] = []
    errors: list[Exception] = []
    for path in paths:
        if os.path.isdir(path):
            audio, _, unread = walk(path)
            below = [path / name for name in audio]
            files += below
            errors += [
                DataError(path / error.file, error.found, error.expected, error.remedy)
                for error in unread
            ]
            if not below and not unread:
                errors.append(
                    DataError(path, "no .wav or .flac file", "recordings", "Check the path.")
                )
        elif os.path.lexists(path):
            files.append(path)
        else:
            errors.append(
                DataError(path, "no such file", "a recording or a folder", "Check the path.")
            )
    return list(dict.fromkeys(files)), errors


# --- watching


def arrivals(folder: Path, interval: float = _INTERVAL) -> Iterator[list[Path]]:
    """New recordings in and below a folder as they are complete, possibly none, forever.

    A file is taken for complete when its size and time have stayed the same from one look to the
    next, ``interval`` seconds later. A file that changes later comes again.
    """
    from asdproto.data.collection import walk

    seen: dict[Path, tuple[int, int]] = {}
    given: dict[Path, tuple[int, int]] = {}
    while True:
        now = {folder / name: stamp for name, stamp in walk(folder)[0].items()}
        ready = [p for p, state in now.items() if seen.get(p) == state and given.get(p) != state]
        given |= {path: now[path] for path in ready}
        seen = now
        yield ready
        time.sleep(interval)


def _watch(
    detector: Detector, thresholds: Mapping[str, float], arguments: argparse.Namespace
) -> int:
    rows: list[dict[str, Any]] = []
    failures = 0
    if arguments.format == "table":
        print(f"watching {arguments.watch}; Ctrl-C ends", file=sys.stderr)
    try:
        for paths in arrivals(arguments.watch):
            new, errors = score_paths(detector, paths, thresholds, arguments)
            if new:
                print_rows(new, arguments.format, head=not rows)
                sys.stdout.flush()
                rows += new
                if arguments.csv is not None:
                    write_csv(arguments.csv, rows)
            for error in errors:
                print(f"error: {error}", file=sys.stderr)
            failures += len(errors)
    except KeyboardInterrupt:
        _say(f"\n{_summary(rows)}", arguments.format)
    return 1 if failures else 0


# --- writing


def print_rows(rows: Sequence[Mapping[str, Any]], format_: str, *, head: bool = True) -> None:
    """Prints scored recordings in a ``--format``, one line each, below the titles if ``head``."""
    if format_ == "jsonl":
        for row in rows:
            print(json.dumps({**row, "nearest_class": row["nearest_class"] or None}))
    elif format_ == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows(_csv_rows(rows, head=head))
    else:
        terminal = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if terminal else None
        for line in table_lines(rows, width, head=head, color=terminal and not _no_color()):
            print(line)


def table_lines(
    rows: Sequence[Mapping[str, Any]], width: int | None, *, head: bool = True, color: bool = False
) -> list[str]:
    """A table of one line a recording, below the titles if ``head``, anomalies red if ``color``.

    Long names lose their beginning to fit the width, in columns; ``None`` cuts nothing.
    """
    titles = ("file", "machine", "sec", "score", "limit", "decision", "margin", "nearest class")
    cells = [
        (
            printable(str(row["file"])),
            row["machine_type"],
            row["section"],
            f"{row['score']:.4g}",
            f"{row['threshold']:.4g}",
            "anomaly" if row["decision"] else "normal",
            f"{row['margin']:+.3g}",
            _beyond_section(row),
        )
        for row in rows
    ]
    kept = [index for index in range(len(titles)) if index < 7 or any(line[7] for line in cells)]
    sizes = [max(len(line[index]) for line in [titles, *cells]) for index in range(len(titles))]
    if width is not None:
        spare = width - sum(sizes[index] for index in kept) - 2 * (len(kept) - 1)
        for index, least in ((7, 13), (0, 16), (1, 7)):
            if spare < 0 and index in kept:
                cut = min(-spare, max(0, sizes[index] - least))
                sizes[index] -= cut
                spare += cut
    lines = []
    red = [False, *(color and row["decision"] for row in rows)]
    for line, is_red in zip([titles, *cells], red, strict=True):
        parts = []
        for index in kept:
            text = _shortened(line[index], sizes[index])
            right = index in (3, 4, 6)
            parts.append(text.rjust(sizes[index]) if right else text.ljust(sizes[index]))
        text = "  ".join(parts).rstrip()
        lines.append(f"\x1b[1;31m{text}\x1b[0m" if is_red else text)
    return lines if head else lines[1:]


def _beyond_section(row: Mapping[str, Any]) -> str:
    """A row's nearest class without the machine type and section that stand in the row."""
    return (row["nearest_class"] or "").removeprefix(f"{row['machine_type']} {row['section']} ")


def _shortened(text: str, size: int) -> str:
    return text if len(text) <= size else "…" + text[len(text) - size + 1 :]


def _no_color() -> bool:
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    anomalies = sum(row["decision"] for row in rows)
    return f"{anomalies} of {count(len(rows), 'recording')} above their threshold"


def _say(text: str, format_: str) -> None:
    """Prints a sentence where it does not disturb the data."""
    print(text, file=sys.stdout if format_ == "table" else sys.stderr)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes scored recordings, with all digits, so that the file is whole or not there."""
    from asdproto.files import csv_text, write_output

    write_output(path, csv_text(_csv_rows(rows)))


def _csv_rows(rows: Sequence[Mapping[str, Any]], *, head: bool = True) -> Iterator[Sequence[Any]]:
    if head:
        yield COLUMNS
    for row in rows:
        cells = dict(row)
        for name in ("file", "machine_type", "section", "nearest_class"):
            cells[name] = spreadsheet_cell(cells[name])
        for name in ("score", "threshold", "margin"):
            cells[name] = float(row[name])
        yield [cells[name] for name in COLUMNS]
