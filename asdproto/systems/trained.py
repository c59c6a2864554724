"""A trained detector: members that score clips, their combination, and decisions; saved, loaded.

A detector is one folder of a run, ``scores/NAME``, and needs nothing outside of it::

    detector.json          the members' systems, seeds, classes and weights
    member_0.npz ...       what each member was trained to
    training_scores.npz    held-out scores of the training clips by every member

Several members, of several seeds or several systems, score as one:
:func:`asdproto.scoring.fusion.combine`.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asdproto.config import from_dict, to_dict
from asdproto.data.dataset import ClipArrays
from asdproto.data.dcase import parse_name
from asdproto.errors import DataError
from asdproto.features import FeatureSettings
from asdproto.files import json_checksum, read_arrays, read_json, write_arrays, write_json
from asdproto.results.run_folder import read_config
from asdproto.scoring.fusion import combine
from asdproto.scoring.thresholds import decide, gamma_threshold
from asdproto.systems import system_class
from asdproto.systems.members import Comparison, Member, Section

ABOUT = "detector.json"
_FORMAT = 1
_AGAIN = (
    "Delete the run's results.json and repeat its command: it is made again from the checkpoints."
)


class Recording(NamedTuple):
    """A clip that waits to be scored.

    Attributes:
      file: Its name, for the table.
      section: Machine type and section.
      features: One array a feature setting of the detector, each of shape ``[frames, n_mels]``.
    """

    file: str
    section: Section
    features: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedDetector:
    """Members that score as one.

    Attributes:
      name: Such as ``"finetune"`` or ``"autoencoder"``.
      members: The members.
      seeds: Seed of each.
      classes: Attribute classes that each member's ``nearest`` counts.
      weights: Of each member where several score as one.
      held_out: float64, shape ``[members, training clips]``: their held-out scores.
      train_sections: Machine type and section of each training clip.
      train_files: Path of each training clip in its collection.
      quantile: Of the training scores' distribution, where decisions change.
      dtype: Of stored features: a recording is rounded to it before it is scored.
      fitted: Thresholds at the detector's quantile, where they were saved: to fit them again takes
        a second, for a library alone.
    """

    name: str
    members: Sequence[Member]
    seeds: Sequence[int]
    classes: Sequence[Sequence[tuple]]
    weights: Sequence[float]
    held_out: np.ndarray
    train_sections: Sequence[Section]
    train_files: Sequence[str]
    quantile: float = 0.9
    dtype: str = "float16"
    fitted: Mapping[str, float] | None = None

    @property
    def sections(self) -> list[Section]:
        """What the detector can score, sorted."""
        return sorted(set(self.train_sections))

    @property
    def settings(self) -> list[FeatureSettings]:
        """Feature settings of the members, each once."""
        return list(dict.fromkeys(member.system.features for member in self.members))

    @functools.cached_property
    def train_scores(self) -> np.ndarray:
        """Combined held-out scores, float64, shape ``[training clips]``."""
        return self.combine(self.held_out, self.train_sections)

    def thresholds(self, quantile: float | None = None) -> dict[str, float]:
        """Decision threshold of each machine type.

        Args:
          quantile: Of the gamma distribution of the training scores; the detector's when ``None``.
        """
        if self.fitted is not None and quantile in (None, self.quantile):
            return dict(self.fitted)
        quantile = quantile or self.quantile
        machines = np.array([machine for machine, _ in self.train_sections])
        return {
            str(machine): gamma_threshold(self.train_scores[machines == machine], quantile=quantile)
            for machine in np.unique(machines)
        }

    def compare(self, clips: Sequence[ClipArrays], sections: Sequence[Section]) -> list[Comparison]:
        """What each member finds.

        Args:
          clips: Features, one for each of :attr:`settings`.
          sections: Machine type and section of each clip.
        """
        by_settings = dict(zip(self.settings, clips, strict=True))
        return [
            member.compare(
                dataclasses.replace(by_settings[member.system.features], crop=member.system.crop),
                sections,
            )
            for member in self.members
        ]

    def combine(
        self, scores: Sequence[np.ndarray] | np.ndarray, sections: Sequence[Section]
    ) -> np.ndarray:
        """One score a clip from the members' scores, float64 ``[clips]``.

        A lone member's scores stay as they are.
        """
        if len(scores) == 1:
            return np.asarray(scores[0], np.float64)
        return combine(
            list(scores), list(self.held_out), sections, self.train_sections, weights=self.weights
        )

    def read(
        self, path: Path | str, *, machine_type: str | None = None, section: str | None = None
    ) -> Recording:
        """Reads an audio file.

        Args:
          path: The file.
          machine_type: Taken from the folder above when ``None``, or the detector's only one.
          section: Taken from the name when ``None``, or the detector's only one.

        Raises:
          DataError: It cannot be read, or it is not known which section it belongs to.
        """
        from asdproto.features import file_features

        key = self.section_of(Path(path), machine_type, section)
        arrays = [file_features(path, settings)[0] for settings in self.settings]
        return self.recording(str(path), key, arrays)

    def recording(self, name: str, section: Section, arrays: Sequence[np.ndarray]) -> Recording:
        """A recording from its features, one array for each of :attr:`settings`.

        They are rounded as in the store: a file must score to the same bits as it does from there.
        """
        return Recording(name, section, tuple(array.astype(self.dtype) for array in arrays))

    def score(
        self, recordings: Sequence[Recording], thresholds: Mapping[str, float] | None = None
    ) -> list[dict[str, Any]]:
        """Scores clips exactly as the run scored its test clips.

        Args:
          recordings: The clips.
          thresholds: By machine type; :meth:`thresholds` when ``None``.

        Returns:
          One dictionary a clip: ``file``, ``machine_type``, ``section``, ``score``, ``threshold``,
          ``decision`` (1 for anomaly), ``margin`` (score - threshold) and ``nearest_class`` (a
          tuple, or ``None``).
        """
        if not recordings:
            return []
        clips = [
            stack([recording.features[index] for recording in recordings])
            for index in range(len(self.settings))
        ]
        keys = [recording.section for recording in recordings]
        comparisons = self.compare(clips, keys)
        scores = self.combine([one.scores for one in comparisons], keys)
        thresholds = self.thresholds() if thresholds is None else thresholds
        limits = np.array([thresholds[machine] for machine, _ in keys])
        names: list[Any] = [None] * len(keys)
        for one, classes in zip(comparisons, self.classes, strict=True):
            if one.nearest is not None:
                names = [tuple(classes[label]) for label in one.nearest]
                break
        return [
            {
                "file": recording.file,
                "machine_type": recording.section[0],
                "section": recording.section[1],
                "score": float(value),
                "threshold": float(limit),
                "decision": int(decision),
                "margin": float(value - limit),
                "nearest_class": name,
            }
            for recording, value, limit, decision, name in zip(
                recordings, scores, limits, decide(scores, limits), names, strict=True
            )
        ]

    def score_files(
        self,
        paths: Sequence[Path | str],
        *,
        machine_type: str | None = None,
        section: str | None = None,
    ) -> list[dict[str, Any]]:
        """:meth:`read` and :meth:`score`."""
        return self.score(
            [self.read(path, machine_type=machine_type, section=section) for path in paths]
        )

    def section_of(
        self, path: Path, machine_type: str | None = None, section: str | None = None
    ) -> Section:
        """Machine type and section of a recording; see :meth:`read`."""
        known = self.sections
        with contextlib.suppress(DataError):
            section = section or parse_name(path).section
        if machine_type is None:
            above = {folder.name for folder in path.absolute().parents}
            named = {machine for machine, _ in known if machine in above}
            machines = named or {machine for machine, _ in known}
            machine_type = machines.pop() if len(machines) == 1 else None
        sections = {number for machine, number in known if machine == machine_type}
        if section is None and len(sections) == 1:
            section = sections.pop()
        if (machine_type, section) not in known:
            raise DataError(
                path,
                f"machine type {machine_type or 'unknown'}, section {section or 'unknown'}",
                "one of " + ", ".join(f"{machine} {number}" for machine, number in known),
                "Say which one with --machine-type and --section.",
            )
        return str(machine_type), str(section)

    def save(self, folder: Path) -> None:
        """Writes the detector into a folder; ``detector.json`` comes last and makes it whole."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ABOUT).unlink(missing_ok=True)
        for index, member in enumerate(self.members):
            write_arrays(folder / f"member_{index}.npz", member.to_arrays())
        write_arrays(
            folder / "training_scores.npz",
            {
                "files": np.array(self.train_files),
                "machine_types": np.array([machine for machine, _ in self.train_sections]),
                "sections": np.array([section for _, section in self.train_sections]),
                "held_out": self.held_out,
                "scores": self.train_scores,
            },
        )
        thresholds = self.thresholds()
        write_json(folder / "thresholds.json", thresholds)
        about: dict[str, Any] = {
            "format": _FORMAT,
            "name": self.name,
            "dtype": self.dtype,
            "quantile": self.quantile,
            "members": [
                {
                    "kind": member.system.kind,
                    "system": to_dict(member.system),
                    "seed": seed,
                    "weight": float(weight),
                    "classes": [list(name) for name in classes],
                }
                for member, seed, weight, classes in zip(
                    self.members, self.seeds, self.weights, self.classes, strict=True
                )
            ],
        }
        about["checksum"] = json_checksum([about, thresholds])
        write_json(folder / ABOUT, about)

    @classmethod
    def load(cls, folder: Path, encoder: Any = None) -> "TrainedDetector":
        """Reads what :meth:`save` wrote.

        Args:
          folder: The folder.
          encoder: The flax module that the detector was trained with, where it was not one of this
            package's.

        Raises:
          DataError: The folder holds no whole detector.
        """
        about = read_json(folder / ABOUT, remedy=_AGAIN)
        thresholds = read_json(folder / "thresholds.json", remedy=_AGAIN)
        saved = about.pop("checksum", None)  # arrays have one for each file of the archive
        if saved is not None and saved != json_checksum([about, thresholds]):
            found = "other settings or thresholds than were saved"
            raise DataError(folder / ABOUT, found, "what its checksum says", _AGAIN)
        try:
            if about["format"] != _FORMAT:
                raise ValueError(f"format {about['format']}, expected {_FORMAT}")
            members, classes = [], []
            for index, entry in enumerate(about["members"]):
                system = from_dict(system_class(entry["kind"]), entry["system"])
                system = _with_encoder(system, entry["system"], encoder, folder)
                classes.append([tuple(fields) for fields in entry["classes"]])
                arrays = read_arrays(folder / f"member_{index}.npz", remedy=_AGAIN)
                members.append(system.restore(arrays, classes[-1]))
            training = read_arrays(folder / "training_scores.npz", remedy=_AGAIN)
            machines, sections = training["machine_types"].tolist(), training["sections"].tolist()
            return cls(
                name=about["name"],
                members=members,
                seeds=[entry["seed"] for entry in about["members"]],
                classes=classes,
                weights=[entry["weight"] for entry in about["members"]],
                held_out=training["held_out"],
                train_sections=list(zip(machines, sections, strict=True)),
                train_files=training["files"].tolist(),
                quantile=about["quantile"],
                dtype=about["dtype"],
                fitted=thresholds,
            )
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, DataError):
                raise
            found = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(folder / ABOUT, found, "a whole detector", _AGAIN) from error


