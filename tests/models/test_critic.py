import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.models import critic_head
from distill_jax.models.critic import widths

FEATURES = jax.random.normal(jax.random.key(0), (3, 4, 12))


def made():
    head = critic_head()
    return jax.jit(head.apply), jax.jit(head.init)(jax.random.key(0), FEATURES)


def test_layers_narrow_evenly_to_one_logit():
    # linspace(C, 1, 5), rounded up.
    assert widths(65) == (65, 49, 33, 17, 1)
    assert widths(12) == (12, 10, 7, 4, 1)
    _, params = made()
    kernels = [params[f"dense_{layer}"]["kernel"].shape for layer in range(4)]
    assert kernels == [(12, 10), (10, 7), (7, 4), (4, 1)]
    assert params["norm_0"]["scale"].shape == (12,)


def test_a_logit_is_one_examples_and_knows_no_order_of_positions():
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


def test_features_too_few_for_a_normalisation_are_refused():
    head = critic_head()
    with pytest.raises(ValueError, match="have 5 channels, too few for a critic; .* at least 6"):
        jax.eval_shape(head.init, jax.random.key(0), FEATURES[:, :, :5])
    jax.eval_shape(head.init, jax.random.key(0), FEATURES[:, :, :6])
