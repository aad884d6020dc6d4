"""Tests of retrieval: images of words, and the closed form for the choice of the other captions."""

import itertools

import numpy as np
import pytest

from distill_jax.metrics.retrieval import Retrieval

WORDS = ("red", "blue", "cat", "dog", "house", "tree", "sun", "moon")
PAIRS = [" ".join(pair) for pair in itertools.combinations(WORDS, 2)]


def features_of(captions, noise=0.0):
    """Returns a feature for each word, and noise: captions follow linearly from them."""
    words = np.array([[word in caption.split() for word in WORDS] for caption in captions], float)
    return words + noise * np.random.default_rng(0).standard_normal(words.shape)


@pytest.fixture(scope="module")
def retrieval():
    texts = [PAIRS[i] for i in np.random.default_rng(1).integers(len(PAIRS), size=2000)]
    return Retrieval(features_of(texts, 0.1), texts, PAIRS)


def test_images_are_found_by_their_own_captions_and_by_chance_by_others(retrieval):
    assert retrieval.candidates == len(PAIRS) == 28
    assert retrieval.rate(features_of(PAIRS), PAIRS) == 1
    rng = np.random.default_rng(2)
    noise = rng.standard_normal((4000, len(WORDS)))
    asked = [PAIRS[i] for i in rng.integers(len(PAIRS), size=len(noise))]
    assert retrieval.rate(noise, asked) == pytest.approx(1 / len(PAIRS), abs=0.01)


def test_a_caption_that_is_nearer_counts_as_often_as_it_is_drawn():
    captions = [f"word{i}" for i in range(200)]
    found = Retrieval(np.eye(200), captions, captions)
    # The image of caption 0 that looks most like caption 1: one of 199 others, drawn 99 times.
    mixed = 0.9 * np.eye(200)[:1] + np.eye(200)[1:2]
    assert found.candidates == 100
    assert found.rate(mixed, captions[:1]) == pytest.approx(1 - 99 / 199)
    assert found.rate(mixed, captions[1:2]) == 1
    # A prompt that is none of the others has 200 of them.
    assert found.rate(mixed, ["word0 word0"]) == pytest.approx((1 - 99 / 200) * (1 - 99 / 199))


def test_a_prompt_of_unknown_words_is_not_found(retrieval):
    assert retrieval.rate(features_of(PAIRS[:1]), ["aardvark"]) == 0
