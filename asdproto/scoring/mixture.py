r"""A Gaussian mixture over the training clips of a section: a back-end beside nearest references.

References:
  Guan et al., Time-weighted Frequency Domain Audio Representation with GMM Estimator for Anomalous
  Sound Detection, ICASSP 2023 (arXiv 2305.03328).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from asdproto.scoring.rows import rowwise_product


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """A Gaussian mixture.

    Attributes:
      weights: float64, shape ``[components]``, of sum 1.
      means: float64, shape ``[components, dim]``.
      factors: float64, shape ``[components, dim, dim]``, upper triangular: a component's precision
        is its factor times the factor's transpose.
    """

    weights: np.ndarray
    means: np.ndarray
    factors: np.ndarray

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.means.shape[1]

    def compare(self, points: np.ndarray) -> np.ndarray:
        r"""Negative log-density of the nearest component, above its smallest possible value.

        .. math:: \max_x \max_k \log w_k N_k(x) - \max_k \log w_k N_k(z)

        The first term is constant in a section: it makes scores nonnegative and free of the
        features' unit, so that sections share a threshold and other systems a scale. With one
        component this is half the squared Mahalanobis distance to the mean.

        Args:
          points: float64, shape ``[n, dim]``.

        Returns:
          float64, shape ``[n]``, at least 0; higher is more anomalous. A point's does not depend,
          to the last bit, on the other points.
        """
        constant = 0.5 * self.dim * math.log(2.0 * math.pi)
        diagonals = np.diagonal(self.factors, axis1=1, axis2=2)
        peaks = np.log(self.weights) + np.log(diagonals).sum(axis=1) - constant
        squares = [
            np.square(rowwise_product(points - mean, factor)).sum(axis=1)
            for mean, factor in zip(self.means, self.factors, strict=True)
        ]
        return peaks.max() - (peaks - 0.5 * np.stack(squares, axis=1)).max(axis=1)


def fit_mixture(
    points: np.ndarray,
    target: np.ndarray,
    *,
    components: int,
    target_ratio: float,
    regularization: float,
    seed: int,
) -> Mixture:
    """Fits a mixture of full covariances to the training clips of one section.

    Args:
      points: float64, shape ``[n, dim]``, finite; at least ``components`` of them, and 2.
      target: Boolean, shape ``[n]``: whether a clip is of the target domain.
      components: Gaussians of the mixture.
      target_ratio: Target clips are repeated in turn until there are so many for each other clip.
      regularization: Added to every variance.
      seed: Where the search for the components begins.
    """
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    rows = np.arange(len(points))
    few, many = rows[target], rows[~target]
    wanted = max(len(few), math.ceil(target_ratio * len(many))) if len(few) else 0
    mixture = GaussianMixture(
        components, reg_covar=regularization, tol=1e-6, max_iter=1000, random_state=seed
    )
    # Threads would wait for each other longer than such matrices take, a hundred times longer on a
    # busy machine, and their number would show in the last bits.
    with threadpool_limits(1):
        mixture.fit(points[np.concatenate([many, np.resize(few, wanted)])])
    return Mixture(mixture.weights_, mixture.means_, mixture.precisions_cholesky_)
