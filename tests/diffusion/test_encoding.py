import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.prediction import PARAMETERIZATIONS, Prediction
from distill_jax.diffusion.samplers import ddim, ddim_encode, ddim_step, ddim_target, encode_target
from distill_jax.diffusion.schedule import Cosine, Karras, RectifiedFlow, add_noise, expand
from tests.toys import gaussian_denoiser

SCHEDULES = [Cosine(), RectifiedFlow(), RectifiedFlow(shift=3.0), Karras()]


def toy(schedule):
    """A nonlinear denoiser with v-prediction."""

    def predict(z, t, cond, key=None):
        output = jnp.tanh(0.7 * z + expand(t, z)) - 0.4
        return PARAMETERIZATIONS["v"].predict(output, z, schedule, t)

    return Denoiser(schedule, predict)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_one_step_of_the_target_lands_where_two_steps_of_the_teacher_land(x64, schedule):
    # The grids of N = 1, 2 and 8, both ends included.
    t, s = jnp.asarray([0, 0, 0.5, 0, 0.375, 0.875]), jnp.asarray([1, 0.5, 1, 0.125, 0.5, 1])
    mid = (t + s) / 2
    z = jax.random.normal(jax.random.key(0), (6, 5), jnp.float64)
    first = toy(schedule)(z, t, {})
    second = toy(schedule)(ddim_step(schedule, first, mid), mid, {})
    target = encode_target(schedule, first, second, t, mid, s)
    there = ddim_step(schedule, second, s)
    np.testing.assert_allclose(ddim_step(schedule, target, s), there, rtol=1e-12, atol=1e-12)
    # It is a prediction at (z, t): its image and its noise add up to z.
    np.testing.assert_allclose(add_noise(schedule, *target, t), z, rtol=1e-12, atol=1e-12)


def weight_of_first(times, dtype):
    """Returns d, the weight of the first eps in the target."""
    ones = jnp.ones((len(times[0]), 1), dtype)
    one, nothing = Prediction(ones, ones), Prediction(0 * ones, 0 * ones)
    t, mid, s = (jnp.asarray(time, dtype) for time in times)
    return encode_target(Cosine(), one, nothing, t, mid, s).eps


def test_weights_mirror_those_of_the_sampler_on_a_cosine_schedule(x64):
    up = [(np.arange(16) + part) / 16 for part in (0.0, 0.5, 1.0)]
    d = weight_of_first(up, jnp.float64)
    t, mid, s = (jnp.asarray(1 - time) for time in up)
    c = ddim_target(Cosine(), jnp.ones_like(d), jnp.zeros_like(d), t, mid, s)
    # At s = 0 the sampler returns x itself, and its target is only the second x.
    np.testing.assert_allclose(d[:-1], c[:-1], rtol=1e-9)
    assert float(c[-1, 0]) == 0 < float(d[-1, 0]) < 1e-3


def test_weight_of_a_single_step_has_its_known_value(x64):
    # papers/progressive_and_guided.md, section 6.6: d is about 4.5e-5 at t = 0, N = 1.
    d = weight_of_first([np.asarray([time]) for time in (0.0, 0.5, 1.0)], jnp.float64)
    np.testing.assert_allclose(d, [[4.54e-5]], rtol=1e-3)


def test_the_target_in_float32_is_as_good_as_in_float64():
    n = np.repeat([2, 512, 4096], 40)
    i = np.tile(np.linspace(0, 1, 40), 3) * (n - 1) // 1
    times = [(i + part) / n for part in (0.0, 0.5, 1.0)]
    single = weight_of_first(times, jnp.float32)
    with jax.enable_x64(True):
        double = np.asarray(weight_of_first(times, jnp.float64))
    # |eps_1 - eps_2| falls like 1 / N, so the target's error is that of d, divided by N.
    np.testing.assert_allclose(single / n[:, None], double / n[:, None], atol=3e-7)
    assert ((double >= 0) & (double < 1)).all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_images_of_a_gaussian_come_back_with_an_error_that_falls_with_n(x64, schedule):
    std, x = 0.5, 0.5 * jax.random.normal(jax.random.key(0), (4000, 1), jnp.float64)

    def head(z, t, cond, key=None):  # As from_v, which needs no division by sigma.
        alpha, sigma = expand(schedule.alpha(t), z), expand(schedule.sigma(t), z)
        power = alpha**2 * std**2 + sigma**2
        return Prediction(alpha * std**2 * z / power, sigma * z / power)

    @jax.jit
    def there_and_back(num_steps):
        z = ddim_encode(Denoiser(schedule, head), x, {}, num_steps)
        return z, ddim(gaussian_denoiser(schedule, std), z, {}, num_steps)

    errors = []
    for num_steps in (32, 64, 128):
        z, again = there_and_back(num_steps)
        errors.append(float(jnp.abs(again - x).max()))
    assert errors[2] < 0.12
    assert 1.6 < errors[0] / errors[1] < 2.4
    assert 1.6 < errors[1] / errors[2] < 2.4
    # 4,000 draws know a standard deviation to 1 %; the grid of 128 steps adds the rest.
    assert abs(float(z.std()) - 1) < 0.06


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_one_program_encodes_at_every_number_of_steps_and_is_finite(schedule):
    compiled = jax.jit(lambda x, n: ddim_encode(toy(schedule), x, {}, n))
    x = jnp.linspace(-1, 1, 12).reshape(3, 4)
    different = [np.asarray(compiled(x, n)) for n in (1, 3, 50)]
    assert compiled._cache_size() == 1
    assert np.isfinite(different).all()
    assert not np.allclose(different[0], different[1])
