import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.prediction import Prediction, eps_from_x
from distill_jax.diffusion.schedule import Cosine, RectifiedFlow, expand
from distill_jax.methods import METHODS, Nets
from tests.toys import check, constant_denoiser, gaussian_denoiser, make_batch, sample

Stochastic, Guided = METHODS["stochastic"], METHODS["guided"]
BATCH = make_batch(0.3 * jax.random.normal(jax.random.key(0), (64, 4)), {}, {})


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("num_steps", [1, 2, 1024])
def test_loss_is_zero_for_a_constant_denoiser_at_every_n(schedule, num_steps):
    nets = Nets(constant_denoiser(schedule, 0.25), constant_denoiser(schedule, 0.25))
    method = Stochastic(num_steps=num_steps, weighting="constant")
    loss, _ = method.loss(jax.random.key(1), BATCH, nets)
    # c x + (1 - c) x rounds in the last place of 0.25.
    assert float(loss) < 1e-14


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_the_optimum_takes_two_teacher_steps_of_1_over_n_and_one_from_the_last_time(x64, num_steps):
    schedule = Cosine()
    teacher = gaussian_denoiser(schedule, 0.3)

    def step(z, t, s):
        prediction = teacher(z, t, {})
        z_s = expand(schedule.alpha(s), z) * prediction.x
        return z_s + expand(schedule.sigma(s), z) * prediction.eps, prediction.x

    def predict(z, t, cond, key=None):
        i = jnp.round(t * num_steps)
        mid, s = (i - 1) / num_steps, jnp.maximum(i - 2, 0) / num_steps
        z_mid, x_1 = step(z, t, mid)
        z_s, x_2 = step(z_mid, jnp.where(i > 1, mid, t), s)
        ratio = expand(schedule.sigma(s) / schedule.sigma(t), z)
        x = (z_s - ratio * z) / (
            expand(schedule.alpha(s), z) - ratio * expand(schedule.alpha(t), z)
        )
        x = jnp.where(expand(i, z) == 2, x_2, x)
        x = jnp.where(expand(i, z) == 1, x_1, x)
        return Prediction(x, eps_from_x(z, x, schedule, t))

    batch = BATCH._replace(x=BATCH.x.astype(jnp.float64))
    nets = Nets(Denoiser(schedule, predict), teacher)
    loss, _ = Stochastic(num_steps=num_steps, clip_target=False).loss(
        jax.random.key(1), batch, nets
    )
    assert float(loss) < 1e-12


def test_times_are_the_students_grid_and_the_teachers_next_time_on_it():
    calls = {"teacher": [], "student": []}

    def spy(role):
        def predict(z, t, cond, key=None):
            calls[role].append(np.asarray(t))
            return constant_denoiser(Cosine(), 0.0).predict(z, t, cond)

        return Denoiser(Cosine(), predict)

    Stochastic(num_steps=4).loss(jax.random.key(1), BATCH, Nets(spy("student"), spy("teacher")))
    first, second = calls["teacher"]
    np.testing.assert_array_equal(first, calls["student"][0])
    assert set(np.round(first * 4, 6)) == {1, 2, 3, 4}
    np.testing.assert_allclose(second * 4, np.maximum(first * 4 - 1, 1), atol=1e-6)


def test_only_a_stochastic_teacher_of_twice_the_steps_or_one_for_all_times_will_do():
    w_range = (0.0, 4.0)
    student = Stochastic(num_steps=4, w_range=w_range)
    check(student, Guided(w_range=w_range))
    check(student, Stochastic(num_steps=8, w_range=w_range))
    with pytest.raises(
        ValueError, match="stochastic steps needs a teacher of 8.* has 4 stochastic steps"
    ):
        check(student, Stochastic(num_steps=4, w_range=w_range))
    with pytest.raises(ValueError, match="this teacher has 8 ddim steps"):
        check(student, METHODS["progressive"](num_steps=8, w_range=w_range))
    with pytest.raises(ValueError, match="w_range"):
        check(student, METHODS["diffusion"]())


def test_a_round_that_has_nothing_to_learn_is_refused():
    with pytest.raises(ValueError, match="num_steps is 1; .* the loss is 0. End at 2"):
        check(Stochastic(num_steps=1), METHODS["diffusion"]())
    check(Stochastic(num_steps=2), METHODS["diffusion"]())


def test_sampling_draws_fresh_noise_on_the_way():
    student = gaussian_denoiser(Cosine(), 0.5)
    z = jax.random.normal(jax.random.key(0), (5, 1))
    samples = [
        sample(Stochastic(num_steps=4), jax.random.key(k), student, z, {}) for k in (1, 1, 2)
    ]
    np.testing.assert_array_equal(samples[0], samples[1])
    assert not np.allclose(samples[0], samples[2])