def _with_encoder(system: Any, stored: Mapping[str, Any], encoder: Any, folder: Path) -> Any:
    """The system with the encoder that it was trained with."""
    described = stored.get("encoder", {}).get("module")
    if described is None:
        return system
    if encoder is None or repr(encoder) != described:
        raise DataError(
            folder,
            f"a detector with an encoder of its own: {' '.join(described.split())}",
            "that module" if encoder is None else f"it, found {' '.join(repr(encoder).split())}",
            "A run keeps an encoder's parameters, not its code: load it in Python and pass the "
            "module it was trained with, Detector.load(run, encoder=...).",
        )
    return dataclasses.replace(system, encoder=dataclasses.replace(system.encoder, module=encoder))


def load_run(
    workdir: Path | str, name: str | None = None, *, encoder: Any = None
) -> TrainedDetector:
    """Loads a detector of a finished run.

    Args:
      workdir: The run folder.
      name: Which of its detectors, such as ``"pretrain"``; the run's result when ``None``.
      encoder: See :meth:`TrainedDetector.load`.

    Raises:
      DataError: The folder holds no such detector, or it is damaged.
    """
    workdir = Path(workdir)
    there = sorted(path.parent.name for path in (workdir / "scores").glob(f"*/{ABOUT}"))
    wanted: list[str] = []
    if name is not None:
        wanted = [name]
    elif (workdir / "config.json").exists():
        wanted = list(map(str, read_config(workdir)["names"][::-1]))  # the result is the last one
    chosen = next((one for one in wanted if one in there), None)
    if chosen is None:
        found = f"no finished detector {' or '.join(wanted)}".rstrip()
        remedy = "Let the run end first: the command that started it continues where it stopped."
        if there:
            found, remedy = f"{found}; there are {', '.join(there)}", "Choose one of them."
        elif (workdir / "results.json").exists():
            remedy = _AGAIN
        raise DataError(workdir, found, "the folder of a finished run", remedy)
    return TrainedDetector.load(workdir / "scores" / chosen, encoder)


def stack(arrays: Sequence[np.ndarray]) -> ClipArrays:
    """Clips of several lengths as one array, zeros after a clip's end."""
    frames = np.array([len(array) for array in arrays])
    features = np.zeros((len(arrays), frames.max(), arrays[0].shape[1]), arrays[0].dtype)
    for row, array in zip(features, arrays, strict=True):
        row[: len(array)] = array
    return ClipArrays(features, np.arange(len(arrays)), frames, 1)
