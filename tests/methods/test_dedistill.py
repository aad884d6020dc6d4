import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.schedule import Cosine
from distill_jax.diffusion.trained import Ddim, Renoise
from distill_jax.methods import METHODS, Nets
from tests.toys import check, constant_denoiser, gaussian_denoiser, inputs_of, make_batch

Dedistill, Diffusion = METHODS["dedistill"], METHODS["diffusion"]
KEY = jax.random.key(0)
BATCH = make_batch(None, {"label": jnp.arange(64) % 2}, {"label": jnp.full((64,), 2)})


def recorded(seen, x):
    """A sampler whose images are all `x`, and which records its arguments."""

    def sampler(key, denoiser, z, cond):
        seen.append((key, denoiser, z, cond))
        return jnp.full_like(z, x)

    return sampler


def teacher(x):
    return dataclasses.replace(constant_denoiser(Cosine(), x), shape=(3,))


def test_the_loss_is_the_denoising_loss_of_the_teachers_samples():
    seen, method = [], Dedistill(weighting="constant")
    nets = Nets(teacher(0.75), teacher(0.0), sampler=recorded(seen, 0.25))
    loss, _ = method.loss(KEY, BATCH, nets)
    np.testing.assert_allclose(loss, (0.75 - 0.25) ** 2, rtol=1e-6)
    ((_, denoiser, z, cond),) = seen
    assert denoiser is nets.teacher
    np.testing.assert_array_equal(cond["label"], BATCH.cond["label"])
    np.testing.assert_allclose([z.mean(), z.std()], [0, 1], atol=0.2)
    assert method.data_free
    assert method.all_times
    assert method.sampler(Cosine()) == Ddim(64)


def test_the_denoiser_of_the_samples_distribution_is_its_optimum():
    """A teacher of one call whose images are N(m, s^2); others of the family have more loss."""
    mean, std = 0.3, 0.5
    sigma = float(Cosine().sigma(jnp.ones(())))

    def sampler(key, denoiser, z, cond):
        return mean + std * z / sigma

    batch = make_batch(None, {"label": jnp.zeros(4096, int)}, {"label": jnp.full((4096,), 2)})

    def loss(mean, std):
        student = gaussian_denoiser(Cosine(), std, mean)
        nets = Nets(student, teacher(0.0), sampler=sampler)
        return Dedistill().loss(KEY, batch, nets)[0]

    others = [loss(mean + d, std) for d in (-0.1, 0.1)] + [loss(mean, std + d) for d in (-0.1, 0.1)]
    assert loss(mean, std) < min(others)


def test_a_teachers_input_w_is_drawn_for_both():
    seen = []
    nets = Nets(teacher(0.0), teacher(0.0), sampler=recorded(seen, 0.0))
    method = Dedistill(w_range=(0.5, 2.0))
    assert inputs_of(method) == ("w",)
    method.loss(KEY, BATCH, nets)
    w = seen[0][3]["w"]
    assert 0.5 <= w.min() < w.max() <= 2.0
    with pytest.raises(ValueError, match="w_range is None, the teacher's"):
        check(Dedistill(), METHODS["guided"]())
    check(Dedistill(), METHODS["sid_lsg"]())


def test_it_needs_a_teacher_and_draws_with_the_teachers_sampler():
    assert (Dedistill.needs_teacher, Dedistill.draws) == (True, True)
    assert (Diffusion.needs_teacher, Diffusion.draws) == (False, False)
    assert METHODS["dmd2"](times=(0.9, 0.5)).sampler(Cosine()) == Renoise((0.9, 0.5))
