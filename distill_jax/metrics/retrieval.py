"""How often an image is nearer to its own caption than to others, without a text encoder."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

CANDIDATES = 100  # Captions that an image is compared with, its own among them.
PENALTY = 100.0  # Of the squared weights of the regression.


class Retrieval:
    """A linear regression from features of images to the words of their captions.

    A caption is its vector of word frequencies, weighted by TF-IDF, of length 1. An image is found
    when its own caption has a larger cosine with the predicted vector than each of 99 others.

    Args:
      features: features (n, d) of real images.
      captions: their n captions.
      others: captions that images are compared with, such as those of the test images.
    """

    def __init__(self, features: np.ndarray, captions: Sequence[str], others: Sequence[str]):
        self._words = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]").fit(captions)
        scaled = make_pipeline(StandardScaler(), Ridge(alpha=PENALTY))
        self._regression = scaled.fit(features, self._vectors(captions))
        self._others = sorted(set(others))
        self._theirs = self._vectors(self._others)
        self.candidates = min(CANDIDATES, len(self._others))

    def _vectors(self, captions: Sequence[str]) -> Any:
        return self._words.transform(captions).toarray()

    def rate(self, features: np.ndarray, captions: Sequence[str]) -> float:
        """Returns the fraction of images that are found, expected over the choice of the others.

        Args:
          features: features (n, d) of images.
          captions: the n captions that they were drawn for.
        """
        predicted = normalize(self._regression.predict(features))
        own = (predicted * self._vectors(captions)).sum(1)
        names = np.asarray(self._others)
        strangers = names[None] != np.asarray(captions)[:, None]
        nearer = ((predicted @ self._theirs.T >= own[:, None]) & strangers).sum(1)
        # The probability that none of the `nearer` ones is among those drawn from all strangers.
        drawn, count = np.arange(self.candidates - 1), strangers.sum(1)
        farther = np.maximum((count - nearer)[:, None] - drawn, 0)
        return float(np.prod(farther / (count[:, None] - drawn), axis=1).mean())
