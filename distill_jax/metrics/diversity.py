"""Diversity of samples of one condition: the mean distance between two of them."""

import numpy as np

MOST = 200  # Largest number of samples of a condition that are compared.


def diversity(features: np.ndarray, condition: np.ndarray | None) -> float | None:
    """Returns the mean distance between the features of two samples of the same condition.

    The mean is taken over the pairs of a condition, then over conditions. It is 0 if a condition
    always gives the same sample. Zhu et al. (2017, arXiv:1711.11586), section 5, measure the
    diversity of images so, in the features of LPIPS. The distance is Euclidean, so the number is
    comparable only within one feature network.

    Args:
      features: features (n, d) of samples.
      condition: label or prompt (n,) of each sample; None if all samples have the same.

    Returns:
      The distance; None if no two samples share a condition.
    """
    groups: dict[object, list[int]] = {}
    for i in range(len(features)):
        groups.setdefault(None if condition is None else condition[i], []).append(i)
    means = []
    for rows in (rows[:MOST] for rows in groups.values() if len(rows) > 1):
        part = np.asarray(features[rows], np.float64)
        part -= part.mean(axis=0)  # Smaller numbers lose less in the products.
        squares = (part**2).sum(axis=1)
        apart = squares[:, None] + squares - 2 * part @ part.T
        means.append(np.sqrt(np.maximum(apart[np.triu_indices(len(rows), 1)], 0)).mean())
    return float(np.mean(means)) if means else None
