"""A collection of recordings: one walk over its files, and what they are taken for.

Training, extraction, validation and the :class:`Detector` all start from what is read here.
"""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from asdproto.config import nearest
from asdproto.data.dcase import (
    AUDIO_SUFFIXES,
    CONTAINERS,
    Clip,
    match_name,
    name_fault,
    parse_name,
    path_fault,
    same_text,
)
from asdproto.data.folders import read_folders
from asdproto.data.identity import Stamp, identity_of, stamp_of
from asdproto.data.problems import (
    CollectionError,
    Notice,
    errors_in,
    label_problems,
    leave_out,
    same_names,
)
from asdproto.data.store import is_store
from asdproto.data.table import TABLE_NAME, read_table
from asdproto.errors import DataError, counted, quoted

# Files that look like recordings, or hold some, and are not read.
_NOT_READ = {
    *(".aac", ".aif", ".aiff", ".au", ".m4a", ".mp3", ".ogg", ".opus", ".wma"),
    *(".7z", ".gz", ".rar", ".tar", ".tgz", ".zip"),
}
_MOST_NAMED = 6  # machine types in a summary


@dataclass(frozen=True)
class Collection:
    """A collection as far as names, folders and tables tell; no recording was opened.

    Attributes:
      path: What was given: a folder or a csv.
      root: Folder that the clips' paths are relative to.
      clips: The clips without fault.
      problems: What is wrong, or worth knowing.
      stamps: Path of each recording -> its size in bytes and modification time in nanoseconds;
        ``(0, 0)`` where there is no such file.
      layout: What told the clips apart: ``"csv"``, ``"names"`` (of DCASE Task 2) or ``"folders"``.
    """

    path: Path
    root: Path
    clips: list[Clip]
    problems: list[DataError]
    stamps: Mapping[str, Stamp]
    layout: str

    @property
    def errors(self) -> list[DataError]:
        """The problems that keep recordings from being used."""
        return errors_in(self.problems)

    def check(self) -> None:
        """Raise :class:`asdproto.data.problems.CollectionError` where there are errors."""
        if errors := self.errors:
            raise CollectionError(self.path, errors)

    def usable(self) -> list[Clip]:
        """The clips that no error concerns."""
        return leave_out(self.clips, {problem.file for problem in self.errors})

    def stamp(self, file: str) -> Stamp:
        """Of a recording; ``(0, 0)`` of what is none."""
        return self.stamps.get(file, (0, 0))

    def identity(self) -> dict[str, list[int]]:
        """What :func:`asdproto.data.identity.changes` compares."""
        return identity_of(self.clips, [self.stamps[clip.path] for clip in self.clips])

    def of_machine(self, machine_type: str) -> "Collection":
        """The same recordings, all of one machine type; sections and labels are checked anew.

        Raises:
          DataError: It is no name of a machine type.
        """
        if fault := name_fault(machine_type):
            raise DataError("--machine", quoted(machine_type), fault, "Choose another name.")
        clips = [replace(clip, machine_type=machine_type) for clip in self.clips]
        problems = [*self.problems, *label_problems(clips)]
        return replace(self, clips=clips, problems=problems)

    def summary(self) -> str:
        """What the recordings were taken for, in two lines for people."""
        told = {
            "csv": f"described by {self.path.name if self.path != self.root else TABLE_NAME}",
            "names": "told apart by names of DCASE Task 2",
            "folders": "told apart by their folders; validate --write-csv writes a csv to correct",
        }
        machines: dict[str, list[Clip]] = defaultdict(list)
        for clip in self.clips:
            machines[clip.machine_type].append(clip)
        parts = [f"{machine}: {_counts(clips)}" for machine, clips in sorted(machines.items())]
        if len(parts) > _MOST_NAMED:
            parts[_MOST_NAMED:] = [f"and {len(parts) - _MOST_NAMED} more"]
        return f"{counted(len(self.clips), 'recording')}, {told[self.layout]}\n{'; '.join(parts)}"


