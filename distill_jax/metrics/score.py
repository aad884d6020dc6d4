"""Inception Score, from the logits of a classifier."""

import numpy as np


def inception_score(logits: np.ndarray, splits: int = 10) -> tuple[float, float]:
    """Returns the mean over splits of exp E KL(p(y | x) || p(y)), and its standard error.

    Salimans et al. (2016, arXiv:1606.03498). p(y) is the mean of a split, so the score depends on
    the size of a split: 5,000 in the usual protocol of 50,000 images in 10 splits.

    Args:
      logits: logits (n, classes); Inception's come without bias.
      splits: number of consecutive splits of nearly equal size, at most n.
    """
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    found, n = [], len(log_p)
    for i in range(splits):
        part = log_p[i * n // splits : (i + 1) * n // splits]
        p = np.exp(part)
        found.append(np.exp((p * (part - np.log(p.mean(0)))).sum(1).mean()))
    return float(np.mean(found)), float(np.std(found) / np.sqrt(splits))
