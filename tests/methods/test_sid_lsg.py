import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.noise_levels import time_of
from distill_jax.diffusion.prediction import Prediction, eps_from_x
from distill_jax.diffusion.schedule import Cosine, Karras, add_noise, expand
from distill_jax.diffusion.trained import Renoise
from distill_jax.methods import METHODS, Nets
from distill_jax.methods.matching import Noisy, generate, normalised
from tests.toys import check, gaussian_denoiser, inputs_of, make_batch, sample

SidLsg, Diffusion, Guided = METHODS["sid_lsg"], METHODS["diffusion"], METHODS["guided"]
LSG = SidLsg(
    kappas=1.5,
    levels=("scaled_linear", 0.138, 12.97),
    fake_levels=("scaled_linear", 0.138, 12.97),
    weighting="snr",
    loss_scale=1.0,
)
NULL = 2  # The label; the classes are 0 and 1.
NUM = 16384  # One size for most tests here: operations are compiled for every size.


def test_only_the_fake_sees_augmented_images_and_their_labels():
    schedule, seen = Karras(), {"student": [], "fake": []}
    student, fake = (bent(0.5, 0.1, schedule, seen[role], (4, 4, 1)) for role in seen)
    method, key = SidLsg(augment=1.0), jax.random.key(0)
    method.fake_loss(key, batch_of(8), Nets(student, None, fake))
    assert "augment" not in seen["student"][0][2]
    assert seen["fake"][0][2]["augment"].shape == (8, 9)
    method.student_loss(key, batch_of(8), Nets(student, fake, fake))
    assert not any("augment" in cond for _, _, cond, _ in seen["fake"][1:])


def batch_of(num):
    label = jnp.arange(num) % 2
    return make_batch(None, {"label": label}, {"label": jnp.full((num,), NULL)})


def by_class(schedule, std, means):
    """The exact denoiser of N(means[label], std^2), of images of one pixel."""

    def predict(z, t, cond, key=None):
        mean = expand(means[cond["label"]], z)
        return gaussian_denoiser(schedule, std, mean).predict(z, t, cond)

    return Denoiser(schedule, predict, (1,))


def generator(schedule, std, means, sigma_init=2.5):
    """A generator of images N(means[label], std^2) from noise of level sigma_init."""
    sigma = schedule.sigma(time_of(schedule, sigma_init))

    def predict(z, t, cond, key=None):
        x = expand(means[cond["label"]], z) + std * z / sigma
        return Prediction(x, z)

    return Denoiser(schedule, predict, (1,))


def bent(scale, shift, schedule, seen=None, shape=(1,)):
    """A denoiser whose Jacobian depends on z, and which records its inputs."""

    def predict(z, t, cond, key=None):
        if seen is not None:
            seen.append((z, t, dict(cond), key))
        x = jnp.tanh(scale * z + shift)
        return Prediction(x, eps_from_x(z, x, schedule, t))

    return Denoiser(schedule, predict, shape)


# T3 of the paper notes: data N(-.3, 1.1^2), generator N(.7, .4^2), level 1. With Gauss-Hermite
# quadrature over the two noises the expectations are exact, for the terms are polynomials.
NODES, WEIGHTS = np.polynomial.hermite.hermgauss(8)
GENERATOR = (0.7, 0.4)


def expected_terms(alpha, moments, fake_moments, z_moments=None):
    """Returns E gap^2 and E integrand of a generator and a fake with these (mean, std)."""
    n, eps = (jnp.asarray(np.sqrt(2) * a.reshape(-1, 1)) for a in np.meshgrid(NODES, NODES))
    weight = np.outer(WEIGHTS, WEIGHTS).reshape(-1, 1) / np.pi
    schedule = Karras()
    t = jnp.full(len(n), time_of(schedule, 1.0))
    x, x_in_z = (m[0] + m[1] * n for m in (moments, z_moments or moments))
    noisy = Noisy(add_noise(schedule, x_in_z, eps, t), t, eps)
    nets = Nets(
        None,
        gaussian_denoiser(schedule, 1.1, -0.3),
        gaussian_denoiser(schedule, fake_moments[1], fake_moments[0]),
    )
    gap, _, integrand = SidLsg(alpha=alpha).terms(x, noisy, {}, {}, nets)
    return (weight * gap**2).sum(), (weight * integrand).sum()


def loss_gradient(alpha):
    return jax.grad(lambda m: expected_terms(alpha, m, GENERATOR)[1])(GENERATOR)


