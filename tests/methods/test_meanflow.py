"""Tests of MeanFlow on Gaussians, whose average velocities are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.prediction import Prediction, from_flow
from distill_jax.diffusion.samplers import ddim_step
from distill_jax.diffusion.schedule import (
    Cosine,
    Karras,
    LinearBeta,
    RectifiedFlow,
    expand,
)
from distill_jax.methods import METHODS, Nets
from distill_jax.methods.meanflow import average_velocity, flow_time, velocity
from distill_jax.models.build import initial_params
from tests.toys import check, filled, gaussian_denoiser, inputs_of, make_batch, sample, tiny_network

SCHEDULES = (RectifiedFlow(), RectifiedFlow(3.0), Cosine(), LinearBeta(), Karras())
KEY = jax.random.key(0)
LABELS = {"label": jnp.asarray([0, 1, 2, 0], jnp.int32)}
NULL = {"label": jnp.full((1,), 3, jnp.int32)}
MEANFLOW = METHODS["meanflow"](levels=("uniform", 0.05, 20.0), pairs=0.75)
TEACHER = METHODS["diffusion"]()
STD, MEAN = 0.5, -0.2


def batch_of(size=8):
    x = MEAN + STD * jax.random.normal(jax.random.key(1), (size, 4, 4, 1))
    label = {"label": jnp.arange(size, dtype=jnp.int32) % 3}
    return make_batch(x, label, NULL)._replace(index=np.arange(size))


def flow_map(schedule, z, t, r):
    """Returns the end at r of the path of the probability flow through z at t."""
    a, b = ((schedule.alpha(s), schedule.sigma(s)) for s in (t, r))
    scale = jnp.sqrt(((b[0] * STD) ** 2 + b[1] ** 2) / ((a[0] * STD) ** 2 + a[1] ** 2))
    return expand(b[0], z) * MEAN + expand(scale, z) * (z - expand(a[0], z) * MEAN)


def flow_of(schedule, z, t):
    """Returns y = z / (alpha + sigma)."""
    return z / expand(schedule.alpha(t) + schedule.sigma(t), z)


def average(schedule, z, r, t):
    """Returns the average velocity from t down to r; the teacher's at r = t."""
    gap = expand(flow_time(schedule)(t) - flow_time(schedule)(r), z)
    moved = flow_of(schedule, z, t) - flow_of(schedule, flow_map(schedule, z, t, r), r)
    now = velocity(gaussian_denoiser(schedule, STD, MEAN)(z, t, {}))
    return jnp.where(gap > 0, moved / jnp.where(gap > 0, gap, 1.0), now)


def exact_student(schedule, slope=0.0):
    """The exact student; its u is wrong by slope (tau_t - tau_r) y."""

    def predict(z, t, cond):
        gap = expand(flow_time(schedule)(t) - flow_time(schedule)(cond["target"]), z)
        u = average(schedule, z, cond["target"], t) + slope * gap * flow_of(schedule, z, t)
        return from_flow(u, z, schedule, t)

    return Denoiser(schedule, predict, (4, 4, 1))


