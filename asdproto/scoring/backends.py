"""Scoring back-ends: what the training clips of a section left, and how far a clip is from it.

A back-end is fitted on the embeddings of the training clips, all of them normal, and compares an
embedding with what the training clips of the same section left: the prototypes of all attribute
classes of both domains (``mahalanobis``, ``cosine``), the embeddings themselves (``knn``,
``mahalanobis-knn``), or a Gaussian mixture (``mixture``). Embeddings of any floating dtype are
converted to float64 first, and all arithmetic is float64. A clip's score does not depend, to the
last bit, on which other clips are scored with it, so a single file scores as it does in a batch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from asdproto.config import between, check_fields
from asdproto.errors import DataError, counted
from asdproto.scoring.mixture import Mixture, fit_mixture
from asdproto.scoring.rows import nearest_rows, rows_by, rowwise_product

Kind = Literal["mahalanobis", "cosine", "knn", "mahalanobis-knn", "mixture"]
# Compare with the training clips themselves instead of prototypes.
NEAREST_CLIPS = ("knn", "mahalanobis-knn")
PRIOR = 10  # clips


@dataclasses.dataclass(frozen=True)
class BackendConfig:
    r"""A back-end.

    ``mahalanobis`` measures, section by section,

    .. math:: \min_c \sqrt{(z - p_c)^\top \Sigma^{-1} (z - p_c)}

    over the prototypes :math:`p_c` of all attribute classes of the section, source and target
    together, with :math:`\Sigma` the covariance (divisor n) of all training embeddings of the
    section. ``cosine`` is 1 minus the largest cosine to a prototype; ``knn`` the mean distance to
    the nearest training embeddings, and ``mahalanobis-knn`` the same measured by
    :math:`\Sigma^{-1}`; ``mixture`` see :class:`asdproto.scoring.mixture.Mixture`.

    Attributes:
      kind: The back-end.
      shrinkage: Weight a in [0, 1] of the covariance that is inverted,
        :math:`(1 - a) \Sigma + a \frac{\mathrm{tr} \Sigma}{\mathrm{dim}} I`: a few hundred nearly
        collinear unit vectors make :math:`\Sigma` near-singular. Nearest neighbors want a larger
        one than prototypes: without it the inverse covariance of as many clips as dimensions puts
        all of them at one distance from each other.
      neighbors: Training clips that the k-NN back-ends average over, at least 1. A section with
        fewer clips uses all of them.
      components: Gaussians of a mixture.
      target_ratio: Of a mixture: target clips are repeated to so many for each source clip.
      regularization: Of a mixture: added to every variance.

    References:
      Zeng et al., Robust Prototype Learning for Anomalous Sound Detection, 2023, Eq. 2 and
      section 4.2.
    """

    kind: Kind = "mahalanobis"
    # Of prototypes: down to 0.001 every smaller weight told normal clips that were kept out better
    # from copies of them with a fault; below nothing changes.
    shrinkage: float = 0.001
    neighbors: int = 1
    components: int = 2
    target_ratio: float = 0.2
    regularization: float = 1.0

    def __post_init__(self) -> None:
        check_fields(
            self,
            shrinkage=between(0, 1),
            neighbors=between(1, 1000000),
            components=between(1, 10000),
            target_ratio=between(0, 1000),
            regularization=between(0, 1000000),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class References:
    """What one section's training clips left to measure distances to.

    Attributes:
      references: float64, shape ``[r, dim]``: prototypes, or training embeddings for k-NN.
      labels: int64, shape ``[r]``: attribute class of every reference.
      whitening: float64, shape ``[dim, dim]``: differences of embeddings times this have identity
        covariance; shape ``[dim, 0]`` where the back-end has no covariance.
    """

    references: np.ndarray
    labels: np.ndarray
    whitening: np.ndarray

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.references.shape[1]

    @functools.cached_property
    def _whitened(self) -> np.ndarray:
        """The references, made once: of nearest neighbors they are all training embeddings."""
        return rowwise_product(self.references, self.whitening)

    def compare(
        self, embeddings: np.ndarray, config: BackendConfig, *, training: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores, float64 ``[n]``, and attribute class of the nearest reference, int64 ``[n]``."""
        if config.kind == "cosine":
            distances = 1.0 - rowwise_product(_unit(embeddings), _unit(self.references).T)
            return distances.min(axis=1), self.labels[distances.argmin(axis=1)]
        references = self.references
        if self.whitening.size:
            embeddings, references = rowwise_product(embeddings, self.whitening), self._whitened
        of_clips = config.kind in NEAREST_CLIPS
        count, skip = (config.neighbors, int(training)) if of_clips else (1, 0)
        scores, rows = nearest_rows(embeddings, references, count, skip=skip)
        return scores, self.labels[rows]


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
    """A fitted back-end; made by :func:`fit_scorer` or :meth:`from_arrays`.

    Attributes:
      config: The back-end.
      sections: What is left of every section, by its key.
      scales: Per section, float64 ``[dim]``: what embeddings are divided by before anything else;
        empty where they are not.
    """

    config: BackendConfig
    sections: Mapping[Hashable, References | Mixture]
    scales: Mapping[Hashable, np.ndarray] = dataclasses.field(default_factory=dict)

    def score(
        self, embeddings: np.ndarray, sections: Sequence[Hashable], *, training: bool = False
    ) -> np.ndarray:
        """The scores of :meth:`compare`, float64 ``[n]``."""
        return self.compare(embeddings, sections, training=training)[0]

    def compare(
        self, embeddings: np.ndarray, sections: Sequence[Hashable], *, training: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Anomaly score of every embedding against its own section, and the nearest class.

        Args:
          embeddings: Floating, shape ``[n, dim]``.
          sections: Section key per embedding, length ``n``; each one met in training.
          training: The embeddings are (some of) those fitted on. k-NN then leaves the nearest
            training embedding, the clip itself, out; the other back-ends are unchanged.

        Returns:
          Scores, float64 ``[n]``, higher is more anomalous, as :class:`BackendConfig` says; and the
          class of the nearest reference, int64 ``[n]``, ``None`` for mixtures.

        Raises:
          ValueError: A section never seen in training, shapes that do not match, or an embedding
            that is not finite.
        """
        embeddings = _checked(embeddings, sections)
        scores = np.empty(len(embeddings))
        labels = np.empty(len(embeddings), np.int64)
        for key, rows in rows_by(sections).items():
            if key not in self.sections:
                known = ", ".join(map(str, self.sections))
                raise ValueError(f"section {key!r} was not seen in training; known: {known}")
            model, chosen = self.sections[key], embeddings[rows]
            if chosen.shape[1] != model.dim:
                raise ValueError(
                    f"embeddings have shape {embeddings.shape}, expected [n, {model.dim}]"
                )
            if key in self.scales:
                chosen = chosen / self.scales[key]
            if isinstance(model, Mixture):
                scores[rows] = model.compare(chosen)
            else:
                scores[rows], labels[rows] = model.compare(chosen, self.config, training=training)
        return scores, None if self.config.kind == "mixture" else labels

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Arrays for ``np.savez``, without pickle; :meth:`from_arrays` reads them back.

        Raises:
          TypeError: A section key is no string, number or tuple of them.
        """
        header = {"config": dataclasses.asdict(self.config), "sections": list(self.sections)}
        arrays = {"header": np.array(json.dumps(header))}
        for number, (key, model) in enumerate(self.sections.items()):
            fields = dataclasses.fields(model)
            arrays |= {f"{field.name}_{number}": getattr(model, field.name) for field in fields}
            if key in self.scales:
                arrays[f"scales_{number}"] = self.scales[key]
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Scorer:
        """Restores what :meth:`to_arrays` gave, bit for bit.

        Args:
          arrays: A dictionary of arrays or an open npz file.

        Raises:
          ValueError: An array is missing; the message names it.
        """
        try:
            header = json.loads(str(arrays["header"]))
            config = BackendConfig(**header["config"])
            model = Mixture if config.kind == "mixture" else References
            names = [field.name for field in dataclasses.fields(model)]
            sections: dict[Hashable, Any] = {}
            scales = {}
            for number, listed in enumerate(header["sections"]):
                # json makes lists of tuples.
                key = tuple(listed) if isinstance(listed, list) else listed
                sections[key] = model(*(np.asarray(arrays[f"{one}_{number}"]) for one in names))
                if f"scales_{number}" in arrays:
                    scales[key] = np.asarray(arrays[f"scales_{number}"])
            return cls(config, sections, scales)
        except KeyError as error:
            raise ValueError(f"no back-end: array {error.args[0]} is missing") from error


def fit_scorer(
    embeddings: np.ndarray,
    labels: np.ndarray,
    sections: Sequence[Hashable],
    config: BackendConfig,
    *,
    standardize: bool = False,
    seed: int = 0,
) -> Scorer:
    """Fits a scoring back-end on the embeddings of the training clips.

    Args:
      embeddings: Floating, shape ``[n, dim]``; training clips only.
      labels: Integer, shape ``[n]``: attribute class of every clip; for a mixture, 1 for clips of
        the target domain and 0 for the others.
      sections: Hashable section key per clip, length ``n``, for example (machine type, section).
      config: The back-end.
      standardize: Whether to divide each dimension by its standard deviation over the section's
        clips. A handful of clips tells it badly: its square is that of the clips together with
        :data:`PRIOR` more that have the mean variance of all dimensions.
      seed: Where the search for a mixture's components begins.

    Returns:
      The fitted scorer; a section's part depends on its own clips and the seed only.

    Raises:
      ValueError: Shapes that do not fit, embeddings that are not finite, or a section whose
        embeddings do not vary about what they are centered on.
      DataError: A section has fewer clips than a mixture needs.
    """
    embeddings, labels = _checked(embeddings, sections), np.asarray(labels)
    if labels.shape != (len(embeddings),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}, expected integers of "
            f"shape ({len(embeddings)},)"
        )
    if not len(embeddings):
        raise ValueError("there are no embeddings to fit on: expected at least one training clip")
    models: dict[Hashable, References | Mixture] = {}
    scales: dict[Hashable, np.ndarray] = {}
    for key, rows in sorted(rows_by(sections).items(), key=lambda item: str(item[0])):
        chosen, classes = embeddings[rows], labels[rows].astype(np.int64)
        if standardize:
            variances = chosen.var(axis=0)
            weight = PRIOR / (PRIOR + len(rows))
            stds = np.sqrt((1.0 - weight) * variances + weight * variances.mean())
            scales[key] = np.where(stds > 0.0, stds, 1.0)
            chosen = chosen / scales[key]
        if config.kind == "mixture":
            if len(rows) < max(2, config.components):
                raise DataError(
                    f"section {key}",
                    counted(len(rows), "training clip"),
                    f"at least {max(2, config.components)} for a mixture of {config.components}",
                    "Give more clips, take fewer components, or leave the section out.",
                )
            models[key] = fit_mixture(
                chosen,
                classes != 0,
                components=config.components,
                target_ratio=config.target_ratio,
                regularization=config.regularization,
                seed=seed,
            )
            continue
        try:
            models[key] = _references(chosen, classes, config)
        except ValueError as error:
            raise ValueError(f"section {key!r}: {error}") from None
    return Scorer(config, models, scales)


