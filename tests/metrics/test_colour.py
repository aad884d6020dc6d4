import numpy as np
import pytest

from distill_jax.metrics.colour import SIDE, colour_scores, lab

# CIELAB of colours of sRGB for D65, as EasyRGB and Lindbloom's calculator print them.
PUBLISHED = {
    (255, 255, 255): (100.0, 0.0, 0.0),
    (0, 0, 0): (0.0, 0.0, 0.0),
    (255, 0, 0): (53.24, 80.09, 67.20),
    (0, 255, 0): (87.74, -86.18, 83.18),
    (0, 0, 255): (32.30, 79.19, -107.86),
    (255, 255, 0): (97.14, -21.55, 94.48),
    (0, 255, 255): (91.11, -48.09, -14.13),
    (255, 0, 255): (60.32, 98.23, -60.82),
    (128, 128, 128): (53.59, 0.0, 0.0),
}


def halves(first, second, side=8):
    """Returns an image (side, side, c) of two colours, the first on its left half."""
    x = np.empty((side, side, len(first)), np.uint8)
    x[:, : side // 2], x[:, side // 2 :] = first, second
    return x


@pytest.mark.parametrize("colour", PUBLISHED)
def test_colours_have_their_published_lightness_and_axes(colour):
    found = lab(np.asarray([colour], np.uint8))[0]
    np.testing.assert_allclose(found, PUBLISHED[colour], atol=0.012)  # Two digits are printed.


def test_grey_levels_have_no_chroma_and_their_lightness_rises():
    levels = lab(np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1))
    np.testing.assert_allclose(levels[:, 1:], 0, atol=1e-3)
    assert (np.diff(levels[:, 0]) > 0).all()
    # Near black L* is 903.3 Y, and Y the value over 12.92.
    assert levels[5, 0] == pytest.approx(903.3 * 5 / 255 / 12.92, rel=1e-4)


def test_the_chroma_of_red_is_the_hypotenuse_and_of_halves_the_mean():
    red, grey = (255, 0, 0), (128, 128, 128)
    assert colour_scores(halves(red, red)[None])["chroma"] == pytest.approx(104.55, abs=0.01)
    assert colour_scores(halves(red, grey)[None])["chroma"] == pytest.approx(52.28, abs=0.01)


def test_contrast_is_half_the_difference_of_the_lightness_of_two_halves():
    black_white = halves((0, 0, 0), (255, 255, 255))
    red_white = halves((255, 0, 0), (255, 255, 255))
    assert colour_scores(black_white[None])["contrast"] == pytest.approx(50)
    assert colour_scores(red_white[None])["contrast"] == pytest.approx(23.38, abs=0.01)
    # The mean over images, of each image alone: one that is white and one that is black have none.
    flat = np.stack([halves((0, 0, 0), (0, 0, 0)), halves((255,) * 3, (255,) * 3)])
    assert colour_scores(flat)["contrast"] == 0
    assert colour_scores(np.stack([black_white, flat[0]]))["contrast"] == pytest.approx(25)


def test_images_of_one_channel_have_a_contrast_and_no_chroma_and_points_have_neither():
    assert colour_scores(halves((0,), (255,))[None]) == {"contrast": pytest.approx(50)}
    assert colour_scores(np.zeros((5, 1, 1, 3), np.uint8)) == {}
    assert colour_scores(np.zeros((5, 8, 8, 2), np.uint8)) == {}


def test_large_images_and_many_are_measured_as_small_and_few():
    red, white = (255, 0, 0), (255, 255, 255)
    small = colour_scores(halves(red, white)[None])
    large = np.stack([halves(red, white, side=4 * SIDE)] * 3)
    many = np.stack([halves(red, white, side=SIDE)] * 130)  # More than a block.
    for x in (large, many):
        assert colour_scores(x) == pytest.approx(small, rel=1e-6)