def point(schedule):
    """Returns z, t, r, and the teacher's x and eps there."""
    t, r = jnp.asarray([0.95, 0.6, 0.5, 0.2]), jnp.asarray([0.0, 0.3, 0.5, 0.1])
    z = 0.7 * jax.random.normal(jax.random.key(2), (4, 2, 2, 1)) * expand(schedule.sigma(t), t)[0]
    return z, t, r, gaussian_denoiser(schedule, STD, MEAN)(z, t, {})


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_derivative_is_the_analytic_one_along_the_path(schedule, x64):
    """u (tau_t - tau_r) is y_t minus a constant, so (tau_t - tau_r) du/dtau is v - u."""
    z, t, r, along = point(schedule)
    gap = expand(flow_time(schedule)(t) - flow_time(schedule)(r), z)
    for slope in (0.0, 0.3):
        student = exact_student(schedule, slope)
        u, du = average_velocity(student, along, z, t, {"target": r})
        y, v, exact = flow_of(schedule, z, t), velocity(along), average(schedule, z, r, t)
        np.testing.assert_allclose(u, exact + slope * gap * y, rtol=1e-9, atol=1e-9)
        bent = slope * (gap * y + gap**2 * v)  # gap d(gap y)/dtau
        some = np.asarray(t > r)
        np.testing.assert_allclose((gap * du)[some], (v - exact + bent)[some], atol=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("num_steps", [1, 3])
def test_the_exact_student_samples_the_end_of_the_path_in_any_number_of_steps(
    schedule, num_steps, x64
):
    eps, one = jax.random.normal(KEY, (3, 4, 4, 1)), jnp.ones((3,))
    z = expand(schedule.sigma(one), eps) * eps
    method = dataclasses.replace(MEANFLOW, num_steps=num_steps)
    x = sample(method, KEY, exact_student(schedule), eps, {})
    end = flow_map(schedule, z, one, jnp.zeros((3,)))
    noise = float(schedule.sigma(jnp.zeros(()))) + abs(1 - float(schedule.alpha(jnp.zeros(()))))
    np.testing.assert_allclose(x, end, atol=1e-9 + 5 * noise)  # x at t = 0 is z up to its noise.
    assert method.sampler(schedule).with_steps(7).num_steps == 7


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_loss_and_gradient_are_zero_at_the_average_velocity_and_nowhere_else(schedule, power, x64):
    method, teacher = dataclasses.replace(MEANFLOW, power=power), gaussian_denoiser
    nets = [exact_student, teacher(schedule, STD, MEAN)]

    def loss(slope):
        return method.loss(KEY, batch_of(), Nets(nets[0](schedule, slope), nets[1]))[0]

    values, gradients = jax.vmap(jax.value_and_grad(loss))(jnp.asarray([-0.2, 0.0, 0.2]))
    assert abs(float(values[1])) < 1e-12
    assert abs(float(gradients[1])) < 1e-6
    assert min(values[0], values[2]) > 1e-4
    assert gradients[0] < -1e-4 < 1e-4 < gradients[2]


def test_for_equal_times_the_target_is_the_velocity(x64):
    """Then the student is the teacher, whatever its derivative in the time."""
    method, schedule = dataclasses.replace(MEANFLOW, pairs=0.0, power=0.0), RectifiedFlow()
    teacher = gaussian_denoiser(schedule, STD, MEAN)
    for scale in (1.0, 0.5):

        def predict(z, t, cond, scale=scale):
            assert cond["target"] is t or bool(jnp.all(cond["target"] == t))
            return from_flow(scale * velocity(teacher(z, t, {})), z, schedule, t)

        loss, metrics = method.loss(KEY, batch_of(), Nets(Denoiser(schedule, predict), teacher))
        assert (float(loss) < 1e-20) == (scale == 1.0)
        assert float(loss) == pytest.approx(16 * float(metrics["error"]))


def test_the_weight_divides_the_gradient_of_an_example_by_its_error(x64):
    schedule, one = RectifiedFlow(), batch_of(1)
    teacher = gaussian_denoiser(schedule, STD, MEAN)

    def loss(slope, power):
        method = dataclasses.replace(MEANFLOW, power=power, c=0.25, pairs=1.0)
        return method.loss(KEY, one, Nets(exact_student(schedule, slope), teacher))[0]

    error, gradient = jax.value_and_grad(loss)(0.3, 0.0)
    for power in (0.5, 1.0):
        value, weighted = jax.value_and_grad(loss)(0.3, power)
        np.testing.assert_allclose(value, error / (error + 0.25) ** power, rtol=1e-12)
        np.testing.assert_allclose(weighted, gradient / (error + 0.25) ** power, rtol=1e-12)


def test_without_a_teacher_the_target_is_right_in_the_mean(x64):
    """v and du/dtau are linear in the x and eps of z, whose mean for this z is the teacher's."""
    schedule = RectifiedFlow()
    z, t, r, (x, eps) = point(schedule)
    student, off = exact_student(schedule, 0.3), expand(schedule.alpha(t) / schedule.sigma(t), x)
    found = []
    for d in (0.4, -0.4, 0.0):
        along = Prediction(x + d, eps - off * d)  # Of the same z.
        found.append((velocity(along), *average_velocity(student, along, z, t, {"target": r})))
    for one, other, mean in zip(*found, strict=True):
        np.testing.assert_allclose((one + other) / 2, mean, atol=1e-9)
    method, batch = dataclasses.replace(MEANFLOW, source="data", pairs=0.0), batch_of()
    assert not method.needs_teacher
    loss, _ = method.loss(KEY, batch, Nets(exact_student(schedule)))
    assert float(loss) > 0.1, "the velocities of examples spread about their mean"


def known(cond):
    return jnp.where(cond["label"] == 3, 0.0, 1.0)


def by_label(z, t, cond):
    return Prediction(expand(known(cond), z) + jnp.zeros_like(z), z)


def of_w(z, t, cond):
    """A student of guided labels: x is 1 + w, and 0 for the null label."""
    w = cond["w"] if "w" in cond else jnp.full(t.shape, 2.0)
    return Prediction(expand(known(cond) * (1 + w), z) + jnp.zeros_like(z), z)


@pytest.mark.parametrize("options", [{"w": 2.0}, {"w_range": (0.0, 4.0)}])
def test_guidance_is_baked_in_or_an_input(options):
    method = dataclasses.replace(MEANFLOW, pairs=0.0, **options)
    nets = Nets(Denoiser(RectifiedFlow(), of_w), Denoiser(RectifiedFlow(), by_label))
    assert float(method.loss(KEY, batch_of(), nets)[0]) < 1e-9
    other = dataclasses.replace(method, w=1.0, w_range=None)
    assert float(other.loss(KEY, batch_of(), nets)[0]) > 0.1 or "w_range" in options


@pytest.mark.parametrize("options", [{"w": 2.0}, {"w_range": (2.0, 2.0)}])
def test_data_are_guided_against_the_students_own_null_condition(options):
    method = dataclasses.replace(MEANFLOW, source="data", label_dropout=0.5, **options)
    z, t, _, data = point(RectifiedFlow())
    cond = {**LABELS, **({"w": jnp.full((4,), 2.0)} if "w_range" in options else {})}

    def predict(z, t, cond):
        assert jnp.all(cond["label"] == 3)
        assert jnp.all(cond["target"] == t)
        return Prediction(jnp.full_like(z, 0.25), jnp.full_like(z, -0.5))

    found = method.along(data, z, t, cond, NULL, Nets(Denoiser(RectifiedFlow(), predict)))
    np.testing.assert_allclose(found.x, 3 * data.x - 2 * 0.25, rtol=1e-6)
    np.testing.assert_allclose(found.eps, 3 * data.eps - 2 * -0.5, rtol=1e-6)


def test_at_the_start_the_student_is_the_teacher_for_every_target():
    network_spec = tiny_network("flow", RectifiedFlow())
    teacher = filled(initial_params(KEY, network_spec, inputs_of(TEACHER)))
    fresh = initial_params(KEY, network_spec, inputs_of(MEANFLOW))
    added = fresh["conditioning"]["target_embed"]
    params = {**teacher, "conditioning": {**teacher["conditioning"], "target_embed": added}}
    z, t = jax.random.normal(KEY, (4, 4, 4, 1)), jnp.asarray([0.2, 0.5, 0.9, 1.0])
    for target in (0.0, 0.1):
        u = velocity(network_spec(params)(z, t, {**LABELS, "target": target * jnp.ones(4)}))
        np.testing.assert_allclose(u, velocity(network_spec(teacher)(z, t, LABELS)), atol=1e-6)
    live = network_spec(filled(params))
    x = sample(MEANFLOW, KEY, live, z, LABELS)
    zero, one = jnp.zeros((4,)), jnp.ones((4,))
    once = ddim_step(RectifiedFlow(), live(z, one, {**LABELS, "target": zero}), zero)
    np.testing.assert_allclose(x, once, atol=1e-6)


def test_times_are_ordered_and_as_many_differ_as_is_asked():
    x = jnp.zeros((20_000, 1))
    for pairs in (0.0, 0.25, 1.0):
        method = METHODS["meanflow"](pairs=pairs)
        t, r = method.times(KEY, RectifiedFlow(), x)
        assert float((r > t).mean()) == 0
        assert float((r < t).mean()) == pytest.approx(pairs, abs=0.01)
    t, _ = METHODS["meanflow"](pairs=0.0).times(KEY, RectifiedFlow(), x)
    assert float(jnp.median(t)) == pytest.approx(1 / (1 + np.exp(0.4)), abs=0.01)  # The paper's.


BAD = {
    "unknown source": ({"source": "both"}, "source is 'both'; expected one of teacher, data"),
    "share above 1": ({"pairs": 1.5}, "pairs is 1.5; expected a number from 0 to 1"),
    "power below 0": ({"power": -1.0}, "power is -1.0; expected a number from 0 to 2"),
    "no constant": ({"c": 0.0}, "c is 0.0; expected a number above 0"),
    "two strengths": ({"w": 1.0, "w_range": (0.0, 2.0)}, "w is 1.0 and w_range .*one of them"),
    "no null to guide by": ({"source": "data", "w": 1.0}, "set label_dropout, such as 0.1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_refused(case):
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        check(dataclasses.replace(MEANFLOW, **options), TEACHER)


def test_teachers_that_do_not_fit_are_refused_unless_they_only_give_their_weights():
    bad = {
        "guiding it would guide twice": METHODS["guided"](clip_target=False),
        "at the times of its 4 steps only": METHODS["progressive"](num_steps=4),
    }
    data = dataclasses.replace(MEANFLOW, source="data")
    for message, teacher in bad.items():
        with pytest.raises(ValueError, match=message):
            check(MEANFLOW, teacher)
        check(data, teacher)
    with pytest.raises(ValueError, match="trained with label_dropout=0"):
        check(dataclasses.replace(MEANFLOW, w=1.0), METHODS["diffusion"](label_dropout=0.0))
    check(data, None)


def test_a_student_is_no_teacher_of_methods_that_call_it_at_one_time():
    with pytest.raises(ValueError, match="name one that was trained at all times"):
        check(METHODS["dmd2"](), MEANFLOW)


def test_layers_without_a_forward_derivative_are_refused_with_what_to_take_instead():
    layer = jax.custom_vjp(lambda z: z)
    layer.defvjp(lambda z: (z, None), lambda _, gradient: (gradient,))
    smooth = Denoiser(RectifiedFlow(), lambda z, t, cond: Prediction(z, z))
    one_way = Denoiser(RectifiedFlow(), lambda z, t, cond: Prediction(z, layer(z)))
    with pytest.raises(ValueError, match="take attention_kernel='xla', and where mesh.fsdp"):
        MEANFLOW.loss(KEY, batch_of(), Nets(one_way, smooth))
    MEANFLOW.loss(KEY, batch_of(), Nets(smooth, smooth))
