"""The one fitted thing: members that score clips as one, in the habits of scikit-learn and PyOD."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asdproto.audio_info import compare_with_training
from asdproto.config import ConfigError, to_dict
from asdproto.data.dataset import ClipArrays, Dataset, section_keys
from asdproto.data.dcase import Clip
from asdproto.data.identity import identity_of
from asdproto.errors import DataError
from asdproto.features import FeatureSettings
from asdproto.files import new_folder
from asdproto.results import class_name
from asdproto.results.run_folder import ScoredClip, write_config
from asdproto.scoring.fusion import LEARNED, combine
from asdproto.scoring.thresholds import decide, percentiles
from asdproto.systems.detector_files import read_detector, write_detector
from asdproto.systems.estimator import OutlierDetector
from asdproto.systems.inputs import (
    Clips,
    PerClip,
    check_contamination,
    check_seeds,
    clip_of,
    features_of,
    memory_store,
    per_clip,
    sources_of,
    stack,
    stamp,
    training_clips,
)
from asdproto.systems.system import Comparison, Member, Section, System, prepare_for
from asdproto.systems.workdir import check_workdir, run_settings

_ABOUT = ("kind", "system", "name", "dtype", "audio")


class Recording(NamedTuple):
    """A recording that waits to be scored.

    Attributes:
      clip: Its name and what is known about it.
      features: One array for each of :attr:`Detector.settings`, of shape ``[frames, columns]``.
      note: What is odd about it; ``""`` mostly.
    """

    clip: Clip
    features: tuple[np.ndarray, ...]
    note: str = ""


class Detector(OutlierDetector):
    """Learns what normal clips sound like, and scores how far others are from it.

    Higher scores are more anomalous, and :meth:`predict` gives 1 for an anomaly, as in PyOD.
    Parameters are kept as given and checked by :meth:`fit`; pipelines, ``clone``, cross-validation
    and grids of scikit-learn work. What training found has names that end in an underscore.

    Args:
      system: ``"spectral"``, ``"prototype"``, ``"autoencoder"`` ...; the path of a class
        of your own, ``"package.module:Class"``; a system as a value; or ``"auto"``: what
        :func:`asdproto.systems.choose` takes for the clips.
      preset: ``"quick"``, ``"small"`` or ``"paper"``.
      seed: Of everything random; several make one detector of as many members.
      contamination: Share of normal clips that may be called anomalies, in (0, 1).
      sample_rate: Of waveforms, hertz, where no call says it.
      workdir: Folder for checkpoints and metrics, from which an interrupted ``fit`` continues;
        ``None`` keeps nothing.
      verbose: Whether progress is printed.
      **overrides: Numbers of the system: ``pretrain__epochs=10``, or ``**{"pretrain.epochs": 10}``.

    Attributes:
      members_: One :class:`asdproto.systems.system.Member` a seed, fused detector or spectrum.
      about_: What its manifest says of it: ``kind`` of its system, or ``"fused"``; numbers of that
        ``system``; its ``name`` in a run; ``dtype`` of stored features, to which recordings are
        rounded before they are scored; and ``audio``, what the training recordings of a machine
        type have in common, as :func:`asdproto.audio_info.audio_statistics` says it.
      train_clips_: Path, machine type and section of each training clip.
      sections: What it can score, sorted.
      settings: Feature settings of the members, each once.
      decision_scores_: Held-out scores of the training clips, float64 ``[clips]``: as if each were
        new.
    """

    members_: list[Member]
    train_clips_: list[tuple[str, str, str]]
    sections: list[Section]
    settings: list[FeatureSettings]

    def __init__(
        self,
        *,
        system: Any = "auto",
        preset: str = "small",
        seed: int | Sequence[int] = 0,
        contamination: float = 0.1,
        sample_rate: int | None = None,
        workdir: str | os.PathLike | None = None,
        verbose: bool = False,
        **overrides: Any,
    ):
        self.system = system
        self.preset = preset
        self.seed = seed
        self.contamination = contamination
        self.sample_rate = sample_rate
        self.workdir = workdir
        self.verbose = verbose
        self.overrides = overrides

    # --- training

    def fit(
        self,
        X: Clips,
        y: Any = None,
        *,
        sample_rate: int | None = None,
        attributes: PerClip = None,
        sections: PerClip = None,
        machine_types: PerClip = None,
        domains: PerClip = None,
    ) -> "Detector":
        """Trains on normal clips.

        Args:
          X: Audio files; waveforms, floating, each of shape ``[samples]``; or one path of a
            collection (a folder of recordings, or a csv), whose training clips are taken.
          y: 0 for normal clips and 1 for anomalies, which are left out; all are normal when
            ``None``.
          sample_rate: Of the waveforms, hertz; the parameter when ``None``.
          attributes: Operating condition of each clip, such as ``"speed_1"``. Clips of one machine
            type, section, domain and attributes are an attribute class. Read off names where they
            follow DCASE Task 2, as are the next three.
          sections: Section of each clip; ``"00"`` where unknown.
          machine_types: Machine type of each clip; ``"machine"`` where unknown.
          domains: ``"source"``, ``"target"`` or ``""`` for each clip.

        Returns:
          The detector itself.

        Raises:
          DataError: A clip cannot be used, is an anomaly by its name, or the system needs more; or
            ``workdir`` holds the training of other clips or settings.
          ConfigError: A parameter has a value that it cannot have.
        """
        from rich.console import Console

        from asdproto.training.devices import RunOptions, use_devices

        check_contamination(self.contamination)
        seeds, rate = check_seeds(self.seed), self._rate(sample_rate)
        columns = {
            "section": sections,
            "machine_type": machine_types,
            "domain": domains,
            "attributes": attributes,
        }
        clips, sources = training_clips(X, y, columns)
        system = self._system(clips)
        system.check_clips(clips)
        workdir = None if self.workdir is None else Path(self.workdir)
        if workdir is not None:
            settings = run_settings(system, seeds, None)
            identity = identity_of(clips, map(stamp, sources))
            check_workdir(workdir, settings, identity)
            write_config(workdir, {**settings, "collection": identity})
        found = [
            features_of(source, clip.path, rate, system.features)
            for clip, source in zip(clips, sources, strict=True)
        ]
        data = prepare_for(system, memory_store(clips, found, system.features))
        options = RunOptions(workdir, use_devices(), Console() if self.verbose else None)
        name = system.names[-1]
        self._take(name, system, data, system.train(data, options, seeds)[name])
        self.warn_of_limits()
        return self

    @classmethod
    def trained(
        cls, name: str, system: System, data: Dataset, members: Sequence[Member]
    ) -> "Detector":
        """The detector that members trained on a data set make."""
        contamination = round(1 - system.quantile, 12)
        detector = cls(system=system, seed=_seed(members), contamination=contamination)
        detector._take(name, system, data, members)
        return detector

    def _take(self, name: str, system: System, data: Dataset, members: Sequence[Member]) -> None:
        for member in members:
            member.check(name)
        about = {
            "kind": system.kind,
            "system": to_dict(system),
            "name": name,
            "dtype": str(data.train.features.dtype),
            "audio": data.audio,
        }
        self.restore(about, members, trained_on(data.train_clips))

    def restore(
        self,
        about: Mapping[str, Any],
        members: Sequence[Member],
        train_clips: Sequence[tuple[str, str, str]],
    ) -> None:
        """Takes what was fitted before.

        Args:
          about: ``kind``, ``system``, ``name``, ``dtype`` and ``audio``, as the manifest has them;
            and where they are known, ``limits`` of the parameter contamination and combined
            held-out ``scores``.
          members: Its members.
          train_clips: Path, machine type and section of each training clip.
        """
        self.about_ = {name: about[name] for name in _ABOUT}
        self.members_, self.train_clips_ = list(members), list(train_clips)
        self._train_sections = [(machine, section) for _, machine, section in train_clips]
        self._train_machines = [machine for machine, _ in self._train_sections]
        self.sections = sorted(set(self._train_sections))
        self.settings = list(dict.fromkeys(member.model.system.features for member in members))
        self._limits = {self.contamination: about["limits"]} if "limits" in about else {}
        if "scores" in about:
            self.decision_scores_ = about["scores"]
        else:
            held_out = [member.held_out for member in members]
            self.decision_scores_ = self.combine(held_out, self._train_sections)

    # --- scoring

    def details(
        self,
        X: Clips,
        *,
        sample_rate: int | None = None,
        sections: PerClip = None,
        machine_types: PerClip = None,
    ) -> list[ScoredClip]:
        """Everything that is known of each clip.

        Args:
          X: Audio files, waveforms, or a folder of recordings.
          sample_rate: Of the waveforms, hertz; the parameter when ``None``.
          sections: Section of each clip, where names do not tell and there are several.
          machine_types: Machine type of each clip, likewise.
        """
        self._check_fitted()
        sources = sources_of(X)
        machines = per_clip(machine_types, len(sources), "machine_types")
        numbers = per_clip(sections, len(sources), "sections")
        return self.score_recordings(
            [
                self.read(source, name, sample_rate, machine, section)
                for (name, source), machine, section in zip(sources, machines, numbers, strict=True)
            ]
        )

    def read(
        self,
        source: Path | str | np.ndarray,
        name: str | None = None,
        sample_rate: int | None = None,
        machine_type: str | None = None,
        section: str | None = None,
    ) -> Recording:
        """Reads an audio file, or takes a waveform.

        Args:
          source: The file, or floating samples, shape ``[samples]``.
          name: What it is called; the path when ``None``.
          sample_rate: Of a waveform, hertz; the parameter when ``None``.
          machine_type: That of the nearest known folder above when ``None``, or the detector's
            only one.
          section: Taken from the name when ``None``, or the detector's only one.

        Raises:
          DataError: It cannot be read, or it is not known which section it belongs to.
        """
        name, rate = str(source) if name is None else name, self._rate(sample_rate)
        clip = clip_of(name, self.sections, machine_type, section)
        found = [features_of(source, name, rate, settings) for settings in self.settings]
        usual = self.about_["audio"].get(clip.machine_type, {})
        note = "; ".join(compare_with_training(found[0][1], usual))
        return Recording(clip, tuple(features for features, _ in found), note)

    def score_recordings(
        self, recordings: Sequence[Recording], thresholds: Mapping[str, float] | None = None
    ) -> list[ScoredClip]:
        """Scores clips exactly as the run scored its test clips.

        ``thresholds`` are by machine type, the detector's when ``None``.
        """
        if not recordings:
            return []
        clips = [recording.clip for recording in recordings]
        # Rounded as in the store: a file must score to the same bits as it does from there.
        arrays = [
            stack([one.astype(self.about_["dtype"]) for one in features])
            for features in zip(*(recording.features for recording in recordings), strict=True)
        ]
        found = self.compare(arrays, section_keys(clips))
        notes = [recording.note for recording in recordings]
        return self.rows(clips, found, thresholds=thresholds, notes=notes)

    def compare(self, clips: Sequence[ClipArrays], sections: Sequence[Section]) -> list[Comparison]:
        """What each member finds in clips: their features, one for each of :attr:`settings`."""
        by_settings = dict(zip(self.settings, clips, strict=True))
        found = []
        for member in self.members_:
            system = member.model.system
            own = by_settings[system.features]
            if own.crop != system.crop:
                own = dataclasses.replace(own, crop=system.crop)
            found.append(member.model.compare(own, sections))
        return found

    def rows(
        self,
        clips: Sequence[Clip],
        found: Sequence[Comparison],
        *,
        thresholds: Mapping[str, float] | None = None,
        notes: Sequence[str] | None = None,
    ) -> list[ScoredClip]:
        """Scores, limits and decisions of clips, from what each member finds in them."""
        sections = section_keys(clips)
        machines = [machine for machine, _ in sections]
        scores = self.combine([one.scores for one in found], sections)
        if thresholds is None:
            thresholds = self.thresholds()
        limits = np.array([thresholds[machine] for machine in machines])
        nearest = [""] * len(clips)
        for one, member in zip(found, self.members_, strict=True):
            if one.nearest is not None:
                nearest = [class_name(member.classes[label]) for label in one.nearest]
                break
        columns = (
            scores.tolist(),
            percentiles(scores, machines, self.decision_scores_, self._train_machines).tolist(),
            limits.tolist(),
            decide(scores, limits).tolist(),
            nearest,
            notes or [""] * len(clips),
        )
        return [
            ScoredClip(one.path, one.machine_type, one.section, one.domain, one.state, *values)
            for one, *values in zip(clips, *columns, strict=True)
        ]

    def combine(
        self,
        scores: Sequence[np.ndarray],
        sections: Sequence[Section],
        members: Sequence[Member] | None = None,
    ) -> np.ndarray:
        """One score a clip from the scores of members, float64 ``[clips]``.

        A lone member's scores stay as they are. ``members`` are the detector's when ``None``.
        """
        if len(scores) == 1:
            return np.asarray(scores[0], np.float64)
        members = self.members_ if members is None else members
        return combine(
            scores,
            [member.held_out for member in members],
            sections,
            self._train_sections,
            parts=[member.part for member in members],
            weights=[LEARNED if member.model.system.is_fused else 1.0 for member in members],
        )

    # --- made of detectors

    @classmethod
    def fuse(cls, detectors: Sequence["Detector"]) -> "Detector":
        """One detector of several that were trained on the same clips.

        Their parts stay parts of it; the one that is furthest out decides:
        :func:`asdproto.scoring.fusion.combine`.

        Args:
          detectors: Two or more.

        Raises:
          DataError: They were trained on other clips or features.
          ConfigError: Fewer than two different detectors.
        """
        if len(detectors) < 2:
            raise ConfigError("one detector is nothing to fuse; give two or more")
        first, known = detectors[0], []
        members: list[Member] = []
        for one in detectors:
            one._check_fitted()
            name = one.about_["name"]
            same = one.about_["dtype"] == first.about_["dtype"]
            if one.train_clips_ != first.train_clips_ or not same:
                raise DataError(
                    name,
                    f"a detector of other training clips or features than {first.about_['name']}",
                    "detectors trained on the same clips, in the same order",
                    "Train them on one collection.",
                )
            own = [(each.seed, each.model.system, each.held_out.tolist()) for each in one.members_]
            if own in known:
                raise ConfigError(f"{name} is given twice; give different detectors")
            known.append(own)
            begin = 1 + max((member.part for member in members), default=-1)
            members += [dataclasses.replace(each, part=begin + each.part) for each in one.members_]
        fused = cls(system="fused", contamination=first.contamination)
        about = {**first.about_, "kind": "fused", "system": {}, "name": "fused"}
        fused.restore(about, members, first.train_clips_)
        return fused

    def export(self, folder: str | os.PathLike) -> Path:
        """Writes it as a file that jax alone can run; see :mod:`asdproto.systems.export`."""
        from asdproto.systems.export import export_members

        thresholds, dtype = self.thresholds(), self.about_["dtype"]
        return export_members(self.members_, self._train_sections, thresholds, dtype, Path(folder))

    def save(self, run: str | os.PathLike) -> Path:
        """Writes a run folder, which :meth:`load` and ``python -m asdproto score`` read.

        Raises:
          DataError: The folder is there and holds something else.
        """
        self._check_fitted()
        with new_folder(Path(run), "run", "config.json") as work:
            name = self.about_["name"]
            self.write(work / "scores" / name)
            config = {
                "kind": self.about_["kind"],
                "system": self.about_["system"],
                "seeds": sorted({member.seed for member in self.members_}),
                "names": [name],
                "classes": [list(name) for name in self.members_[0].classes],
            }
            write_config(work, config)
        return Path(run)

    def write(
        self, folder: Path, clips: Sequence[Clip] = (), found: Sequence[Comparison] = ()
    ) -> dict[str, Any] | None:
        """Writes its folder of a run, with what its members find in test clips.

        Returns:
          Figures, where all test clips carry labels; see
          :func:`asdproto.results.run_folder.write_scores`.
        """
        about = {
            **self.about_,
            "contamination": self.contamination,
            "limits": {machine: list(one) for machine, one in self.limits().items()},
        }
        rows = self.rows(clips, found) if clips else []
        training = self.train_clips_, self.decision_scores_
        return write_detector(folder, self.members_, training, about, rows, found)

    @classmethod
    def load(cls, folder: str | os.PathLike, name: str | None = None) -> "Detector":
        """Reads a detector made by :meth:`save` or by training.

        Args:
          folder: A run, or the folder of a detector in it, ``RUN/scores/NAME``.
          name: Which of a run's detectors; its result when ``None``.

        Raises:
          DataError: There is no such detector, or it is damaged.
        """
        system, about, members, train_clips = read_detector(Path(folder), name)
        detector = cls(system=system, seed=_seed(members), contamination=about["contamination"])
        detector.restore(about, members, train_clips)
        return detector


def _seed(members: Sequence[Member]) -> int | list[int]:
    """The seed of members, or their seeds."""
    seeds = list(dict.fromkeys(member.seed for member in members))
    return seeds[0] if len(seeds) == 1 else seeds


def trained_on(clips: Sequence[Clip]) -> list[tuple[str, str, str]]:
    """Path, machine type and section of clips."""
    return [(clip.path, clip.machine_type, clip.section) for clip in clips]
