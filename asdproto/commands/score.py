"""``python -m asdproto score``: recordings to ranked scores and decisions."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdproto import signals
from asdproto.arguments import SHARE, within
from asdproto.commands import add_command, add_options, message, program
from asdproto.commands.rows import csv_rows, print_notes, print_rows, summary
from asdproto.config import at_least, strictly_between
from asdproto.errors import DataError, counted, printable

if TYPE_CHECKING:
    from asdproto.data.dcase import Clip
    from asdproto.results.run_folder import ScoredClip
    from asdproto.systems.detector import Detector

# Recordings whose features are held at once.
_PIECE = 256
# And their frames, padded to the longest: half a GB at 128 mel bands.
_FRAMES = 2**21

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
        "cannot be read is named, the others are scored, and the exit code is 1.\n"
        "With --watch, rows are added to --csv, and what is in it already is not scored again;\n"
        "--on-alarm runs COMMAND FILE for every anomaly, with the row as json on its standard\n"
        "input.",
        usage=f"{program()} score RUN PATH ... [options]\n"
        f"       {program()} score RUN --watch FOLDER [options]",
    )
    parser.add_argument("workdir", type=Path, metavar="run", help="folder of the run")
    parser.add_argument(
        "paths", type=Path, nargs="*", metavar="path", help="recording, folder, or csv of clips"
    )
    detectors = "of the run, such as finetune or spectral (default: the run's result)"
    arriving = "score the recordings in this folder and those to come, until Ctrl-C (default: off)"
    order = "order of the rows: highest score first, or by name"
    add_options(
        parser,
        ("--detector", str, "NAME", detectors),
        ("--machine-type", str, "NAME", "of all recordings (default: as described above)"),
        ("--section", str, "NN", "of all recordings (default: as described above)"),
        ("--top", within(int, at_least(1)), "N", "print the first N rows only (default: all)"),
        ("--csv", Path, "FILE", "write all rows, unrounded, to this file too (default: none)"),
        ("--report", Path, "FILE", "write a web page about the recordings (default: none)"),
        ("--watch", Path, "FOLDER", arriving),
        ("--on-alarm", str, "COMMAND", "what to run for every anomaly (default: nothing)"),
        ("--sort", ("score", "name"), None, order, "score"),
        ("--format", ("table", "csv", "jsonl"), None, "format of the rows", "table"),
    )
    limits = "scores above X are anomalies (default: from training, one for each machine type)"
    shares = "share of normal clips that may be called anomalies (default: as trained)"
    finite = within(float, strictly_between(-math.inf, math.inf))
    add_options(
        parser.add_mutually_exclusive_group(),
        ("--threshold", finite, "X", limits),
        ("--contamination", SHARE, "P", shares),
    )


def score(arguments: argparse.Namespace) -> int:
    """Scores recordings; 1 where one could not be."""
    _check_usage(arguments)
    recordings, failed = find_recordings(arguments.paths)
    if failed and not recordings:
        _complain(failed)
        return 1
    from asdproto.training.devices import use_compilation_cache

    use_compilation_cache()
    from asdproto.files import write_output
    from asdproto.systems.detector import Detector

    detector = Detector.load(arguments.workdir, arguments.detector)
    scorer = _Scorer(detector, arguments)
    if arguments.watch is not None:
        from asdproto.commands.watch import watch

        watch(scorer.score_new, arguments)
        return 0
    rows, errors = scorer.score(recordings)
    failed += errors
    rows.sort(key=lambda row: row.file if arguments.sort == "name" else -row.score)
    # Files first: whatever happens to the screen, they are written; and the screen all the same.
    if arguments.csv is not None:
        failed += _attempt(write_output, arguments.csv, csv_rows(rows))
    shown = rows if arguments.top is None else rows[: arguments.top]
    print_rows(shown, arguments.format)
    left_out = f", {counted(len(rows) - len(shown), 'row')} not shown" if shown != rows else ""
    sentences = [summary(rows) + left_out, *scorer.limits({row.machine_type for row in rows})]
    # They do not disturb the data.
    stream = sys.stdout if arguments.format == "table" else sys.stderr
    if rows:
        print(*sentences, sep="\n", file=stream)
    print_notes(rows)
    if arguments.report is not None and rows:
        from asdproto.results.page import write_scored_report

        page, name = arguments.report, detector.about_["name"]
        unwritten = _attempt(write_scored_report, page, arguments.workdir, name, rows)
        failed += unwritten
        if not unwritten:
            print(f"written: {printable(str(page))}", file=stream)
    _complain(failed)
    return 1 if failed else 0


def _check_usage(arguments: argparse.Namespace) -> None:
    from asdproto.results.run_folder import MANIFEST

    if not arguments.workdir.is_dir():
        raise DataError(arguments.workdir, "no such folder", "the folder of a run", "Check it.")
    watched, csv = arguments.watch is not None, arguments.csv
    given = "recordings and --watch" if watched else "no recording"
    if csv is not None and (csv.parent / MANIFEST).is_file():
        expected = "a file of your own"
        raise DataError(csv, "a file of a detector", expected, "Choose another name.")
    for wrong, found, expected in (
        (bool(arguments.paths) == watched, given, "recordings, or --watch FOLDER"),
        (watched and arguments.report, "--watch and --report", "one of them"),
        (arguments.on_alarm and not watched, "--on-alarm alone", "--watch with it"),
        (csv is not None and csv == arguments.report, "one file for --csv and --report", "two"),
    ):
        if wrong:
            raise DataError("the command", found, expected, "See score --help.")


def _attempt(write: Callable[..., None], *values: Any) -> list[Exception]:
    """Writes values, and returns the error where that fails."""
    try:
        write(*values)
    except (DataError, OSError) as error:
        return [error]
    return []


def _complain(errors: Sequence[Exception]) -> None:
    """Says what went wrong; what several files share is one line."""
    from asdproto.data.problems import listed

    of_data = [error for error in errors if isinstance(error, DataError)]
    others = [f"error: {message(error)}" for error in errors if error not in of_data]
    for line in [*listed(of_data), *others]:
        print(printable(line), file=sys.stderr)


class _Scorer:
    """A detector with the options of the command."""

    def __init__(self, detector: Detector, arguments: argparse.Namespace):
        self.detector, self._arguments = detector, arguments
        self._limits = detector.limits(arguments.contamination)
        self._thresholds = {
            machine: one.threshold if arguments.threshold is None else arguments.threshold
            for machine, one in self._limits.items()
        }

    def score(self, recordings: Iterable[Found]) -> tuple[list[ScoredClip], list[Exception]]:
        """Rows of the recordings that can be scored, and the errors of the others."""
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
                rows += self.detector.score_recordings(read, self._thresholds)
                read, longest = [], frames
            read.append(recording)
        return rows + self.detector.score_recordings(read, self._thresholds), errors

    def score_new(self, paths: Sequence[Path]) -> list[ScoredClip]:
        """Rows of files that can be scored; of the others it is said why not."""
        rows, errors = self.score(find_recordings(paths)[0])
        _complain(errors)
        return rows

    def _read(self, path: Path, clip: Clip | None) -> Any:
        """Features of a recording; what a collection says of it holds where it is known here."""
        known = self.detector.sections
        machine, section = self._arguments.machine_type, self._arguments.section
        if clip is not None and machine is None and clip.machine_type in dict(known):
            machine = clip.machine_type
            if section is None and (machine, clip.section) in known:
                section = clip.section
        recording = self.detector.read(path, machine_type=machine, section=section)
        if clip is None:
            return recording
        told = dataclasses.replace(recording.clip, domain=clip.domain, state=clip.state)
        return recording._replace(clip=told)

    def limits(self, machines: Iterable[str]) -> list[str]:
        """What the limit of each machine type rests on, a line each."""
        lines = []
        for machine in sorted(machines) if self._arguments.threshold is None else ():
            limit = self._limits[machine]
            where = f"limit {limit.threshold:.4g} of {self.detector.about_['name']}, above it"
            clips = counted(limit.clips, "held-out normal clip")
            caution = f"; caution: {limit.caution}" if limit.caution else ""
            share = f"{100 * limit.above:.3g} % of {clips}{caution}"
            lines.append(f"{printable(machine)}: {where} {share}")
        return lines


def find_recordings(paths: Sequence[Path]) -> tuple[list[Found], list[Exception]]:
    """The recordings among the paths, below folders and in tables; errors of those without any."""
    from asdproto.data.collection import read_collection

    recordings: dict[Path, Clip | None] = {}
    errors: list[Exception] = []
    for path in paths:
        if os.path.isdir(path) or path.suffix.lower() == ".csv":
            try:
                collection = read_collection(path, labels=False, assumed="")
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
