"""The one fitted thing: members that score clips as one, in the habits of scikit-learn and PyOD."""

import contextlib
import dataclasses
import inspect
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asdproto.audio_info import compare_with_training
from asdproto.config import ConfigError, override, to_dict
from asdproto.data.dataset import ClipArrays, Dataset, section_keys
from asdproto.data.dcase import Clip, parse_name
from asdproto.errors import DataError
from asdproto.features import FeatureSettings
from asdproto.files import new_folder
from asdproto.results import class_name
from asdproto.results.run_folder import ScoredClip, write_config
from asdproto.scoring.fusion import LEARNED, combine
from asdproto.scoring.thresholds import Limit, ThresholdWarning, decide, limit, percentiles
from asdproto.systems import choose, preset
from asdproto.systems.detector_files import (
    TRAINING,
    claim_workdir,
    read_detector,
    write_detector,
)
from asdproto.systems.inputs import (
    Clips,
    PerClip,
    check_rate,
    features_of,
    labels_of,
    memory_store,
    name_of,
    per_clip,
    sources_of,
    stack,
    training_clips,
)
from asdproto.systems.system import Comparison, Member, RunOptions, Section, System, prepare_for


class EqualEmbeddingsWarning(UserWarning):
    """An encoder tells no two clips apart."""


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


