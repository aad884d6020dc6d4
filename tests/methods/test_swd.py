import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.noise_levels import SHIFTED_FLOW
from distill_jax.diffusion.prediction import Prediction, eps_from_x
from distill_jax.diffusion.resize import area, bicubic
from distill_jax.diffusion.schedule import Cosine, RectifiedFlow, expand
from distill_jax.methods import METHODS, Nets
from tests.toys import check, constant_denoiser, make_batch, sample

Swd = METHODS["swd"]
SCHEDULE = RectifiedFlow()
OFF = {"dmd_weight": 0.0, "gan_weight": 0.0, "discriminator_weight": 0.0, "mmd_weight": 0.0}
DMD = {**OFF, "dmd_weight": 1.0}
GAN = {**OFF, "gan_weight": 1.0, "discriminator_weight": 1.0}
MMD = {**OFF, "mmd_weight": 1.0}
TEACHERS = {**MMD, "mmd_features": "teacher"}
TEACHER = METHODS["diffusion"](resolutions=(4, 8))
BATCH = make_batch(
    jax.random.uniform(jax.random.key(0), (6, 8, 8, 1), minval=-1),
    {"label": jnp.arange(6, dtype=jnp.int32)},
    {"label": jnp.full((6,), 10, jnp.int32)},
)


def swd(**options):
    return Swd(**{"times": (1.0, 0.6), "resolutions": (4, 8), **options})


class Toy:
    """A denoiser x = f(z) with features and a discriminator, which records its inputs."""

    def __init__(self, f, schedule=SCHEDULE):
        self.f, self.schedule = f, schedule
        self.seen = collections.defaultdict(list)

    @property
    def denoiser(self):
        return Denoiser(
            self.schedule, self._predict, (8, 8, 1), self._features, self._discriminator
        )

    def calls(self):
        return {name: [len(z) for z, _ in calls] for name, calls in self.seen.items()}

    def _predict(self, z, t, cond, key=None):
        self.seen["predict"].append((z, t))
        x = self.f(z)
        return Prediction(x, eps_from_x(z, x, self.schedule, t))

    def _features(self, z, t, cond):
        self.seen["features"].append((z, t))
        return jnp.tanh(self.f(z)).reshape(len(z), -1, 1)

    def _discriminator(self, z, t, cond):
        self.seen["discriminator"].append((z, t))
        return jnp.sum(self.f(z), axis=(1, 2, 3))


def toys():
    gains = (0.3, 0.5, 0.4)
    return [Toy(lambda z, gain=gain: gain * z + 0.1) for gain in gains]


def loss_of(method, three, turn=0, fake=False, batch=BATCH):
    nets = Nets(*(toy.denoiser for toy in three))
    return (method.fake_loss if fake else method.student_loss)(jax.random.key(1), batch, nets, turn)


