import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.noise_levels import level_of
from distill_jax.diffusion.schedule import Cosine, Karras, RectifiedFlow
from distill_jax.diffusion.trained import Ddim, Heun
from distill_jax.methods import METHODS, Nets
from tests.toys import check, constant_denoiser, gaussian_denoiser, make_batch

BATCH = make_batch(
    0.5 * jax.random.normal(jax.random.key(0), (4000, 3)),
    {"label": jnp.zeros((4000,), jnp.int32)},
    {"label": jnp.full((4000,), 10, jnp.int32)},
)


def test_loss_is_zero_for_the_denoiser_of_a_data_set_of_one_image():
    batch = BATCH._replace(x=jnp.full((4000, 3), 0.25))
    nets = Nets(constant_denoiser(Cosine(), 0.25))
    loss, _ = METHODS["diffusion"]().loss(jax.random.key(1), batch, nets)
    assert float(loss) == 0


def test_the_exact_denoiser_has_a_smaller_loss_than_its_neighbours():
    method = METHODS["diffusion"]()
    losses = [
        float(method.loss(jax.random.key(1), BATCH, Nets(gaussian_denoiser(Cosine(), std)))[0])
        for std in (0.4, 0.5, 0.6)
    ]
    assert losses[1] < losses[0]
    assert losses[1] < losses[2]


def test_loss_of_the_exact_denoiser_of_a_gaussian_is_its_known_integral(x64):
    # E (x - E[x | z])^2 = s^2 sigma^2 / (alpha^2 s^2 + sigma^2), weighted and averaged over t.
    t = (jnp.arange(20000) + 0.5) / 20000
    alpha2, sigma2 = Cosine().alpha(t) ** 2, Cosine().sigma(t) ** 2
    weight = jnp.maximum(alpha2 / sigma2, 1)
    expected = float(jnp.mean(weight * 0.25 * sigma2 / (0.25 * alpha2 + sigma2)))
    x = 0.5 * jax.random.normal(jax.random.key(0), (100000, 3), jnp.float64)
    batch = make_batch(x, {}, {})
    loss, _ = METHODS["diffusion"]().loss(
        jax.random.key(1), batch, Nets(gaussian_denoiser(Cosine(), 0.5))
    )
    # 300,000 draws of a loss whose standard deviation is about its mean.
    np.testing.assert_allclose(float(loss), expected, rtol=0.01)


@pytest.mark.parametrize(("dropout", "low", "high"), [(0.0, 0, 0), (0.1, 0.08, 0.12), (1.0, 1, 1)])
def test_labels_are_dropped_with_their_probability(dropout, low, high):
    seen = []

    def predict(z, t, cond, key=None):
        seen.append(cond["label"])
        return constant_denoiser(Cosine(), 0.0).predict(z, t, cond)

    nets = Nets(Denoiser(Cosine(), predict))
    METHODS["diffusion"](label_dropout=dropout).loss(jax.random.key(1), BATCH, nets)
    # 4,000 draws: a standard error of 0.005.
    assert low <= float(jnp.mean(seen[0] == 10)) <= high


def test_a_label_dropout_that_is_no_probability_is_refused():
    with pytest.raises(ValueError, match="label_dropout is 1.5"):
        check(METHODS["diffusion"](label_dropout=1.5), None)


def drawn(levels, schedule, num=40_000):
    """Returns the noise levels at which a loss calls the student."""
    seen = []

    def predict(z, t, cond, key=None):
        seen.append(level_of(schedule, t))
        return constant_denoiser(schedule, 0.0).predict(z, t, cond)

    batch = make_batch(jnp.zeros((num, 1)), {}, {})
    METHODS["diffusion"](levels=levels).loss(
        jax.random.key(1), batch, Nets(Denoiser(schedule, predict))
    )
    return np.sort(seen[0])


