"""Tests of discrete consistency models on Gaussians, whose consistency function is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.noise_levels import level_of
from distill_jax.diffusion.prediction import mean_squared
from distill_jax.diffusion.schedule import Cosine, Karras
from distill_jax.methods import METHODS, Nets
from tests.methods.consistency import (
    MEAN,
    SCHEDULES,
    SIGMA_DATA,
    STD,
    angle,
    by_label,
    data,
    fixed,
    of_w,
    student,
)
from tests.toys import check, gaussian_denoiser

KEY = jax.random.key(0)
TEACHER = METHODS["diffusion"]()
ECT = METHODS["consistency"](levels=("lognormal_ict", 0.05, 20.0))
PLAIN = dataclasses.replace(ECT, huber=0.0, weighting="constant")
COSINE = Cosine(-40.0, 40.0)


def loss_of(method, model, teacher=None, batch=None):
    return method.loss(KEY, data() if batch is None else batch, Nets(model, teacher))[0]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_the_consistency_function_has_no_loss_up_to_the_solvers_error(schedule, solver, x64):
    teacher = gaussian_denoiser(schedule, STD, MEAN)
    errors = []
    for q in (100.0, 200.0):
        method = dataclasses.replace(PLAIN, q=q, solver=solver)
        errors.append(float(loss_of(method, student(schedule), teacher)) ** 0.5)
    order = np.log2(errors[0] / errors[1])
    assert order == pytest.approx({"euler": 2, "heun": 3}[solver], abs=0.2)  # Of one step.
    assert errors[1] < 1e-3 < float(loss_of(method, student(schedule, 0.3), teacher)) ** 0.5


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_small_steps_have_the_gradient_of_continuous_time(schedule, x64):
    """d loss / d slope over the step in the level is 2 E[dx/dl dx/dslope], l the level."""
    slope, batch, teacher = 0.3, data(), gaussian_denoiser(schedule, STD, MEAN)
    point = PLAIN.point(KEY, batch, Nets(student(schedule), teacher))
    u, a = fixed(schedule, point.z, point.t), angle(schedule, point.t)
    level = level_of(schedule, point.t)
    da_dl = SIGMA_DATA / (SIGMA_DATA**2 + level**2)  # Of a = arctan(l / sigma_data).
    expected = jnp.mean(2 * slope * da_dl * a * jnp.mean((STD * u) ** 2, axis=(1, 2, 3)))
    errors = []
    for q in (1e3, 2e3):
        method = dataclasses.replace(PLAIN, q=q, weighting="step")

        def loss(slope, method=method):
            return loss_of(method, student(schedule, slope), teacher, batch)

        shorter = level - method.lower(level, 0.0)
        np.testing.assert_allclose(shorter / level, (1 + 8 / (1 + np.exp(level))) / q, rtol=1e-6)
        errors.append(abs(float(jax.grad(loss)(slope) - expected)))
    assert errors[1] < 0.6 * errors[0]
    assert errors[1] < 0.02 * abs(float(expected))


def test_a_step_down_to_zero_is_the_training_of_a_diffusion_model():
    """Geng et al. (2024), section 3: the first phase of a model that starts from nothing."""
    method = dataclasses.replace(PLAIN, source="data", q=1.0, weighting="edm")
    batch, model = data(), student(COSINE, 0.3)
    z, t, along, cond, _ = method.point(KEY, batch, Nets(model))
    np.testing.assert_array_equal(along.x, batch.x)
    weight = 1 / level_of(COSINE, t) ** 2 + 4
    expected = jnp.mean(weight * mean_squared(model(z, t, cond).x, batch.x))
    np.testing.assert_allclose(loss_of(method, model, batch=batch), expected, rtol=1e-5)


def test_only_the_noisier_point_gets_a_gradient(x64):
    method, teacher = dataclasses.replace(PLAIN, q=16.0), gaussian_denoiser(COSINE, STD, MEAN)

    def loss(late, early):
        slopes = iter((early, late))  # The target's call is first.

        def predict(z, t, cond, key=None):
            return student(COSINE, next(slopes)).predict(z, t, cond)

        model = dataclasses.replace(student(COSINE), predict=predict)
        return loss_of(method, model, teacher)

    late, early = jax.grad(loss, argnums=(0, 1))(0.2, 0.1)
    assert early == 0
    assert abs(late) > 1e-3


def test_steps_of_ect_shrink_by_q_from_phase_to_phase():
    method = dataclasses.replace(ECT, q=2.0, shrinkings=4)
    level = jnp.asarray([0.1, 1.0, 10.0])
    # t - t (1 + 8 sigmoid(-t)) / 2^a for a = 1 and 3, at least 0.
    np.testing.assert_allclose(method.lower(level, 0.0), [0, 0, 4.998184], atol=2e-6)
    np.testing.assert_allclose(method.lower(level, 0.24), [0, 0, 4.998184], atol=2e-6)
    np.testing.assert_allclose(method.lower(level, 0.5), [0.04, 0.606059, 8.749546], atol=2e-3)


def test_steps_of_song_et_al_go_down_edms_grid():
    method = METHODS["consistency"](pairs="karras", first=10, shrinkings=2)
    grid = Karras().sigma(jnp.linspace(0, 1, 11))
    np.testing.assert_allclose(method.lower(grid[1:], 0.0)[1:], grid[1:-1], rtol=2e-3)
    assert 0 <= method.lower(grid[:1], 0.0) < 2e-4
    finer = Karras().sigma(jnp.linspace(0, 1, 21))
    np.testing.assert_allclose(method.lower(finer[2:], 0.5), finer[1:-1], rtol=2e-3)


def test_the_distance_is_huber_and_the_step_may_be_its_weight(x64):
    teacher, model = gaussian_denoiser(COSINE, STD, MEAN), student(COSINE, 0.3)
    square = loss_of(dataclasses.replace(PLAIN, q=16.0), model, teacher)
    wide = loss_of(dataclasses.replace(PLAIN, q=16.0, huber=1e3), model, teacher)
    np.testing.assert_allclose(wide * 2e3, square, rtol=1e-5)  # c far above every error.


@pytest.mark.parametrize("options", [{"w": 2.0}, {"w_range": (0.0, 4.0)}])
def test_guidance_is_baked_in_or_an_input(options):
    method = dataclasses.replace(PLAIN, q=1.0, **options)  # One step, to the teacher's x.
    assert loss_of(method, of_w(COSINE, 2.0), by_label(COSINE)) < 1e-9
    assert loss_of(dataclasses.replace(PLAIN, q=1.0), of_w(COSINE, 2.0), by_label(COSINE)) > 1


def test_one_call_is_at_the_highest_level_and_more_are_where_the_times_say():
    (t,) = ECT.sampler(COSINE).times
    np.testing.assert_allclose(level_of(COSINE, jnp.asarray(t)), 20.0, rtol=1e-4)
    assert dataclasses.replace(ECT, times=(0.9, 0.5)).sampler(COSINE).times == (0.9, 0.5)


BAD = {
    "guided data": ({"source": "data", "w": 1.0}, "source is 'data', w 1.0 .* only a teacher"),
    "two strengths": ({"w": 1.0, "w_range": (0.0, 4.0)}, "w is 1.0 and w_range .*; expected one"),
    "unknown pairs": ({"pairs": "song"}, "pairs is 'song'; expected one of ect, karras"),
    "steps that grow": ({"q": 0.5}, "q is 0.5; expected a number from 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_refused(case):
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        check(dataclasses.replace(ECT, **options), TEACHER)


def test_teachers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="already takes w"):
        check(ECT, METHODS["guided"]())
    with pytest.raises(ValueError, match="trained at the times of its 8 steps only"):
        check(ECT, METHODS["progressive"](num_steps=8))
    with pytest.raises(ValueError, match="trained with label_dropout=0"):
        check(dataclasses.replace(ECT, w=1.0), METHODS["diffusion"](label_dropout=0.0))