def _references(embeddings: np.ndarray, labels: np.ndarray, config: BackendConfig) -> References:
    whitening = np.empty((embeddings.shape[1], 0))
    if config.kind.startswith("mahalanobis"):
        centered = embeddings - embeddings.mean(axis=0)
        # A mean is off in the last bit.
        if np.ptp(centered, axis=0).max() <= 1e-12 * np.abs(embeddings).max():
            raise ValueError(
                f"its {len(labels)} training embeddings are all the same, so they have no "
                "covariance; give more clips, or use kind='cosine' or 'knn'"
            )
        whitening = _whitening(centered, config.shrinkage)
    if config.kind in NEAREST_CLIPS:
        return References(embeddings, labels, whitening)
    prototypes, present = class_means(embeddings, labels)
    return References(prototypes, present, whitening)


def held_out_scores(
    embeddings: np.ndarray,
    labels: np.ndarray,
    sections: Sequence[Hashable],
    config: BackendConfig,
    *,
    folds: int = 5,
    **options: Any,
) -> np.ndarray:
    """Scores of training clips by back-ends that were fitted without them: what thresholds need.

    A clip lies nearer to prototypes and covariance that it took part in than any new clip does, the
    more so the fewer clips there are; a threshold from such scores calls nearly everything an
    anomaly.

    Args:
      embeddings: As for :func:`fit_scorer`, as are labels, sections and config.
      labels: One a clip.
      sections: One a clip.
      config: The back-end.
      folds: Parts that the clips are dealt into, class by class, at least 2; each is scored by a
        back-end fitted on the others. Sections of fewer than twice as many clips are too small to
        be parted: their clips get the scores of a back-end fitted on all, which leaves the clip
        itself out where it measures distances to clips.
      **options: As for :func:`fit_scorer`.

    Returns:
      float64, shape ``[n]``.
    """
    if folds < 2:
        raise ValueError(f"folds is {folds}, expected at least 2")
    part = np.full(len(labels), -1)
    for rows in rows_by(sections).values():
        if len(rows) >= 2 * folds:
            by_class = rows[np.argsort(labels[rows], kind="stable")]
            part[by_class] = np.arange(len(rows)) % folds
    scores = np.empty(len(labels))
    for fold in np.unique(part).tolist():
        out = np.flatnonzero(part == fold)
        kept = out if fold < 0 else np.flatnonzero((part != fold) & (part >= 0))
        kept_keys, keys = ([sections[row] for row in rows.tolist()] for rows in (kept, out))
        fitted = fit_scorer(embeddings[kept], labels[kept], kept_keys, config, **options)
        scores[out] = fitted.score(embeddings[out], keys, training=fold < 0)
    return scores


