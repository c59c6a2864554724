"""Scored recordings on the screen and in csv files."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from asdproto.errors import counted, printable, some

if TYPE_CHECKING:
    from asdproto.results.run_folder import ScoredClip

# File -> when it was written, where rows say it.
Times = Mapping[str, str] | None
_RIGHT = ("score", "limit", "pct")  # columns of numbers
_LEAST = {"nearest class": 13, "file": 16, "machine": 7}  # characters, in the order of shortening


def csv_rows(rows: Sequence[ScoredClip], *, head: bool = True, times: Times = None) -> str:
    """Text of a csv, numbers with all digits, below the titles if ``head``; times stand first."""
    from asdproto.files import csv_text
    from asdproto.results.run_folder import COLUMNS, csv_cells

    lines = [COLUMNS, *map(csv_cells, rows)]
    if times is not None:
        first = ["time", *(times[row.file] for row in rows)]
        lines = [[when, *cells] for when, cells in zip(first, lines, strict=True)]
    return csv_text(lines if head else lines[1:])


def json_row(row: ScoredClip, times: Times = None) -> str:
    """A row as one line of json."""
    when = {} if times is None else {"time": times[row.file]}
    return json.dumps({**when, **dataclasses.asdict(row)})


def print_rows(
    rows: Sequence[ScoredClip], format_: str, *, head: bool = True, times: Times = None
) -> None:
    """Prints scored recordings in a ``--format``, one line each, below the titles if ``head``."""
    terminal = sys.stdout.isatty()
    if format_ == "csv":
        text = csv_rows(rows, head=head, times=times)
        lines = text.removesuffix("\n").split("\n")
        if terminal:
            lines = list(map(printable, lines))
    elif format_ == "jsonl":
        lines = [json_row(row, times) for row in rows]
    else:
        width = shutil.get_terminal_size().columns if terminal else None
        color = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        lines = table_lines(rows, width, color=color, times=times)[0 if head else 1 :]
    for line in lines:
        print(line)


def table_lines(
    rows: Sequence[ScoredClip], width: int | None, *, color: bool = False, times: Times = None
) -> list[str]:
    """A table of one line a recording, below the titles; anomalies are red if ``color``.

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
        "nearest class": [printable(row.class_in_section) for row in rows],
    }
    columns = {title: texts for title, texts in columns.items() if any(texts)}
    sizes = {title: max(map(len, [title, *texts])) for title, texts in columns.items()}
    if width is not None:
        too_many = sum(sizes.values()) + 2 * (len(columns) - 1) - width
        for title in filter(columns.__contains__, _LEAST):
            while (
                too_many > 0
                and sizes[title] > _LEAST[title]
                and _are_told_apart(columns[title], sizes[title] - 1)
            ):
                sizes[title] -= 1
                too_many -= 1
    aligned = []
    for title, texts in columns.items():
        align = str.rjust if title in _RIGHT else str.ljust
        size = sizes[title]
        aligned.append([align(_shortened(text, size), size) for text in (title, *texts)])
    lines = ["  ".join(cells).rstrip() for cells in zip(*aligned, strict=True)]
    for index, row in enumerate(rows, 1):
        if color and row.decision:
            lines[index] = f"\x1b[1;31m{lines[index]}\x1b[0m"
    return lines


def _are_told_apart(texts: Sequence[str], size: int) -> bool:
    different = set(texts)
    return len({_shortened(text, size) for text in different}) == len(different)


def _shortened(text: str, size: int) -> str:
    return text if len(text) <= size else "…" + text[len(text) - size + 1 :]


def print_notes(rows: Sequence[ScoredClip]) -> None:
    """What is odd about recordings; what several share is one line."""
    files = defaultdict(list)
    for row in rows:
        for note in filter(None, row.note.split("; ")):
            files[note].append(row.file)
    for note, names in files.items():
        text = f"{counted(len(names), 'recording')}: {note} ({some(names)})"
        print(f"note: {printable(text)}", file=sys.stderr)


def summary(rows: Sequence[ScoredClip]) -> str:
    """How many recordings are called anomalies."""
    anomalies = sum(row.decision for row in rows)
    return f"{anomalies} of {counted(len(rows), 'recording')} above their threshold"
