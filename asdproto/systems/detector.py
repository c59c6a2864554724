"""A detector in the habits of scikit-learn and PyOD: fit, decision_function, predict, save."""

import contextlib
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asdproto.config import ConfigError, override
from asdproto.data.dcase import Clip, parse_name
from asdproto.data.store import FeatureStore, Row
from asdproto.errors import DataError
from asdproto.features import FeatureSettings, audio_features, file_features
from asdproto.results.run_folder import write_config
from asdproto.scoring.thresholds import decide
from asdproto.systems import choose, preset
from asdproto.systems.members import RunOptions, prepare_for
from asdproto.systems.run import asked, detector_of
from asdproto.systems.trained import TrainedDetector, load_run, stack

Clips = str | os.PathLike | Sequence[str | os.PathLike | np.ndarray] | np.ndarray
# One for all clips, one a clip, or unknown.
PerClip = str | Sequence[str] | None


class Detector:
    """Learns what normal clips sound like, and scores how far others are from it.

    Higher scores are more anomalous, and ``predict`` gives 1 for an anomaly, as in PyOD. Parameters
    are kept as given; ``get_params``, ``set_params`` and ``sklearn.base.clone`` work. What training
    found has names that end in an underscore.

    Args:
      system: ``"prototype"``, ``"autoencoder"``, ``"spectral-knn"``, ``"gmm"``; a system as a
        value, such as ``PrototypeSystem(encoder=EncoderConfig(module=MyEncoder()))``; or
        ``"auto"``: what :func:`asdproto.systems.choose` takes for the clips.
      preset: ``"quick"``, ``"small"`` or ``"paper"``.
      seed: Of everything random; several make one detector of as many members.
      contamination: Share of normal clips that may be called anomalies, in (0, 1).
      workdir: Folder for checkpoints and metrics, from which an interrupted ``fit`` continues;
        ``None`` keeps nothing.
      verbose: Whether progress is printed.
      **overrides: Numbers of the system: ``pretrain__epochs=10``, or ``**{"pretrain.epochs": 10}``.

    Attributes:
      threshold_: Scores above it are anomalies; a dictionary by machine type where there are
        several.
      decision_scores_: float64, shape ``[clips]``: scores of the training clips, each as if it were
        new as far as the system can tell.
      trained_: The :class:`asdproto.systems.trained.TrainedDetector`.
    """

    def __init__(
        self,
        *,
        system: Any = "auto",
        preset: str = "small",
        seed: int | Sequence[int] = 0,
        contamination: float = 0.1,
        workdir: str | os.PathLike | None = None,
        verbose: bool = False,
        **overrides: Any,
    ):
        self.system = system
        self.preset = preset
        self.seed = seed
        self.contamination = contamination
        self.workdir = workdir
        self.verbose = verbose
        self.overrides = overrides

    def fit(
        self,
        X: Clips,
        y: None = None,
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
            collection (a folder laid out as DCASE Task 2, or a csv), whose training clips are
            taken.
          y: Ignored; here for pipelines.
          sample_rate: Of the waveforms, hertz.
          attributes: Operating condition of each clip, such as ``"speed_1"``. Clips of one machine
            type, section, domain and attributes are an attribute class. Read off names where they
            follow DCASE Task 2, as are the next three.
          sections: Section of each clip; ``"00"`` where unknown.
          machine_types: Machine type of each clip; ``"machine"`` where unknown.
          domains: ``"source"``, ``"target"`` or ``""`` for each clip.

        Returns:
          The detector itself.

        Raises:
          DataError: A clip cannot be read, is an anomaly by its name, or the system needs more.
          ConfigError: A parameter has a value that it cannot have.
        """
        self._quantile()  # refused before training, not after
        given = {
            "attributes": attributes,
            "section": sections,
            "machine_type": machine_types,
            "domain": domains,
        }
        clips, sources = _clips_of(X, given)
        system = self._system(clips)
        features = [_features(source, sample_rate, system.features) for source in sources]
        store = memory_store(clips, features, system.features)
        data = prepare_for(system, store)
        seeds = self._seeds()
        name = system.names[-1]
        fitted = system.train(data, self._options(), seeds)[name]
        self.trained_ = detector_of(name, system, data, fitted, seeds)
        self._system_ = system
        return self

    def decision_function(
        self,
        X: Clips,
        *,
        sample_rate: int | None = None,
        sections: PerClip = None,
        machine_types: PerClip = None,
    ) -> np.ndarray:
        """Anomaly scores, float64, shape ``[clips]``; higher is more anomalous.

        Args:
          X: Audio files, waveforms, or a folder of recordings.
          sample_rate: Of the waveforms, hertz.
          sections: Section of each clip, where names do not tell and there are several.
          machine_types: Machine type of each clip, likewise.
        """
        rows = self.details(
            X, sample_rate=sample_rate, sections=sections, machine_types=machine_types
        )
        return np.array([row["score"] for row in rows], np.float64)

    def predict(self, X: Clips, **where: Any) -> np.ndarray:
        """Decisions, int64, shape ``[clips]``: 1 for an anomaly, 0 for normal.

        Args:
          X: As for :meth:`decision_function`.
          **where: As for :meth:`decision_function`.
        """
        rows = self.details(X, **where)
        limits = np.array([row["threshold"] for row in rows])
        return decide(np.array([row["score"] for row in rows]), limits)

    def details(
        self,
        X: Clips,
        *,
        sample_rate: int | None = None,
        sections: PerClip = None,
        machine_types: PerClip = None,
    ) -> list[dict[str, Any]]:
        """Everything that is known of each clip.

        See :meth:`asdproto.systems.trained.TrainedDetector.score`.
        """
        trained = self._fitted()
        sources = _sources(X)
        sections = _per_clip(sections, len(sources), "sections")
        machine_types = _per_clip(machine_types, len(sources), "machine_types")
        recordings = []
        for index, source in enumerate(sources):
            name = f"waveform {index}" if isinstance(source, np.ndarray) else str(source)
            section = trained.section_of(Path(name), machine_types[index], sections[index])
            arrays = [_features(source, sample_rate, one) for one in trained.settings]
            recordings.append(trained.recording(name, section, arrays))
        return trained.score(recordings, self._thresholds())

    @property
    def threshold_(self) -> float | dict[str, float]:
        """Scores above it are anomalies."""
        thresholds = self._thresholds()
        return next(iter(thresholds.values())) if len(thresholds) == 1 else thresholds

    @property
    def decision_scores_(self) -> np.ndarray:
        """Held-out scores of the training clips."""
        return self._fitted().train_scores

    def save(self, run: str | os.PathLike) -> Path:
        """Writes a run folder, which :meth:`load` and ``python -m asdproto score`` read."""
        trained, folder = self._fitted(), Path(run)
        folder.mkdir(parents=True, exist_ok=True)
        trained.save(folder / "scores" / trained.name)
        about = {
            **asked(self._system_, trained.seeds, None),
            "names": [trained.name],
            "classes": [list(name) for name in trained.classes[0]],
        }
        write_config(folder, about)
        return folder

    @classmethod
    def load(
        cls, run: str | os.PathLike, name: str | None = None, *, encoder: Any = None
    ) -> "Detector":
        """Reads a detector of a run folder, made by :meth:`save` or by training.

        Args:
          run: The folder.
          name: Which of its detectors; the run's result when ``None``.
          encoder: The flax module that it was trained with, where it was one of your own: a run
            keeps an encoder's parameters, not its code.
        """
        trained = load_run(Path(run), name, encoder=encoder)
        seeds = list(trained.seeds)
        system = trained.members[0].system
        detector = cls(
            system=system,
            seed=seeds[0] if len(seeds) == 1 else seeds,
            contamination=round(1 - trained.quantile, 12),
        )
        detector.trained_, detector._system_ = trained, system
        return detector

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters as given, overrides among them."""
        del deep
        return {name: getattr(self, name) for name in _DEFAULTS} | self.overrides

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
            if value != _DEFAULTS.get(name):
                text = value.kind if hasattr(value, "kind") else value
                parts.append(f"{name}={text!r}")
        return f"Detector({', '.join(parts)})"

    def _fitted(self) -> TrainedDetector:
        if not hasattr(self, "trained_"):
            from sklearn.exceptions import NotFittedError

            raise NotFittedError("this Detector is not fitted; call fit, or Detector.load(run)")
        return self.trained_

    def _quantile(self) -> float:
        if not 0 < self.contamination < 1:
            setting = f"contamination={self.contamination!r}"
            raise ConfigError(f"{setting}: expected a share of normal clips in (0, 1)")
        return 1 - self.contamination

    def _thresholds(self) -> dict[str, float]:
        return self._fitted().thresholds(self._quantile())

    def _seeds(self) -> list[int]:
        return [self.seed] if isinstance(self.seed, int | np.integer) else list(self.seed)

    def _system(self, clips: Sequence[Clip]) -> Any:
        system = self.system
        if isinstance(system, str):
            system = preset(choose(clips)[0] if system == "auto" else system, self.preset)
        overrides = [f"{name.replace('__', '.')}={value}" for name, value in self.overrides.items()]
        return override(system, overrides)

    def _options(self) -> RunOptions:
        from rich.console import Console

        from asdproto.training.devices import use_devices

        workdir = None if self.workdir is None else Path(self.workdir)
        if workdir is not None:
            workdir.mkdir(parents=True, exist_ok=True)
        return RunOptions(workdir, use_devices(), Console() if self.verbose else None)


# Parameters by name, apart from overrides of the system.
_DEFAULTS = {
    parameter.name: parameter.default
    for parameter in inspect.signature(Detector).parameters.values()
    if parameter.kind is parameter.KEYWORD_ONLY
}


def _clips_of(X: Clips, given: dict[str, PerClip]) -> tuple[list[Clip], list[Any]]:
    """Training clips, and the file or waveform of each."""
    if isinstance(X, str | os.PathLike):
        from asdproto.data.collection import read_collection

        collection = read_collection(X)
        collection.check()
        clips = [clip for clip in collection.clips if clip.split == "train"]
        return clips, [collection.root / clip.path for clip in clips]
    sources = _sources(X)
    if not sources:
        raise DataError("X", "no clips", "normal clips", "Give recordings or waveforms.")
    columns = {name: _per_clip(value, len(sources), name) for name, value in given.items()}
    clips = []
    for index, source in enumerate(sources):
        known = {"section": "00", "machine_type": "machine", "domain": "", "attributes": ""}
        path, state = f"waveform {index}", "normal"
        if not isinstance(source, np.ndarray):
            path = str(source)
            with contextlib.suppress(DataError):  # any name will do
                parsed = parse_name(source)
                known |= {name: text for name in known if (text := getattr(parsed, name))}
                state = parsed.state or state
        known |= {name: column[index] for name, column in columns.items() if column[index]}
        clips.append(Clip(path=path, split="train", state=state, **known))
    return clips, sources


def _sources(X: Clips) -> list[Any]:
    """Paths and waveforms."""
    if isinstance(X, str | os.PathLike):
        from asdproto.data.collection import audio_files

        folder = Path(X)
        return [folder / name for name in audio_files(folder)] if folder.is_dir() else [folder]
    return [source if isinstance(source, str | os.PathLike) else np.asarray(source) for source in X]


def _per_clip(value: PerClip, clips: int, name: str) -> list[Any]:
    if value is None or isinstance(value, str):
        return [value] * clips
    if len(value) != clips:
        raise DataError(name, f"{len(value)} for {clips} clips", "one a clip", "Check its length.")
    return list(value)


def _features(source: Any, sample_rate: int | None, settings: FeatureSettings) -> np.ndarray:
    if not isinstance(source, np.ndarray):
        return file_features(source, settings)[0]
    if sample_rate is None:
        raise ConfigError("waveforms need their sample_rate, in hertz")
    if source.ndim != 1 or not np.issubdtype(source.dtype, np.floating):
        raise DataError(
            "X",
            f"a waveform of shape {list(source.shape)} and dtype {source.dtype}",
            "floating samples of full scale 1, shape [samples]",
            "Take one channel, and divide integers by their full scale.",
        )
    return audio_features(source, sample_rate, settings)


def memory_store(
    clips: list[Clip], features: Sequence[np.ndarray], settings: FeatureSettings
) -> FeatureStore:
    """A feature store in memory."""
    stacked = stack([array.astype(np.float16) for array in features])
    return FeatureStore(
        root=Path("X"),
        features=stacked.features,
        rows=[Row(clip, int(n), 0) for clip, n in zip(clips, stacked.frames, strict=True)],
        settings=settings.as_dict(),
        manifest={},
    )
