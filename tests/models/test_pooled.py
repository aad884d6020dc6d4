import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.models import pooled_head
from distill_jax.models.pooled import widths

FEATURES = jax.random.normal(jax.random.key(0), (3, 4, 12))


def made():
    head = pooled_head()
    return jax.jit(head.apply), jax.jit(head.init)(jax.random.key(0), FEATURES)


def test_layers_narrow_evenly_to_one_logit():
    # Results of torch.linspace(C, 1, 5, dtype=int) of torch 2.13, as in the released code.
    assert widths(1536) == (1536, 1152, 768, 384, 1)
    assert widths(65) == (65, 49, 33, 17, 1)
    assert widths(12) == (12, 9, 6, 3, 1)
    assert widths(8) == (8, 6, 4, 3, 1)  # torch has 2 instead of 3.
    _, params = made()
    kernels = [params[f"dense_{layer}"]["kernel"].shape for layer in range(4)]
    assert kernels == [(12, 9), (9, 6), (6, 3), (3, 1)]
    assert params["norm_0"]["scale"].shape == (12,)


def test_layers_are_those_of_pytorch():
    # The head in numpy: LayerNorm of nearly equal numbers, so that torch's epsilon of 1e-5 matters,
    # and the exact GELU, which differs by 5e-4 from its approximation.
    apply, params = made()
    h = 3e-3 * np.asarray(FEATURES, np.float64).mean(axis=1)
    erf = np.vectorize(math.erf)
    for layer in range(4):
        dense = params[f"dense_{layer}"]
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
        h = 0.5 * h * (1 + erf(h / np.sqrt(2)))
        h = h @ np.asarray(dense["kernel"], np.float64) + np.asarray(dense["bias"])
    # Four float32 layers; an epsilon of 1e-6 moves these logits by 6e-3 and more.
    np.testing.assert_allclose(apply(params, 3e-3 * FEATURES), h[:, 0], atol=1e-5)


def test_a_logit_depends_on_one_example_and_no_order_of_positions():
    apply, params = made()
    logits = apply(params, FEATURES)
    assert logits.shape == (3,)
    np.testing.assert_allclose(apply(params, FEATURES[:, ::-1]), logits, atol=1e-5)
    changed = apply(params, FEATURES.at[1, 2, 0].add(1.0)) - logits
    assert abs(float(changed[1])) > 1e-3
    np.testing.assert_array_equal(changed[jnp.asarray([0, 2])], 0)


def test_every_parameter_and_every_feature_gets_a_gradient():
    apply, params = made()
    grads = jax.jit(jax.grad(lambda *a: jnp.sum(apply(*a) ** 2), argnums=(0, 1)))(params, FEATURES)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert float(jnp.abs(grad).max()) > 1e-4, jax.tree_util.keystr(path)


def test_too_few_features_for_a_normalisation_are_refused():
    head = pooled_head()
    with pytest.raises(ValueError, match="have 5 channels, too few for a discrim.* at least 6"):
        jax.eval_shape(head.init, jax.random.key(0), FEATURES[:, :, :5])
    jax.eval_shape(head.init, jax.random.key(0), FEATURES[:, :, :6])
