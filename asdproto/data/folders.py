"""What folders say of recordings whose names follow no convention.

::

    pump/*.wav                                 normal recordings of a pump
    pump/normal/*.wav  pump/abnormal/*.wav     as MIMII has them, also pump/id_00/normal/*.wav
    pump/2024-05-01/*.wav  pump/monday/*.wav   days and numbers mean nothing
    plant/pump/...  plant/fan/...              a folder for each machine type
"""

import dataclasses
import itertools
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from asdproto.data.dcase import CONTAINERS, SPLIT_FOLDERS, Clip, same_text

_NORMAL = {"normal", "healthy", "good", "ok"}
_ANOMALY = {"abnormal", "anomaly", "anomalies", "anomalous", "broken", "damaged", "defect"}
_ANOMALY |= {"defective", "fault", "faults", "faulty", "unhealthy", "bad"}
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
# Words that say neither the machine nor its state: of what is in a folder, and of time.
_FILLERS = {
    *("a", "and", "at", "from", "in", "of", "on", "the", "audio", "clips", "data", "dataset"),
    *("files", "flac", "recordings", "samples", "set", "sound", "sounds", "wav", "wavs"),
    *("day", "week", "month", "year", "hour", "run", "session", "shift", "batch", "part", "take"),
    *("mon", "tue", "wed", "thu", "fri", "sat", "sun", "am", "pm"),
    *("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
    *("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
    *("january", "february", "march", "april", "june", "july", "august", "september"),
    *("october", "november", "december", "morning", "noon", "afternoon", "evening", "night"),
}
# Of the normal recordings of a section with anomalies, the most that are kept to be scored.
_HELD_OUT = 1 / 5


@dataclass(frozen=True)
class Folder:
    """What the name of a folder says; ``""`` where it is silent.

    Attributes:
      machine_type: Any name that says nothing else; of ``pump_normal``, what stands before.
      section: Of ``id_00`` or ``section_00``, the digits.
      split: ``"train"`` or ``"test"``.
      state: ``"normal"`` or ``"anomaly"``.
    """

    machine_type: str = ""
    section: str = ""
    split: str = ""
    state: str = ""

    @property
    def speaks(self) -> bool:
        """Whether it says more than a machine type."""
        return bool(self.section or self.split or self.state)


def read_folder(name: str) -> Folder:
    """Read the name of one folder."""
    name = same_text(name)
    if name.lower() in SPLIT_FOLDERS:
        return Folder(split=SPLIT_FOLDERS[name.lower()][0])
    if match := re.fullmatch(r"(?:id|section)[ _-]?([0-9]+)", name.lower()):
        return Folder(section=match[1].zfill(2))
    words = re.findall(r"[^\W_]+", name.lower())
    telling = [word for word in words if word not in _FILLERS and not _is_number(word)]
    if not telling or name.lower() in CONTAINERS:
        return Folder()
    if all(word in _SPLITS for word in telling):
        return Folder(split=_SPLITS[telling[0]])
    state = _state(telling)
    if not state:
        return Folder(machine_type=name)
    first = next(word for word in words if word in _ANOMALY | _NORMAL)
    return Folder(machine_type=name[: name.lower().index(first)].strip(" _-."), state=state)


def _is_number(word: str) -> bool:
    """Whether a word counts or dates: ``0001``, ``day3``, ``20240501t120000``, ``2nd``."""
    match = re.fullmatch(r"([a-z]*)[0-9]+(?:t[0-9]+z?|[a-z]{0,2})", word)
    return match is not None and match[1] in {"", "d", "h", "t", "w", *_FILLERS}


def _state(words: Iterable[str]) -> str:
    """The state that words speak of; a fault wins, as no fault may train a model."""
    known = set(words)
    return "anomaly" if known & _ANOMALY else "normal" if known & _NORMAL else ""


def read_folders(root: Path, files: Sequence[str], assumed: str = "normal") -> list[Clip]:
    """Clips of a collection that nothing but its folders describes.

    A word for a fault in a file's name, such as ``broken_3.wav``, makes it an anomaly where no
    folder says otherwise. Recordings that nothing calls faulty are for training. Where a section
    has anomalies to score and no normal recording beside them, a fifth of its other ones, at most
    as many as there are anomalies, are kept to be scored as well.

    Args:
      root: The collection's root.
      files: Its recordings, relative to it.
      assumed: State of recordings for training that nothing calls normal.

    Returns:
      One clip for each, in order. A machine type is the first folder that says nothing else, or
      the last one before a folder that says the state, split or section; ``root`` itself where
      there is none, where states lie directly in it, or most of its recordings.
    """
    paths = [[read_folder(part) for part in PurePosixPath(file).parts[:-1]] for file in files]
    above = [read_folder(part) for part in reversed(root.resolve().parts[1:])]
    own = _first(folder.machine_type for folder in above) or "machine"
    if above and (above[0] == Folder() or above[0].split == "test"):
        own = same_text(root.resolve().name)
    inherited = list(itertools.takewhile(lambda folder: folder.speaks, above))
    loose = sum(not path for path in paths)
    is_machine = 2 * loose > len(files) or any(
        path and path[0].speaks and not any(folder.machine_type for folder in path)
        for path in paths
    )
    clips = []
    for file, path in zip(files, paths, strict=True):
        inward = [*reversed(path), *inherited]
        state = _first(folder.state for folder in inward)
        split = _first(folder.split for folder in reversed(path))
        words = re.findall(r"[^\W_]+", PurePosixPath(file).stem.lower())
        if not state and not split and _state(words) == "anomaly":
            state = "anomaly"
        split = split or ("test" if state == "anomaly" else "train")
        clips.append(
            Clip(
                path=file,
                machine_type=own if is_machine else _machine_type(path) or own,
                section=_first(folder.section for folder in inward) or "00",
                domain="",
                split=split,
                state=state or (assumed if split == "train" else ""),
                attributes="",
            )
        )
    return _hold_out(clips)


def _first(values: Iterable[str]) -> str:
    return next(filter(None, values), "")


def _machine_type(path: Sequence[Folder]) -> str:
    speaking = [index for index, folder in enumerate(path) if folder.speaks]
    before = path[: speaking[0]] if speaking else path
    free = [folder.machine_type for folder in before if folder.machine_type]
    if free:
        return free[-1] if speaking else free[0]
    return _first(folder.machine_type for folder in path)


def _hold_out(clips: list[Clip]) -> list[Clip]:
    """Put some normal training clips into the test split where it has anomalies alone."""
    sections: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, clip in enumerate(clips):
        sections[clip.machine_type, clip.section].append(index)
    for indices in sections.values():
        tested = [clips[index].state for index in indices if clips[index].split == "test"]
        train = [index for index in indices if clips[index].split == "train"]
        if not tested or set(tested) != {"anomaly"}:
            continue
        # By a checksum of the name: spread over days, and the same when recordings are added.
        train.sort(key=lambda index: zlib.crc32(same_text(clips[index].path).encode()))
        for index in train[: min(len(tested), int(len(train) * _HELD_OUT))]:
            clips[index] = dataclasses.replace(clips[index], split="test")
    return clips
