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


def frechet_infinity(
    features: np.ndarray, reference: Moments, points: int = 15, seed: int = 0
) -> float:
    """Returns the Frechet distance extrapolated to infinitely many samples.

    The distance of N samples is above that of the distribution by about a constant over N, so a
    line through distances at several N is followed to 1 / N = 0. Chong & Forsyth (2020,
    arXiv:1911.07023), with random instead of quasi-random subsets.

    Args:
      features: features (n, d) of the samples, n >= 10.
      reference: moments of the reference.
      points: number of sizes, from a tenth of n to n.
      seed: seed of the subsets.
    """
    rng = np.random.default_rng(seed)
    sizes = np.linspace(max(2, len(features) // 10), len(features), points).astype(int)
    distances = [
        frechet_distance(moments(features[rng.permutation(len(features))[:size]]), reference)
        for size in sizes
    ]
    return float(np.polyfit(1 / sizes, distances, 1)[1])