CALLS = {
    "DMD": (DMD, {"predict": [6]}, {"predict": [6]}, {"score_gap"}),
    "DMD under guidance": ({**DMD, "w": 2.0}, {"predict": [12]}, {"predict": [6]}, {"score_gap"}),
    "GAN": (GAN, {}, {"discriminator": [6]}, {"generator_gan_loss"}),
    "MMD": (MMD, {}, {"features": [6, 6]}, {"mmd_loss"}),
    "MMD of the teacher": (TEACHERS, {"features": [6, 6]}, {}, {"mmd_loss"}),
    "all": (
        {"w": 2.0},
        {"predict": [12]},
        {"predict": [6], "discriminator": [6], "features": [6, 6]},
        {"score_gap", "generator_gan_loss", "mmd_loss"},
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_term_that_is_off_calls_no_network(name):
    options, teacher, fake, measured = CALLS[name]
    three = toys()
    _, metrics = loss_of(swd(**options), three)
    assert [toy.calls() for toy in three] == [{"predict": [6]}, teacher, fake]
    assert metrics.keys() == measured


@pytest.mark.parametrize(("options", "more"), [(DMD, {}), (GAN, {"discriminator": [6, 6]})])
def test_the_fake_learns_the_students_images_and_the_discriminator_when_there_is_one(options, more):
    three = toys()
    loss, metrics = loss_of(swd(**options), three, fake=True)
    assert [toy.calls() for toy in three] == [{"predict": [6]}, {}, {"predict": [6], **more}]
    assert float(loss) == pytest.approx(float(sum(metrics.values())), rel=1e-6)


def test_phases_and_networks_follow_from_the_terms():
    def parts(**options):
        method = swd(**options)
        trained = [(p.trains, p.updates_per_iteration, p.variants) for p in method.phases]
        return trained, method.has_discriminator, method.needs_features

    fake, student = ("fake", 5, 2), ("student", 1, 2)
    assert parts() == ([fake, student], True, True)
    assert parts(**DMD) == ([fake, student], False, False)
    assert parts(**GAN) == ([fake, student], True, True)
    assert parts(**MMD) == ([fake, student], False, True)
    assert parts(**TEACHERS) == ([student], False, True)


def test_the_fake_is_trained_on_the_loss_of_a_denoiser_of_the_students_images():
    # A fake that says what the student always makes has nothing to learn.
    constant = Toy(lambda z: jnp.full_like(z, 0.25))
    loss, _ = loss_of(swd(**DMD), [constant] * 3, fake=True)
    assert float(loss) == 0
    loss, _ = loss_of(swd(**DMD), [constant, constant, Toy(jnp.zeros_like)], fake=True)
    assert float(loss) == pytest.approx(0.0625)


@pytest.mark.parametrize(("turn", "schedule"), [(0, SCHEDULE), (1, Cosine())], ids=repr)
def test_data_made_again_under_equal_scores_is_a_fixed_point(turn, schedule):
    # papers/boot_sid_swd.md, T8: the student's images are the data, the fake is the teacher.
    real = area(BATCH.x, (4, 8)[turn])
    same = Toy(lambda z: 0.5 * z, schedule)
    method = swd(gan_weight=0.0, discriminator_weight=0.0, mmd="energy")

    def loss(bias):
        three = [Toy(lambda z: real + bias, schedule), same, same]
        return loss_of(method, three, turn)[0]

    gradient = jax.jit(jax.grad(loss))
    np.testing.assert_allclose(gradient(jnp.zeros_like(real)), 0, atol=1e-6)
    assert float(jnp.abs(gradient(jnp.full_like(real, 0.1))).max()) > 1e-4


def frozen(toy):
    """Returns the denoiser without a gradient in its input."""
    return Toy(lambda z: toy.f(jax.lax.stop_gradient(z)), toy.schedule)


@pytest.mark.parametrize(("options", "through"), [(DMD, False), (GAN, True), (MMD, True)])
def test_only_features_pass_gradients_on_to_the_student(options, through):
    def gradient(wrap):
        def loss(gain):
            student, *others = toys()
            student = Toy(lambda z: gain * z)
            return loss_of(swd(**options), [student, *map(wrap, others)])[0]

        return jax.grad(loss)(0.3)

    passing, stopped = gradient(lambda toy: toy), gradient(frozen)
    assert float(jnp.abs(passing)) > 1e-4
    assert (float(passing) == float(stopped)) != through


def test_the_gradient_of_distribution_matching_points_from_the_fake_to_the_teacher():
    # The fake says 0.2, the teacher 0.8 everywhere: x at 0.1 has to grow.
    def loss(bias):
        values = (lambda z: 0.1 + bias + 0 * z, lambda z: 0 * z + 0.8, lambda z: 0 * z + 0.2)
        return loss_of(swd(**DMD), [Toy(value) for value in values])[0]

    gradient = jax.grad(loss)(jnp.zeros((6, 4, 4, 1)))
    np.testing.assert_allclose(gradient, (0.2 - 0.8) / 0.7 / gradient.size, rtol=1e-5)


def test_data_and_samples_get_the_same_time_and_noise():
    three = toys()
    loss_of(swd(), three)
    loss_of(swd(), three, fake=True)
    x = three[0].seen["predict"][0]
    assert x[0].shape == (6, 4, 4, 1)
    features, discriminators = three[2].seen["features"], three[2].seen["discriminator"][1:]
    for real, fake in (features, discriminators):
        np.testing.assert_array_equal(real[1], fake[1])
        assert len(np.unique(fake[1])) > 3  # Six draws of 10 times or more.
    (z_real, t), (z, _) = features
    images = three[0].f(x[0])
    difference = expand(1 - t, z) * (area(BATCH.x, 4) - images)
    np.testing.assert_allclose(z_real - z, difference, atol=1e-6)


@pytest.mark.parametrize(("name", "first"), [("dmd", 12), ("mmd", 18), ("fake", 0)])
def test_by_default_noise_is_that_of_the_released_indices(name, first):
    _, t = noise_of(swd(gan_weight=0.0, discriminator_weight=0.0), name)
    np.testing.assert_allclose(np.unique(t)[::-1], SHIFTED_FLOW[first:], rtol=1e-5)


@pytest.mark.parametrize("name", ["dmd", "mmd", "fake"])
def test_noise_follows_the_distribution_that_it_is_given(name):
    method = swd(
        **{f"{name}_levels": ("uniform", 0.25, 0.43)}, gan_weight=0.0, discriminator_weight=0.0
    )
    _, t = noise_of(method, name)
    assert 0.2 <= float(t.min()) < 0.201
    assert 0.299 < float(t.max()) <= 0.301


def noise_of(method, name):
    """Returns the noisy samples in the term `name`, and their times."""
    three = toys()
    batch = make_batch(jnp.zeros((2000, 8, 8, 1)), {}, {})
    loss_of(method, three, fake=name == "fake", batch=batch)
    return three[2].seen["features" if name == "mmd" else "predict"][0]


MANY = make_batch(jnp.broadcast_to(BATCH.x[:1], (4000, 8, 8, 1)), {}, {})


def test_a_step_starts_from_enlarged_data_of_the_size_before_under_its_noise():
    schedule = Cosine()
    toy = Toy(lambda z: z, schedule)
    for turn in (0, 1):
        loss_of(swd(times=(0.8, 0.6), **MMD), [toy, toy, toy], turn, batch=MANY)
    (first, t_first), (second, t) = toy.seen["predict"]
    assert first.shape == (4000, 4, 4, 1)
    np.testing.assert_allclose(t_first, 0.8)
    np.testing.assert_allclose(t, 0.6)
    # 4,000 draws: a standard error of 0.016 in the mean, of 2.2 % in the variance.
    np.testing.assert_allclose(first.mean(axis=0), 0, atol=0.07)
    np.testing.assert_allclose(first.var(axis=0), schedule.sigma(t_first[0]) ** 2, rtol=0.1)
    up = bicubic(area(MANY.x[:1], 4), 8)[0]
    np.testing.assert_allclose(second.mean(axis=0), schedule.alpha(t[0]) * up, atol=0.07)
    np.testing.assert_allclose(second.var(axis=0), schedule.sigma(t[0]) ** 2, rtol=0.1)


@pytest.mark.parametrize("backward", [False, True])
def test_without_resolutions_every_step_is_at_the_size_of_the_data(backward):
    method, toy = Swd(times=(1.0, 0.6, 0.3), backward=backward, **MMD), Toy(lambda z: z)
    loss_of(method, [toy] * 3, turn=2)
    calls = toy.seen["predict"]
    # The steps before are one loop, whose body is traced once.
    assert [z.shape for z, _ in calls] == [(6, 8, 8, 1)] * (2 if backward else 1)
    np.testing.assert_allclose(calls[-1][1], 0.3)


def test_backward_simulation_starts_a_step_from_the_students_own_images():
    method = swd(times=(1.0, 0.8, 0.6), resolutions=(4, 4, 8), backward=True, **MMD)
    quarter = Toy(lambda z: jnp.full_like(z, 0.25))
    loss_of(method, [quarter, *toys()[1:]], turn=2, batch=MANY)
    calls = quarter.seen["predict"]
    assert [z.shape[1] for z, _ in calls] == [4, 4, 8]
    np.testing.assert_allclose([t[0] for _, t in calls], (1.0, 0.8, 0.6))
    np.testing.assert_allclose(calls[-1][0].mean(axis=0), 0.4 * 0.25, atol=0.05)


def test_backward_simulation_passes_no_gradient_to_the_steps_before():
    method = swd(backward=True, **MMD)

    def loss(gains):
        waiting = iter(gains)
        student = Toy(lambda z: next(waiting) * z)
        return loss_of(method, [student, *toys()[1:]], turn=1)[0]

    before, now = jax.grad(loss)(jnp.asarray([0.5, 0.7]))
    assert before == 0
    assert jnp.abs(now) > 1e-4


def test_sampling_is_one_call_per_step_at_its_side():
    toy = Toy(lambda z: 0.5 * z)
    z = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    x = sample(swd(), jax.random.key(1), toy.denoiser, z, {})
    assert x.shape == z.shape
    assert [z.shape[1] for z, _ in toy.seen["predict"]] == [4, 8]
    assert swd().num_steps == 2


MISTAKES = {
    "times that do not fall": ({"times": (0.6, 0.6)}, r"times is \(0.6, 0.6\); .* that fall"),
    "times beyond noise": ({"times": (1.1, 0.6)}, r"expected times in \(0, 1\]"),
    "times that reach data": ({"times": (1.0, 0.0)}, r"expected times in \(0, 1\]"),
    "no times": ({"times": (), "resolutions": ()}, r"times are \(\) .* a time for each step"),
    "resolutions that do not grow": (
        {"resolutions": (8, 4)},
        r"resolutions is \(8, 4\); .* do not shrink",
    ),
    "resolutions that are no sizes": ({"resolutions": (0, 8)}, "whole numbers from 1"),
    "lengths that differ": ({"resolutions": (4, 8, 8)}, r"times are .* as many resolutions"),
    "no term": (OFF, "a term that is on"),
    "a term that is pushed away": (
        {"mmd_weight": -1.0},
        "mmd_weight is -1.0; expected a number from 0",
    ),
    "a discriminator that nothing trains": (
        {"discriminator_weight": 0.0},
        "nothing would train the discriminator",
    ),
    "an unknown kernel": (
        {"mmd": "cubic"},
        "mmd is 'cubic'; expected one of pseudo_huber, linear, rbf",
    ),
    "unknown features": ({"mmd_features": "student"}, "expected one of teacher, fake"),
    "a range that is none": ({"dmd_levels": ("karras", 2.0, 1.0)}, "dmd_levels is"),
    "no fake updates": ({"fake_updates": 0}, "fake_updates is 0"),
    "guidance of nothing": ({**MMD, "w": 1.0}, "0 without DMD"),
    "negative guidance": ({"w": -0.5}, "w is -0.5"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_numbers_that_make_no_sense_are_refused(kind):
    options, message = MISTAKES[kind]
    with pytest.raises(ValueError, match=message):
        check(swd(**options), TEACHER)


def test_a_teacher_that_never_saw_a_size_is_refused_where_it_has_to_judge_it():
    alone = METHODS["diffusion"]()
    with pytest.raises(
        ValueError, match=r'calls it at 4, 8 too.*"diffusion", resolutions=\(4, 8\)'
    ):
        check(swd(), alone)
    with pytest.raises(ValueError, match="calls it at 6 too"):
        check(swd(resolutions=(6, 8)), TEACHER)
    check(swd(), TEACHER)
    check(swd(dmd_weight=0.0), alone)
    check(swd(resolutions=(8, 8)), alone)
    check(swd(resolutions=()), alone)


def test_teachers_that_cannot_be_asked_are_refused():
    with pytest.raises(ValueError, match="label_dropout=0"):
        check(swd(w=1.0), dataclasses.replace(TEACHER, label_dropout=0.0))
    check(swd(), dataclasses.replace(TEACHER, label_dropout=0.0))
    with pytest.raises(ValueError, match="the times of its 4 steps only"):
        check(swd(resolutions=()), METHODS["progressive"](num_steps=4))
    with pytest.raises(ValueError, match="already takes w"):
        check(swd(resolutions=()), METHODS["guided"](num_steps=4))


def test_a_teacher_of_several_sizes_learns_each_as_if_it_were_alone():
    one, several = METHODS["diffusion"](), METHODS["diffusion"](resolutions=(4, 8))
    assert [phase.variants for method in (one, several) for phase in method.phases] == [1, 2]
    nets, key = Nets(constant_denoiser(SCHEDULE, 0.3)), jax.random.key(1)
    for turn, side in enumerate((4, 8)):
        small = BATCH._replace(x=area(BATCH.x, side))
        assert several.loss(key, BATCH, nets, turn)[0] == one.loss(key, small, nets)[0]
    with pytest.raises(ValueError, match=r"resolutions is \(8, 4\)"):
        check(METHODS["diffusion"](resolutions=(8, 4)), None)
