"""File names, folders and attribute files of the DCASE Task 2 data sets, 2020 to 2026.

The file name is the primary source of what is known about a clip. Folders say the machine type,
and the split where the name does not; the optional ``attributes_NN.csv`` fills in attributes for
names that carry none.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from asdproto.data.attributes import CONCEALED, AttributeRow, read_attributes
from asdproto.errors import DataError, is_control, quoted

AUDIO_SUFFIXES = (".wav", ".flac")

# Folder -> (split, domain). 2021 sorts its test clips by domain.
SPLIT_FOLDERS = {
    "train": ("train", ""),
    "test": ("test", ""),
    "source_test": ("test", "source"),
    "target_test": ("test", "target"),
    "supplemental": ("supplemental", ""),
}
# Levels between a collection's root and its machine types, which say nothing about a clip.
_CONTAINERS = ("raw", "dev_data", "eval_data")
_SILENT = ("/", ".", "..", *_CONTAINERS)

_SECTION = "section_(?P<section>[0-9]{2,})"
_LABELS = "(?P<domain>source|target)_(?P<split>train|test)(?:_(?P<state>normal|anomaly))?"
_REST = "(?P<index>[0-9]+)(?:_(?P<attributes>.*))?"
_NAMES = (
    f"{_SECTION}_{_LABELS}_{_REST}",
    f"{_SECTION}_(?P<supplement>machine|noise|clean)_{_REST}",
    f"{_SECTION}_{_REST}",
    # The year 2020.
    "(?:(?P<state>normal|anomaly)_)?id_(?P<section>[0-9]{2,})_(?P<index>[0-9]+)(?P<attributes>)",
)
_LONGEST = 80  # bytes of a machine type or section: both stand in names of score files
_GRAMMAR = (
    "section_NN_{source|target}_{train|test}_{normal|anomaly}_NNNN[_attributes], "
    "section_NN_NNNN, or {normal|anomaly}_id_NN_NNNNNNNN, ending in .wav or .flac"
)


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording and what is known about it.

    Attributes:
      path: File, relative to the collection's root, with forward slashes.
      machine_type: For example ``"fan"``.
      section: For example ``"00"``.
      domain: ``"source"``, ``"target"``, or ``""`` where unknown.
      split: ``"train"`` or ``"test"`` (``"supplemental"`` where asked for, DCASE 2025).
      state: ``"normal"``, ``"anomaly"``, or ``""`` where unknown.
      attributes: Key and value pairs joined by ``_``, as in the file name; may be ``""``.
    """

    path: str
    machine_type: str
    section: str
    domain: str
    split: str
    state: str
    attributes: str

    @property
    def name(self) -> str:
        """File name without its folder, as the official score files write it."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class ParsedName:
    """What a file name and its folders say; ``""`` where they are silent.

    Attributes:
      machine_type: Folder above the split folder.
      section: Two or more digits.
      domain: ``"source"``, ``"target"`` or ``""``.
      split: ``"train"``, ``"test"``, ``"supplemental"`` or ``""``.
      state: ``"normal"``, ``"anomaly"`` or ``""``.
      index: The running number, as written.
      attributes: ``_``-joined pairs; empty where there are none or the year conceals them.
      supplement: ``"machine"`` or ``"noise"`` for the supplemental clips of DCASE 2025.
    """

    machine_type: str
    section: str
    domain: str
    split: str
    state: str
    index: str
    attributes: str
    supplement: str = ""


def parse_name(path: str | os.PathLike) -> ParsedName:
    """Read everything a clip's name and folders say.

    Args:
      path: A bare file name, or a path whose folders may name the split and the machine type:
        ``fan/train/section_00_source_train_normal_0000_m-n_W.wav``.

    Returns:
      The fields; those that nothing names are ``""``.

    Raises:
      DataError: The name follows no known grammar, or a folder contradicts it.
    """
    pure = PurePosixPath(os.fspath(path).replace(os.sep, "/"))
    matches = (re.fullmatch(pattern, pure.stem) for pattern in _NAMES)
    match = next(filter(None, matches), None)
    if match is None or pure.suffix.lower() not in AUDIO_SUFFIXES:
        remedy = "Rename the file, or describe the collection by a csv of clips."
        raise DataError(path, f"the name {quoted(pure.name)}", _GRAMMAR, remedy)
    fields = {key: value or "" for key, value in match.groupdict().items()}
    attributes = fields["attributes"].strip("_")
    if attributes.lower() == CONCEALED.lower():
        attributes = ""
    supplement = fields.get("supplement", "")
    split = "supplemental" if supplement else fields.get("split", "")
    domain = fields.get("domain", "")

    folders = [part for part in pure.parts[:-1] if part.lower() not in _SILENT]
    if folders and folders[-1].lower() in SPLIT_FOLDERS:
        folder = folders.pop()
        folder_split, folder_domain = SPLIT_FOLDERS[folder.lower()]
        if split and split != folder_split:
            found = f"a {split} clip in the folder {folder!r}"
            expected = f"the folder {folder_split!r} to hold {folder_split} clips only"
            raise DataError(path, found, expected, f"Move it to a folder {split!r}, or rename it.")
        if domain and folder_domain and domain != folder_domain:
            found = f"a {domain} clip in the folder {folder!r}"
            remedy = f"Move it to the folder '{domain}_test', or rename it."
            raise DataError(path, found, f"{folder_domain} clips there", remedy)
        split, domain = split or folder_split, domain or folder_domain
    machine_type = folders[-1] if folders else ""
    return ParsedName(
        machine_type,
        fields["section"],
        domain,
        split,
        fields.get("state", ""),
        fields["index"],
        attributes,
        supplement,
    )


def audio_files(
    root: str | os.PathLike, unreadable: Callable[[DataError], object] | None = None
) -> list[str]:
    """Every audio file below a folder, hidden ones left out.

    Args:
      root: A folder.
      unreadable: As for :func:`visible`.

    Returns:
      Paths relative to ``root`` with forward slashes, sorted.

    Raises:
      DataError: ``root`` is not a folder, or a folder in it cannot be read.
    """
    root = Path(root)
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise DataError(root, found, "a folder of recordings", "Check the path.")
    return sorted(
        prefix + name
        for prefix, _, names in visible(root, unreadable)
        for name in names
        if name.lower().endswith(AUDIO_SUFFIXES)
    )


def visible(
    root: str | os.PathLike, unreadable: Callable[[DataError], object] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk a folder, through links but not in circles, past everything hidden.

    Args:
      root: The folder.
      unreadable: Called with an error for each folder that cannot be read; the first of them is
        raised when ``None``.

    Yields:
      The folder's path relative to ``root`` with a slash at its end (``""`` for ``root``), the
      names of its folders and those of its files, each sorted.

    Raises:
      DataError: A folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        folder = os.path.relpath(error.filename, root)
        folder = os.fspath(root) if folder == "." else folder
        found = f"a folder that cannot be read ({error.strerror})"
        problem = DataError(folder, found, "a readable folder", "Correct its permissions.")
        if unreadable is None:
            raise problem
        unreadable(problem)

    for folder, folders, names in os.walk(os.fspath(root), onerror=refuse, followlinks=True):
        real = os.path.join(os.path.realpath(folder), "")
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and not real.startswith(os.path.join(os.path.realpath(f"{folder}/{name}"), ""))
        )
        base = Path(folder).relative_to(root).as_posix()
        prefix = "" if base == "." else f"{base}/"
        yield prefix, folders, sorted(name for name in names if not name.startswith("."))


def name_fault(name: str) -> str:
    """What keeps a text from being a machine type or a section, ``""`` if nothing does."""
    if name in ("", ".", "..") or "/" in name or len(os.fsencode(name)) > _LONGEST:
        return f"a name of at most {_LONGEST} bytes without slashes"
    return path_fault(name)


def path_fault(path: str) -> str:
    """What keeps a text from being a path that a csv and a terminal can hold, or ``""``."""
    if "\\" in path or any(is_control(char) for char in path):
        return "text in UTF-8 without control characters and backslashes"
    if path != path.strip():
        return "text that neither begins nor ends with white space"
    return ""


def survey(
    root: str | os.PathLike, *, supplemental: bool = False
) -> tuple[list[Clip], list[DataError]]:
    """Read a collection as far as it can be read.

    Args:
      root: As for :func:`scan`.
      supplemental: As for :func:`scan`.

    Returns:
      The clips that parse, sorted by path, and what is wrong with each of the others and with
      folders that cannot be read.

    Raises:
      DataError: ``root`` is not a folder.
    """
    root = Path(root)
    # The root itself may be a machine type's folder, or one split of it.
    above = root.resolve().parts[1:][-2:]
    inside = above and above[-1].lower() not in _CONTAINERS
    clips: list[Clip] = []
    errors: list[DataError] = []
    for path in audio_files(root, errors.append):
        try:
            if path_fault(path):
                raise DataError(path, "such a name", path_fault(path), "Rename it.")
            parsed = parse_name(path)
            if not parsed.machine_type and inside:
                parsed = parse_name("/".join([*above, path]))
            clip = _as_clip(path, parsed)
            for field in ("machine_type", "section"):
                if fault := name_fault(getattr(clip, field)):
                    found = f"the {field.replace('_', ' ')} {quoted(getattr(clip, field))}"
                    raise DataError(path, found, fault, "Rename it.")
        except DataError as error:
            errors.append(error.at(path))
            continue
        if clip.split != "supplemental" or supplemental:
            clips.append(clip)
    try:
        clips = _fill_attributes(root, clips)
    except DataError as error:
        errors.append(error.at(Path(os.path.relpath(error.file, root)).as_posix()))
    return clips, errors


def _as_clip(path: str, parsed: ParsedName) -> Clip:
    split = parsed.split
    if not parsed.machine_type:
        found = "no folder that says the machine type"
        expected = "<machine type>/{train,test}/<name>"
        raise DataError(path, found, expected, "Move it to its machine type's folder.")
    if not split:
        if parsed.state:
            found = "neither the name nor a folder that says the split"
            expected = "a folder 'train' or 'test'"
            raise DataError(path, found, expected, "Move it to its split's folder.")
        split = "test"  # names without labels occur in evaluation test sets only
    state = "normal" if parsed.supplement in ("machine", "clean") else parsed.state
    place = parsed.machine_type, parsed.section, parsed.domain
    return Clip(path, *place, split, state, parsed.attributes)


def scan(root: str | os.PathLike, *, supplemental: bool = False) -> list[Clip]:
    """List the clips of a collection laid out as DCASE Task 2 lays out its data.

    Args:
      root: The folder that holds the machine types (``dev_data``), a machine type's own folder,
        or one of its split folders. A ``raw`` level is passed through.
      supplemental: Also list the supplemental clips of DCASE 2025 (clean machine sound or noise
        alone), with the split ``"supplemental"``.

    Returns:
      The clips, sorted by path.

    Raises:
      DataError: No audio is there, or a file cannot be placed; the message names the first such
        file and counts the others.
    """
    clips, errors = survey(root, supplemental=supplemental)
    if errors:
        first = errors[0]
        more = f" {len(errors) - 1} more like it." if len(errors) > 1 else ""
        remedy = f"{first.remedy}{more} 'python -m asdproto validate' lists every problem."
        raise DataError(Path(root) / first.file, first.found, first.expected, remedy)
    if not clips:
        expected = "<machine type>/{train,test}/*.wav below it"
        raise DataError(root, "no .wav or .flac file", expected, "Check the path.")
    return clips


def attribute_files(root: str | os.PathLike, clips: Iterable[Clip]) -> dict[str, list[Path]]:
    """Find the attribute files beside the split folders.

    Args:
      root: The collection's root.
      clips: Its clips.

    Returns:
      Folder of a machine type (relative to ``root``, ``"."`` for the root) -> its attribute
      files, sorted.
    """
    files = {}
    for folder in sorted({machine_folder(clip.path) for clip in clips}):
        beside = Path(root, folder)
        if folder == "." and beside.resolve().name.lower() in SPLIT_FOLDERS:
            beside = beside.resolve().parent
        files[folder] = sorted(beside.glob("attributes*.csv"))
    return files


def machine_folder(path: str) -> str:
    """Folder that holds a clip's split folder, relative to the root; ``"."`` for the root."""
    parent = PurePosixPath(path).parent
    return (parent.parent if parent.name.lower() in SPLIT_FOLDERS else parent).as_posix()


