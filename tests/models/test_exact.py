import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax.diffusion.analytic import ring
from distill_jax.diffusion.denoiser import NetworkSpec
from distill_jax.diffusion.prediction import PARAMETERIZATIONS
from distill_jax.diffusion.schedule import SCHEDULES, Cosine
from distill_jax.diffusion.spec import image_spec
from distill_jax.models import NETWORKS

SIZES = image_spec((1, 1, 2), 4, 2)
T = jnp.asarray([0.0, 1e-3, 0.3, 0.9, 1.0])
LABEL = {"label": jnp.asarray([0, 1, 2, 3, 4], jnp.int32)}


@functools.cache
def made(schedule):
    """Returns the network as a denoiser, its parameters, and points at the noise levels of T."""
    network_spec = NetworkSpec(
        NETWORKS["mixture"](SIZES._replace(schedule=schedule)),
        PARAMETERIZATIONS["v"],
        SIZES._replace(schedule=schedule),
    )
    spread = np.hypot(schedule.alpha(T), schedule.sigma(T)).reshape(-1, 1, 1, 1)
    z = jnp.asarray(spread * np.random.default_rng(0).normal(size=(5, 1, 1, 2)), jnp.float32)
    return network_spec, network_spec.network.init(jax.random.key(0), z, T, LABEL), z


@pytest.mark.parametrize("name", ["cosine", "karras", "rectified_flow"])
def test_with_v_the_network_is_the_exact_denoiser_at_both_ends_of_time(name):
    schedule = SCHEDULES[name]()
    network_spec, params, z = made(schedule)
    found = jax.jit(lambda p, z: network_spec(p)(z, T, LABEL))(params, z)
    expected = jax.jit(lambda z: ring().denoiser(schedule)(z, T, LABEL))(z)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6)


def test_an_update_with_learning_rate_zero_keeps_the_network_exact():
    network_spec, params, z = made(Cosine())
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    tx = optax.adam(0.0)

    @jax.jit
    def update(params):
        grads = jax.grad(lambda p: jnp.sum(network_spec(p)(z, T, LABEL).x ** 2))(params)
        return optax.apply_updates(params, tx.update(grads, tx.init(params))[0]), grads

    after, grads = update(params)
    for leaf, before, grad in zip(*map(jax.tree.leaves, (after, params, grads)), strict=True):
        np.testing.assert_array_equal(leaf, before)
        assert np.isfinite(grad).all()
        assert np.abs(grad).max() > 0


@pytest.mark.parametrize(
    "sizes", [image_spec((1, 1, 2), 3, 2), image_spec((8, 8, 1), 4, 1), image_spec((1, 1, 2), 4, 4)]
)
def test_other_data_and_outputs_are_refused(sizes):
    with pytest.raises(ValueError, match=r"'mixture' is for the dataset 'mixture', \(1, 1, 2\)"):
        NETWORKS["mixture"](sizes)
