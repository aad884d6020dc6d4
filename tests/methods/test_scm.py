"""Tests of sCM on Gaussians, whose consistency function and its tangents are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.prediction import Prediction
from distill_jax.diffusion.schedule import Cosine, RectifiedFlow, expand
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
SCM = METHODS["scm"](levels=("lognormal_scm", 0.05, 20.0), sigma_data=SIGMA_DATA)
COSINE = Cosine(-40.0, 40.0)


def teacher(schedule):
    return gaussian_denoiser(schedule, STD, MEAN)


def point_of(schedule, batch=None):
    batch = data() if batch is None else batch
    return SCM.point(KEY, batch, Nets(student(schedule), teacher(schedule)))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_tangent_is_the_derivative_along_the_path(schedule, x64):
    """Of x = m + (1 + slope a) s u it is cos(a) slope s u, as u is constant along a path."""
    point = point_of(schedule)
    u, a = fixed(schedule, point.z, point.t), expand(angle(schedule, point.t), point.z)
    for slope in (0.0, 0.3):
        _, g = SCM.tangent(point, student(schedule, slope), 1.0)
        np.testing.assert_allclose(g, jnp.cos(a) * slope * STD * u, atol=1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_velocity_is_that_of_the_rescaled_z(schedule, x64):
    point = point_of(schedule)
    v, _ = SCM.tangent(point, teacher(schedule), 1.0)
    x, eps = point.along
    a = expand(angle(schedule, point.t), x)
    np.testing.assert_allclose(v, jnp.cos(a) * SIGMA_DATA * eps - jnp.sin(a) * x, atol=1e-9)


def test_the_gradient_is_zero_at_the_consistency_function_and_nowhere_else(x64):
    batch = data()._replace(done=jnp.asarray(0.5))

    def loss(slope):
        return SCM.loss(KEY, batch, Nets(student(COSINE, slope), teacher(COSINE)))[0]

    slopes = jnp.asarray([-0.3, 0.0, 0.3])
    below, zero, above = map(float, jax.vmap(jax.grad(loss))(slopes))
    assert abs(zero) < 1e-12
    assert below < -1e-2
    assert above > 1e-2


def test_the_gradient_follows_the_normalised_tangent(x64):
    """It is that of F times -2 g / (rms(g) + c), F = v / sigma_data, as in Algorithm 1."""
    batch, point = data()._replace(done=jnp.asarray(0.5)), point_of(COSINE)

    def f(slope):
        return SCM.tangent(point, student(COSINE, slope), 1.0)[0] / SIGMA_DATA

    def loss(slope):
        return SCM.loss(KEY, batch, Nets(student(COSINE, slope), teacher(COSINE)))[0]

    _, g = SCM.tangent(point, student(COSINE, 0.3), 1.0)
    rms = jnp.sqrt(jnp.mean(g**2, axis=(1, 2, 3), keepdims=True))
    df = jax.jacfwd(f)(0.3)
    expected = jnp.mean(-2 * g / (rms + 0.1) * df)
    np.testing.assert_allclose(jax.grad(loss)(0.3), expected, rtol=1e-9)
    assert loss(100.0) < 1, "no tangent is so large that it dominates the batch"


def test_a_student_that_is_the_teacher_stays_so_before_the_tangent_warms_up(x64):
    point = point_of(COSINE)
    for r, still in ((0.0, True), (0.1, False)):
        _, g = SCM.tangent(point, teacher(COSINE), r)
        assert (float(jnp.abs(g).max()) < 1e-9) == still
    nets, losses = Nets(teacher(COSINE), teacher(COSINE)), []
    for done in (0.0, 0.05, 0.1, 0.9):
        losses.append(float(SCM.loss(KEY, data()._replace(done=jnp.asarray(done)), nets)[0]))
    assert losses[0] < 1e-9 < losses[1] < losses[2] == losses[3]


def test_without_a_teacher_the_tangent_is_right_in_the_mean(x64):
    """It is linear in the x and eps of z, whose mean for a given z is the exact teacher's."""
    point, model = point_of(RectifiedFlow()), student(RectifiedFlow(), 0.3)
    (x, eps), gap = point.along, 0.4
    alpha = expand(RectifiedFlow().alpha(point.t) / RectifiedFlow().sigma(point.t), x)
    pairs = [Prediction(x + d, eps - alpha * d) for d in (gap, -gap)]  # Both give this z.
    g = [SCM.tangent(point._replace(along=pair), model, 1.0)[1] for pair in pairs]
    assert float(jnp.abs(g[0] - g[1]).max()) > 0.1
    np.testing.assert_allclose((g[0] + g[1]) / 2, SCM.tangent(point, model, 1.0)[1], atol=1e-9)
    method, batch = dataclasses.replace(SCM, source="data"), data()
    along = method.point(KEY, batch, Nets(model)).along
    np.testing.assert_array_equal(along.x, batch.x)


@pytest.mark.parametrize("options", [{"w": 2.0}, {"w_range": (0.0, 4.0)}])
def test_guidance_is_baked_in_or_an_input(options):
    """At r = 0 the tangent compares the student's velocity with the guided teacher's."""
    method = dataclasses.replace(SCM, **options)
    nets = Nets(of_w(COSINE, 2.0), by_label(COSINE))
    assert method.loss(KEY, data(), nets)[0] < 1e-9
    assert SCM.loss(KEY, data(), nets)[0] > 0.1


def test_data_are_not_guided():
    with pytest.raises(ValueError, match="source is 'data', w 0.0 and w_range .* only a teacher"):
        method = dataclasses.replace(SCM, source="data", w_range=(0.0, 4.0))
        check(method, METHODS["diffusion"]())