_STATES = {"normal": "normal", "anomaly": "anomalous", "": "unlabeled"}


def _counts(clips: Sequence[Clip]) -> str:
    train = sum(clip.split == "train" for clip in clips)
    states = Counter(_STATES[clip.state] for clip in clips if clip.split == "test")
    test = " and ".join(f"{number} {state}" for state, number in sorted(states.items()))
    sections = len({clip.section for clip in clips})
    return f"{train} to train on, {test or 'none'} to score" + (
        f", in {sections} sections" if sections > 1 else ""
    )


def check_machines(path: Path, clips: Sequence[Clip], machines: Sequence[str] | None) -> None:
    """Refuse machine types that no clip below ``path`` has.

    Raises:
      DataError: One of them is unknown; the message lists those that there are.
    """
    known = sorted({clip.machine_type for clip in clips})
    unknown = [machine for machine in machines or () if same_text(machine) not in known]
    if unknown:
        found, expected = f"no machine type {', '.join(unknown)}", f"some of {', '.join(known)}"
        remedy = f"Correct --machines{nearest(unknown[0], known) or '.'}"
        raise DataError(path, found, expected, remedy)


def read_collection(
    path: str | os.PathLike, *, labels: bool = True, assumed: str = "normal"
) -> Collection:
    """Survey a collection of recordings, however it is described.

    Args:
      path: A csv of clips, a folder that holds ``clips.csv``, a folder laid out as DCASE Task 2
        lays out its data, or a folder of folders of recordings under any names; see
        :func:`asdproto.data.folders.read_folders`. Names of DCASE sets count where at least half
        of the recordings have such names.
      labels: Whether to look for what keeps sections from being trained on: no normal training
        clip, anomalies among them.
      assumed: State of recordings in folders, where nothing says it.

    Returns:
      The collection, with everything that names, folders, tables and labels show to be wrong.

    Raises:
      DataError: Nothing can be read: there is no folder and no csv, or no recording.
    """
    path = Path(path)
    if is_store(path):
        remedy = "Pass the folder that it was extracted from."
        raise DataError(path, "a feature store", "recordings", remedy)
    if path.suffix.lower() in AUDIO_SUFFIXES and os.path.isfile(path):
        remedy = "Pass the folder that the recording is in."
        raise DataError(path, "one recording", "a folder of recordings, or a csv of them", remedy)
    table = path / TABLE_NAME if os.path.isdir(path) else path
    if os.path.isfile(table):
        collection = _from_table(path, table)
    elif os.path.lexists(table):
        found = "a folder, pipe, device or link to nothing"
        raise DataError(table, found, "a csv of clips", "Remove it, or put the file there.")
    else:
        collection = _from_files(path, assumed)
    if labels:
        collection.problems.extend(label_problems(collection.clips))
    return collection


def _from_table(path: Path, table: Path) -> Collection:
    clips, problems = read_table(table)
    root, stamps = table.parent, {}
    for index, clip in enumerate(clips):
        spellings = clip.path, same_text(clip.path), unicodedata.normalize("NFD", clip.path)
        actual = next((name for name in spellings if os.path.lexists(root / name)), clip.path)
        if actual != clip.path:
            clips[index] = replace(clip, path=actual)
        stamps[actual] = stamp_of(root / actual)
    # A csv tells clips apart by their paths; only the official score files cannot.
    problems += same_names(clips, needed=False)
    return Collection(path, root, clips, problems, stamps, "csv")


