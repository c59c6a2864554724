"""Clips, and the file names of the DCASE Task 2 data sets, 2020 to 2026.

The file name says what is known about a clip, attributes included, which the data sets repeat in
files beside their folders. Folders say the machine type, and the split where the name does not.
"""

import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from asdproto.errors import DataError, is_control

AUDIO_SUFFIXES = (".wav", ".flac")
_CONCEALED = "noattribute"  # stands for the attributes where a year conceals them

# Folder -> (split, domain). 2021 sorts its test clips by domain.
SPLIT_FOLDERS = {
    "train": ("train", ""),
    "test": ("test", ""),
    "source_test": ("test", "source"),
    "target_test": ("test", "target"),
    "supplemental": ("supplemental", ""),
}
# Levels between a collection's root and its machine types, which say nothing about a clip.
CONTAINERS = ("raw", "dev_data", "eval_data")
_SILENT = ("/", ".", "..", *CONTAINERS)

_SECTION = "section_(?P<section>[0-9]{2,})"
_LABELS = "(?P<domain>source|target)_(?P<split>train|test)(?:_(?P<state>normal|anomaly))?"
_REST = "[0-9]+(?:_(?P<attributes>.*))?"
_NAMES = (
    f"{_SECTION}_{_LABELS}_{_REST}",
    # Recordings of the machine alone, or of its surroundings, from 2025 on.
    f"{_SECTION}_(?P<supplement>machine|noise|clean)_{_REST}",
    f"{_SECTION}_{_REST}",
    # The year 2020.
    "(?:(?P<state>normal|anomaly)_)?id_(?P<section>[0-9]{2,})_[0-9]+",
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
      split: ``"train"`` or ``"test"``.
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

    def fields(self) -> tuple[str, ...]:
        """The path and what is known, in the order above."""
        return tuple(getattr(self, name) for name in self.__slots__)


def match_name(path: PurePosixPath) -> re.Match[str] | None:
    """What a file's name, whatever its folder, says as one of a DCASE set; None if it is none."""
    if path.suffix.lower() not in AUDIO_SUFFIXES:
        return None
    return next(filter(None, (re.fullmatch(form, path.stem) for form in _NAMES)), None)


def parse_name(path: str | os.PathLike) -> Clip:
    """Read everything a clip's name and folders say.

    Args:
      path: A bare file name, or a path whose folders may name the split and the machine type:
        ``fan/train/section_00_source_train_normal_0000_m-n_W.wav``.

    Returns:
      The clip; fields that nothing names are ``""``. Its split is ``"supplemental"`` for the
      recordings of that name since 2025, which no system reads.

    Raises:
      DataError: The name follows no known grammar, or a folder contradicts it.
    """
    pure = PurePosixPath(os.fspath(path).replace(os.sep, "/"))
    match = match_name(pure)
    if match is None:
        remedy = "Rename the file, or describe the collection by a csv of clips."
        raise DataError(path, "a name of no known form", _GRAMMAR, remedy)
    fields = {key: value or "" for key, value in match.groupdict().items()}
    attributes = same_text(fields.get("attributes", "").strip("_"))
    split = "supplemental" if fields.get("supplement") else fields.get("split", "")
    domain = fields.get("domain", "")

    folders = [part for part in pure.parts[:-1] if part.lower() not in _SILENT]
    if folders and folders[-1].lower() in SPLIT_FOLDERS:
        folder = folders.pop().lower()
        folder_split, folder_domain = SPLIT_FOLDERS[folder]
        said_domain = folder_domain or domain
        if split not in ("", folder_split) or domain not in ("", said_domain):
            found = f"a {domain or split} clip in the folder {folder!r}"
            remedy = "Move it to the folder of its split, or rename it."
            raise DataError(path, found, f"{folder_domain or folder_split} clips there", remedy)
        split, domain = folder_split, said_domain
    return Clip(
        path=os.fspath(path),
        machine_type=same_text(folders[-1]) if folders else "",
        section=fields["section"],
        domain=domain,
        split=split,
        state=fields.get("state", ""),
        attributes="" if attributes.lower() == _CONCEALED else attributes,
    )


def attribute_pairs(attributes: str) -> tuple[tuple[str, str], ...]:
    """``(key, value)`` pairs of an attribute string; an odd last word has the value ``""``.

    An attribute string is a row of them joined by ``_``: ``car_A1_spd_34V_mic_1``.
    """
    words = attributes.split("_") if attributes else []
    return tuple(itertools.zip_longest(words[::2], words[1::2], fillvalue=""))


def same_text(text: str) -> str:
    """One spelling (NFC) of a text that systems spell in several."""
    return unicodedata.normalize("NFC", text)


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
