"""``score --watch``: the recordings that arrive in a folder, until a signal."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdproto import signals
from asdproto.commands.rows import csv_rows, json_row, print_notes, print_rows, summary
from asdproto.errors import DataError, plain_cell, printable

if TYPE_CHECKING:
    from asdproto.results.run_folder import ScoredClip

# Seconds between two looks at the folder, and looks at which a file must be the same.
_INTERVAL, _LOOKS = 1.0, 5
_ALARM_SECONDS = 60  # that the command of an alarm may take


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
        pause()


def pause() -> None:
    """Waits for the next look."""
    time.sleep(_INTERVAL)


def time_of(path: Path) -> str:
    """When a file was written, as rows of a watched folder say it; ``""`` where it is gone."""
    try:
        seconds = path.stat().st_mtime
    except OSError:
        return ""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="milliseconds")


def watch(
    score: Callable[[Sequence[Path]], list[ScoredClip]], arguments: argparse.Namespace
) -> None:
    """Scores what arrives in ``arguments.watch``, with the other options of the command.

    Args:
      score: Rows of the recordings that can be scored; it complains of the others.
      arguments: The command's.

    Raises:
      Stopped: By a signal; says how many anomalies there were.
    """
    scored = {} if arguments.csv is None else _continued(arguments.csv)
    rows: list[ScoredClip] = []
    if arguments.format == "table":
        print(f"watching {printable(str(arguments.watch))}; Ctrl-C ends", file=sys.stderr)
    try:
        for paths in arrivals(arguments.watch, scored):
            times = {str(path): time_of(path) for path in paths}
            if new := score(paths):
                _show(new, times, arguments, head=not rows)
                rows += new
    except KeyboardInterrupt as stop:
        raise signals.Stopped(signals.code(stop) - 128, summary(rows)) from None


def _show(
    rows: Sequence[ScoredClip], times: Mapping[str, str], arguments: argparse.Namespace, head: bool
) -> None:
    from asdproto.files import append

    if arguments.csv is not None:
        append(arguments.csv, csv_rows(rows, head=False, times=times))
    print_rows(rows, arguments.format, head=head, times=times)
    sys.stdout.flush()
    print_notes(rows)
    for row in rows:
        if row.decision and arguments.on_alarm:
            _alarm(arguments.on_alarm, row, times)


def _continued(path: Path) -> dict[str, str]:
    """File and time of the rows that a csv of a watched folder holds already."""
    from asdproto.files import read_csv, write_atomically, write_output

    head = csv_rows([], times={})
    if path.exists() and not path.is_file():  # a pipe or a device keeps nothing
        return {}
    if not path.exists() or not path.stat().st_size:
        write_output(path, head)
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if not whole.startswith(head.encode()):
        remedy = "Choose another file for --csv."
        raise DataError(path, "other columns", "a csv that --watch has written", remedy)
    if whole != content:  # a kill has cut the last row
        write_atomically(path, whole)
    return {plain_cell(cells[1]): cells[0] for _, cells in read_csv(path, escaped=False)[1:]}


def _alarm(command: str, row: ScoredClip, times: Mapping[str, str]) -> None:
    """Runs a person's command; whatever becomes of it, watching goes on."""
    try:
        words = [*shlex.split(command), row.file]
        text = json_row(row, times)
        subprocess.run(words, input=text, text=True, timeout=_ALARM_SECONDS, check=True)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        print(f"note: --on-alarm: {printable(str(error))}", file=sys.stderr)
