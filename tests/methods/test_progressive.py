import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.prediction import Prediction, eps_from_x
from distill_jax.diffusion.samplers import ddim
from distill_jax.diffusion.schedule import Cosine, RectifiedFlow, expand
from distill_jax.methods import METHODS, Nets
from tests.toys import check, constant_denoiser, gaussian_denoiser, make_batch

Progressive, Guided = METHODS["progressive"], METHODS["guided"]
BATCH = make_batch(0.3 * jax.random.normal(jax.random.key(0), (64, 4)), {}, {})


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("num_steps", [1, 2, 4096])
def test_loss_is_zero_for_a_constant_denoiser_at_every_n(schedule, num_steps):
    nets = Nets(constant_denoiser(schedule, 0.25), constant_denoiser(schedule, 0.25))
    for clip in (True, False):
        method = Progressive(num_steps=num_steps, clip_target=clip, weighting="constant")
        loss, _ = method.loss(jax.random.key(1), BATCH, nets)
        # c x + (1 - c) x rounds in the last place of 0.25.
        assert float(loss) < 1e-14


def exact_student(schedule, std, num_steps):
    """Returns the exact student of a Gaussian teacher, which is linear in z."""
    teacher = gaussian_denoiser(schedule, std)

    def predict(z, t, cond, key=None):
        s, mid = t - 1 / num_steps, t - 0.5 / num_steps
        first = teacher(z, t, cond)
        alpha, sigma = (expand(level(mid), z) for level in (schedule.alpha, schedule.sigma))
        second = teacher(alpha * first.x + sigma * first.eps, mid, cond)
        alpha, sigma = (expand(level(s), z) for level in (schedule.alpha, schedule.sigma))
        z_s = alpha * second.x + sigma * second.eps
        ratio = sigma / expand(schedule.sigma(t), z)
        x = (z_s - ratio * z) / (alpha - ratio * expand(schedule.alpha(t), z))
        x = jnp.where(expand(s, z) > 1e-9, x, second.x)
        return Prediction(x, eps_from_x(z, x, schedule, t))

    return Denoiser(schedule, predict)


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_the_optimum_for_a_gaussian_teacher_is_known_and_has_no_loss(x64, num_steps):
    schedule = Cosine()
    batch = BATCH._replace(x=BATCH.x.astype(jnp.float64))
    nets = Nets(exact_student(schedule, 0.3, num_steps), gaussian_denoiser(schedule, 0.3))
    loss, _ = Progressive(num_steps=num_steps, clip_target=False).loss(
        jax.random.key(1), batch, nets
    )
    assert float(loss) < 1e-12


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_the_optimal_student_samples_what_its_teacher_samples_in_twice_the_steps(x64, num_steps):
    schedule, z = Cosine(), jnp.linspace(-2, 2, 7)[:, None]
    student = ddim(exact_student(schedule, 0.3, num_steps), z, {}, num_steps)
    teacher = ddim(gaussian_denoiser(schedule, 0.3), z, {}, 2 * num_steps)
    np.testing.assert_allclose(student, teacher, atol=1e-9)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_one_step_of_the_target_lands_where_factor_steps_of_the_teacher_land(x64, factor):
    schedule, num_steps, seen = Cosine(), 3, {}
    teacher = gaussian_denoiser(schedule, 0.3)

    def predict(z, t, cond, key=None):
        # The exact target, from `factor` DDIM steps, so that the loss must be 0.
        z_s = z
        for k in range(factor):
            time, after = t - k / factor / num_steps, t - (k + 1) / factor / num_steps
            prediction = teacher(z_s, time, cond)
            alpha, sigma = (expand(level(after), z) for level in (schedule.alpha, schedule.sigma))
            z_s = alpha * prediction.x + sigma * prediction.eps
        ratio = sigma / expand(schedule.sigma(t), z)
        x = (z_s - ratio * z) / (alpha - ratio * expand(schedule.alpha(t), z))
        seen["x"] = x = jnp.where(expand(after, z) > 1e-9, x, prediction.x)
        return Prediction(x, eps_from_x(z, x, schedule, t))

    batch = BATCH._replace(x=BATCH.x.astype(jnp.float64))
    method = Progressive(num_steps=num_steps, factor=factor, clip_target=False)
    loss, _ = method.loss(jax.random.key(1), batch, Nets(Denoiser(schedule, predict), teacher))
    assert float(loss) < 1e-12
    assert float(jnp.std(seen["x"])) > 0.1


