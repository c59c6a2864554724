"""What can be wrong with a collection, or worth knowing about it.

What is wrong is the error that would be raised; what is handled and only said is a notice.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from asdproto.data.dcase import Clip
from asdproto.errors import DataError, counted, describe, printable, some

_MOST_LISTED = 200  # lines of an error
_MOST_PADDED = 4  # size of a store over that of its clips without padding


class Notice(DataError):
    """Something that is handled, and only said."""


def errors_in(problems: Iterable[DataError]) -> list[DataError]:
    """The problems that keep recordings from being used."""
    return [problem for problem in problems if not isinstance(problem, Notice)]


def listed(problems: Iterable[DataError]) -> list[str]:
    """One line for each problem; what several files share is said once, with three of them.

    Returns:
      Errors before notices, each sorted by file.
    """
    shared: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for problem in problems:
        severity = "notice" if isinstance(problem, Notice) else "error"
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
    """What a problem's ``file`` is where it concerns the section of a clip."""
    return f"{clip.machine_type} section {clip.section}"


def leave_out(clips: Iterable[Clip], files: Collection[str]) -> list[Clip]:
    """Clips that no error concerns; ``files`` are those of the errors."""
    return [clip for clip in clips if clip.path not in files and section_name(clip) not in files]


def label_problems(clips: Iterable[Clip]) -> Iterator[DataError]:
    """Anomalies in training data, and sections that cannot be trained or scored."""
    sections: dict[tuple[str, str], list[Clip]] = defaultdict(list)
    for clip in clips:
        sections[clip.machine_type, clip.section].append(clip)
        if clip.split == "train" and clip.state == "anomaly":
            found, expected = "an anomaly in the training split", "normal recordings only"
            remedy = "Move it to the test split, or correct its label."
            yield DataError(clip.path, found, expected, remedy)
    for _, section in sorted(sections.items()):
        name = section_name(section[0])
        count = Counter((clip.split, clip.domain) for clip in section)
        train = sum(clip.split == "train" for clip in section)
        test = len(section) - train
        if not train:
            found = f"{counted(test, 'test clip')} and no training clip"
            remedy = "Add them: without them nothing says what is normal here."
            yield DataError(name, found, "normal training clips", remedy)
            continue
        if not test:
            found = f"{counted(train, 'training clip')} and no test clip"
            remedy = "Nothing to do unless the section should be scored."
            yield Notice(name, found, "test clips too", remedy)
        domains = {clip.domain for clip in section} - {""}
        for domain, other in (("source", "target"), ("target", "source")):
            if not domains or count["train", domain]:
                continue
            found = f"no {domain} training clip"
            if tested := count["test", domain]:
                found += f", though {tested} test clips are of that domain"
            expected = f"training clips of both domains, as of {other}"
            remedy = f"Add {domain} training clips, or check the domain in the names."
            yield Notice(name, found, expected, remedy)
        states = Counter(clip.state for clip in section if clip.split == "test")
        if states[""]:
            found = f"{states['']} of {test} test clips not labeled normal or anomaly"
            remedy = "Nothing to do: all test clips get scores, but no metrics are computed."
            yield Notice(name, found, "labels for all, to compute metrics", remedy)
        elif len(states) == 1:
            [(state, number)] = states.items()
            found = f"{number} {state} test clips and none of the other kind"
            remedy = "Nothing to do, but no AUC can be computed for it."
            yield Notice(name, found, "normal and anomalous test clips", remedy)


def same_names(clips: Iterable[Clip], *, needed: bool) -> Iterator[DataError]:
    """Clips that the official score files, which give base names, could not tell apart.

    Args:
      clips: The clips.
      needed: Whether the names alone tell the clips apart, so that this is an error.
    """
    expected = "one recording of a name in a machine type's split"
    first: dict[tuple[str, ...], str] = {}
    for clip in clips:
        key = (clip.machine_type, clip.section, clip.split, PurePosixPath(clip.name).stem)
        if key not in first:
            first[key] = clip.path
        elif needed:
            remedy = "Remove or rename one of the two: score files tell clips apart by their names."
            yield DataError(clip.path, f"the same name as {first[key]}", expected, remedy)
        else:
            remedy = "Nothing to do: only the official score files cannot tell them apart."
            yield Notice(clip.path, "the name of another recording", expected, remedy)


def copies(alike: Mapping[Any, list[Clip]]) -> Iterator[DataError]:
    """Recordings that hold the same samples, from lists of clips that are the same."""
    for original, *others in alike.values():
        for clip in others:
            is_across = original.split != clip.split
            found = f"a copy of {original.path}" + (", across the splits" if is_across else "")
            problem = DataError if is_across else Notice
            yield problem(clip.path, found, "each recording once", "Remove one of them.")


def overlong(frames: Mapping[str, int]) -> Iterator[DataError]:
    """Clips so much longer than the others that a store would hold padding in the main.

    All clips of a store are as long as its longest, on disk and on the devices that train, where
    one rectangular array makes a crop a single gather. That wastes nothing while lengths are alike,
    so what is limited is how unlike they may be.

    Args:
      frames: Length of each clip.

    Yields:
      Those to leave out, longest first, so that the others take at most 4 times their own size.
    """
    order, total = sorted(frames, key=frames.__getitem__), sum(frames.values())
    while order and frames[order[-1]] * len(order) > _MOST_PADDED * total:
        longest = order.pop()
        total -= frames[longest]
        found = f"{frames[longest]} frames, much longer than the other clips"
        expected = f"lengths that padding makes at most {_MOST_PADDED} times as much of"
        yield DataError(longest, found, expected, "Cut it into clips, or remove it.")
