"""The spectral yardstick: nearest neighbors of each clip's mean log-mel spectrum.

*Log-mel -> mean over frames -> distance to the nearest training clips of the section.* No network
and no labels, fitted in the time it takes to read the features: a system that learns has to be
better than this one. The plain variant is the default; the others are flags, none of which is
better on every real set and every way of keeping clips out (docs/experiments.md).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from asdproto.config import between, check_fields, positive, strictly_between
from asdproto.data.dataset import ClipArrays, Dataset, section_keys
from asdproto.errors import DataError
from asdproto.features import FeatureSettings
from asdproto.scoring.backends import Kind, Scorer, fit_scorer, held_out_scores, rows_by
from asdproto.systems.members import Comparison, Fitted, RunOptions, Section


@dataclasses.dataclass(frozen=True)
class SpectralKnnSystem:
    """The system.

    Attributes:
      features: Feature settings.
      neighbors: Nearest training clips whose distances are averaged.
      remove_level: Take each clip's mean over all bands and frames off its spectrum, where loudness
        is a nuisance: a recording gain, a distance, a mixing ratio.
      scale_bands: Divide each band by its standard deviation over the section's training clips, so
        that all bands count alike.
      whiten: Measure Mahalanobis distances: those between spectra whose covariance over the
        section's training clips, shrunk, is the identity.
      shrinkage: Of that covariance.
      density_neighbors: See :func:`asdproto.scoring.backends.fit_scorer`; 0 for plain distances.
      quantile: For decisions: of the gamma distribution of the held-out training scores.
    """

    kind: ClassVar[str] = "spectral-knn"
    names: ClassVar[tuple[str, ...]] = ("spectral-knn",)
    crop: ClassVar[int] = 1

    features: FeatureSettings = dataclasses.field(default_factory=FeatureSettings)
    neighbors: int = 1
    remove_level: bool = False
    scale_bands: bool = False
    whiten: bool = False
    shrinkage: float = 0.3
    density_neighbors: int = 0
    quantile: float = 0.9

    def __post_init__(self) -> None:
        check_fields(
            self,
            neighbors=between(1, 1000000),
            shrinkage=positive(1),
            density_neighbors=between(0, 1000000),
            quantile=strictly_between(0, 1),
        )

    def plan(self, clips: int) -> str:
        """The work that training is, in a few words."""
        return f"mean spectra of {clips} clips"

    def train(
        self, data: Dataset, options: RunOptions, seeds: Sequence[int]
    ) -> dict[str, list[Fitted]]:
        """Keeps the training clips' spectra; nothing is random, so all seeds give the same."""
        if not options.devices.is_main:
            return {}
        spectra, sections = mean_spectra(data.train), section_keys(data.train_clips)
        fit = functools.partial(
            fit_spectra,
            remove_level=self.remove_level,
            scale_bands=self.scale_bands,
            kind="mahalanobis-knn" if self.whiten else "knn",
            shrinkage=self.shrinkage,
            neighbors=self.neighbors,
            density_neighbors=self.density_neighbors,
        )
        model = fit(spectra, data.labels, sections)
        held_out = held_out_scores(spectra, data.labels, sections, fit=fit)
        return {self.kind: [Fitted(SpectralKnn(self, model), held_out) for _ in seeds]}

    def restore(self, arrays: Mapping[str, np.ndarray], classes: Sequence[tuple]) -> SpectralKnn:
        """The member that :meth:`SpectralKnn.to_arrays` described."""
        del classes
        scorer = Scorer.from_arrays(arrays)
        scales = dict(zip(scorer.sections, arrays["scales"], strict=True))
        return SpectralKnn(self, SpectralModel(scorer, scales, self.remove_level))


PRESETS = {name: SpectralKnnSystem() for name in ("quick", "small", "paper")}


