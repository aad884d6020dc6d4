import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.noise_levels import level_of
from distill_jax.diffusion.prediction import Prediction, eps_from_x
from distill_jax.diffusion.schedule import Cosine, expand
from distill_jax.methods import METHODS, Nets
from tests.toys import check, make_batch

DecoupledDmd, Dmd2, Diffusion = METHODS["decoupled_dmd"], METHODS["dmd2"], METHODS["diffusion"]
NUM = 64
NULL = 2
BATCH = make_batch(None, {"label": jnp.arange(NUM) % 2}, {"label": jnp.full((1,), NULL)})
KEY = jax.random.key(0)
TIMES = (1.0, 0.6, 0.3)
COUPLED = {"shared": True, "focused": False}


def curved(weights, seen=None):
    """A denoiser that is nonlinear in z and depends on the label."""

    def predict(z, t, cond, key=None):
        if seen is not None:
            seen.append((t, cond["label"]))
        x = jnp.tanh(weights[0] * z + weights[1] * (1 + cond["label"][:, None]))
        return Prediction(x, eps_from_x(z, x, Cosine(), t))

    return Denoiser(Cosine(), predict, (3,))


def generator(shift, scale=0.2, seen=None):
    """A student whose single parameter moves its images."""

    def predict(z, t, cond, key=None):
        if seen is not None:
            seen.append(t)
        return Prediction(shift + scale * z, z)

    return Denoiser(Cosine(), predict, (3,))


def gradient(method, key=KEY, shift=0.3):
    """Returns the gradient of the student's loss in the shift of its images, and the metrics."""

    def loss(shift):
        nets = Nets(generator(shift), curved((0.7, 0.1)), curved((0.5, 0.2)))
        return method.student_loss(key, BATCH, nets)

    return jax.grad(loss, has_aux=True)(shift)


@pytest.mark.parametrize("times", [(), TIMES])
@pytest.mark.parametrize("w", [-0.5, 0.0, 2.0])
def test_with_one_draw_and_weights_of_one_it_is_dmd2(w, times, x64):
    got, metrics = gradient(DecoupledDmd(w=w, times=times, **COUPLED))
    expected, theirs = gradient(Dmd2(w=w, times=times))
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    np.testing.assert_allclose(metrics["score_gap"], theirs["score_gap"], rtol=1e-9)
    assert abs(got) > 1e-3


@pytest.mark.parametrize("times", [(), TIMES])
def test_the_gradient_is_the_weighted_sum_of_its_two_terms(times, x64):
    method = DecoupledDmd(w=1.5, times=times)
    matching, augmentation, both = (
        gradient(dataclasses.replace(method, dm_weight=dm, ca_weight=ca))[0]
        for dm, ca in ((1.0, 0.0), (0.0, 1.0), (0.5, 3.0))
    )
    np.testing.assert_allclose(both, 0.5 * matching + 3 * augmentation, rtol=1e-9)
    assert min(abs(matching), abs(augmentation)) > 1e-3


def test_the_terms_draw_their_own_noise_unless_it_is_shared(x64):
    keys = jax.random.split(KEY, 200)
    apart, dmd2 = (
        np.asarray(jax.jit(jax.vmap(lambda key, method=method: gradient(method, key)[0]))(keys))
        for method in (DecoupledDmd(w=2.0, focused=False), Dmd2(w=2.0))
    )
    assert not np.allclose(apart, dmd2, rtol=1e-2)
    # The mean over the noise is the same: three standard errors of the differences.
    difference = apart - dmd2
    assert abs(difference.mean()) < 3 * difference.std() / np.sqrt(len(apart))


def gaussian(mean, std=0.4, seen=None):
    """The exact denoiser of N(mean[label], std^2)."""

    def predict(z, t, cond, key=None):
        center = jnp.asarray(mean)[cond["label"]][:, None]
        alpha, sigma = expand(Cosine().alpha(t), z), expand(Cosine().sigma(t), z)
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        x = center + gain * (z - alpha * center)
        return Prediction(x, eps_from_x(z, x, Cosine(), t))

    return Denoiser(Cosine(), predict, (3,))


@pytest.mark.parametrize(("dm", "ca"), [(1.0, 1.0), (2.0, 3.0), (1.0, 0.0)])
def test_gaussian_classes_end_at_the_guided_mean_of_the_ratio_of_the_weights(dm, ca, x64):
    """c - u = sigma^2 / (alpha^2 s^2 + sigma^2) (m_c - m_u), and f - c the same of m - m_c."""
    method = DecoupledDmd(w=0.5, dm_weight=dm, ca_weight=ca, **COUPLED)
    means = np.array([0.5, -0.3, 0.1])
    end = means + 0.5 * ca / dm * (means - means[NULL])
    np.testing.assert_allclose(method.fixed_w, 0.5 * ca / dm)

    @jax.grad
    def pull(shift, mean):
        nets = Nets(generator(shift), gaussian(means), gaussian(mean))
        loss, metrics = method.student_loss(KEY, BATCH, nets)
        return loss

    assert abs(pull(0.3, end)) < 1e-12
    # The fake above the end is a student above it: its images are to fall.
    assert pull(0.3, end + 0.1) > 1e-3
    assert pull(0.3, end - 0.1) < -1e-3


