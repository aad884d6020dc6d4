import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.kernels import KERNELS

REAL, FAKE = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
FAKE = 0.7 * FAKE + 0.3


@pytest.mark.parametrize("name", KERNELS)
def test_a_distance_is_zero_for_equal_features_and_positive_for_others(name):
    kernel = KERNELS[name]
    assert float(kernel(REAL, REAL)) == 0
    assert float(kernel(REAL, FAKE)) > 1e-3
    assert float(kernel(REAL, REAL + 1e-2)) > 0


@pytest.mark.parametrize("name", KERNELS)
def test_equal_features_are_a_fixed_point(name):
    gradient = jax.grad(KERNELS[name], argnums=1)(REAL, REAL)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize("name", KERNELS)
def test_descent_along_the_gradient_brings_features_nearer(name):
    kernel = KERNELS[name]
    gradient = jax.grad(kernel, argnums=1)(REAL, FAKE)
    step = 1e-3 / jnp.abs(gradient).max()
    assert float(kernel(REAL, FAKE - step * gradient)) < float(kernel(REAL, FAKE))


@pytest.mark.parametrize("name", ["rbf", "energy"])
def test_the_order_of_positions_does_not_matter(name):
    kernel = KERNELS[name]
    shuffled = FAKE[:, jnp.asarray([3, 0, 4, 1, 2])]
    np.testing.assert_allclose(kernel(REAL, shuffled), kernel(REAL, FAKE), rtol=1e-5)
    assert float(kernel(REAL, REAL[:, ::-1])) < 1e-6


@pytest.mark.parametrize("name", ["linear", "pseudo_huber"])
def test_means_over_positions_are_all_that_linear_kernels_see(name):
    # papers/boot_sid_swd.md, T10: the gradient is the same at every position.
    gradient = jax.grad(KERNELS[name], argnums=1)(REAL, FAKE)
    np.testing.assert_allclose(
        gradient, jnp.broadcast_to(gradient[:, :1], gradient.shape), rtol=1e-6
    )
    assert float(jnp.abs(gradient).max()) > 0.01
    spread = REAL + (jnp.arange(5.0) - 2)[:, None]
    np.testing.assert_allclose(KERNELS[name](REAL, spread), 0, atol=1e-9)


@pytest.mark.parametrize("name", ["rbf", "energy"])
def test_other_kernels_see_the_spread_over_positions(name):
    spread = REAL + (jnp.arange(5.0) - 2)[:, None]
    assert float(KERNELS[name](REAL, spread)) > 0.01


def test_distances_of_one_position_have_their_known_values(x64):
    # One real feature at 0, one generated at (3, 4): every pair is known.
    real, fake = jnp.zeros((1, 1, 2)), jnp.asarray([[[3.0, 4.0]]])
    known = {
        "linear": 25.0,
        "pseudo_huber": (np.sqrt(9 + 1e-6) + np.sqrt(16 + 1e-6)) / 2 - 1e-3,
        "rbf": 2 - 2 * np.exp(-25 / 4),
        "energy": 2 * np.sqrt(25 + 1e-6) - 2e-3,
    }
    assert known.keys() == KERNELS.keys()
    for name, value in known.items():
        np.testing.assert_allclose(KERNELS[name](real, fake), value, rtol=1e-12)


# Value and gradients at [0, 0] and [1, 2] of `mmd_loss_` (src/losses.py of yandex-research/swd at
# 9c51e19, its defaults), run in torch 2.13 on the features of the test.
RELEASED = {
    "far": (
        0.5474400520324707,
        [-0.0249997731, -0.0249999817, -0.0249872096, 0.0249999873, 0.0249999687],
        [-0.024999978, -0.0249999501, 0.0249999575, 0.0249999799, -0.0249998234],
    ),
    "near": (
        1.4895503227307927e-05,
        [0.00592936482, 0, -0.00450277561, 0.00302927149, 0.00302927149],
        [0, -0.00592936482, 0.00592936482, 0, -0.00592936482],
    ),
}


@pytest.mark.parametrize("name", RELEASED)
def test_pseudo_huber_is_the_released_loss(name):
    # Few binary digits, so that means of four positions are exact in float32.
    i = np.arange(40.0).reshape(2, 4, 5)
    real = np.round(16 * np.sin(1.3 * i)) / 16
    fake = np.round(16 * np.cos(0.7 * i)) / 16
    if name == "near":  # Within the 1e-3 at which the distance is rounded.
        fake = real + np.round(4 * np.cos(2.0 * i)) / 4096
    loss = jax.value_and_grad(KERNELS["pseudo_huber"], argnums=1)
    value, gradient = loss(jnp.asarray(real, jnp.float32), jnp.asarray(fake, jnp.float32))
    expected, first, last = RELEASED[name]
    # 1e-9: both subtract 1e-3 from a number as large, whose last digit is 1e-10.
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(gradient[0, 0], first, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(gradient[1, 2], last, rtol=1e-6, atol=1e-9)


def test_the_energy_distance_is_that_of_the_loops_over_pairs(x64):
    f, g = np.asarray(REAL, np.float64), np.asarray(FAKE, np.float64)

    def mean(a, b):
        distance = np.linalg.norm(a[:, :, None] - b[:, None], axis=-1)
        return np.sqrt(distance**2 + 1e-6).mean()

    expected = 2 * mean(f, g) - mean(f, f) - mean(g, g)
    np.testing.assert_allclose(KERNELS["energy"](jnp.asarray(f), jnp.asarray(g)), expected)


@pytest.mark.parametrize("name", KERNELS)
def test_features_far_from_zero_lose_no_digits(name):
    moved = KERNELS[name](REAL + 256, FAKE + 256)
    np.testing.assert_allclose(moved, KERNELS[name](REAL, FAKE), rtol=1e-4)


@pytest.mark.parametrize("name", KERNELS)
def test_half_precision_features_are_compared_in_single(name):
    real, fake = REAL.astype(jnp.bfloat16), FAKE.astype(jnp.bfloat16)
    value = KERNELS[name](real, fake)
    assert value.dtype == jnp.float32
    expected = KERNELS[name](real.astype(jnp.float32), fake.astype(jnp.float32))
    np.testing.assert_array_equal(value, expected)