@dataclasses.dataclass(frozen=True)
class SpectralKnn:
    """Fitted spectra that score clips.

    Attributes:
      system: The system.
      model: The training clips' spectra.
    """

    system: SpectralKnnSystem
    model: SpectralModel

    def compare(self, clips: ClipArrays, sections: Sequence[Section]) -> Comparison:
        """Distances to the nearest training clips, and the attribute class of the nearest."""
        prepared = self.model.prepare(mean_spectra(clips), sections)
        scorer = self.model.scorer
        return Comparison(scorer.score(prepared, sections), scorer.nearest(prepared, sections))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What :meth:`SpectralKnnSystem.restore` needs."""
        scorer, scales = self.model.scorer, self.model.scales
        ordered = np.array([scales[key] for key in scorer.sections])
        return {**scorer.to_arrays(), "scales": ordered}


@dataclasses.dataclass(frozen=True)
class SpectralModel:
    """Training spectra of every section; made by :func:`fit_spectra`.

    Attributes:
      scorer: Nearest neighbors among the prepared spectra.
      scales: What the bands of each section are divided by, float64, shape ``[mels]``.
      remove_level: Whether a clip's mean level is taken off first.
    """

    scorer: Scorer
    scales: Mapping[Hashable, np.ndarray]
    remove_level: bool

    def prepare(self, spectra: np.ndarray, sections: Sequence[Hashable]) -> np.ndarray:
        """Spectra as distances are measured between them, float64, shape ``[n, mels]``."""
        prepared = without_level(spectra) if self.remove_level else spectra
        # A section never seen in training is the scorer's error, which names it.
        scales = [self.scales.get(key, np.ones(prepared.shape[1])) for key in sections]
        return prepared / np.reshape(scales, prepared.shape)

    def score(
        self, spectra: np.ndarray, sections: Sequence[Hashable], *, training: bool = False
    ) -> np.ndarray:
        """Mean distance to the nearest training clips of the section.

        Args:
          spectra: Floating, shape ``[n, mels]``, dB.
          sections: Section key per clip, length ``n``; each one met in training.
          training: The spectra are those fitted on; a clip is not its own neighbor.

        Returns:
          float64, shape ``[n]``: in dB where neither bands nor distances are scaled.

        Raises:
          ValueError: A section never seen in training, or shapes that do not match.
        """
        return self.scorer.score(self.prepare(spectra, sections), sections, training=training)


def fit_spectra(
    spectra: np.ndarray,
    labels: np.ndarray,
    sections: Sequence[Hashable],
    *,
    remove_level: bool = False,
    scale_bands: bool = False,
    kind: Kind = "knn",
    **options: Any,
) -> SpectralModel:
    """Keeps the mean spectra of training clips, section by section.

    Args:
      spectra: Floating, shape ``[n, mels]``, dB; normal clips.
      labels: Integer, shape ``[n]``: attribute class of every clip.
      sections: Section key per clip, length ``n``.
      remove_level: Whether to take each clip's mean level off.
      scale_bands: Whether to divide bands by their standard deviation (divisor n) over the
        section's clips, level taken off; a band that never moves stays as it is.
      kind: ``"knn"`` or ``"mahalanobis-knn"``.
      **options: How distances are measured, see :func:`asdproto.scoring.backends.fit_scorer`.

    Returns:
      The model.

    Raises:
      DataError: A section has a single clip.
    """
    spectra = np.asarray(spectra, np.float64)
    prepared = without_level(spectra) if remove_level else spectra.copy()
    scales: dict[Hashable, np.ndarray] = {}
    for key, rows in rows_by(sections).items():
        if len(rows) < 2:
            raise DataError(
                f"section {key}",
                "1 training clip",
                "at least 2: one does not show what normal clips differ by",
                "Give more clips, or leave the section out.",
            )
        stds = prepared[rows].std(axis=0)
        scales[key] = np.where(scale_bands & (stds > 0.0), stds, 1.0)
        prepared[rows] /= scales[key]
    scorer = fit_scorer(prepared, labels, sections, kind=kind, **options)
    return SpectralModel(scorer, scales, remove_level)


def without_level(spectra: np.ndarray) -> np.ndarray:
    """Spectra in dB less their mean over bands, shape ``[n, mels]``: gains leave no trace."""
    return spectra - spectra.mean(axis=1, keepdims=True)


def mean_spectra(clips: ClipArrays) -> np.ndarray:
    """Mean of every band over a clip's own frames, dB, float64, shape ``[clips, mels]``."""
    return pooled_spectra(clips, lambda frames: frames.mean(axis=0))


def pooled_spectra(clips: ClipArrays, pool: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """One spectrum a clip.

    Args:
      clips: Features, dB.
      pool: Makes float64 ``[mels]`` of a clip's frames, float64 ``[frames, mels]``.

    Returns:
      float64, shape ``[clips, mels]``.
    """
    pooled = np.empty((len(clips), clips.features.shape[2]))
    for index, (row, frames) in enumerate(zip(clips.rows, clips.frames, strict=True)):
        pooled[index] = pool(np.asarray(clips.features[row, :frames], np.float64))
    return pooled
