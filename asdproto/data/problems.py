"""What can be wrong with a collection, or worth knowing about it.

A problem is the error that is raised: listing them all and stopping at one say the same.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from asdproto.data.dcase import Clip
from asdproto.errors import DataError, counted, describe, printable, some

ERROR, NOTICE = "error", "notice"
_MOST_LISTED = 200  # lines of an error


class Problem(DataError):
    """One thing that is not as expected.

    Attributes:
      file: The file, folder, place in a csv or section, relative to the collection's root.
      found: What is there.
      expected: What should be there.
      remedy: What to do about it.
      severity: ``"error"``, or ``"notice"`` for what is handled and only said.
    """

    def __init__(
        self,
        file: str | os.PathLike,
        found: str,
        expected: str,
        remedy: str,
        severity: str = ERROR,
    ):
        super().__init__(file, found, expected, remedy)
        self.severity = severity

    @property
    def is_error(self) -> bool:
        """Whether the collection cannot be used as it is."""
        return self.severity == ERROR

    def __reduce__(self):
        return type(self), (self.file, self.found, self.expected, self.remedy, self.severity)


def notice(file: str, found: str, expected: str, remedy: str) -> Problem:
    """A problem that is handled and only said."""
    return Problem(file, found, expected, remedy, NOTICE)


def as_problem(error: DataError, file: str | None = None) -> Problem:
    """The problem that an error is, of a file under the name that the collection has for it."""
    return Problem(error.file if file is None else file, error.found, error.expected, error.remedy)


def listed(problems: Iterable[DataError]) -> list[str]:
    """One line for each problem; what several files share is said once, with three of them.

    Returns:
      Errors before notices, each sorted by file.
    """
    shared: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for problem in problems:
        severity = getattr(problem, "severity", ERROR)
        shared[severity, problem.found, problem.expected, problem.remedy].append(problem.file)
    lines = []
    for (severity, *said), files in shared.items():
        files.sort()
        name = files[0] if len(files) == 1 else f"{some(files)} ({len(files)} in all)"
        lines.append((severity, files[0], f"{severity}: {describe(name, *said)}"))
    return [line for *_, line in sorted(lines)]


class CollectionError(DataError):
    """Something in a collection cannot be used.

    Attributes:
      errors: One for each fault.
    """

    def __init__(self, path: str | os.PathLike, errors: Iterable[DataError]):
        self.errors = list(errors)
        lines = listed(self.errors)
        if len(lines) > _MOST_LISTED:
            lines[_MOST_LISTED:] = [f"and {len(lines) - _MOST_LISTED} more"]
        found, expected = counted(len(self.errors), "fault"), "a collection without"
        remedy = "Repair them, or leave them out: --on-error skip ('skip' in Python)."
        super().__init__(path, found, expected, remedy)
        said = "\n  ".join([f"{printable(self.file)}: found {found}:", *lines])
        self.args = (f"{said}\n; expected {expected}. {remedy}",)


def section_name(clip: Clip) -> str:
    """What :attr:`Problem.file` calls the section of a clip."""
    return f"{clip.machine_type} section {clip.section}"


def leave_out(clips: Iterable[Clip], files: Collection[str]) -> list[Clip]:
    """Clips that no error concerns; ``files`` is :attr:`Problem.file` of the errors."""
    return [clip for clip in clips if clip.path not in files and section_name(clip) not in files]


def label_problems(clips: Iterable[Clip]) -> Iterator[Problem]:
    """Anomalies in training data, and sections that cannot be trained or scored."""
    sections: dict[tuple[str, str], list[Clip]] = defaultdict(list)
    for clip in clips:
        sections[clip.machine_type, clip.section].append(clip)
        if clip.split == "train" and clip.state == "anomaly":
            found, expected = "an anomaly in the training split", "normal recordings only"
            remedy = "Move it to the test split, or correct its label."
            yield Problem(clip.path, found, expected, remedy)
    for _, section in sorted(sections.items()):
        name = section_name(section[0])
        count = Counter((clip.split, clip.domain) for clip in section)
        train = sum(clip.split == "train" for clip in section)
        test = len(section) - train
        if not train:
            found = f"{counted(test, 'test clip')} and no training clip"
            remedy = "Add them: without them nothing says what is normal here."
            yield Problem(name, found, "normal training clips", remedy)
            continue
        if not test:
            found = f"{counted(train, 'training clip')} and no test clip"
            remedy = "Nothing to do unless the section should be scored."
            yield notice(name, found, "test clips too", remedy)
        domains = {clip.domain for clip in section} - {""}
        for domain, other in (("source", "target"), ("target", "source")):
            if not domains or count["train", domain]:
                continue
            found = f"no {domain} training clip"
            if tested := count["test", domain]:
                found += f", though {tested} test clips are of that domain"
            expected = f"training clips of both domains, as of {other}"
            remedy = f"Add {domain} training clips, or check the domain in the names."
            yield notice(name, found, expected, remedy)
        states = Counter(clip.state for clip in section if clip.split == "test")
        if states[""]:
            found = f"{states['']} of {test} test clips not labeled normal or anomaly"
            remedy = "Nothing to do: all test clips get scores, but no metrics are computed."
            yield notice(name, found, "labels for all, to compute metrics", remedy)
        elif len(states) == 1:
            [(state, number)] = states.items()
            found = f"{number} {state} test clips and none of the other kind"
            remedy = "Nothing to do, but no AUC can be computed for it."
            yield notice(name, found, "normal and anomalous test clips", remedy)


def same_names(clips: Iterable[Clip], *, needed: bool) -> Iterator[Problem]:
    """Clips that the official score files, which give base names, could not tell apart.

    Args:
      clips: The clips.
      needed: Whether the names alone tell the clips apart, so that this is an error.
    """
    first: dict[tuple[str, ...], str] = {}
    for clip in clips:
        key = (clip.machine_type, clip.section, clip.split, PurePosixPath(clip.name).stem)
        expected = "one recording of a name in a machine type's split"
        if key in first and needed:
            remedy = "Remove or rename one of the two: score files tell clips apart by their names."
            yield Problem(clip.path, f"the same name as {first[key]}", expected, remedy)
        elif key in first:
            remedy = "Nothing to do: only the official score files cannot tell them apart."
            yield notice(clip.path, "the name of another recording", expected, remedy)
        first.setdefault(key, clip.path)


def copies(alike: Mapping[Any, list[Clip]]) -> Iterator[Problem]:
    """Recordings that hold the same samples, from lists of clips that are the same."""
    for original, *others in alike.values():
        for clip in others:
            found, severity = f"a copy of {original.path}", NOTICE
            if original.split != clip.split:
                found, severity = f"{found}, across the splits", ERROR
            yield Problem(clip.path, found, "each recording once", "Remove one of them.", severity)
