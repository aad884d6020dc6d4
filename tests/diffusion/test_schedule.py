import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.schedule import (
    SCHEDULES,
    Cosine,
    CosineBeta,
    Karras,
    LinearBeta,
    RectifiedFlow,
    add_noise,
)

# (t, logsnr, alpha, sigma) in float64: papers/progressive_and_guided.md, section 1.
COSINE = [
    (0, 20.000000, 1.00000000, 0.00004540),
    (1 / 1024, 12.901556, 0.99999875, 0.00157929),
    (0.1, 3.684990, 0.98768266, 0.15647034),
    (0.25, 1.762619, 0.92387085, 0.38270440),
    (0.5, 0, 0.70710678, 0.70710678),
    (0.75, -1.762619, 0.38270440, 0.92387085),
    (0.9, -3.684990, 0.15647034, 0.98768266),
    (1, -20.000000, 0.00004540, 1.00000000),
]
INTERIOR = np.linspace(0.02, 0.98, 25)
ALL = [*(kind() for kind in SCHEDULES.values()), RectifiedFlow(shift=3.0), LinearBeta(power=2)]


@pytest.mark.parametrize(("t", "logsnr", "alpha", "sigma"), COSINE)
def test_cosine_schedule_has_the_golden_values(x64, t, logsnr, alpha, sigma):
    t = jnp.asarray([t], jnp.float64)
    np.testing.assert_allclose(Cosine().logsnr(t), [logsnr], atol=6e-7)
    np.testing.assert_allclose(Cosine().alpha(t), [alpha], atol=6e-9)
    np.testing.assert_allclose(Cosine().sigma(t), [sigma], atol=6e-9)


def test_cosine_schedule_in_float32_stays_within_its_clip():
    # The reference overshoots to -20.0011 at t = 1 in float32; so may we, not further.
    ends = Cosine().logsnr(jnp.asarray([0.0, 1.0]))
    np.testing.assert_allclose(ends, [20, -20], atol=2e-3)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_logsnr_is_the_log_of_alpha_squared_over_sigma_squared_and_falls(x64, schedule):
    t = jnp.asarray(INTERIOR)
    levels = 2 * jnp.log(schedule.alpha(t) / schedule.sigma(t))
    np.testing.assert_allclose(schedule.logsnr(t), levels, rtol=1e-10, atol=1e-10)
    assert (jnp.diff(schedule.logsnr(t)) < 0).all()


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_time_is_the_inverse_of_logsnr(x64, schedule):
    t = jnp.asarray(INTERIOR)
    np.testing.assert_allclose(schedule.time(schedule.logsnr(t)), t, atol=1e-9)


@pytest.mark.parametrize(
    "schedule", [Cosine(), CosineBeta(), LinearBeta(), LinearBeta(power=2)], ids=repr
)
def test_variance_preserving_schedules_preserve_variance(x64, schedule):
    t = jnp.linspace(0, 1, 11)
    power = schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2
    np.testing.assert_allclose(power, np.ones(11), atol=1e-14)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_both_ends_have_finite_levels(schedule):
    ends = jnp.asarray([0.0, 1.0])
    assert jnp.isfinite(schedule.alpha(ends)).all()
    assert jnp.isfinite(schedule.sigma(ends)).all()
    assert not jnp.isnan(schedule.logsnr(ends)).any()


def test_ddpm_table_is_the_product_of_one_minus_beta(x64):
    # Ho et al. (2020): 1,000 betas from 1e-4 to 0.02; entry k is t = (k + 1) / 1000.
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    t = jnp.asarray([0.001, 0.25, 0.5, 1.0])
    np.testing.assert_allclose(LinearBeta().alpha(t) ** 2, alpha_bar[[0, 249, 499, 999]], rtol=1e-9)


def test_stable_diffusions_table_ends_at_its_known_signal_level(x64):
    # papers/boot_sid_swd.md 2.4: a_999 = .0683 for scaled-linear betas from 0.00085 to 0.012.
    schedule = LinearBeta(beta_min=0.00085, beta_max=0.012, power=2)
    np.testing.assert_allclose(schedule.alpha(jnp.ones(1)), [0.0683], atol=5e-5)


def test_iddpm_table_is_a_squared_cosine_until_its_last_entry(x64):
    # Nichol & Dhariwal (2021), equation 17; betas are at most 0.999, which the last one is.
    t = np.asarray([0.001, 0.25, 0.5, 0.999])
    alpha_bar = (np.cos((t + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)) ** 2
    np.testing.assert_allclose(CosineBeta().alpha(jnp.asarray(t)) ** 2, alpha_bar, rtol=1e-9)
    assert CosineBeta().betas.max() == 0.999
    last = CosineBeta().alpha(jnp.ones(1)) ** 2
    np.testing.assert_allclose(last, alpha_bar[-1:] * 0.001, rtol=1e-9)


def test_karras_schedule_runs_between_its_noise_levels(x64):
    schedule = Karras()
    t = jnp.asarray([0.0, 0.5, 1.0])
    middle = ((0.002 ** (1 / 7) + 80 ** (1 / 7)) / 2) ** 7
    np.testing.assert_allclose(schedule.sigma(t), [0.002, middle, 80], rtol=1e-12)


def test_rectified_flow_is_a_straight_line_and_its_shift_moves_noise_up(x64):
    t = jnp.asarray([0.0, 0.3, 1.0])
    np.testing.assert_allclose(RectifiedFlow().alpha(t), 1 - t, atol=1e-15)
    np.testing.assert_allclose(RectifiedFlow().sigma(t), t, atol=1e-15)
    shifted = 3 * t / (1 + 2 * t)
    np.testing.assert_allclose(RectifiedFlow(shift=3.0).sigma(t), shifted, atol=1e-15)
    np.testing.assert_allclose(RectifiedFlow(shift=3.0).alpha(t), 1 - shifted, atol=1e-15)


def test_noise_is_added_at_the_level_of_each_example():
    x, eps = jnp.full((3, 2, 2, 1), 2.0), jnp.full((3, 2, 2, 1), -1.0)
    t = jnp.asarray([0.0, 0.25, 1.0])
    z = add_noise(RectifiedFlow(), x, eps, t)
    np.testing.assert_allclose(z[:, 0, 0, 0], [2.0, 1.25, -1.0], rtol=1e-6)
    assert z.shape == x.shape
    jax.tree.map(lambda i: np.testing.assert_array_equal(z[i], z[i, :1, :1] + 0 * z[i]), [0, 1, 2])


def test_the_grid_of_the_scale_wise_students_has_its_golden_noise_levels(x64):
    # papers/boot_sid_swd.md, 6.2: 28 Euler steps with shift 3.
    sigma = RectifiedFlow(shift=3.0).sigma(jnp.linspace(1.0, 0.002994, 28))
    golden = [1.0, 0.9454, 0.8959, 0.7904, 0.7371, 0.6022, 0.0089]
    np.testing.assert_allclose(sigma[jnp.asarray([0, 4, 7, 12, 14, 18, 27])], golden, atol=6e-5)
