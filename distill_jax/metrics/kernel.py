"""Kernel distances between two sets of features: KID and CMMD."""

import numpy as np


def kid(
    real: np.ndarray, fake: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """Returns the kernel inception distance and the standard error of its mean over subsets.

    Binkowski et al. (2018, arXiv:1801.01401): the unbiased squared MMD of the kernel
    (a.b / d + 1)^3, as the mean over random subsets. The estimate may be below 0. The subsets of a
    seed are those of torch-fidelity when `fake` is its first input.

    Args:
      real: features (n, d).
      fake: features (m, d).
      subsets: number of subsets.
      size: number of features in a subset, at most n and m.
      seed: seed of the subsets.

    Raises:
      ValueError: if there are fewer features than `size`.
    """
    if min(len(real), len(fake)) < size:
        raise ValueError(
            f"KID needs subsets of {size} images; there are {len(real)} real and {len(fake)} "
            "generated ones: give more, or take smaller subsets"
        )
    rng = np.random.RandomState(seed)
    found = []
    for _ in range(subsets):
        a = fake[rng.choice(len(fake), size, replace=False)]
        b = real[rng.choice(len(real), size, replace=False)]
        found.append(_cubic_mmd(np.asarray(a, np.float64), np.asarray(b, np.float64)))
    return float(np.mean(found)), float(np.std(found) / np.sqrt(subsets))


def _cubic_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the unbiased squared MMD of equally many features with the cubic kernel."""
    n, d = a.shape
    kernels = [(x @ y.T / d + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))]
    within = sum((k.sum() - np.trace(k)) / (n * (n - 1)) for k in kernels[:2])
    return within - 2 * kernels[2].mean()


def cmmd(real: np.ndarray, fake: np.ndarray, sigma: float = 10.0, block: int = 4096) -> float:
    """Returns CMMD: 1000 times the biased squared MMD of a Gaussian kernel of width `sigma`.

    Jayasumana et al. (2024, arXiv:2401.09603), for CLIP embeddings of length 1.

    Args:
      real: features (n, d).
      fake: features (m, d).
      sigma: standard deviation of the kernel.
      block: number of rows of a kernel in memory.
    """

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        total = 0.0
        for rows in np.array_split(a, -(-len(a) // block)):
            squares = (rows**2).sum(1)[:, None] + (b**2).sum(1) - 2 * rows @ b.T
            total += np.exp(-squares / (2 * sigma**2)).sum()
        return total / (len(a) * len(b))

    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    return 1000 * float(mean(real, real) + mean(fake, fake) - 2 * mean(real, fake))
