"""Tests of BOOT on Gaussians, whose paths, steps and fixed point are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.prediction import Prediction
from distill_jax.diffusion.samplers import ddim_step, signal_step
from distill_jax.diffusion.schedule import Cosine, Karras, RectifiedFlow, add_noise
from distill_jax.methods import METHODS, Nets
from distill_jax.models.build import initial_params
from tests.toys import check, filled, gaussian_denoiser, inputs_of, make_batch, sample, tiny_network

COSINE = Cosine(-60.0, 60.0)  # The ends so far out that nothing of them is seen in 7 digits.
LABELS = {"label": jnp.asarray([0, 1, 2, 0], jnp.int32)}
BATCH = make_batch(None, LABELS, {"label": jnp.full((4,), 3, jnp.int32)})
BOOT = METHODS["boot"]()
TEACHER = METHODS["diffusion"]()
STD, MEAN = 0.5, -0.2


def signal_student(schedule, gain):
    """A student y(eps, t) = MEAN + gain(t) eps, where eps is the noise in z at time 1 or t_max."""

    def predict(z, t, cond):
        eps = z / schedule.sigma(t)[:, None, None, None]
        y = MEAN + gain(cond["target"])[:, None, None, None] * eps
        return Prediction(y, eps)

    return Denoiser(schedule, predict, (4, 4, 1))


def exact_gain(schedule, t):
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return (jnp.sqrt(alpha**2 * STD**2 + sigma**2) - sigma) / alpha


@pytest.mark.parametrize(
    ("schedule", "t", "s", "value"),
    [
        (COSINE, 0.98, 0.94, 0.6675448),
        (COSINE, 0.50, 0.46, 0.1183814),
        (COSINE, 0.10, 0.06, 0.4031748),
        (RectifiedFlow(), 0.70, 0.65, 0.2040816),
    ],
)
def test_the_step_in_the_signal_has_its_golden_size(x64, schedule, t, s, value):
    step = signal_step(schedule, jnp.asarray([t]), jnp.asarray([s]))
    assert float(step[0]) == pytest.approx(value, abs=6e-8)


@pytest.mark.parametrize("schedule", [COSINE, Karras(), RectifiedFlow()])
def test_the_step_in_the_signal_is_the_ddim_step(x64, schedule):
    rng = np.random.default_rng(0)
    y, eps, x = (jnp.asarray(rng.standard_normal((3, 2, 2, 1))) for _ in range(3))
    t, s = jnp.asarray([0.9, 0.5, 0.2]), jnp.asarray([0.8, 0.3, 0.01])
    z_t = add_noise(schedule, y, eps, t)
    alpha, sigma = (f(t)[:, None, None, None] for f in (schedule.alpha, schedule.sigma))
    z_s = ddim_step(schedule, Prediction(x, (z_t - alpha * x) / sigma), s)
    y_s = y + signal_step(schedule, t, s)[:, None, None, None] * (x - y)
    np.testing.assert_allclose(z_s, add_noise(schedule, y_s, eps, s), rtol=1e-9, atol=1e-9)


def walk(solver, steps):
    """Returns the standard deviation after steps from t = 0.999 to 1e-4, from the exact signal."""
    teacher = gaussian_denoiser(COSINE, STD)
    times = jnp.linspace(0.999, 1e-4, steps + 1)
    one = jnp.ones((1, 1, 1, 1))
    y = exact_gain(COSINE, times[0]) * one
    for t, s in zip(times[:-1, None], times[1:, None], strict=True):
        d = signal_step(COSINE, t, s)
        f = teacher(add_noise(COSINE, y, one, t), t, {}).x
        if solver == "heun":
            f = (f + teacher(add_noise(COSINE, y + d * (f - y), one, s), s, {}).x) / 2
        y = y + d * (f - y)
    return float(y[0, 0, 0, 0])


def test_the_signal_of_a_gaussian_and_its_steps_are_golden(x64):
    times = jnp.asarray([0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98])
    golden = [0.469560, 0.366102, 0.235073, 0.118034, 0.051233, 0.019767, 0.003928]
    np.testing.assert_allclose(exact_gain(COSINE, times), golden, atol=6e-7)
    assert float(exact_gain(COSINE, jnp.asarray(1e-4))) == pytest.approx(0.49984, abs=5e-6)
    assert walk("euler", 10) == pytest.approx(0.42799, abs=5e-6)
    assert walk("euler", 25) == pytest.approx(0.46994, abs=5e-6)
    assert walk("heun", 10) == pytest.approx(0.46437, abs=5e-6)


def recursion(solver, num_steps):
    """Returns the gain at i / num_steps, i = 0 ... num_steps, for which every step has loss 0."""
    teacher = gaussian_denoiser(COSINE, STD)
    one = jnp.ones((1, 1, 1, 1))
    gains = [teacher(COSINE.sigma(jnp.ones((1,))) * one, jnp.ones((1,)), {}).x]
    for i in range(num_steps, 0, -1):
        t, s = jnp.asarray([i / num_steps]), jnp.asarray([(i - 1) / num_steps])
        f = teacher(add_noise(COSINE, gains[-1], one, t), t, {}).x
        gains.append(gains[-1] + signal_step(COSINE, t, s) * (f - gains[-1]))
    return jnp.stack(gains[::-1]).reshape(-1)


def test_the_loss_is_zero_for_the_solution_of_its_recursion_and_for_no_other(x64):
    n = 8
    gains = recursion("euler", n)
    method = dataclasses.replace(BOOT, teacher_steps=n, solver="euler")
    teacher = gaussian_denoiser(COSINE, STD, MEAN)
    for factor, zero in ((1.0, True), (1.02, False), (0.98, False)):
        student = signal_student(
            COSINE, lambda t, g=factor * gains: g[jnp.round(t * n).astype(int)]
        )
        loss, metrics = method.loss(jax.random.key(0), BATCH, Nets(student, teacher))
        assert (float(metrics["bootstrap_loss"]) < 1e-25) == zero
        assert (
            float(loss) < 1e-6
        ) == zero  # alpha at t = 1 is not quite 0: the mean is seen there.


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_the_exact_map_is_a_fixed_point_up_to_the_solvers_error(x64, solver):
    teacher = gaussian_denoiser(COSINE, STD, MEAN)
    student = signal_student(COSINE, lambda t: exact_gain(COSINE, t))
    losses = []
    for delta in (0.04, 0.02, 0.01):
        method = dataclasses.replace(BOOT, delta=delta, solver=solver, t_min=0.1)
        _, metrics = method.loss(jax.random.key(0), BATCH, Nets(student, teacher))
        losses.append(float(metrics["bootstrap_loss"]) ** 0.5)
    order = np.log2(losses[0] / losses[1])
    assert order == pytest.approx({"euler": 2, "heun": 3}[solver], abs=0.5)  # Of one step.


def test_only_the_later_signal_gets_a_gradient(x64):
    """d loss / d gain = 2 E[w (y_s - target) eps], as if y_t and the teacher were constants."""
    teacher = gaussian_denoiser(COSINE, STD, MEAN)
    method = dataclasses.replace(BOOT, boundary_weight=0.0)

    def loss(early, late):
        def gain(t):
            return jnp.where(gain.calls == 1, early, late)

        gain.calls = 0

        def predict(z, t, cond):
            gain.calls += 1
            eps = z / COSINE.sigma(t)[:, None, None, None]
            return Prediction(MEAN + gain(cond["target"]) * eps, eps)

        nets = Nets(Denoiser(COSINE, predict, (4, 4, 1)), teacher)
        return method.loss(jax.random.key(0), BATCH, nets)[0]

    early, late = jax.grad(loss, argnums=(0, 1))(0.1, 0.2)
    assert early == 0
    assert abs(late) > 1e-3


def test_at_the_start_the_student_is_the_teachers_x_at_the_noise_for_every_target():
    network_spec = tiny_network()
    teacher = filled(initial_params(jax.random.key(0), network_spec, inputs_of(TEACHER)))
    fresh = initial_params(jax.random.key(1), network_spec, inputs_of(BOOT))
    added = fresh["conditioning"]["target_embed"]
    params = {**teacher, "conditioning": {**teacher["conditioning"], "target_embed": added}}
    eps = jax.random.normal(jax.random.key(2), (3, 4, 4, 1))
    label = {"label": jnp.asarray([0, 1, 2], jnp.int32)}
    at = jnp.full((3,), BOOT.t_max)
    z = network_spec.schedule.sigma(at)[:, None, None, None] * eps
    y = BOOT.signal(network_spec(params), eps, jnp.asarray([0.01, 0.3, 0.98]), label)
    np.testing.assert_allclose(y, network_spec(teacher)(z, at, label).x, atol=1e-6)
    live = filled(params)
    early, late = (
        BOOT.signal(network_spec(live), eps, jnp.full((3,), t), label) for t in (0.1, 0.9)
    )
    assert float(jnp.abs(early - late).max()) > 1e-3
    x = sample(BOOT, jax.random.key(0), network_spec(live), eps, label)
    last = BOOT.signal(network_spec(live), eps, jnp.full((3,), BOOT.t_min), label)
    np.testing.assert_array_equal(x, last)


def test_guidance_is_baked_in_or_an_input():
    """A fixed w guides the target; with a range of w the student takes w as an input."""

    def by_label(z, t, cond):
        x = jnp.zeros_like(z) + jnp.where(cond["label"] == 3, 0.0, 1.0)[:, None, None, None]
        return Prediction(x, z)

    def student(z, t, cond):
        w = cond["w"] if "w" in cond else jnp.full(t.shape, 2.0)
        return Prediction(jnp.zeros_like(z) + (1 + w)[:, None, None, None], z)

    nets = Nets(Denoiser(COSINE, student, (4, 4, 1)), Denoiser(COSINE, by_label))
    for options in ({"w": 2.0}, {"w_range": (0.0, 4.0)}):
        loss, _ = dataclasses.replace(BOOT, **options).loss(jax.random.key(0), BATCH, nets)
        assert float(loss) < 1e-9
    loss, _ = dataclasses.replace(BOOT, w=1.0).loss(jax.random.key(0), BATCH, nets)
    assert float(loss) > 0.1


BAD = {
    "delta of zero": ({"delta": 0.0}, "delta is 0.0; expected a number above 0 to 1"),
    "delta beyond the times": ({"delta": 1.0}, r"delta is 1.0; expected a step in \(0, 0.97\]"),
    "ends the wrong way": ({"t_min": 0.99}, "t_min is 0.99; expected a number from 0 to 0.98"),
    "time beyond 1": ({"t_max": 1.5}, "t_max is 1.5; expected a number from 0 to 1"),
    "unknown solver": ({"solver": "rk4"}, "solver is 'rk4'; expected one of euler, heun"),
    "unknown weight": (
        {"step_weight": "snr"},
        "step_weight is 'snr'; expected one of constant, inverse",
    ),
    "grid for all times": ({"teacher_steps": 8}, "teacher_steps is 8.*was trained at all times"),
    "input that is none": ({"absorbed": True}, "absorbed is True, and the teacher takes no w"),
    "negative w": ({"w": -1.0}, "w is -1.0; expected a number from 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_numbers_are_refused(case):
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        check(dataclasses.replace(BOOT, **options), TEACHER)


def test_teachers_that_do_not_fit_are_refused():
    rounds = METHODS["progressive"](num_steps=8, w_range=(0.0, 4.0))
    with pytest.raises(ValueError, match="absorbed is False, and the teacher takes w"):
        check(BOOT, rounds)
    absorbed = dataclasses.replace(BOOT, absorbed=True, w_range=(0.0, 4.0))
    with pytest.raises(ValueError, match="the teacher was trained at its 8 steps only"):
        check(absorbed, rounds)
    walked = dataclasses.replace(absorbed, teacher_steps=8, solver="euler")
    with pytest.raises(ValueError, match="train that stage with clip_target=False"):
        check(walked, rounds)
    check(walked, dataclasses.replace(rounds, clip_target=False))
    check(dataclasses.replace(walked, clip_target=True), rounds)
    with pytest.raises(ValueError, match="the teacher's number of DDIM steps"):
        check(walked, METHODS["stochastic"](num_steps=8, w_range=(0.0, 4.0)))
    with pytest.raises(ValueError, match="w is 1.0 and w_range .*; expected one of them"):
        check(dataclasses.replace(BOOT, w=1.0, w_range=(0.0, 4.0)), TEACHER)
    with pytest.raises(ValueError, match="leaves the teacher's"):
        check(dataclasses.replace(absorbed, w_range=(0.0, 9.0)), METHODS["guided"]())
    with pytest.raises(ValueError, match="trained with label_dropout=0"):
        check(dataclasses.replace(BOOT, w=1.0), METHODS["diffusion"](label_dropout=0.0))


def test_no_time_is_drawn_from_which_there_is_no_step():
    method = dataclasses.replace(BOOT, t_min=0.0)
    t, s = method._times(jax.random.key(0), jnp.zeros((100_000, 1, 1, 1)))
    assert float(t.min()) > float(s.min()) == 0
