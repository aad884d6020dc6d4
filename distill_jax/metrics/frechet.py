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