def _from_files(root: Path, assumed: str) -> Collection:
    stamps, others, problems = walk(root)
    if not stamps and not problems:
        expected = "a folder of recordings, such as <machine type>/normal/*.wav"
        raise DataError(root, "no .wav or .flac file", expected, "Check the path.")
    files = []
    for file in stamps:
        if fault := path_fault(file):
            problems.append(DataError(file, "such a name", fault, "Rename it."))
        else:
            files.append(file)
    by_name = 2 * len([f for f in files if match_name(PurePosixPath(f))]) >= len(files)
    if by_name:
        clips, faults = _read_names(root, files)
        problems += faults
    else:
        clips = read_folders(root, files, assumed)
    faults = list(_bad_names(clips))
    clips = leave_out(clips, {fault.file for fault in faults})
    problems += [*faults, *_not_read(others), *same_names(clips, needed=by_name)]
    clips = [clip for clip in clips if clip.split != "supplemental"]
    layout = "names" if by_name else "folders"
    return Collection(root, root, clips, problems, stamps, layout)


def _read_names(root: Path, files: Sequence[str]) -> tuple[list[Clip], list[DataError]]:
    """Clips by the grammar of DCASE Task 2; the root may be a machine type's folder or a split."""
    above = root.resolve().parts[1:][-2:]
    is_inside = bool(above) and above[-1].lower() not in CONTAINERS
    clips: list[Clip] = []
    problems: list[DataError] = []
    for file in files:
        try:
            clip = parse_name(file)
            if not clip.machine_type and is_inside:
                clip = parse_name("/".join([*above, file]))
        except DataError as error:
            problems.append(error.at(file))
            continue
        if not clip.machine_type:
            found, expected = "no folder that says the machine type", "<machine type>/train/<name>"
            remedy = "Move it to its machine type's folder."
            problems.append(DataError(file, found, expected, remedy))
        elif not clip.split and clip.state:
            found = "neither the name nor a folder that says the split"
            remedy = "Move it to its split's folder."
            problems.append(DataError(file, found, "a folder 'train' or 'test'", remedy))
        else:  # names without labels occur in evaluation test sets only
            clips.append(replace(clip, path=file, split=clip.split or "test"))
    return clips, problems


def _bad_names(clips: Sequence[Clip]) -> Iterator[DataError]:
    for clip in clips:
        for what, name in (("machine type", clip.machine_type), ("section", clip.section)):
            if fault := name_fault(name):
                yield DataError(clip.path, f"the {what} {quoted(name)}", fault, "Rename it.")


def _not_read(files: Sequence[str]) -> Iterator[DataError]:
    for file in files:
        if (suffix := PurePosixPath(file).suffix.lower()) in _NOT_READ:
            found = f"a {suffix} file, which is not read"
            yield Notice(file, found, ".wav or .flac", "Convert or unpack it unless that is done.")


def walk(root: str | os.PathLike) -> tuple[dict[str, Stamp], list[str], list[DataError]]:
    """Walk a folder once, through links but not in circles, past everything hidden.

    Args:
      root: The folder.

    Returns:
      Path of each .wav and .flac file relative to ``root``, with forward slashes, sorted -> its
      size and modification time; the paths of all other files; the folders that cannot be read.

    Raises:
      DataError: ``root`` is not a folder.
    """
    root = os.fspath(root)
    if not os.path.isdir(root):
        found = "a file" if os.path.exists(root) else "nothing"
        raise DataError(root, found, "a folder of recordings", "Check the path.")
    problems: list[DataError] = []

    def refuse(error: OSError) -> None:
        folder = os.path.relpath(error.filename, root)
        found = f"a folder that cannot be read ({error.strerror})"
        name = root if folder == "." else folder
        problems.append(DataError(name, found, "a readable folder", "Correct its permissions."))

    audio: dict[str, Stamp] = {}
    others = []
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.join(os.path.realpath(folder), "")
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and name.lower() != "__macosx"
            and not real.startswith(os.path.join(os.path.realpath(f"{folder}/{name}"), ""))
        ]
        base = PurePosixPath(os.path.relpath(folder, root).replace(os.sep, "/"))
        for name in names:
            path = str(base / name)
            if name.lower().endswith(AUDIO_SUFFIXES) and not name.startswith("."):
                audio[path] = stamp_of(Path(folder, name))
            elif not name.startswith("."):
                others.append(path)
    return dict(sorted(audio.items())), sorted(others), problems