def test_times_are_the_students_grid_and_the_teachers_midpoints():
    calls = {"teacher": [], "student": []}

    def spy(role):
        def predict(z, t, cond, key=None):
            calls[role].append(np.asarray(t))
            return constant_denoiser(Cosine(), 0.0).predict(z, t, cond)

        return Denoiser(Cosine(), predict)

    Progressive(num_steps=4).loss(jax.random.key(1), BATCH, Nets(spy("student"), spy("teacher")))
    assert len(calls["teacher"]) == 2
    assert len(calls["student"]) == 1
    first, second = calls["teacher"]
    assert set(np.round(first * 4, 6)) == {1, 2, 3, 4}
    np.testing.assert_array_equal(first, calls["student"][0])
    np.testing.assert_allclose(first - second, np.full(64, 1 / 8), atol=1e-7)


def test_one_w_per_example_is_shared_by_teacher_and_student():
    seen = []

    def predict(z, t, cond, key=None):
        seen.append(np.asarray(cond["w"]))
        return constant_denoiser(Cosine(), 0.0).predict(z, t, cond)

    nets = Nets(Denoiser(Cosine(), predict), Denoiser(Cosine(), predict))
    Progressive(num_steps=4, w_range=(1.0, 3.0)).loss(jax.random.key(1), BATCH, nets)
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])
    assert 1 <= seen[0].min() < seen[0].max() <= 3


def test_with_a_frozen_w_the_loss_is_that_of_the_teacher_sliced_at_w():
    def predict(z, t, cond, key=None):
        x = jnp.tanh(z + expand(cond["w"], z))
        return Prediction(x, eps_from_x(z, x, Cosine(), t))

    def sliced(z, t, cond):
        return predict(z, t, {"w": jnp.full_like(t, 2.0)})

    key, student = jax.random.key(1), constant_denoiser(Cosine(), 0.1)
    with_w = Progressive(num_steps=2, w_range=(2.0, 2.0))
    without = Progressive(num_steps=2)
    a, _ = with_w.loss(key, BATCH, Nets(student, Denoiser(Cosine(), predict)))
    b, _ = without.loss(key, BATCH, Nets(student, Denoiser(Cosine(), sliced)))
    assert float(a) == float(b)


def test_with_label_dropout_some_examples_learn_the_null_condition():
    seen = []

    def predict(z, t, cond, key=None):
        seen.append(np.asarray(cond["label"]))
        return constant_denoiser(Cosine(), 0.0).predict(z, t, cond)

    label = jnp.arange(64) % 3
    batch = make_batch(BATCH.x, {"label": label}, {"label": jnp.full((64,), 3)})
    nets = Nets(Denoiser(Cosine(), predict), Denoiser(Cosine(), predict))
    Progressive(num_steps=4, label_dropout=0.5).loss(jax.random.key(1), batch, nets)
    dropped = seen[0] == 3
    assert 16 < dropped.sum() < 48
    np.testing.assert_array_equal(seen[0][~dropped], label[~dropped])
    for other in seen[1:]:
        np.testing.assert_array_equal(seen[0], other)


def test_label_dropout_needs_a_teacher_with_it_and_no_w():
    teacher = METHODS["diffusion"](label_dropout=0.0)
    with pytest.raises(ValueError, match="label_dropout is 0.5"):
        check(Progressive(num_steps=4, label_dropout=0.5), teacher)
    with pytest.raises(ValueError, match="label_dropout is 0.5"):
        check(Progressive(num_steps=4, label_dropout=0.5, w_range=(0.0, 1.0)), Guided())
    with pytest.raises(ValueError, match=r"label_dropout is 1.5; expected a number from 0 to 1"):
        check(Progressive(num_steps=4, label_dropout=1.5), METHODS["diffusion"]())


def test_a_stochastic_teacher_is_refused():
    with pytest.raises(ValueError, match="this teacher has 8 stochastic steps"):
        check(Progressive(num_steps=4), METHODS["stochastic"](num_steps=8))


def test_a_factor_below_two_is_refused():
    with pytest.raises(ValueError, match="factor is 1"):
        check(Progressive(num_steps=4, factor=1), METHODS["diffusion"]())


def test_a_teacher_of_another_number_of_steps_is_refused():
    with pytest.raises(ValueError, match="of 2 ddim steps needs a teacher of 8"):
        check(Progressive(num_steps=2, factor=4), Progressive(num_steps=4))
    with pytest.raises(ValueError, match="of 4 ddim steps needs a teacher of 8"):
        check(Progressive(num_steps=4), Progressive(num_steps=4))
    check(Progressive(num_steps=4), Progressive(num_steps=8))
    check(Progressive(num_steps=4), METHODS["diffusion"](num_steps=64))


@pytest.mark.parametrize("w_range", [None, (0.0, 5.0), (3.0, 2.0)])
def test_a_w_range_that_the_teacher_does_not_know_is_refused(w_range):
    with pytest.raises(ValueError, match="w_range"):
        check(Progressive(num_steps=4, w_range=w_range), Guided(w_range=(0.0, 4.0)))
