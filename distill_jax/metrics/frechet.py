"""The Frechet distance between two sets of features, each summarised as a Gaussian."""

from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """Mean (d,) and covariance (d, d) of features, float64."""

    mean: np.ndarray
    covariance: np.ndarray


def moments(features: np.ndarray) -> Moments:
    """Returns the mean and unbiased covariance of features (n, d), n > 1."""
    features = np.asarray(features, np.float64)
    return Moments(
        features.mean(axis=0), np.cov(features, rowvar=False).reshape(2 * features.shape[1:])
    )


def frechet_distance(a: Moments, b: Moments) -> float:
    """Returns |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), at least 0.

    This is the squared 2-Wasserstein distance of two Gaussians. Heusel et al. (2017,
    arXiv:1706.08500), equation 6, call it FID if the features are Inception's. The trace of the
    root comes from the eigenvalues of the symmetric matrix C_a^(1/2) C_b C_a^(1/2).
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    crossed = np.linalg.eigvalsh(root @ b.covariance @ root)
    trace = np.trace(a.covariance) + np.trace(b.covariance)
    trace -= 2 * np.sqrt(np.maximum(crossed, 0)).sum()
    return float(max(0.0, np.sum((a.mean - b.mean) ** 2) + trace))


class Target:
    """A Gaussian to which the Frechet distances of many sets of features are measured.

    Its root is computed once, and a set costs the eigenvalues of one matrix whose side is the
    smaller of the number of features and their size.

    Args:
      reference: moments of the reference.
    """

    def __init__(self, reference: Moments):
        self._mean, self._trace = reference.mean, np.trace(reference.covariance)
        values, vectors = np.linalg.eigh(reference.covariance)
        self._root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T

    def distance(self, features: np.ndarray) -> float:
        """Returns the Frechet distance of features (n, d), n > 1; see frechet_distance.

        With the centred features X / sqrt(n - 1), the trace of (C_a C_b)^(1/2) is the sum of the
        singular values of X C_b^(1/2).
        """
        features = np.asarray(features, np.float64)
        mean = features.mean(axis=0)
        centred = (features - mean) / np.sqrt(len(features) - 1)
        crossed = centred @ self._root
        gram = crossed.T @ crossed if len(crossed) > crossed.shape[1] else crossed @ crossed.T
        trace = self._trace + np.sum(centred**2)
        trace -= 2 * np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0)).sum()
        return float(max(0.0, np.sum((mean - self._mean) ** 2) + trace))

    def distance_at_infinity(self, features: np.ndarray, points: int = 15, seed: int = 0) -> float:
        """Returns the distance extrapolated to infinitely many features.

        The distance of N samples is above that of the distribution by about a constant over N, so
        a line through distances at several N is followed to 1 / N = 0. Chong & Forsyth (2020,
        arXiv:1911.07023), with random instead of quasi-random subsets.

        Args:
          features: features (n, d) of the samples, n >= 20.
          points: number of sizes, from a tenth of n to n.
          seed: seed of the subsets.
        """
        rng, count = np.random.default_rng(seed), len(features)
        sizes = np.linspace(max(2, count // 10), count, points).astype(int)
        subsets = (features[rng.permutation(count)[:size]] for size in sizes)
        distances = [self.distance(subset) for subset in subsets]
        return float(np.polyfit(1 / sizes, distances, 1)[1])