def class_means(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Prototype of every class that occurs: the mean of its embeddings at unit length (Eq. 2).

    A zero mean stays zero. Returns prototypes, float64 ``[classes, dim]``, and their labels, int64
    ``[classes]``, ascending.
    """
    classes, inverse = np.unique(labels, return_inverse=True)
    sums = np.zeros((len(classes), embeddings.shape[1]))
    np.add.at(sums, inverse, embeddings)
    return _unit(sums / np.bincount(inverse)[:, None]), classes.astype(np.int64)


def _whitening(centered: np.ndarray, shrinkage: float) -> np.ndarray:
    """Matrix W ``[dim, dim]`` with W W^T the inverse of the shrunk covariance."""
    from scipy.linalg import solve_triangular

    dim = centered.shape[1]
    covariance = centered.T @ centered / len(centered)
    variance = np.trace(covariance) / dim
    try:
        factor = np.linalg.cholesky(
            (1.0 - shrinkage) * covariance + shrinkage * variance * np.eye(dim)
        )
    except np.linalg.LinAlgError:
        raise ValueError(
            f"the covariance of {len(centered)} embeddings of {dim} dimensions is singular with "
            f"shrinkage={shrinkage}; shrink more"
        ) from None
    return np.ascontiguousarray(solve_triangular(factor, np.eye(dim), lower=True).T)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows brought to unit length; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def _checked(embeddings: np.ndarray, sections: Sequence[Hashable]) -> np.ndarray:
    """Embeddings in float64, finite and one for each section key."""
    embeddings = np.ascontiguousarray(embeddings, np.float64)
    if embeddings.ndim != 2 or len(sections) != len(embeddings):
        raise ValueError(
            f"embeddings have shape {embeddings.shape} and sections length {len(sections)}, "
            "expected [clips, dim] and one section per clip"
        )
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if bad.size:
        raise ValueError(
            f"embeddings: {bad.size} of {len(embeddings)} rows are not finite, the first is row "
            f"{bad[0]}; look for a diverged model or an empty clip"
        )
    return embeddings