def clips_by_name(clips: Iterable[Clip]) -> dict[tuple[str, str], list[Clip]]:
    """Folder of the machine type and name of the file -> the clips."""
    named: dict[tuple[str, str], list[Clip]] = defaultdict(list)
    for clip in clips:
        named[machine_folder(clip.path), clip.name].append(clip)
    return named


def clips_of(
    row: AttributeRow, folder: str, named: Mapping[tuple[str, str], list[Clip]]
) -> list[Clip]:
    """The clips a row of an attribute file can mean: same name and, where written, same split."""
    split, _ = SPLIT_FOLDERS.get(PurePosixPath(row.file).parent.name.lower(), ("", ""))
    same = named.get((folder, row.file.rpartition("/")[2]), [])
    return [clip for clip in same if split in ("", clip.split)]


def _fill_attributes(root: Path, clips: list[Clip]) -> list[Clip]:
    """Take attributes from the csv for the clips whose names carry none."""
    bare = [clip for clip in clips if not clip.attributes]
    named = clips_by_name(bare)
    filled: dict[str, str] = {}
    for folder, files in attribute_files(root, bare).items():
        for file in files:
            for row in read_attributes(file):
                for clip in clips_of(row, folder, named):
                    filled[clip.path] = row.attributes
    return [
        replace(clip, attributes=filled[clip.path]) if filled.get(clip.path) else clip
        for clip in clips
    ]


def class_key(clip: Clip) -> tuple[str, str, str, str]:
    """The attribute class of a clip: machine type, section, domain and attribute string.

    The paper does not say which attributes of the toy machines it merges, so none are.
    """
    return clip.machine_type, clip.section, clip.domain, clip.attributes


def assign_classes(
    clips: Sequence[Clip], key: Callable[[Clip], Hashable] = class_key
) -> tuple[np.ndarray, list]:
    """Number the attribute classes of a list of clips.

    Args:
      clips: Usually the training clips.
      key: Maps a clip to its class; keys must sort among themselves.

    Returns:
      Labels, int32, shape ``[clips]``, and the sorted keys they index.
    """
    keys = [key(clip) for clip in clips]
    classes = sorted(set(keys))  # type: ignore[type-var]
    index = {value: number for number, value in enumerate(classes)}
    return np.array([index[value] for value in keys], dtype=np.int32), classes