@pytest.mark.parametrize("schedule", [Karras(), Cosine(), RectifiedFlow()], ids=repr)
def test_edms_levels_have_the_papers_normal_law_in_their_logarithm(schedule, x64):
    # Karras et al. (2022), Table 1: ln sigma ~ N(-1.2, 1.2^2); 2 draws of 100,000 are clipped.
    found = drawn(("lognormal", 0.002, 80.0), schedule)
    law = [0.5 * math.erfc((1.2 + math.log(level)) / -(1.2 * math.sqrt(2))) for level in found]
    ranks = (np.arange(len(found)) + 0.5) / len(found)
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is exceeded by one in 1,000 draws of the law.
    assert np.abs(law - ranks).max() < 1.95 / math.sqrt(len(found))


def test_the_default_draws_times_uniformly():
    t = np.asarray(Karras().time(-2 * jnp.log(drawn(None, Karras()))))
    ranks = (np.arange(len(t)) + 0.5) / len(t)
    assert np.abs(t - ranks).max() < 1.95 / math.sqrt(len(t))


@pytest.mark.parametrize("levels", [("lognormal", 0.002, 80.0), ("karras", 0.01, 10.0)])
def test_edms_weighted_loss_of_the_exact_denoiser_is_one_at_every_level(levels, x64):
    # E (x - E[x | z])^2 = s^2 sigma^2 / (s^2 + sigma^2), times 1 / sigma^2 + 1 / s^2, s = 0.5.
    x = 0.5 * jax.random.normal(jax.random.key(0), (100_000, 3), jnp.float64)
    method = METHODS["diffusion"](levels=levels, weighting="edm")
    nets = Nets(gaussian_denoiser(Karras(), 0.5))
    loss, _ = method.loss(jax.random.key(1), make_batch(x, {}, {}), nets)
    # A mean of 300,000 squares of standard normals: a standard error of 0.0026.
    np.testing.assert_allclose(float(loss), 1, atol=0.01)


def test_a_teacher_is_sampled_by_ddim_or_by_edms_method_in_its_steps():
    assert METHODS["diffusion"](num_steps=18).sampler(Karras()) == Ddim(18)
    sampler = METHODS["diffusion"](num_steps=18, solver="heun").trained(Karras()).sampler
    assert (sampler, sampler.calls) == (Heun(18), 35)
    with pytest.raises(ValueError, match="solver is 'rk4'; expected one of ddim, heun"):
        check(METHODS["diffusion"](solver="rk4"), None)


def recorded(**options):
    """Returns the conditions and the noisy images of a loss on one mirrored or unchanged image."""
    seen = []

    def predict(z, t, cond, key=None):
        seen.append((dict(cond), z))
        return constant_denoiser(Cosine(), 0.0).predict(z, t, cond)

    x = jnp.broadcast_to(jnp.asarray([-0.5, 0.5]).reshape(1, 1, 2, 1), (64, 2, 2, 1))
    method = METHODS["diffusion"](levels=("uniform", 1e-4, 1e-3), **options)
    method.loss(jax.random.key(1), make_batch(x, {}, {}), Nets(Denoiser(Cosine(), predict)))
    return x, *seen[0]


def test_the_network_is_told_which_images_are_augmented():
    x, cond, z = recorded(augment=1e-6)  # Half are mirrored, and hardly anything else is done.
    mirrored = np.asarray(cond["augment"][:, 0])
    assert 16 < mirrored.sum() < 48 and not np.asarray(cond["augment"][:, 1:]).any()
    expected = np.where(mirrored[:, None, None, None] > 0, x[:, :, ::-1], x)
    np.testing.assert_allclose(z, expected, atol=0.01)
    assert "augment" not in recorded()[1]


def test_levels_that_are_no_distribution_of_levels_are_refused():
    with pytest.raises(ValueError, match="levels is .*; expected .*distribution out of uniform"):
        check(METHODS["diffusion"](levels=("normal", 0.002, 80.0)), None)
