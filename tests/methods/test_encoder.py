import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.prediction import PARAMETERIZATIONS, Prediction
from distill_jax.diffusion.samplers import ddim_encode, ddim_step
from distill_jax.diffusion.schedule import Cosine, Karras, expand
from distill_jax.diffusion.weighting import WEIGHTINGS
from distill_jax.methods import METHODS, Nets
from tests.toys import check, constant_denoiser, make_batch, sample

Encoder, Progressive, Guided = METHODS["encoder"], METHODS["progressive"], METHODS["guided"]
BATCH = make_batch(0.3 * jax.random.normal(jax.random.key(0), (64, 4)), {}, {})
STD = 0.3


def exact(schedule):
    """The exact denoiser of N(0, STD^2); as with v-prediction, its eps does not divide by sigma."""

    def predict(z, t, cond, key=None):
        alpha, sigma = expand(schedule.alpha(t), z), expand(schedule.sigma(t), z)
        power = alpha**2 * STD**2 + sigma**2
        return Prediction(alpha * STD**2 * z / power, sigma * z / power)

    return Denoiser(schedule, predict)


def exact_student(schedule, num_steps):
    """Returns the encoder whose step equals two of `exact`, by subtraction and division."""

    def predict(z, t, cond, key=None):
        s, mid = t + 1 / num_steps, t + 0.5 / num_steps
        z_mid = ddim_step(schedule, exact(schedule)(z, t, cond), mid)
        z_s = ddim_step(schedule, exact(schedule)(z_mid, mid, cond), s)
        alpha, sigma = (expand(level(t), z) for level in (schedule.alpha, schedule.sigma))
        alpha_s, sigma_s = (expand(level(s), z) for level in (schedule.alpha, schedule.sigma))
        eps = (z_s - alpha_s / alpha * z) / (sigma_s - alpha_s / alpha * sigma)
        return Prediction((z - sigma * eps) / alpha, eps)

    return Denoiser(schedule, predict)


@pytest.mark.parametrize("schedule", [Cosine(), Karras()], ids=repr)
def test_the_optimum_for_a_gaussian_teacher_is_known_and_has_no_loss(x64, schedule):
    batch = BATCH._replace(x=BATCH.x.astype(jnp.float64))
    for num_steps in (1, 4):
        nets = Nets(exact_student(schedule, num_steps), exact(schedule))
        loss, _ = Encoder(num_steps=num_steps).loss(jax.random.key(1), batch, nets)
        assert float(loss) < 1e-12
        x = jnp.linspace(-1, 1, 7, dtype=jnp.float64)[:, None]
        student = sample(Encoder(num_steps=num_steps), jax.random.key(0), nets.student, x, {})
        teacher = ddim_encode(nets.teacher, x, {}, 2 * num_steps)
        np.testing.assert_allclose(student, teacher, atol=1e-9)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("schedule", [Cosine(), Karras()], ids=repr)
def test_the_loss_in_v_is_the_weighted_error_of_x(x64, schedule, weighting):
    times, batch = [], BATCH._replace(x=BATCH.x.astype(jnp.float64))

    def predict(z, t, cond, key=None):
        times.append(t)
        return constant_denoiser(schedule, 0.5).predict(z, t, cond)

    # The target is the teacher's image at every time, and the student is 0.25 away from it.
    nets = Nets(Denoiser(schedule, predict), constant_denoiser(schedule, 0.25))
    loss, _ = Encoder(num_steps=4, weighting=weighting).loss(jax.random.key(1), batch, nets)
    expected = jnp.mean(WEIGHTINGS[weighting](schedule.logsnr(times[0]))) * 0.25**2
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert float(times[0].min()) == 0


def test_times_are_the_grid_walked_up_and_its_midpoints():
    calls = {"teacher": [], "student": []}

    def spy(role):
        def predict(z, t, cond, key=None):
            calls[role].append(np.asarray(t))
            return exact(Cosine()).predict(z, t, cond)

        return Denoiser(Cosine(), predict)

    Encoder(num_steps=4).loss(jax.random.key(1), BATCH, Nets(spy("student"), spy("teacher")))
    (first, second), (student,) = calls["teacher"], calls["student"]
    assert set(np.round(first * 4, 6)) == {0, 1, 2, 3}
    np.testing.assert_array_equal(first, student)
    np.testing.assert_allclose(second - first, np.full(64, 1 / 8), atol=1e-7)


def test_one_w_per_example_is_shared_by_teacher_and_student():
    seen = []

    def predict(z, t, cond, key=None):
        seen.append(np.asarray(cond["w"]))
        return exact(Cosine()).predict(z, t, cond)

    nets = Nets(Denoiser(Cosine(), predict), Denoiser(Cosine(), predict))
    Encoder(num_steps=4, w_range=(1.0, 3.0)).loss(jax.random.key(1), BATCH, nets)
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])
    assert 1 <= seen[0].min() < seen[0].max() <= 3


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_the_heads_of_an_encoder_are_those_whose_eps_is_accurate_at_t_zero(name):
    head = PARAMETERIZATIONS[name]
    z = jnp.asarray([[0.3, -0.7]])
    output = jnp.asarray([[0.29, -0.71] * head.channels])

    def eps(dtype):
        t = jnp.zeros(1, dtype)
        return np.asarray(head.predict(output.astype(dtype), z.astype(dtype), Cosine(), t).eps)

    single = eps(jnp.float32)
    with jax.enable_x64(True):
        double = eps(jnp.float64)
    # Rounding is 6e-8 in z, and 4.5e-5 is what the others divide it by.
    assert (np.abs(single - double).max() < 1e-6) == (name in Encoder.parameterizations)


def test_a_teacher_is_an_encoder_of_twice_the_steps_or_knows_all_times():
    with pytest.raises(ValueError, match="of 4 encode steps needs a teacher of 8"):
        check(Encoder(num_steps=4), Encoder(num_steps=4))
    check(Encoder(num_steps=4), Encoder(num_steps=8))
    check(Encoder(num_steps=4), METHODS["diffusion"](num_steps=64))
    method = Encoder(num_steps=4, w_range=(0.0, 2.0))
    check(method, Guided(w_range=(0.0, 4.0), clip_target=False))
    with pytest.raises(ValueError, match="the teacher was trained with clip_target=True"):
        check(method, Guided(w_range=(0.0, 4.0)))


def test_encoders_and_decoders_are_not_halved_to_each_other():
    encoder, decoder = Encoder(num_steps=8), Progressive(num_steps=8)
    for method, teacher in ((Encoder, decoder), (Progressive, encoder)):
        with pytest.raises(ValueError, match="student of 4 .* steps needs a teacher of 8"):
            check(method(num_steps=4), teacher)
    with pytest.raises(ValueError, match="the times of its 8 steps only"):
        check(Guided(), encoder)


@pytest.mark.parametrize("w_range", [None, (0.0, 5.0), (3.0, 2.0)])
def test_a_w_range_that_the_teacher_does_not_know_is_refused(w_range):
    with pytest.raises(ValueError, match="w_range"):
        check(Encoder(num_steps=4, w_range=w_range), Guided(w_range=(0.0, 4.0)))
