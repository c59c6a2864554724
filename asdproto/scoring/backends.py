"""Scoring back-ends: embeddings and prototypes to anomaly scores.

A back-end is fitted on the embeddings of the training clips, all of them normal, and compares a
test embedding with what the training clips of the same section left: the prototypes of all
attribute classes of both domains (``mahalanobis``, ``cosine``) or the embeddings themselves
(``knn``, ``mahalanobis-knn``). Embeddings of any floating dtype are converted to float64 first, and
all arithmetic is float64. A clip's score does not depend, to the last bit, on which other clips are
scored with it, so a single file scores as it does in a batch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar, get_args

import numpy as np

Key = TypeVar("Key", bound=Hashable)
Kind = Literal["mahalanobis", "cosine", "knn", "mahalanobis-knn"]
Covariance = Literal["shrinkage", "ledoit-wolf", "ridge", "pinv"]
Center = Literal["global", "class"]
# Compare with the training clips themselves instead of prototypes.
NEAREST_CLIPS = ("knn", "mahalanobis-knn")
# Decided on normal training clips alone: of a real set, four times another quarter of every section
# and domain was kept out. Down to 0.001 every smaller weight told these clips better from copies of
# them with a band raised, a shift in frequency, modulation or tones added; below nothing changes.
SHRINKAGE = 0.001


@dataclasses.dataclass(frozen=True, eq=False)
class SectionModel:
    """What one section's training clips left for scoring.

    Attributes:
      references: float64, shape ``[r, dim]``: prototypes, or training embeddings for k-NN.
      labels: int64, shape ``[r]``: attribute class of every reference.
      whitening: float64, shape ``[dim, rank]``: differences of embeddings times this have identity
        covariance; shape ``[dim, 0]`` where the back-end has no covariance.
      density: float64, shape ``[r]``: what a distance to a reference is divided by; ones where
        distances are not normalized.
    """

    references: np.ndarray
    labels: np.ndarray
    whitening: np.ndarray
    density: np.ndarray

    @functools.cached_property
    def whitened(self) -> np.ndarray:
        """The references, made once: of nearest neighbors they are all training embeddings."""
        return _whitened(self.references, self.whitening)


_MODEL_ARRAYS = tuple(field.name for field in dataclasses.fields(SectionModel))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Scorer:
    """A fitted back-end; made by :func:`fit_scorer` or :meth:`from_arrays`.

    Attributes:
      kind: The back-end, see :func:`fit_scorer`.
      neighbors: Number of nearest training embeddings averaged over; used by k-NN.
      sections: Model of every section, by its key.
    """

    kind: str
    neighbors: int
    sections: Mapping[Hashable, SectionModel]

    def score(
        self,
        embeddings: np.ndarray,
        sections: Sequence[Hashable],
        *,
        training: bool = False,
    ) -> np.ndarray:
        """Anomaly score of every embedding against its own section.

        Args:
          embeddings: Floating, shape ``[n, dim]``.
          sections: Section key per embedding, length ``n``; each one met in training.
          training: The embeddings are (some of) those fitted on. k-NN then leaves the nearest
            training embedding, the clip itself, out; the other back-ends are unchanged.

        Returns:
          float64, shape ``[n]``; higher is more anomalous. Mahalanobis: distance (not squared) to
          the nearest prototype. Cosine: 1 - the largest cosine, in [0, 2]. k-NN: mean distance,
          Euclidean or Mahalanobis, to the nearest training embeddings, each divided by its density.

        Raises:
          ValueError: A section never seen in training, shapes that do not match, or an embedding
            that is not finite.
        """
        return self._compare(embeddings, sections, training=training)[0]

    def nearest(self, embeddings: np.ndarray, sections: Sequence[Hashable]) -> np.ndarray:
        """Attribute class of the nearest reference, int64, shape ``[n]``.

        Args:
          embeddings: Floating, shape ``[n, dim]``.
          sections: Section key per embedding, length ``n``; each one met in training.

        Returns:
          Class labels as given to :func:`fit_scorer`.

        Raises:
          ValueError: As :meth:`score`.
        """
        return self._compare(embeddings, sections, training=False)[1]

    def _compare(
        self, embeddings: np.ndarray, sections: Sequence[Hashable], *, training: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        embeddings = _checked(embeddings, sections)
        scores = np.empty(len(embeddings))
        labels = np.empty(len(embeddings), np.int64)
        for key, rows in rows_by(sections).items():
            model = self.sections.get(key)
            if model is None:
                known = ", ".join(str(known) for known in self.sections)
                raise ValueError(
                    f"section {key!r} was not seen in training, so there is nothing to compare its "
                    f"clips with; known sections: {known}"
                )
            if embeddings.shape[1] != model.references.shape[1]:
                raise ValueError(
                    f"embeddings has shape {embeddings.shape}, expected "
                    f"[n, {model.references.shape[1]}] as in training"
                )
            distances = _distances(self.kind, model, embeddings[rows])
            labels[rows] = model.labels[np.argmin(distances, axis=1)]
            if self.kind in NEAREST_CLIPS:
                scores[rows] = _mean_of_smallest(distances, self.neighbors, skip=int(training))
            else:
                scores[rows] = distances.min(axis=1)
        return scores, labels

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Arrays for ``np.savez``, without pickle; :meth:`from_arrays` reads them back.

        Returns:
          Numeric arrays and one string array.

        Raises:
          TypeError: A section key is not made of strings, numbers and tuples of them.
        """
        sections = list(self.sections)
        header = {"kind": self.kind, "neighbors": self.neighbors, "sections": sections}
        arrays = {"header": np.array(json.dumps(header, default=operator.index))}
        for number, model in enumerate(self.sections.values()):
            for name in _MODEL_ARRAYS:
                arrays[f"{name}_{number}"] = getattr(model, name)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Scorer:
        """Restores what :meth:`to_arrays` gave, bit for bit.

        Args:
          arrays: A dictionary of arrays or an open npz file.

        Returns:
          The scorer.

        Raises:
          ValueError: An array is missing; the message names it.
        """
        try:
            header = json.loads(str(arrays["header"]))
            models = [
                SectionModel(*(np.asarray(arrays[f"{name}_{number}"]) for name in _MODEL_ARRAYS))
                for number in range(len(header["sections"]))
            ]
            keys = [_hashable(key) for key in header["sections"]]
            return cls(header["kind"], header["neighbors"], dict(zip(keys, models, strict=True)))
        except KeyError as error:
            raise ValueError(
                f"these arrays do not hold a scorer: {error.args[0]} is missing; save one with "
                "np.savez(path, **scorer.to_arrays())"
            ) from error