class Detector:
    """Learns what normal clips sound like, and scores how far others are from it.

    Higher scores are more anomalous, and :meth:`predict` gives 1 for an anomaly, as in PyOD.
    Parameters are kept as given and checked by :meth:`fit`; pipelines, ``clone``, cross-validation
    and grids of scikit-learn work. What training found has names that end in an underscore.

    Args:
      system: ``"spectral"``, ``"prototype"``, ``"autoencoder"`` ...; the path of a class
        of your own, ``"package.module:Class"``; a system as a value, such as
        ``PrototypeSystem(encoder=EncoderConfig(module=MyEncoder()))``; or ``"auto"``: what
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
      kind_: Of the system that it is of, or ``"fused"``.
      settings_: Numbers of that system, as ``config.json`` has them.
      name_: Of the detector in a run.
      train_clips_: Path, machine type and section of each training clip.
      dtype_: Of stored features; recordings are rounded to it before they are scored.
      audio_: Machine type -> what its training recordings have in common, as
        :func:`asdproto.audio_info.audio_statistics` says it.
    """

    members_: list[Member]
    kind_: str
    settings_: dict[str, Any]
    name_: str
    train_clips_: list[tuple[str, str, str]]
    dtype_: str
    audio_: dict[str, Any]

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

        from asdproto.training.devices import use_devices

        self._quantile()
        seeds, rate = self._seeds(), self._rate(sample_rate)
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
            claim_workdir(workdir, system, seeds, clips, sources)
        found = [
            features_of(source, name_of(source, index), rate, system.features)
            for index, source in enumerate(sources)
        ]
        data = prepare_for(system, memory_store(clips, found, system.features))
        console = Console() if self.verbose else None
        name, options = system.names[-1], RunOptions(workdir, use_devices(), console)
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
            if member.embeddings is not None and _collapsed(member.embeddings):
                warnings.warn(
                    f"{name}, seed {member.seed}: all {len(member.embeddings)} training clips have "
                    "one embedding, so the scores mean nothing. Look for features that are "
                    "constant, or lower the learning rate",
                    EqualEmbeddingsWarning,
                    stacklevel=3,
                )
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
        self.kind_, self.settings_, self.name_ = about["kind"], about["system"], about["name"]
        self.dtype_, self.audio_ = about["dtype"], about["audio"]
        self.members_, self.train_clips_ = list(members), list(train_clips)
        self._decision_scores: np.ndarray | None = about.get("scores")
        self._limits = {self._quantile(): about["limits"]} if "limits" in about else {}

    def _about(self) -> dict[str, Any]:
        """What :meth:`restore` takes."""
        return {
            "kind": self.kind_,
            "system": self.settings_,
            "name": self.name_,
            "dtype": self.dtype_,
            "audio": self.audio_,
        }

    def fit_predict(self, X: Clips, y: Any = None, **known: Any) -> np.ndarray:
        """:meth:`fit`, and :attr:`labels_` of the training clips, int64 ``[clips]``."""
        return self.fit(X, y, **known).labels_

    # --- scoring

    def decision_function(self, X: Clips, **known: Any) -> np.ndarray:
        """Anomaly scores, float64, shape ``[clips]``, higher is more anomalous; see `details`."""
        return np.array([row.score for row in self.details(X, **known)], np.float64)

    def predict(self, X: Clips, **known: Any) -> np.ndarray:
        """Decisions, int64, shape ``[clips]``: 1 for an anomaly, 0 for normal; see `details`."""
        return np.array([row.decision for row in self.details(X, **known)], np.int64)

    def predict_proba(self, X: Clips, **known: Any) -> np.ndarray:
        """Normal and anomalous share, float64 ``[clips, 2]``, linear as PyOD's.

        A score as low as the lowest held-out one has (1, 0), one as high as the highest (0, 1).
        """
        low, high = self.decision_scores_.min(), self.decision_scores_.max()
        span = max(high - low, np.finfo(np.float64).tiny)
        anomalous = np.clip((self.decision_function(X, **known) - low) / span, 0.0, 1.0)
        return np.stack([1.0 - anomalous, anomalous], axis=1)

    def score(self, X: Clips, y: Any, **known: Any) -> float:
        """Area under the ROC curve in [0, 1], of clips with ``y`` 0 for normal, 1 for anomaly."""
        from asdproto.scoring.metrics import auc

        scores = self.decision_function(X, **known)
        return auc(scores, labels_of(y, len(scores)) == 1)

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
        recordings = [
            self.read(source, name_of(source, index), sample_rate, machine, section)
            for index, (source, machine, section) in enumerate(
                zip(sources, machines, numbers, strict=True)
            )
        ]
        return self.score_recordings(recordings)

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
        clip = self.clip_of(name, machine_type, section)
        found = [features_of(source, name, rate, settings) for settings in self.settings]
        usual = self.audio_.get(clip.machine_type, {})
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
            stack([one.astype(self.dtype_) for one in features])
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
            own = dataclasses.replace(by_settings[system.features], crop=system.crop)
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
        scores = self.combine([one.scores for one in found], sections)
        if thresholds is None:
            thresholds = self.thresholds()
        machines = [machine for machine, _ in sections]
        limits = np.array([thresholds[machine] for machine in machines])
        columns = (
            scores.tolist(),
            percentiles(scores, machines, self.decision_scores_, self._train_machines()).tolist(),
            limits.tolist(),
            decide(scores, limits).tolist(),
            self._nearest(found, len(clips)),
            notes or [""] * len(clips),
        )
        return [
            ScoredClip(one.path, one.machine_type, one.section, one.domain, one.state, *values)
            for one, *values in zip(clips, *columns, strict=True)
        ]

    def _nearest(self, found: Sequence[Comparison], clips: int) -> list[str]:
        for one, member in zip(found, self.members_, strict=True):
            if one.nearest is not None:
                return [class_name(member.classes[label]) for label in one.nearest]
        return [""] * clips

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
        held_out = [member.held_out for member in members]
        parts = [member.part for member in members]
        weights = [LEARNED if member.model.system.is_fused else 1.0 for member in members]
        known = self._train_sections()
        return combine(scores, held_out, sections, known, parts=parts, weights=weights)

    def clip_of(
        self, name: str, machine_type: str | None = None, section: str | None = None
    ) -> Clip:
        """What is known of a recording by its name; see :meth:`read`."""
        known, path = self.sections, Path(name)
        domain, state = "", ""
        with contextlib.suppress(DataError):
            parsed = parse_name(path)
            section, domain, state = section or parsed.section, parsed.domain, parsed.state
        machines = {machine for machine, _ in known}
        if machine_type is None:
            above = (folder.name for folder in path.absolute().parents)
            only = next(iter(machines)) if len(machines) == 1 else None
            machine_type = next((folder for folder in above if folder in machines), only)
        sections = [number for machine, number in known if machine == machine_type]
        if section is None and len(sections) == 1:
            section = sections[0]
        if machine_type is None or section is None or (machine_type, section) not in known:
            raise DataError(
                name,
                f"machine type {machine_type or 'unknown'}, section {section or 'unknown'}",
                "one of " + ", ".join(f"{machine} {number}" for machine, number in known),
                "Say which one with --machine-type and --section.",
            )
        return Clip(name, machine_type, section, domain, "test", state, "")

    # --- limits

    @property
    def threshold_(self) -> float | dict[str, float]:
        """Scores above it are anomalies; by machine type where there are several."""
        thresholds = self.thresholds()
        return next(iter(thresholds.values())) if len(thresholds) == 1 else thresholds

    @property
    def decision_scores_(self) -> np.ndarray:
        """Held-out scores of the training clips, float64 ``[clips]``: as if each were new."""
        self._check_fitted()
        if self._decision_scores is None:
            held_out = [member.held_out for member in self.members_]
            self._decision_scores = self.combine(held_out, self._train_sections())
        return self._decision_scores

    @property
    def labels_(self) -> np.ndarray:
        """Decisions on the training clips by their held-out scores, int64 ``[clips]``."""
        thresholds = self.thresholds()
        limits = np.array([thresholds[machine] for machine in self._train_machines()])
        return decide(self.decision_scores_, limits)

    def limits(self, contamination: float | None = None) -> dict[str, Limit]:
        """Decision threshold of each machine type, and what it rests on.

        Args:
          contamination: Share of normal clips that may be called anomalies; the parameter when
            ``None``.
        """
        self._check_fitted()
        quantile = self._quantile(contamination)
        if quantile not in self._limits:
            machines = np.array(self._train_machines())
            self._limits[quantile] = {
                str(machine): limit(self.decision_scores_[machines == machine], quantile=quantile)
                for machine in np.unique(machines)
            }
        return self._limits[quantile]

    def thresholds(self, contamination: float | None = None) -> dict[str, float]:
        """Decision threshold of each machine type; see :meth:`limits`."""
        return {machine: one.threshold for machine, one in self.limits(contamination).items()}

    def warn_of_limits(self) -> None:
        """Warns once of thresholds that rest on little."""
        cautions = [f"{key}: {one.caution}" for key, one in self.limits().items() if one.caution]
        if cautions:
            shown = "; ".join(cautions[:3]) + ("; ..." if len(cautions) > 3 else "")
            text = f"{self.name_}: trust the threshold with care: {shown}"
            warnings.warn(text, ThresholdWarning, stacklevel=3)

    # --- what it holds

    @property
    def sections(self) -> list[Section]:
        """What the detector can score, sorted."""
        return sorted(set(self._train_sections()))

    @property
    def settings(self) -> list[FeatureSettings]:
        """Feature settings of the members, each once."""
        return list(dict.fromkeys(member.model.system.features for member in self.members_))

    def _train_sections(self) -> list[Section]:
        return [(machine, section) for _, machine, section in self.train_clips_]

    def _train_machines(self) -> list[str]:
        return [machine for _, machine, _ in self.train_clips_]

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
        first = detectors[0]
        for number, one in enumerate(detectors):
            one._check_fitted()
            if (one.train_clips_, one.dtype_) != (first.train_clips_, first.dtype_):
                raise DataError(
                    one.name_,
                    f"a detector of other training clips or features than {first.name_}",
                    "detectors trained on the same clips, in the same order",
                    "Train them on one collection.",
                )
            if any(_same(one, other) for other in detectors[:number]):
                raise ConfigError(f"{one.name_} is given twice; give different detectors")
        members: list[Member] = []
        for one in detectors:
            first_part = 1 + max((member.part for member in members), default=-1)
            members += [
                dataclasses.replace(member, part=first_part + member.part)
                for member in one.members_
            ]
        fused = cls(system="fused", contamination=first.contamination)
        about = {**first._about(), "kind": "fused", "system": {}, "name": "fused"}
        fused.restore(about, members, first.train_clips_)
        return fused

    def export(self, folder: str | os.PathLike) -> Path:
        """Writes it as a file that jax alone can run; see :mod:`asdproto.systems.export`."""
        from asdproto.systems.export import export_members

        thresholds = self.thresholds()
        sections = self._train_sections()
        return export_members(self.members_, sections, thresholds, self.dtype_, Path(folder))

    def save(self, run: str | os.PathLike) -> Path:
        """Writes a run folder, which :meth:`load` and ``python -m asdproto score`` read.

        Raises:
          DataError: The folder is there and holds something else.
        """
        self._check_fitted()
        with new_folder(Path(run), "run", "config.json") as work:
            self.write(work / "scores" / self.name_)
            config = {
                "kind": self.kind_,
                "system": self.settings_,
                "seeds": sorted({member.seed for member in self.members_}),
                "names": [self.name_],
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
            **self._about(),
            "contamination": self.contamination,
            "limits": {machine: list(one) for machine, one in self.limits().items()},
        }
        columns = map(np.array, zip(*self.train_clips_, strict=True))
        training = dict(zip(TRAINING, columns, strict=True)) | {"scores": self.decision_scores_}
        rows = self.rows(clips, found) if clips else []
        return write_detector(folder, self.members_, training, about, rows, found)

    @classmethod
    def load(
        cls, folder: str | os.PathLike, name: str | None = None, *, encoder: Any = None
    ) -> "Detector":
        """Reads a detector made by :meth:`save` or by training.

        Args:
          folder: A run, or the folder of a detector in it, ``RUN/scores/NAME``.
          name: Which of a run's detectors; its result when ``None``.
          encoder: The flax module that it was trained with, where it was one of your own: a run
            keeps an encoder's parameters, not its code.

        Raises:
          DataError: There is no such detector, or it is damaged.
        """
        system, about, members, train_clips = read_detector(Path(folder), name, encoder)
        detector = cls(system=system, seed=_seed(members), contamination=about["contamination"])
        detector.restore(about, members, train_clips)
        return detector

    # --- parameters

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters as given, overrides among them."""
        del deep
        return {name: vars(self)[name] for name in _DEFAULTS} | self.overrides

    def set_params(self, **params: Any) -> "Detector":
        """Changes parameters; what was fitted stays until the next :meth:`fit`."""
        for name, value in params.items():
            if name in _DEFAULTS:
                setattr(self, name, value)
            else:
                self.overrides = {**self.overrides, name: value}
        return self

    def __repr__(self) -> str:
        parts = []
        for name, value in self.get_params().items():
            if name not in _DEFAULTS or value is not _DEFAULTS[name]:
                text = value if isinstance(value, str) or name != "system" else value.kind
                parts.append(f"{name}={text!r}")
        return f"Detector({', '.join(parts)})"

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags

        return Tags(
            estimator_type="outlier_detector",
            target_tags=TargetTags(required=False),
            input_tags=InputTags(two_d_array=False, string=True),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return "members_" in vars(self)

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            from sklearn.exceptions import NotFittedError

            raise NotFittedError("this Detector is not fitted; call fit, or Detector.load(run)")

    def _quantile(self, contamination: float | None = None) -> float:
        value = self.contamination if contamination is None else contamination
        number = isinstance(value, float | int | np.number) and not isinstance(value, bool)
        quantile = round(1 - float(value), 12) if number else 0.0
        if not 0 < quantile < 1:
            raise ConfigError(
                f"contamination={value!r}: expected a share of normal clips in (0, 1)"
            )
        return quantile

    def _seeds(self) -> list[int]:
        seeds: Any = self.seed if isinstance(self.seed, Sequence) else [self.seed]
        whole = all(isinstance(s, int | np.integer) and not isinstance(s, bool) for s in seeds)
        known = whole and all(0 <= seed < 2**32 for seed in seeds)
        if not known or not seeds or len(set(seeds)) < len(seeds):
            raise ConfigError(
                f"seed={self.seed!r}: expected a whole number in [0, 4294967295], or different ones"
            )
        return [int(seed) for seed in seeds]

    def _rate(self, sample_rate: int | None) -> int | None:
        rate = self.sample_rate if sample_rate is None else sample_rate
        return None if rate is None else check_rate(rate)

    def _system(self, clips: Sequence[Clip]) -> System:
        system = self.system
        if isinstance(system, str):
            system = preset(choose(clips)[0] if system == "auto" else system, self.preset)
        if not dataclasses.is_dataclass(type(system)):
            raise ConfigError(
                f"system={system!r}: expected a name, the path of a class, or a value"
            )
        overrides = [f"{name.replace('__', '.')}={value}" for name, value in self.overrides.items()]
        return override(system, overrides)


# Parameters by name, apart from overrides of the system.
_DEFAULTS = {
    parameter.name: parameter.default
    for parameter in inspect.signature(Detector).parameters.values()
    if parameter.kind is parameter.KEYWORD_ONLY
}


def _seed(members: Sequence[Member]) -> int | list[int]:
    """The seed of members, or their seeds."""
    seeds = list(dict.fromkeys(member.seed for member in members))
    return seeds[0] if len(seeds) == 1 else seeds


def trained_on(clips: Sequence[Clip]) -> list[tuple[str, str, str]]:
    """Path, machine type and section of clips."""
    return [(clip.path, clip.machine_type, clip.section) for clip in clips]


def _collapsed(embeddings: np.ndarray) -> bool:
    """Whether what differs between embeddings is rounding: a millionth of their length."""
    x = np.asarray(embeddings, np.float64)
    return bool(np.square(x - x.mean(axis=0)).mean() <= 1e-12 * np.square(x).mean())


def _same(one: Detector, other: Detector) -> bool:
    """Whether two detectors have the same members."""
    pairs = zip(one.members_, other.members_, strict=False)
    return len(one.members_) == len(other.members_) and all(
        (a.seed, a.model.system) == (b.seed, b.model.system)
        and np.array_equal(a.held_out, b.held_out)
        for a, b in pairs
    )
