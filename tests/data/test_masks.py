"""Tests of masks, and of batches with masked images."""

import numpy as np
import pytest

from distill_jax.data import DATASETS
from distill_jax.data.base import Encodable
from distill_jax.data.encoded import Encoded
from distill_jax.data.masks import RandomMasks, masks_of, with_masks
from distill_jax.diffusion.pixels import normalise

DATA = DATASETS["shapes"](count=64, tests=64)


def take(dataset, part=(0, 1), seed=3):
    return next(dataset.batches(seed, 5, 8, part))


def drawn(masks, num=200, sides=(32, 24)):
    return np.stack([masks(np.random.default_rng(i), *sides) for i in range(num)])


@pytest.mark.parametrize(("boxes", "low", "high"), [(1.0, 0.01, 0.8), (0.0, 0.01, 0.98)])
def test_masks_cover_some_of_an_image_and_shares_of_images_as_a_whole(boxes, low, high):
    share = drawn(RandomMasks(0.0, boxes)).mean(axis=(1, 2))
    assert (low < share).all() and (share < high).all()
    assert 0.15 < share.mean() < 0.5
    whole = drawn(RandomMasks(0.25, boxes)).all(axis=(1, 2)).mean()
    assert 0.15 < whole < 0.35  # Three standard deviations of 200 draws are 0.09.
    assert drawn(RandomMasks(1.0, boxes)).all()
    assert drawn(RandomMasks(0.0, boxes), sides=(1, 1)).all()


def test_batches_have_the_mask_and_the_image_without_it():
    masked = with_masks(DATA, RandomMasks(0.0))
    rows, plain = take(masked), take(DATA)
    np.testing.assert_array_equal(rows.x, plain.x)
    np.testing.assert_array_equal(rows.cond["caption"], plain.cond["caption"])
    mask, image = rows.cond["inpaint"][..., :1], rows.cond["inpaint"][..., 1:]
    assert mask.dtype == image.dtype == np.float32
    np.testing.assert_array_equal(image, (1 - mask) * normalise(plain.x))
    assert dict(masked.spec.cond)["inpaint"].shape == rows.cond["inpaint"].shape[1:] == (16, 16, 4)
    assert masked.null.keys() == masked.spec.null.keys() == {"caption"}


def test_a_mask_is_a_function_of_seed_and_number_for_any_process():
    masked = with_masks(DATA, RandomMasks())
    whole = take(masked).cond["inpaint"]
    halves = [take(masked, (i, 2)).cond["inpaint"] for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), whole)
    assert (take(masked, seed=4).cond["inpaint"][..., 0] != whole[..., 0]).any()


def test_masked_images_have_numbers_where_images_have():
    assert isinstance(with_masks(DATA, RandomMasks()), Encodable)
    assert not isinstance(with_masks(Encoded(DATA, DATA.spec), RandomMasks()), Encodable)


def test_prompts_without_images_have_no_masks():
    with pytest.raises(ValueError, match="config.masks needs images, and the data have prompts"):
        with_masks(DATA.without_images(), RandomMasks())


def test_no_options_are_no_masks_and_others_are_checked():
    assert masks_of({}) is None
    assert masks_of({"name": "random", "whole": 0.5}) == RandomMasks(0.5)
    with pytest.raises(KeyError, match="unknown distribution of masks 'boxes'; known: random"):
        masks_of({"name": "boxes"})
    with pytest.raises(ValueError, match="whole is 2; expected a number from 0 to 1"):
        masks_of({"name": "random", "whole": 2})
