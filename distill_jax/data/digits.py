"""The digits dataset: scikit-learn's handwritten digits, real 8x8 images without a download."""

from typing import Annotated

import numpy as np
from sklearn.datasets import load_digits

from distill_jax.data.arrays import Arrays
from distill_jax.data.base import Source
from distill_jax.runtime.options import every, whole


def digits(
    labels: Annotated[tuple, every(whole(0, high=9), 10)] = (), labelled: bool = True
) -> Arrays:
    """Loads 1,797 digits (8, 8, 1) in 10 classes: 1,437 for training, 360 for testing.

    They are the test set of Alpaydin & Kaynak's "Optical Recognition of Handwritten Digits" (UCI,
    1998), with 17 grey levels. Here every fifth image is in the test split, for every seed.

    Args:
      labels: digits whose images are kept, () for all; the network has 10 classes in any case.
      labelled: whether the classes condition the network.
    """
    data = load_digits()
    x = (data.images / 8.0 - 1.0).astype(np.float32)[..., None]
    label = data.target.astype(np.int32)
    is_test = np.arange(len(label)) % 5 == 0
    kept = np.isin(label, labels or range(10))
    train, test = (Source(x[part & kept], label[part & kept]) for part in (~is_test, is_test))
    return Arrays(train, test, num_classes=10 if labelled else 0, num_labels=10)
