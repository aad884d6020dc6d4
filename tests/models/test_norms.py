"""Tests of the group normalisation, against Flax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.models.norms import GroupNorm


def normal(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 5, 24), (2, 7, 24), (3, 24)])
def test_the_group_normalisation_and_its_gradient_are_those_of_flax(shape, fast):
    x, scale, bias = 3 * normal(0, shape) + 1, normal(1, (24,)), normal(2, (24,))
    params, outputs = {"params": {"scale": scale, "bias": bias}}, []
    for layer in (GroupNorm(4, use_fast_variance=fast), nn.GroupNorm(4, use_fast_variance=fast)):
        y, gradient = jax.vjp(layer.apply, params, x)
        outputs.append(jax.tree.leaves((y, gradient(normal(3, shape)))))
    for mine, flax in zip(*outputs, strict=True):
        np.testing.assert_allclose(mine, flax, rtol=1e-5, atol=2e-5)  # Sums in another order.


def test_the_group_normalisation_of_bfloat16_computes_in_float32():
    x = normal(0, (2, 4, 4, 16)).astype(jnp.bfloat16)
    layer = GroupNorm(4, dtype=jnp.dtype("bfloat16"))
    params = layer.init(jax.random.key(0), x)
    y = layer.apply(params, x)
    exact = GroupNorm(4).apply(params, x.astype(jnp.float32))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))