def test_at_alpha_one_half_the_gradient_is_that_of_the_fisher_divergence(x64):
    divergence = jax.grad(lambda m: expected_terms(1.0, m, m)[0])(GENERATOR)
    np.testing.assert_allclose(divergence, [0.409492, -0.430734], atol=1e-6)
    np.testing.assert_allclose(2 * np.asarray(loss_gradient(0.5)), divergence, rtol=1e-9)


def test_at_alpha_one_it_is_that_of_the_divergence_with_the_noisy_images_held_fixed(x64):
    frozen = jax.grad(lambda m: expected_terms(1.0, GENERATOR, m)[0])(GENERATOR)
    np.testing.assert_allclose(frozen, [0.780153, -0.564938], atol=1e-6)
    np.testing.assert_allclose(2 * np.asarray(loss_gradient(1.0)), frozen, rtol=1e-9)


def test_at_alpha_1_2_it_is_the_papers(x64):
    gradient = 2 * np.asarray(loss_gradient(1.2))
    np.testing.assert_allclose(gradient, [0.928417, -0.618620], atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.2])
def test_the_value_of_the_loss_is_one_minus_alpha_times_the_divergence(alpha, x64):
    divergence, loss = expected_terms(alpha, GENERATOR, GENERATOR)
    np.testing.assert_allclose(divergence, 0.399343, atol=1e-6)
    np.testing.assert_allclose(loss, (1 - alpha) * divergence, atol=1e-12)


def stopped(denoiser):
    """Returns the denoiser without the gradient of its x."""

    def predict(z, t, cond, key=None):
        x = jax.lax.stop_gradient(denoiser(z, t, cond).x)
        return Prediction(x, eps_from_x(z, x, denoiser.schedule, t))

    return Denoiser(denoiser.schedule, predict)


def shifted(shift, seen=None):
    """A generator whose single parameter moves all of its images."""

    def predict(z, t, cond, key=None):
        if seen is not None:
            seen.append((z, t, dict(cond), key))
        return Prediction(shift + 0.2 * z, z)

    return Denoiser(Cosine(), predict, (1,))


def test_the_gradient_runs_through_teacher_and_fake_but_not_through_the_normaliser(x64):
    method, key, seen = SidLsg(alpha=1.2), jax.random.key(4), []
    fake, made = bent(0.5, 0.1, Cosine()), []
    method.student_loss(
        key, batch_of(64), Nets(shifted(0.3, made), bent(0.7, 0.0, Cosine(), seen), fake)
    )
    (z, t, _, _), x = seen[0], 0.3 + 0.2 * made[0][0]
    schedule, teacher = Cosine(), bent(0.7, 0.0, Cosine())
    eps = (z - expand(schedule.alpha(t), z) * x) / expand(schedule.sigma(t), z)

    def terms(shift):
        noisy = Noisy(add_noise(schedule, x + shift, eps, t), t, eps)
        return method.terms(x + shift, noisy, {}, {}, Nets(None, teacher, fake))

    def loss(shift):
        return method.loss_scale * float(normalised(terms(shift)[2], residual).sum()) / 64

    def gradient(teacher, fake):
        def of_shift(shift):
            return method.student_loss(key, batch_of(64), Nets(shifted(shift), teacher, fake))[0]

        return jax.grad(of_shift)(0.3)

    (gap, residual, _), d = terms(0.0), 1e-5
    whole = (loss(d) - loss(-d)) / (2 * d)
    np.testing.assert_allclose(gradient(teacher, fake), whole, rtol=1e-6)

    # Stopped at both networks it would be the direction of DMD2 at every alpha.
    dmd = -method.loss_scale * float(normalised(gap, residual).sum()) / 64
    np.testing.assert_allclose(gradient(stopped(teacher), stopped(fake)), dmd, rtol=1e-6)
    assert abs(whole / dmd - 1) > 0.1


