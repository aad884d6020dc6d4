import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.resize import area, area_matrix, bicubic, cubic_matrix

# First row, then second column, of torch.nn.functional.interpolate(image, size, mode=mode), for
# "bicubic" with align_corners=False, of torch 2.13.0, in float64.
GOLDEN = [
    (
        bicubic,
        4,
        8,
        "-0.15050816 -0.03668772 0.13993259 0.58647470 1.05737054 1.22203643 0.97884108 "
        "0.83777345 -0.03668772 0.32503125 0.93690861 0.84375045 0.11042329 -0.55903669 "
        "-0.80548120 -0.96488621",
    ),
    (
        bicubic,
        6,
        8,
        "-0.10151533 0.10794492 0.72052580 1.21970325 0.98035606 -0.40126724 -0.06610166 "
        "1.64526037 0.10794492 0.89659749 0.69713995 -0.49857038 -0.92994636 0.06657863 "
        "0.88738799 0.81904115",
    ),
    (
        bicubic,
        8,
        10,
        "-0.08566611 0.15152601 0.83944058 1.23278145 0.65314781 -0.68145113 1.02274048 "
        "0.52985972 -0.06975535 1.76178862 0.15152601 0.98164418 0.49090447 -0.70859243 "
        "-0.74648641 0.56004821 1.01602891 -0.00027297 -0.85314831 -0.44708887",
    ),
    (
        bicubic,
        8,
        16,
        "-0.15050816 -0.03668772 0.13993259 0.58647470 1.05737054 1.27817170 1.14724690 "
        "0.39735635 -0.60980796 -0.31543617 1.16035877 1.22171747 -0.17758217 -0.19354273 "
        "1.13843105 1.93213159 -0.03668772 0.32503125 0.93690861 0.84375045 0.11042329 "
        "-0.61026168 -0.95915617 -0.64327915 0.17995427 0.81924121 0.95599751 0.47538329 "
        "-0.38309072 -0.84646519 -0.65787522 -0.55482083",
    ),
    (
        bicubic,
        8,
        4,
        "0.71905170 0.44176256 0.67997353 0.27803499 0.44176256 0.23685187 0.03028048 0.60745919",
    ),
    (
        area,
        8,
        4,
        "0.59912061 0.41176656 0.54496132 0.44009551 0.41176656 0.20987593 0.16581719 0.45289964",
    ),
    (
        area,
        6,
        4,
        "0.59912061 0.74402651 0.02368330 0.54496132 0.74402651 0.05625490 0.39059417 0.65787096",
    ),
    (
        area,
        16,
        4,
        "0.16244350 0.55007105 0.88521635 1.32989692 0.55007105 0.54636760 0.54361295 0.54252663",
    ),
    (
        area,
        16,
        10,
        "0.59912061 0.50864731 0.02368330 0.38876452 0.44009551 1.16331308 0.77101443 "
        "1.00009185 1.53477845 1.23474150 0.50864731 0.05931642 0.51429482 0.14506724 "
        "0.12894558 0.17453139 0.12964262 0.53700870 0.06060398 0.48023218",
    ),
]


def pattern(side):
    """Returns the image of torch's golden values; it is not symmetric."""
    i, j = np.arange(side)[:, None], np.arange(side)
    return jnp.asarray(np.sin(1.7 * i + 0.3 * j**2) + 0.1 * j)[None, :, :, None]


@pytest.mark.parametrize(
    ("resize", "side", "other", "golden"),
    GOLDEN,
    ids=lambda value: getattr(value, "__name__", " " if isinstance(value, str) else None),
)
def test_images_are_resized_as_torch_does(x64, resize, side, other, golden):
    y = resize(pattern(side), other)[0, :, :, 0]
    assert y.shape == (other, other)
    np.testing.assert_allclose(
        np.concatenate([y[0], y[:, 1]]), np.array(golden.split(), float), atol=1e-8
    )


@pytest.mark.parametrize("resize", [bicubic, area])
def test_an_image_of_that_size_stays_as_it_is(resize):
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 3))
    np.testing.assert_array_equal(resize(x, 5), x)


@pytest.mark.parametrize(("matrix", "pairs"), [(cubic_matrix, (8, 10)), (area_matrix, (16, 10))])
def test_a_constant_image_stays_constant(matrix, pairs):
    np.testing.assert_allclose(matrix(*pairs).sum(axis=1), 1, atol=1e-14)


def test_an_average_of_whole_blocks_undoes_repetition():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
    np.testing.assert_allclose(area(jnp.repeat(jnp.repeat(x, 3, 1), 3, 2), 4), x, atol=1e-6)


def test_a_width_goes_with_its_height():
    assert bicubic(jnp.zeros((1, 4, 6, 3)), 8).shape == (1, 8, 12, 3)
    with pytest.raises(ValueError, match="4x6 have no whole width at height 5; .* that 2 divides"):
        bicubic(jnp.zeros((1, 4, 6, 3)), 5)


def test_an_average_that_would_enlarge_is_refused():
    with pytest.raises(ValueError, match="images of 4 pixels cannot be averaged to 8"):
        area(jnp.zeros((1, 4, 4, 1)), 8)


@pytest.mark.parametrize(("side", "other", "left"), [(64, 128, 0.733), (64, 80, 0.740)])
def test_enlarged_white_noise_is_too_weak(side, other, left):
    # papers/boot_sid_swd.md, T9: why x is enlarged, and not z_t.
    variance = np.mean((cubic_matrix(side, other) ** 2).sum(axis=1)) ** 2
    np.testing.assert_allclose(variance, left, atol=5e-4)