def test_where_the_fake_is_the_teacher_only_augmentation_is_left(x64):
    means = np.array([0.5, 0.5, 0.1])

    def pull(method):
        def loss(shift):
            nets = Nets(generator(shift), gaussian(means), gaussian(means))
            return method.student_loss(KEY, BATCH, nets)[0]

        return jax.grad(loss)(0.3)

    assert pull(DecoupledDmd(w=1.0, ca_weight=0.0)) == 0
    assert pull(DecoupledDmd(w=1.0)) < -1e-3  # Away from the null's mean, 0.1.
    assert pull(DecoupledDmd(w=1.0)) == pull(DecoupledDmd(w=1.0, dm_weight=0.0))


def drawn(method, seed):
    """Returns the student's last time, and the times of distribution matching and augmentation."""
    calls, seen = [], []
    nets = Nets(generator(0.3, seen=calls), curved((0.7, 0.1), seen), curved((0.5, 0.2)))
    method.student_loss(jax.random.key(seed), BATCH, nets)
    (dm, label), (same, null), (ca, _), (_, other) = seen
    np.testing.assert_array_equal(dm, same)
    np.testing.assert_array_equal(label, BATCH.cond["label"])
    assert set(np.asarray(null)) == set(np.asarray(other)) == {NULL}
    return float(calls[-1][0]), np.asarray(dm), np.asarray(ca)


def test_augmentation_draws_no_noise_above_the_students_call_and_matching_all():
    levels = ("uniform", 0.00323, 71.6)
    method = DecoupledDmd(times=TIMES, levels=levels, ca_levels=levels)
    met = set()
    for seed in range(12):
        t, dm, ca = drawn(method, seed)
        met.add(round(t, 6))
        assert dm.max() > 0.8
        if t == 1:
            assert ca.max() > 0.8
        else:
            assert 0.8 * t < ca.max() <= t + 1e-6
            np.testing.assert_allclose(ca.mean(), t / 2, atol=5 * t / np.sqrt(12 * NUM))
    assert met == set(np.round(TIMES, 6))


def test_unfocused_augmentation_draws_its_own_levels_at_every_call():
    method = DecoupledDmd(times=TIMES, ca_levels=("uniform", 1.0, 5.0), focused=False)
    for seed in range(6):
        _, _, ca = drawn(method, seed)
        found = np.asarray(level_of(Cosine(), jnp.asarray(ca)))
        assert 1 - 1e-4 < found.min() < 1.5
        assert 3 < found.max() < 5 + 1e-3


def test_a_call_below_the_lowest_level_of_augmentation_draws_that_level():
    method = DecoupledDmd(times=(1.0, 0.01), ca_levels=("uniform", 0.5, 5.0))
    found = {t: ca for t, _, ca in (drawn(method, seed) for seed in range(6))}
    low = next(ca for t, ca in found.items() if t < 1)
    np.testing.assert_allclose(level_of(Cosine(), jnp.asarray(low)), 0.5, rtol=1e-3)


def test_what_has_no_weight_calls_no_network():
    seen, asked = [], []
    nets = Nets(generator(0.3), curved((0.7, 0.1), seen), curved((0.5, 0.2), asked))
    DecoupledDmd(dm_weight=0.0).student_loss(KEY, BATCH, nets)
    assert (len(seen), len(asked)) == (2, 0)
    assert [phase.trains for phase in DecoupledDmd(dm_weight=0.0).phases] == ["student"]
    seen.clear()
    DecoupledDmd(w=0.0).student_loss(KEY, BATCH, nets)
    assert (len(seen), len(asked)) == (1, 1)
    assert not DecoupledDmd(w=0.0).guides


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ca_levels": ("karras", 2.0, 1.0)}, "ca_levels is .*0 < lowest <= highest"),
        ({"levels": ("krras", 1.0, 2.0)}, "levels is .*distribution out of uniform"),
        ({"times": (0.5, 0.8)}, r"times is \(0.5, 0.8\)"),
        ({"w": -2.0}, "w is -2.0; expected a number from -1"),
        ({"dm_weight": -1.0}, "dm_weight is -1.0"),
        ({"ca_weight": -1.0}, "ca_weight is -1.0"),
        ({"dm_weight": 0.0, "w": 0.0}, "nothing trains the student"),
        ({"dm_weight": 0.0, "ca_weight": 0.0}, "nothing trains the student"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check(DecoupledDmd(**change), Diffusion())


def test_a_teacher_must_know_all_times_and_the_null_where_it_is_guided():
    check(DecoupledDmd(times=TIMES), Diffusion())
    check(DecoupledDmd(w=0.0), Diffusion(label_dropout=0.0))
    with pytest.raises(ValueError, match="no null condition"):
        check(DecoupledDmd(), Diffusion(label_dropout=0.0))
    with pytest.raises(ValueError, match="guiding it would guide twice"):
        check(DecoupledDmd(), METHODS["guided"]())