@pytest.mark.parametrize("method", [SidLsg(alpha=0.5), SidLsg(alpha=1.2), LSG], ids="abc")
def test_a_student_rests_where_its_fake_agrees_with_the_teacher(method, x64):
    def loss(shift, fake):
        nets = Nets(shifted(shift), bent(0.7, 0.0, Cosine()), fake)
        return method.student_loss(jax.random.key(4), batch_of(64), nets)

    (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(0.3, bent(0.7, 0.0, Cosine()))
    assert abs(gradient) < 1e-10
    assert metrics["score_gap"] < 1e-12
    (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(0.3, bent(0.5, 0.0, Cosine()))
    assert abs(gradient) > 0.01
    assert metrics["score_gap"] > 0.01


SIDA = SidLsg(gan_weight=0.01, discriminator_weight=0.5)


def logit(z, t, cond):
    return z.mean(1) - 0.1 * cond["label"]


def adversarial(seen=None):
    """Returns the networks of a stage with a discriminator, which records its inputs."""

    def discriminator(z, t, cond):
        if seen is not None:
            seen.append((z, t, cond["label"]))
        return logit(z, t, cond)

    fake = dataclasses.replace(bent(0.5, 0.1, Cosine()), discriminator=discriminator)
    return Nets(shifted(0.3), bent(0.7, 0.0, Cosine()), fake)


def test_the_discriminator_sees_data_and_samples_with_the_same_noise_and_labels(x64):
    seen, key = [], jax.random.key(4)
    data = batch_of(64)._replace(x=jnp.full((64, 1), 9.0))
    loss, metrics = SIDA.fake_loss(key, data, adversarial(seen))
    (real, t, label), (made, t_made, of_made) = seen
    np.testing.assert_array_equal(t, t_made)
    np.testing.assert_array_equal(label, of_made)
    x = 9 - (real - made) / expand(Cosine().alpha(t), real)  # The noise cancels.
    assert np.ptp(np.asarray(x)) > 0
    np.testing.assert_allclose(x.mean(), 0.3, atol=0.1)
    of_real, of_made = (logit(z, t, {"label": label}) for z in (real, made))
    expected = np.mean(np.logaddexp(0, -of_real) + np.logaddexp(0, of_made))
    np.testing.assert_allclose(metrics["discriminator_loss"], expected)
    plain, _ = SidLsg().fake_loss(key, batch_of(64), adversarial())
    np.testing.assert_allclose(loss, plain + 0.5 * metrics["discriminator_loss"])


def test_the_mean_gan_loss_of_the_batch_is_added_in_every_pixel_before_the_normaliser(x64):
    # generator_share_encoder_loss of the released code, and its sum over pixels in the loop.
    seen, key = [], jax.random.key(4)
    loss, metrics = SIDA.student_loss(key, batch_of(64), adversarial(seen))
    plain, others = SidLsg().student_loss(key, batch_of(64), adversarial())
    ((z, t, label),) = seen
    fakeness = np.mean(np.logaddexp(0, -logit(z, t, {"label": label})))
    np.testing.assert_allclose(metrics["generator_gan_loss"], fakeness)
    assert metrics["score_gap"] == others["score_gap"]
    ones = dataclasses.replace(SIDA, gan_weight=1.0)
    whole, _ = ones.student_loss(key, batch_of(64), adversarial())
    np.testing.assert_allclose((whole - plain) * 0.01, loss - plain, rtol=1e-6)
    teacher, made = bent(0.7, 0.0, Cosine()), []
    SIDA.student_loss(key, batch_of(64), adversarial()._replace(student=shifted(0.3, made)))
    residual = np.abs(teacher(z, t, {}).x - (0.3 + 0.2 * made[0][0]))[:, 0]
    np.testing.assert_allclose(loss - plain, 0.01 * fakeness * np.mean(1 / residual), rtol=1e-6)


def test_only_a_gan_loss_needs_data():
    assert (SIDA.data_free, SIDA.has_discriminator) == (False, True)
    assert (SidLsg().data_free, SidLsg().has_discriminator) == (True, False)


MEANS = jnp.asarray([1.25, -0.75, 0.25])  # Of the data: class 0, class 1, all.
STD = 0.5


def guided_means(kappa):
    """Returns the class means under guidance: kappa times as far from the null mean."""
    return MEANS[NULL] + kappa * (MEANS - MEANS[NULL])


def pull(method, gamma):
    """Returns d loss / d gamma of a generator with guided_means(gamma), the fake at its optimum."""
    batch, schedule = batch_of(NUM), Karras()
    k_fake, k_student = jax.random.split(jax.random.key(0))
    teacher, student = by_class(schedule, STD, MEANS), generator(schedule, STD, guided_means(gamma))

    def fake_loss(means):
        fake = by_class(schedule, STD, means)
        return method.fake_loss(k_fake, batch, Nets(student, None, fake))[0]

    # Quadratic in the means: differences of gradients are its curvature. The null mean counts for
    # nothing where no kappa asks for it.
    slope, *slopes = (jax.grad(fake_loss)(means) for means in (MEANS, *(MEANS + jnp.eye(3))))
    step = np.linalg.lstsq(np.asarray(slopes) - slope, slope, rcond=1e-4)[0]
    fake = by_class(schedule, STD, MEANS - step)

    def student_loss(gamma):
        student = generator(schedule, STD, guided_means(gamma))
        return method.student_loss(k_student, batch, Nets(student, teacher, fake))[0]

    return jax.grad(student_loss)(gamma)


@pytest.mark.parametrize(
    ("kappas", "kappa"),
    [
        ((1.0, 1.0, 1.0, 3.0), 3.0),
        ((2.0, 2.0, 2.0, 2.0), 2.0),
        ((1.5, 1.5, 1.5, 1.5), 1.5),
        ((2.0, 1.0, 1.0, 1.0), 2.0),
        ((0.5, 1.0, 1.0, 1.0), 0.5),
        ((1.0, 0.5, 0.5, 1.0), 2.0),
        ((2.0, 2.0, 2.0, 1.0), 1.0),
    ],
)
def test_the_student_ends_guided_by_kappa_1_kappa_4_over_kappa_2(kappas, kappa):
    method = dataclasses.replace(LSG, kappas=kappas, null_dropout=0.3)
    assert 1 + method.fixed_w == kappa
    assert pull(method, 0.95 * kappa) < 0 < pull(method, 1.05 * kappa)


def test_at_the_start_the_gradient_is_zero_under_long_and_short_guidance_but_not_under_long():
    def size(kappas):
        teacher = by_class(Karras(), 0.5, MEANS)
        method = dataclasses.replace(LSG, kappas=kappas)

        def loss(means):
            nets = Nets(generator(Karras(), 0.4, means), teacher, teacher)
            return method.student_loss(jax.random.key(0), batch_of(NUM), nets)[0]

        return float(jnp.abs(jax.grad(loss)(MEANS)).max())

    assert size(3.0) < 1e-5
    assert size((1.0, 1.0, 1.0, 3.0)) > 0.1


@pytest.mark.parametrize(
    ("kappas", "sizes"),
    [
        (1.0, [1, 1]),
        (1.5, [2, 2]),
        ((1.0, 1.0, 1.0, 3.0), [2, 1]),
        ((1.0, 0.5, 1.0, 1.0), [1, 2, 1]),
    ],
)
def test_every_network_is_called_once_and_twice_its_batch_only_under_guidance(kappas, sizes):
    calls = []
    nets = Nets(shifted(0.3), bent(0.7, 0.0, Cosine(), calls), bent(0.5, 0.1, Cosine(), calls))
    dataclasses.replace(LSG, kappas=kappas).student_loss(jax.random.key(0), batch_of(NUM), nets)
    assert [len(z) // NUM for z, *_ in calls] == sizes


def test_the_null_condition_is_dropped_in_for_student_and_fake_alike_in_the_fakes_phase():
    def labels(method, phase):
        made, seen = [], []
        nets = Nets(shifted(0.3, made), bent(0.7, 0.0, Cosine()), bent(0.5, 0.1, Cosine(), seen))
        phase(method, jax.random.key(1), batch_of(NUM), nets)
        (_, _, cond, _), (_, _, student_cond, _) = seen[0], made[0]
        return np.asarray(student_cond["label"]), np.asarray(cond["label"])

    short = dataclasses.replace(LSG, kappas=(1.0, 0.5, 0.5, 1.0), null_dropout=0.25)
    student, fake = labels(short, SidLsg.fake_loss)
    np.testing.assert_array_equal(student, fake)
    assert 0.15 < np.mean(fake == NULL) < 0.35
    for method, phase in ((short, SidLsg.student_loss), (SidLsg(), SidLsg.fake_loss)):
        assert NULL not in labels(method, phase)[0]


def test_dropout_is_on_in_the_network_that_trains_alone():
    made, real, fake = [], [], []
    nets = Nets(shifted(0.3, made), bent(0.7, 0, Cosine(), real), bent(0.5, 0.1, Cosine(), fake))
    for phase in SidLsg().phases:
        phase.loss(SidLsg(), jax.random.key(1), batch_of(NUM), nets)
    assert [key is not None for *_, key in made] == [False, True]
    assert [key is not None for *_, key in fake] == [True, False]
    assert [key is not None for *_, key in real] == [False]


def test_a_teachers_input_w_is_drawn_once_for_all_three():
    made, real, fake = [], [], []
    nets = Nets(shifted(0.3, made), bent(0.7, 0, Cosine(), real), bent(0.5, 0.1, Cosine(), fake))
    method = SidLsg(w_range=(0.5, 2.0))
    assert inputs_of(method) == ("w",)
    method.student_loss(jax.random.key(1), batch_of(NUM), nets)
    w = made[0][2]["w"]
    assert 0.5 <= w.min() < 0.6
    assert 1.9 < w.max() <= 2.0
    np.testing.assert_array_equal(real[0][2]["w"], w)
    np.testing.assert_array_equal(fake[0][2]["w"], w)


def test_one_step_of_the_sampler_is_the_call_that_is_trained_and_more_repeat_it():
    student, z = gaussian_denoiser(Cosine(), 0.5), jax.random.normal(jax.random.key(0), (NUM, 1))
    t = time_of(Cosine(), 2.5)
    one = sample(SidLsg(num_steps=1), jax.random.key(1), student, z, {})
    np.testing.assert_allclose(one, generate(student, z, t, {}), rtol=1e-6)

    times = []

    def predict(z, t, cond, key=None):
        jax.debug.callback(lambda t: times.append(float(t)), t[0])
        return student.predict(z, t, cond)

    sample(SidLsg(num_steps=4), jax.random.key(1), Denoiser(Cosine(), predict), z, {})
    jax.effects_barrier()
    np.testing.assert_allclose(times, t * np.asarray([1, 0.75, 0.5, 0.25]), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 2.0}, r"alpha is 2.0; expected a number from 0 to 1.5"),
        ({"kappas": 0.0}, "kappas is 0.0; expected one positive number"),
        ({"kappas": (1.0, 2.0)}, r"kappas is \(1.0, 2.0\); expected one positive number, or four"),
        ({"null_dropout": 1.5}, "null_dropout is 1.5"),
        ({"gan_weight": -1.0}, "gan_weight is -1.0; expected a number from 0"),
        ({"gan_weight": 1.0, "discriminator_weight": 0.0}, "nothing would train the discriminator"),
        ({"fake_updates": 0}, "fake_updates is 0; expected a whole number from 1"),
        ({"sigma_init": -1.0}, "sigma_init is -1.0; expected a noise level"),
        ({"levels": ("karras", 2.0, 1.0)}, r"levels is .*0 < lowest <= highest"),
        ({"fake_levels": ("karas", 1.0, 2.0)}, "fake_levels is .*out of uniform, karras"),
        ({"w_range": (0.0, 2.0)}, "exactly when the teacher was trained with one"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check(SidLsg(**change), Diffusion())


def test_a_teacher_must_know_all_times_and_the_null_where_it_is_guided():
    check(SidLsg(kappas=1.5), Diffusion())
    check(SidLsg(), Diffusion(label_dropout=0.0))
    check(SidLsg(w_range=(1.0, 2.0)), Guided(clip_target=False))
    with pytest.raises(ValueError, match="train that stage with clip_target=False"):
        check(SidLsg(w_range=(1.0, 2.0)), Guided())
    with pytest.raises(ValueError, match="no null condition to guide against. Fine-tune"):
        check(SidLsg(kappas=1.5), Diffusion(label_dropout=0.0))
    with pytest.raises(ValueError, match="the times of its 8 steps only"):
        check(SidLsg(), METHODS["progressive"](num_steps=8))
    with pytest.raises(ValueError, match="guiding it would guide twice"):
        check(SidLsg(kappas=1.5, w_range=(1.0, 2.0)), Guided(clip_target=False))
    with pytest.raises(ValueError, match=r"w_range \(1.0, 9.0\) leaves the teacher's"):
        check(SidLsg(w_range=(1.0, 9.0)), Guided(clip_target=False))


def test_a_few_step_student_is_trained_on_the_images_of_each_of_its_calls():
    schedule, times = Cosine(), (1.0, 0.5, 0.25)
    seen = []

    def predict(z, t, cond, key=None):
        x = jnp.broadcast_to(expand(t, z), z.shape)  # The image says at which call it was made.
        seen.append((z, key))
        return Prediction(x, eps_from_x(z, x, schedule, t))

    student, method = Denoiser(schedule, predict, (1,)), SidLsg(times=times)
    found = []
    for seed in range(12):
        x, _ = method._generate(jax.random.key(seed), batch_of(64), student, jax.random.key(99))
        (call,) = {float(value) for value in np.asarray(x).ravel()}
        z, dropout = seen[-1]
        assert dropout is not None
        # Its input is the image of the call before, noised again; the first is noise only.
        before = {1.0: 0.0, 0.5: 1.0, 0.25: 0.5}[call]
        alpha, sigma = (float(f(jnp.asarray(call))) for f in (schedule.alpha, schedule.sigma))
        assert abs(float(z.mean()) - alpha * before) < 5 * sigma / 8  # Of 64 samples.
        found.append(call)
    assert set(found) == set(times)
    assert method.sampler(schedule) == Renoise(times)


def test_times_and_repeated_calls_exclude_each_other():
    with pytest.raises(ValueError, match=r"num_steps is 2 and times \(1.0, 0.5\)"):
        check(SidLsg(times=(1.0, 0.5), num_steps=2), Diffusion(num_steps=8))
