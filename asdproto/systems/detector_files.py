"""The files of a :class:`asdproto.systems.detector.Detector`: one folder of a run, ``scores/NAME``.

::

    detector.json          names, sizes and checksums of the files below; systems, seeds, classes
    member_0.npz ...       what each member was trained to
    training_scores.npz    held-out scores of the training clips by every member
    scores.csv ...         what it says of test clips, where there are any

A detector needs nothing outside of its folder. A folder without ``detector.json``, which is written
last, is none.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asdproto.config import from_dict, to_dict
from asdproto.errors import DataError
from asdproto.files import (
    check_manifest,
    read_arrays,
    write_arrays,
    write_manifest,
)
from asdproto.results.run_folder import MANIFEST, ScoredClip, read_config, write_scores
from asdproto.scoring.thresholds import Limit
from asdproto.systems import system_class
from asdproto.systems.system import Comparison, Member

# What training_scores.npz says of each training clip, beside its scores.
TRAINING = ("files", "machine_types", "sections")
# Scores of the test clips by every member: what fusing takes.
MEMBER_SCORES = "member_scores.npz"
_FORMAT = 2
_AGAIN = (
    "Delete the run's results.json and repeat its command: it is made again from the checkpoints."
)


def write_detector(
    folder: Path,
    members: Sequence[Member],
    training: tuple[Sequence[tuple[str, str, str]], np.ndarray],
    about: Mapping[str, Any],
    rows: Sequence[ScoredClip],
    found: Sequence[Comparison],
) -> dict[str, Any] | None:
    """Writes a detector, and what it says of test clips, in the place of what was there.

    Args:
      folder: ``RUN/scores/NAME``.
      members: Its members.
      training: Path, machine type and section of each training clip, and their combined held-out
        scores.
      about: What the manifest says of it.
      rows: The test clips; none writes no scores.
      found: What each member finds in them.

    Returns:
      Figures, where all test clips carry labels.
    """
    clips, scores = training
    columns = dict(zip(TRAINING, map(np.array, zip(*clips, strict=True)), strict=True))
    held_out = np.stack([member.held_out for member in members])
    files = {"training_scores.npz": {**columns, "scores": scores, "held_out": held_out}}
    if rows:
        names, by_member = [row.file for row in rows], [one.scores for one in found]
        files[MEMBER_SCORES] = {"files": np.array(names), "scores": np.stack(by_member)}
    listed = []
    for index, member in enumerate(members):
        system = member.model.system
        files[f"member_{index}.npz"] = member.model.to_arrays()
        listed.append(
            {
                "kind": system.kind,
                "system": to_dict(system),
                "seed": member.seed,
                "part": member.part,
                "classes": [list(name) for name in member.classes],
            }
        )
    figures = None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        write_arrays(folder / name, content)
    if rows:
        figures = write_scores(folder, rows)
    names = sorted(path.name for path in folder.iterdir())
    write_manifest(folder / MANIFEST, names, {"format": _FORMAT, **about, "members": listed})
    return figures


def read_detector(
    folder: Path, name: str | None
) -> tuple[Any, dict[str, Any], list[Member], list[tuple[str, str, str]]]:
    """What :func:`write_detector` wrote; see :meth:`asdproto.systems.detector.Detector.load`.

    Returns:
      The system, ``"fused"`` where it is of several; what the manifest says, with the combined
      held-out ``scores``; the members; path, machine type and section of each training clip.
    """
    if name is not None or not (folder / MANIFEST).is_file():
        folder = folder / "scores" / chosen_detector(folder, name)
    about = check_manifest(folder / MANIFEST, remedy=_AGAIN)
    training = read_arrays(folder / "training_scores.npz", remedy=_AGAIN)
    try:
        if about["format"] != _FORMAT:
            raise ValueError(f"format {about['format']}, expected {_FORMAT}")
        members = []
        for index, entry in enumerate(about["members"]):
            arrays = read_arrays(folder / f"member_{index}.npz", remedy=_AGAIN)
            model = from_dict(system_class(entry["kind"]), entry["system"]).restore(arrays)
            classes = [tuple(fields) for fields in entry["classes"]]
            held_out = training["held_out"][index]
            members.append(Member(model, entry["seed"], classes, held_out, part=entry["part"]))
        if not members or about["dtype"] not in ("float16", "float32"):
            raise ValueError(f"{len(members)} members, dtype {about['dtype']!r}")
        if not 0 < about["contamination"] < 1:
            raise ValueError(f"contamination {about['contamination']}")
        system = about["kind"]
        if system != "fused":
            system = from_dict(system_class(system), about["system"])
        about["limits"] = {machine: Limit(*one) for machine, one in about["limits"].items()}
        about["scores"] = training["scores"]
        clips = zip(*(training[column].tolist() for column in TRAINING), strict=True)
        return system, about, members, list(clips)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        found = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(folder / MANIFEST, found, "a whole detector", _AGAIN) from error


def chosen_detector(run: Path, name: str | None = None) -> str:
    """Name of a detector of a run: its result when ``name`` is ``None``.

    Raises:
      DataError: There is no such detector.
    """
    finished = sorted(path.parent.name for path in (run / "scores").glob(f"*/{MANIFEST}"))
    wanted: list[str] = []
    if name is not None:
        wanted = [name]
    elif (run / "config.json").exists():
        wanted = read_config(run)["names"][::-1]  # the result is the last one
    chosen = next((one for one in wanted if one in finished), None)
    if chosen is None:
        found = f"no finished detector {' or '.join(wanted)}".rstrip()
        remedy = "Let the run end first: the command that started it continues where it stopped."
        if finished:
            found, remedy = f"{found}; there are {', '.join(finished)}", "Choose one of them."
        elif (run / "results.json").exists():
            remedy = _AGAIN
        raise DataError(run, found, "the folder of a finished run", remedy)
    return chosen
