import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from distill_jax.models import DISCRIMINATORS
from distill_jax.models.discriminators import grid_of, groups_of
from tests.toys import filled

SHAPE = (64, 64, 3)
FEATURES = np.random.default_rng(0).standard_normal((2, 64, 64)).astype(np.float32)


def shapes_of(name, features, image=SHAPE):
    """Returns the shapes of a head's parameters by path, without compilation."""
    head = DISCRIMINATORS[name](image)
    shapes = jax.eval_shape(head.init, jax.random.key(0), jnp.zeros(features))
    logits = jax.eval_shape(head.apply, shapes, jnp.zeros(features))
    assert logits.shape == features[:1]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }


def convolved(x, layer, stride, padding):
    """Returns a convolution of (b, h, w, c) by its definition, in float64."""
    kernel, bias = np.float64(layer["kernel"]), np.float64(layer["bias"])
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = sliding_window_view(x, kernel.shape[:2], axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("bhwcij,ijco->bhwo", windows, kernel) + bias


def activated(x, layer, groups):
    """Returns SiLU of a group normalisation with PyTorch's epsilon."""
    parts = x.reshape(*x.shape[:3], groups, -1)
    mean, var = parts.mean((1, 2, 4), keepdims=True), parts.var((1, 2, 4), keepdims=True)
    x = ((parts - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    x = x * np.float64(layer["scale"]) + np.float64(layer["bias"])
    return x / (1 + np.exp(-x))


@pytest.fixture(scope="module")
def spatial():
    """Returns parameters of the spatial head on 8x8 positions, its logits and their gradients."""
    head = DISCRIMINATORS["spatial"](SHAPE)
    shapes = jax.eval_shape(head.init, jax.random.key(0), FEATURES)
    params = filled(shapes, 0.1)

    def loss(params, features):
        logits = head.apply(params, features)
        return jnp.sum(logits**2), logits

    grads, logits = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, FEATURES)
    return params, logits, grads


def test_the_spatial_head_is_the_released_one(spatial):
    # main/edm/edm_guidance.py of DMD2: 4x4, stride 2, padding 1; 4x4, stride 4; 1x1.
    params, logits, _ = spatial
    h = np.float64(FEATURES).reshape(2, 8, 8, 64)
    h = activated(convolved(h, params["conv_0"], 2, 1), params["norm_0"], 16)
    h = activated(convolved(h, params["conv_1"], 4, 0), params["norm_1"], 16)
    expected = convolved(h, params["logit"], 1, 0)
    assert expected.shape == (2, 1, 1, 1)
    # Sums of 1,024 products in float32, which the convolution may add in another order.
    np.testing.assert_allclose(logits, expected[:, 0, 0, 0], rtol=1e-4, atol=1e-4)


def test_every_parameter_and_every_feature_gets_a_gradient(spatial):
    _, _, grads = spatial
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert float(jnp.abs(grad).max()) > 1e-5, jax.tree_util.keystr(path)
    assert (np.abs(grads[1]).max(axis=-1) > 0).all(), "of every position"


def test_the_spatial_head_has_the_released_sizes_at_imagenet_64():
    shapes = shapes_of("spatial", (2, 64, 768))
    assert shapes["conv_0/kernel"] == shapes["conv_1/kernel"] == (4, 4, 768, 768)
    assert shapes["logit/kernel"] == (1, 1, 768, 1)
    assert groups_of(768) == 32


def test_the_spatial_head_takes_smaller_larger_and_oblong_grids():
    assert shapes_of("spatial", (2, 16, 8), (8, 8, 1))["conv_1/kernel"] == (2, 2, 8, 8)
    assert shapes_of("spatial", (2, 256, 8), (32, 32, 3))["conv_1/kernel"] == (4, 4, 8, 8)
    assert shapes_of("spatial", (2, 8, 8), (16, 32, 3))["conv_1/kernel"] == (1, 2, 8, 8)
    dense = shapes_of("spatial", (2, 1, 8), (8, 12, 1))
    assert dense["conv_0/kernel"] == dense["conv_1/kernel"] == (1, 1, 8, 8)


def test_positions_are_a_grid_of_the_images_shape():
    assert grid_of(64, (64, 64, 3)) == (8, 8)
    assert grid_of(8, (32, 64, 3)) == (2, 4)
    assert grid_of(8, (64, 32, 3)) == (4, 2)
    assert grid_of(1, (3, 7, 1)) == (1, 1)
    assert grid_of(5, (5, 1, 1)) == (5, 1)
    for positions, shape in ((8, (64, 64, 3)), (64, (16, 32, 3)), (2, (9, 7, 1))):
        with pytest.raises(ValueError, match=f"have {positions} positions.* take discr.* 'pooled'"):
            grid_of(positions, shape)


def test_a_group_of_a_normalisation_has_four_channels_at_least():
    assert [groups_of(channels) for channels in (4, 6, 8, 36, 96, 128)] == [1, 1, 2, 9, 24, 32]
    with pytest.raises(ValueError, match="have 3 channels, too few for a discriminator"):
        groups_of(3)


def test_the_pooled_head_takes_any_number_of_positions():
    assert shapes_of("pooled", (2, 5, 12)) == shapes_of("pooled", (2, 7, 12))


def test_the_head_of_sida_is_the_mean_of_the_features_and_has_no_parameters():
    head = DISCRIMINATORS["channels"](SHAPE)
    params = head.init(jax.random.key(0), FEATURES)
    assert jax.tree.leaves(params) == []
    np.testing.assert_allclose(
        head.apply(params, jnp.asarray(FEATURES)), FEATURES.mean((1, 2)), atol=1e-6
    )
