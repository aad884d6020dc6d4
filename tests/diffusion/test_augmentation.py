import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from distill_jax.diffusion.augmentation import LABELS, augment, warped

# Names of the labels in their order: Karras et al. (2022), Table 6.
NAMES = ("mirrored", "flipped", "scale", "cos", "sin", "a_cos", "a_sin", "right", "down")


def images(num=1, height=8, width=6, channels=2):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.uniform(-1, 1, (num, height, width, channels)), jnp.float32)


def rotation(theta):
    return np.asarray([[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]])


def moved_by(label, height, width, sign):
    """Returns the map (matrix, shift) from a pixel of the result to one of the image, in NumPy.

    Positions are (right, down) from the centre: scaling, rotation, anisotropic scaling and
    translation of Table 6, inverted, in this order from the image to the result. The labels do not
    contain the sign of the anisotropic scaling: (n, angle) and (-n, angle + pi) are the same.
    """
    row = dict(zip(NAMES, label, strict=True))
    turn = math.atan2(row["sin"], row["cos"] + 1)
    strength = sign * math.hypot(row["a_cos"], row["a_sin"])
    along = math.atan2(row["a_sin"], row["a_cos"])
    stretch = np.diag([2 ** (-0.2 * strength), 2 ** (0.2 * strength)])
    around = rotation(-along) @ stretch @ rotation(along)
    matrix = 2 ** (-0.2 * row["scale"]) * rotation(turn) @ around
    return matrix, np.asarray([row["right"] * width, row["down"] * height]) * 0.125


def by_scipy(x, label, sign):
    """Returns the image that the labels describe, by scipy's bilinear sampling."""
    height, width, channels = x.shape
    x = x[:, ::-1] if label[0] else x
    x = x[::-1] if label[1] else x
    matrix, shift = moved_by(label, height, width, sign)
    middle = np.asarray([(width - 1) / 2, (height - 1) / 2])
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1) - middle - shift
    there = grid @ matrix.T + middle
    at = there[..., ::-1].transpose(2, 0, 1)  # Rows, then columns.
    each = (x[..., i].astype(np.float64) for i in range(channels))
    return np.stack(
        [scipy.ndimage.map_coordinates(c, at, order=1, mode="mirror") for c in each], axis=-1
    )


def test_the_labels_describe_what_was_done_to_the_image():
    x = images(64)
    found, labels = augment(jax.random.key(0), x, 0.6)
    assert labels.shape == (64, LABELS)
    pairs = [*zip(np.asarray(x), np.asarray(labels), strict=True)]
    errors = [
        np.abs(np.asarray([by_scipy(*pair, sign) for pair in pairs]) - found).max(axis=(1, 2, 3))
        for sign in (1, -1)
    ]
    assert np.minimum(*errors).max() < 1e-4
    assert 4 < (errors[0] < 1e-4).sum() < 60 and 4 < (errors[1] < 1e-4).sum() < 60


def test_an_image_with_labels_of_zero_is_unchanged():
    x = images(200)
    found, labels = augment(jax.random.key(0), x, 0.1)
    same = np.asarray((labels == 0).all(axis=1))
    assert 20 < same.sum() < 100  # Half are mirrored, and 0.9^4 0.95 of the others stay.
    np.testing.assert_allclose(found[same], x[same], atol=1e-5)
    mirrored = np.asarray((labels == jnp.eye(LABELS)[0]).all(axis=1))
    np.testing.assert_allclose(found[mirrored], x[mirrored][:, :, ::-1], atol=1e-5)


def test_a_quarter_turn_of_a_square_is_exact():
    x = images(1, 5, 5)
    turned = warped(x, jnp.asarray(rotation(math.pi / 2), jnp.float32)[None], jnp.zeros((1, 2)))
    # The result at (right, down) is the image at (-down, right).
    np.testing.assert_allclose(turned, jnp.rot90(x, 1, (1, 2)), atol=1e-5)


def test_an_image_moves_right_and_down_by_whole_pixels():
    x = images(1, 8, 8)
    moved = warped(x, jnp.eye(2)[None], jnp.asarray([[2.0, 1.0]]))
    np.testing.assert_allclose(moved[:, 1:, 2:], x[:, :-1, :-2], atol=1e-6)


@pytest.mark.parametrize("probability", [0.12, 1.0])
def test_each_change_has_its_probability_and_the_papers_distribution(probability):
    labels = np.asarray(augment(jax.random.key(1), jnp.zeros((40_000, 1, 1, 1)), probability)[1])
    column = dict(zip(NAMES, labels.T, strict=True))
    done = {name: float((value != 0).mean()) for name, value in column.items()}
    # Four standard errors of 40,000 draws of a fair coin are 0.01.
    expected = {"mirrored": 0.5, "flipped": probability / 2, "a_sin": probability / 2}
    for name, share in done.items():
        assert share == pytest.approx(expected.get(name, probability), abs=0.01), name
    strength = np.hypot(column["a_cos"], column["a_sin"])
    for normal in (column["scale"], column["right"], column["down"], strength):
        assert (normal[normal != 0] ** 2).mean() == pytest.approx(1, abs=0.1)
    angle = np.arctan2(column["sin"], column["cos"] + 1)[column["sin"] != 0]
    assert angle.std() == pytest.approx(math.pi / math.sqrt(3), rel=0.03)


def test_images_of_one_pixel_and_of_one_row_are_augmented():
    for shape in ((3, 1, 1, 1), (3, 1, 4, 1)):
        found, _ = augment(jax.random.key(0), jnp.ones(shape), 1.0)
        np.testing.assert_allclose(found, np.ones(shape), atol=1e-6)
