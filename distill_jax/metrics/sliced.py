"""Sliced Wasserstein distances between two sets of points, and MIND."""

import numpy as np


def sliced_wasserstein(
    a: np.ndarray, b: np.ndarray, num_projections: int = 128, seed: int = 0
) -> float:
    """Returns the root mean square over directions of W2 between the projections on them.

    Bonneel et al. (2015, doi:10.1007/s10851-014-0506-3). On a line the optimal plan matches
    quantiles, so sorting solves it. The estimate from finite sets is above 0 even for equal
    distributions, so measure this floor, too.

    Args:
      a: points (n, d).
      b: points (m, d); m may differ from n.
      num_projections: number of directions, uniform on the sphere.
      seed: seed of the directions.
    """
    directions = np.random.default_rng(seed).normal(size=(a.shape[1], num_projections))
    directions /= np.linalg.norm(directions, axis=0)
    a, b = (np.sort(np.asarray(points, np.float64) @ directions, axis=0) for points in (a, b))
    # Quantile u of a is constant between multiples of 1 / n, that of b between those of 1 / m.
    n, m = len(a), len(b)
    left = np.union1d(np.arange(n) * m, np.arange(m) * n)
    width = np.diff(left, append=n * m) / (n * m)
    return float(np.sqrt(np.mean(width @ (a[left // m] - b[left // n]) ** 2)))


def by_class(
    a: np.ndarray, a_label: np.ndarray, b: np.ndarray, b_label: np.ndarray
) -> dict[int, float]:
    """Returns the distance between the points of each class that both sets have, by label."""
    classes = np.intersect1d(a_label, b_label)
    return {int(c): sliced_wasserstein(a[a_label == c], b[b_label == c]) for c in classes}


def mind(
    real: np.ndarray, fake: np.ndarray, directions: np.ndarray | None = None, seed: int = 0
) -> tuple[float, float]:
    """Returns the Monge Inception Distance and its standard error over directions.

    It is 3 d times the mean over directions of the squared difference of the sorted projections
    (Berthet et al. 2026, arXiv:2605.06797). It needs no covariance, so a few thousand features are
    enough for d = 2,048.

    Args:
      real: features (n, d).
      fake: features (m, d); the larger set is subsampled to the size of the smaller one.
      directions: unit vectors (count, d); None are 1,000 random ones.
      seed: seed of the subsample and of the directions.
    """
    rng, d, size = np.random.default_rng(seed), real.shape[1], min(len(real), len(fake))
    real, fake = (
        x if len(x) == size else x[np.sort(rng.permutation(len(x))[:size])] for x in (real, fake)
    )
    if directions is None:
        directions = rng.normal(size=(1000, d))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    squares = []
    for part in np.array_split(np.asarray(directions, np.float64), -(-len(directions) // 100)):
        a, b = (np.sort(x @ part.T, axis=0) for x in (real, fake))
        squares.append(((a - b) ** 2).mean(axis=0))
    found = 3 * d * np.concatenate(squares)
    return float(found.mean()), float(found.std() / np.sqrt(len(found)))