def fit_scorer(
    embeddings: np.ndarray,
    labels: np.ndarray,
    sections: Sequence[Hashable],
    *,
    kind: Kind = "mahalanobis",
    covariance: Covariance = "shrinkage",
    center: Center = "global",
    shrinkage: float = SHRINKAGE,
    ridge: float = 1e-3,
    normalize_prototypes: bool = True,
    neighbors: int = 1,
    density_neighbors: int = 0,
) -> Scorer:
    r"""Fits a scoring back-end on the embeddings of the training clips.

    ``mahalanobis`` measures, section by section,

    .. math:: \min_c \sqrt{(z - p_c)^\top \Sigma^{-1} (z - p_c)}

    over the prototypes :math:`p_c` of all attribute classes of the section, source and target
    together, with :math:`\Sigma` the covariance (divisor n) of all training embeddings of the
    section, about their common mean or each about the prototype of its own class. A few hundred
    nearly collinear unit vectors make :math:`\Sigma` near-singular, hence the estimators:

    * ``shrinkage``: :math:`(1 - a) \Sigma + a \frac{\mathrm{tr} \Sigma}{\mathrm{dim}} I`;
    * ``ledoit-wolf``: the same form with the weight that minimizes the expected error;
    * ``ridge``: :math:`\Sigma + r I`, with r the ``ridge`` share of the mean variance
      :math:`\mathrm{tr} \Sigma / \mathrm{dim}`;
    * ``pinv``: the pseudo-inverse; directions in which the training clips do not vary are ignored.

    ``cosine`` is 1 minus the largest cosine to a prototype; ``knn`` the mean distance to the
    nearest training embeddings of the section, and ``mahalanobis-knn`` the same measured by
    :math:`\Sigma^{-1}`. Both are divided, where ``density_neighbors`` is given, by how far each
    training embedding lies from its own neighbors, which evens out the densely sampled source and
    the sparsely sampled target domain without domain labels. Nearest neighbors want a larger
    ``shrinkage`` than prototypes: without it the inverse covariance of as many clips as dimensions
    puts all of them at one distance from each other.

    Args:
      embeddings: Floating, shape ``[n, dim]``; training clips only.
      labels: Integer, shape ``[n]``: attribute class of every clip.
      sections: Hashable section key per clip, length ``n``, for example (machine type, section).
      kind: The back-end.
      covariance: Estimator for ``mahalanobis`` and ``mahalanobis-knn``.
      center: What the covariance is taken about: ``"global"``, the mean of the section's training
        embeddings; ``"class"``, the prototype of each embedding's own class, so that differences
        between classes do not count as spread. The paper does not say which.
      shrinkage: Weight a in [0, 1] of ``shrinkage``.
      ridge: Positive share of the mean variance added by ``ridge``.
      normalize_prototypes: Whether class means are scaled to unit length, as after Eq. 2.
      neighbors: Training embeddings averaged over by nearest neighbors; at least 1. A section with
        fewer clips uses all of them.
      density_neighbors: Neighbors K that the local density of nearest neighbors is taken over; 0
        leaves distances as they are.

    Returns:
      The fitted scorer.

    Raises:
      ValueError: Shapes, ranges or names that do not fit, embeddings that are not finite, or a
        section whose embeddings do not vary about what they are centered on.

    References:
      Zeng et al., Robust Prototype Learning for Anomalous Sound Detection, 2023, Eq. 2 and
      section 4.2. Ledoit and Wolf, A well-conditioned estimator for large-dimensional covariance
      matrices, 2004. Wilkinghoff et al., Local density-based anomaly score normalization for
      domain generalization, 2025 (arXiv 2509.10951).
    """
    embeddings = _checked(embeddings, sections)
    labels = np.asarray(labels)
    if labels.shape != (len(embeddings),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels has shape {labels.shape} and dtype {labels.dtype}, expected integers of shape "
            f"({len(embeddings)},): one class per embedding"
        )
    if not len(embeddings):
        raise ValueError("there are no embeddings to fit on: expected at least one training clip")
    choices = (("kind", kind, Kind), ("covariance", covariance, Covariance))
    for name, value, allowed in (*choices, ("center", center, Center)):
        if value not in get_args(allowed):
            expected = ", ".join(get_args(allowed))
            raise ValueError(f"{name} is {value!r}, expected one of {expected}")
    if not 0.0 <= shrinkage <= 1.0:
        raise ValueError(f"shrinkage is {shrinkage}, expected a weight in [0, 1]")
    if not ridge > 0.0:
        raise ValueError(f"ridge is {ridge}, expected a positive number")
    if neighbors < 1 or density_neighbors < 0:
        raise ValueError(
            f"neighbors is {neighbors} and density_neighbors {density_neighbors}, expected at "
            "least 1 and at least 0"
        )
    models: dict[Hashable, SectionModel] = {}
    for key, rows in sorted(rows_by(sections).items(), key=lambda item: str(item[0])):
        chosen = embeddings[rows]
        classes = labels[rows].astype(np.int64)
        whitening = np.empty((chosen.shape[1], 0))
        prototypes, present = class_means(chosen, classes, normalize=normalize_prototypes)
        if kind.startswith("mahalanobis"):
            if center == "class":
                centered = chosen - prototypes[np.searchsorted(present, classes)]
            else:
                centered = chosen - chosen.mean(axis=0)
            # A mean, and a unit vector brought to unit length again, are off in the last bit.
            if np.ptp(centered, axis=0).max() <= 1e-12 * np.abs(chosen).max():
                alike = "all the same" if center == "global" else "all the same within each class"
                raise ValueError(
                    f"section {key!r}: its {len(rows)} training embeddings are {alike}, so they "
                    "have no covariance; give more clips, or use kind='cosine' or 'knn'"
                )
            whitening = _whitening(centered, covariance, shrinkage=shrinkage, ridge=ridge)
        if kind in NEAREST_CLIPS:
            density = _local_density(_whitened(chosen, whitening), density_neighbors)
            models[key] = SectionModel(chosen, classes, whitening, density)
        else:
            models[key] = SectionModel(prototypes, present, whitening, np.ones(len(present)))
    return Scorer(kind, neighbors, models)


