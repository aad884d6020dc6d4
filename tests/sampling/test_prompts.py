"""Tests of the conditioner of prompts and of the text encoder that is fitted to captions."""

import warnings

import jax
import numpy as np
import pytest

from distill_jax.data import DATASETS
from distill_jax.diffusion.spec import image_data
from distill_jax.run.text_encoder import fit
from distill_jax.sampling.prompts import MAX_NOTES, Text, WordEncoder, mask_of

KIND = WordEncoder(width=16, layers=1, heads=2, length=6, updates=150, batch=16)
CAPTIONS = ["a red circle", "a blue circle", "a blue square", "a red square"]
WORDS = ("a", "blue", "circle", "red", "square")


@pytest.fixture(scope="module")
def latents():
    """Latents that depend on the caption, with noise."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(4, 4, 4, 2))
    captions = [CAPTIONS[i] for i in np.arange(64) % 4]
    x = means[np.arange(64) % 4] + 0.1 * rng.normal(size=(64, 4, 4, 2))
    return captions, x.astype(np.float32)


@pytest.fixture(scope="module")
def text(latents):
    return KIND.load(fit(KIND, *latents, WORDS), WORDS)


def test_the_fit_depends_on_its_arguments_only(latents, text):
    again = fit(KIND, *latents, WORDS)
    jax.tree.map(np.testing.assert_array_equal, again, text.params)


def test_fitted_tokens_tell_captions_apart(text, latents):
    found = text(CAPTIONS, 4)["text"].reshape(4, -1)
    assert np.linalg.matrix_rank(found - found.mean(axis=0), tol=1e-3) == 3
    blank = Text(text.tokenizers, text.encoder, jax.tree.map(lambda p: p * 0, text.params))
    assert np.ptp(blank(CAPTIONS, 4)["text"], axis=0).max() == 0


def test_a_prompt_has_the_same_tokens_in_every_batch(text):
    alone = text("a red circle", 1)
    many = text([*CAPTIONS, "a red circle"] * 20, 100)
    for name in ("text", "text_mask"):
        np.testing.assert_array_equal(many[name][4], alone[name][0])


def test_the_mask_covers_the_prompt_with_start_and_end(text):
    assert text("a red circle", 2)["text_mask"].sum(axis=1).tolist() == [5, 5]
    assert text.null["text_mask"].sum() == 2
    ids = np.array([[0, 3, 4, 1, 1, 1]])
    assert mask_of(ids, 1).tolist() == [[True] * 4 + [False] * 2]


def test_null_is_the_empty_prompt(text):
    np.testing.assert_array_equal(text.null["text"], text("", 1)["text"])


def test_long_prompts_are_cut_and_unknown_words_named(text):
    fresh = KIND.load(text.params, WORDS)
    with pytest.warns(
        UserWarning, match="has 8 tokens, and the network takes 6: .red blue. is cut"
    ):
        fresh("a red circle a red blue", 1)
    with pytest.warns(UserWarning, match="in no training caption: .green."):
        fresh("a green circle", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh("A RED Circle", 1)


def test_of_many_prompts_that_are_cut_the_first_are_named(text):
    fresh, long = KIND.load(text.params, WORDS), [f"a red circle a blue {i}" for i in range(30)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fresh(long, 30)
        fresh(["a blue square a red circle"], 1)
    assert len(caught) == MAX_NOTES + 1
    assert str(caught[-1].message).startswith("further prompts")
    quiet = KIND.load(text.params, WORDS)
    assert len(quiet.notes([*long, "a red circle"])) == 30
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet(long, 30)


@pytest.mark.parametrize("prompt", [None, 3, ["a red circle"], ["a", 2], [None, None]])
def test_other_requests_are_refused(text, prompt):
    with pytest.raises(ValueError, match="expected a text, or 2 of them"):
        text(prompt, 2)


def test_the_spec_has_tokens_for_captions():
    spec = KIND.conditions(DATASETS["shapes"](count=64, tests=64).spec)
    assert dict(spec.cond)["text"].shape == (6, 16)
    with pytest.raises(ValueError, match="the data have none"):
        KIND.conditions(image_data((8, 8, 1), 10))


def test_sides_that_do_not_divide_are_refused(latents):
    with pytest.raises(ValueError, match="sides that 4 divides"):
        fit(KIND, ["a red circle"], np.zeros((1, 6, 6, 1), np.float32), WORDS)