class Fitted(Protocol):
    """What a back-end's fit returns."""

    def score(
        self, embeddings: np.ndarray, sections: Sequence[Hashable], *, training: bool = False
    ) -> np.ndarray:
        """As :meth:`Scorer.score`."""


def held_out_scores(
    embeddings: np.ndarray,
    labels: np.ndarray,
    sections: Sequence[Hashable],
    *,
    folds: int = 5,
    fit: Callable[..., Fitted] = fit_scorer,
    **options: Any,
) -> np.ndarray:
    """Scores of training clips by back-ends that were fitted without them: what thresholds need.

    A clip lies nearer to prototypes and covariance that it took part in than any new clip does, the
    more so the fewer clips there are; a threshold from such scores calls nearly everything an
    anomaly.

    Args:
      embeddings: Floating, shape ``[n, dim]``; training clips only.
      labels: Integer, shape ``[n]``: attribute class of every clip.
      sections: Hashable section key per clip, length ``n``.
      folds: Parts that the clips are dealt into, class by class; each is scored by a back-end
        fitted on the others. Sections of fewer than twice as many clips are too small to be parted:
        their clips get the scores of the back-end fitted on all.
      fit: Called with embeddings, labels, sections and the options.
      **options: As for :func:`fit_scorer`, or whatever ``fit`` takes.

    Returns:
      float64, shape ``[n]``.

    Raises:
      ValueError: As :func:`fit_scorer`; or ``folds`` is less than 2.
    """
    if folds < 2:
        raise ValueError(f"folds is {folds}, expected at least 2")
    everything = fit(embeddings, labels, sections, **options)
    scores = everything.score(embeddings, sections, training=True)
    embeddings, labels = np.asarray(embeddings), np.asarray(labels)
    part = np.full(len(labels), -1)
    for rows in rows_by(sections).values():
        if len(rows) >= 2 * folds:
            by_class = rows[np.argsort(labels[rows], kind="stable")]
            part[by_class] = np.arange(len(rows)) % folds
    for fold in range(folds):
        kept, out = np.flatnonzero(part != fold), np.flatnonzero(part == fold)
        if not len(out):
            continue
        fitted = fit(
            embeddings[kept], labels[kept], [sections[int(row)] for row in kept], **options
        )
        scores[out] = fitted.score(embeddings[out], [sections[int(row)] for row in out])
    return scores


def class_means(
    embeddings: np.ndarray, labels: np.ndarray, *, normalize: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Prototype of every class that occurs: the mean of its embeddings (Eq. 2), in float64.

    Args:
      embeddings: Floating, shape ``[n, dim]``.
      labels: Integer, shape ``[n]``.
      normalize: Whether means are scaled to unit length; a zero mean stays zero.

    Returns:
      Prototypes, float64 ``[classes, dim]``, and their labels, int64 ``[classes]``, ascending.
    """
    classes, inverse = np.unique(labels, return_inverse=True)
    sums = np.zeros((len(classes), embeddings.shape[1]))
    np.add.at(sums, inverse, np.asarray(embeddings, np.float64))
    means = sums / np.bincount(inverse)[:, None]
    if normalize:
        means = _unit(means)
    return means, classes.astype(np.int64)


def _whitening(
    centered: np.ndarray, covariance: str, *, shrinkage: float, ridge: float
) -> np.ndarray:
    """Matrix W ``[dim, rank]`` with W W^T the inverse of the estimated covariance."""
    dim = centered.shape[1]
    estimate = centered.T @ centered / len(centered)
    variance = np.trace(estimate) / dim
    if covariance == "pinv":
        values, vectors = np.linalg.eigh(estimate)
        # The rank rule of numpy.linalg.matrix_rank, with room for the squaring in the estimate.
        kept = values > values.max() * max(estimate.shape) * np.finfo(np.float64).eps * 10
        return vectors[:, kept] / np.sqrt(values[kept])
    if covariance == "ledoit-wolf":
        from sklearn.covariance import ledoit_wolf

        estimate = ledoit_wolf(centered, assume_centered=True)[0]
    elif covariance == "shrinkage":
        estimate = (1.0 - shrinkage) * estimate + shrinkage * variance * np.eye(dim)
    else:
        estimate = estimate + ridge * variance * np.eye(dim)
    from scipy.linalg import solve_triangular

    try:
        factor = np.linalg.cholesky(estimate)
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"the covariance of {len(centered)} embeddings of {dim} dimensions is singular with "
            f"covariance={covariance!r}, shrinkage={shrinkage}; shrink more, or use 'ledoit-wolf' "
            "or 'pinv'"
        ) from error
    return np.ascontiguousarray(solve_triangular(factor, np.eye(dim), lower=True).T)


def _distances(kind: str, model: SectionModel, embeddings: np.ndarray) -> np.ndarray:
    """float64 ``[n, r]``: distance of every embedding to every reference of its section."""
    if kind == "cosine":
        return 1.0 - rowwise_product(_unit(embeddings), _unit(model.references).T)
    return _euclidean(_whitened(embeddings, model.whitening), model.whitened) / model.density


def _whitened(embeddings: np.ndarray, whitening: np.ndarray) -> np.ndarray:
    """Embeddings as distances are measured between them; as they are without a covariance."""
    return rowwise_product(embeddings, whitening) if whitening.size else embeddings


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows brought to unit length; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def _euclidean(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """float64 ``[n, r]``; differences are taken before squaring, so near ones keep their digits."""
    from scipy.spatial.distance import cdist

    return cdist(left, right)


def rowwise_product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``left @ right`` as one vector-matrix product per row of ``left``, looped over inside numpy.

    One matrix product would let the number of rows choose the order of summation, and a clip
    scored alone would differ in its last bits from the same clip in a batch.
    """
    return np.matmul(left[:, None, :], right)[:, 0, :]


def _local_density(references: np.ndarray, neighbors: int) -> np.ndarray:
    """float64 ``[r]``: mean distance of each reference to its neighbors; ones for 0 neighbors."""
    if not neighbors or len(references) < 2:
        return np.ones(len(references))
    density = _mean_of_smallest(_euclidean(references, references), neighbors, skip=1)
    # Copies of one clip have no distance between them; the floor keeps the ratio finite.
    return np.maximum(density, np.finfo(np.float64).eps)


def _mean_of_smallest(distances: np.ndarray, count: int, skip: int = 0) -> np.ndarray:
    """Mean over each row's ``count`` smallest entries after leaving the ``skip`` smallest out."""
    # A section with a single training clip has nothing but the clip itself to compare with.
    skip = min(skip, distances.shape[1] - 1)
    count = min(count, distances.shape[1] - skip)
    smallest = np.partition(distances, skip + count - 1, axis=1)[:, : skip + count]
    return np.sort(smallest, axis=1)[:, skip:].mean(axis=1)


def rows_by(keys: Sequence[Key]) -> dict[Key, np.ndarray]:
    """Rows of every key, ascending, keys in order of first occurrence."""
    rows: dict[Key, list[int]] = {}
    for index, key in enumerate(keys):
        rows.setdefault(key, []).append(index)
    return {key: np.array(indices) for key, indices in rows.items()}


def _checked(embeddings: np.ndarray, sections: Sequence[Hashable]) -> np.ndarray:
    """Embeddings in float64, finite and one for each section key."""
    embeddings = np.ascontiguousarray(embeddings, np.float64)
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings has shape {embeddings.shape}, expected [clips, dim]")
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if bad.size:
        raise ValueError(
            f"embeddings: {bad.size} of {len(embeddings)} rows are not finite, the first is row "
            f"{bad[0]}; look for a diverged model or an empty clip"
        )
    if len(sections) != len(embeddings):
        raise ValueError(
            f"sections has length {len(sections)}, expected {len(embeddings)}: one per embedding"
        )
    return embeddings


def _hashable(key: Any) -> Any:
    """A section key as it was before json made lists of its tuples."""
    return tuple(_hashable(part) for part in key) if isinstance(key, list) else key
