"""Contracts: what holds for every entry of NETWORKS."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.denoiser import Network, Sizes
from distill_jax.models import NETWORKS
from distill_jax.models.dit import dit, position_embedding
from distill_jax.models.layers import sinusoid
from distill_jax.train import graft
from tests.toys import filled

SMALL = {
    "mlp": {"width": 16, "blocks": 1},
    "dit": {"width": 16, "blocks": 1, "heads": 2, "patch": 2},
    # 64 channels are two to a group: alone in its group, a channel would not feel its bias.
    "unet": {
        "channels": 64,
        "embedding": 16,
        "multipliers": (1,),
        "blocks": 1,
        "attention": (4,),
        "heads": 2,
    },
    "adm_unet": {"channels": 8, "multipliers": (1,), "blocks": 1, "attention": (4,), "heads": 2},
    "song_unet": {"channels": 8, "multipliers": (1,), "blocks": 1, "attention": (4,)},
}
SHAPE = (4, 6, 3)
Z = jax.random.normal(jax.random.key(0), (5, *SHAPE))
T = jnp.linspace(0, 1, 5)
LABEL = {"label": jnp.asarray([0, 1, 2, 3, 0], jnp.int32)}
W = {**LABEL, "w": jnp.linspace(0, 4, 5)}


def images(name):
    """What the network is called with: the UNet takes squares alone."""
    return Z[:, :, :4] if name == "unet" else Z


def make(name, channels=3):
    return NETWORKS[name](Sizes(images(name).shape[1:], 3, channels), **SMALL[name])


@functools.cache
def compiled(name):
    """The network that takes w, its functions compiled once for all tests, and its parameters."""
    network = Network(*map(jax.jit, make(name)))
    key = jax.random.key(0, impl="unsafe_rbg")  # Half the time to compile.
    return network, network.init(key, images(name), T, W)


def test_every_network_is_tried_here():
    assert SMALL.keys() == NETWORKS.keys()


@pytest.mark.parametrize("name", NETWORKS)
def test_output_has_the_images_shape_and_the_channels_asked_for(name):
    network, z = make(name, channels=6), images(name)
    params = jax.eval_shape(network.init, jax.random.key(0), z, T, LABEL)
    output = jax.eval_shape(network.apply, params, z, T, LABEL)
    assert output.shape == (*z.shape[:3], 6)
    assert output.dtype == jnp.float32


@pytest.mark.parametrize("name", NETWORKS)
def test_every_input_has_an_effect_on_its_own_example_and_on_no_other(name):
    (network, params), z = compiled(name), images(name)
    params = filled(params)
    base = network.apply(params, z, T, W)
    changes = {
        "z": (z.at[2].add(0.1), T, W),
        "t": (z, T.at[2].add(0.1), W),
        "label": (z, T, {**W, "label": W["label"].at[2].set(1)}),
        "w": (z, T, {**W, "w": W["w"].at[2].add(0.1)}),
    }
    for what, arguments in changes.items():
        difference = jnp.abs(network.apply(params, *arguments) - base).max(axis=(1, 2, 3))
        assert float(difference[2]) > 1e-4, what
        np.testing.assert_allclose(difference[jnp.asarray([0, 1, 3, 4])], 0, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_with_w_has_the_parameters_of_one_without_and_those_of_w_embed(name):
    (network, with_w), z = compiled(name), images(name)
    without = filled(jax.eval_shape(network.init, jax.random.key(0), z, T, LABEL))
    grafted = graft(with_w, without, new=("w_embed",))
    np.testing.assert_array_equal(
        network.apply(grafted, z, T, W), network.apply(without, z, T, LABEL)
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_a_new_network_puts_out_zero_and_learns_in_every_parameter(name):
    (network, params), z = compiled(name), images(name)
    np.testing.assert_array_equal(network.apply(params, z, T, W), jnp.zeros_like(z))
    grads = jax.jit(jax.grad(lambda p: jnp.sum(network.apply(p, z, T, W) ** 2)))(filled(params))
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        if "['k']['bias']" not in jax.tree_util.keystr(path):  # The softmax does not see it.
            assert float(jnp.abs(grad).max()) > 1e-5, jax.tree_util.keystr(path)


def test_a_transformer_in_bfloat16_keeps_float32_parameters_and_agrees():
    sizes = Sizes(SHAPE, 3, 3)
    single, half = (dit(sizes, **SMALL["dit"], dtype=d) for d in ("float32", "bfloat16"))
    params = filled(jax.eval_shape(single.init, jax.random.key(0), Z, T, LABEL))
    made = jax.eval_shape(half.init, jax.random.key(0), Z, T, LABEL)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    a, b = (jax.jit(network.apply)(params, Z, T, LABEL) for network in (single, half))
    # bfloat16 has 8 bits: a few per cent of the output's spread.
    assert float(jnp.abs(a - b.astype(jnp.float32)).max()) < 0.05 * float(a.std()) * 4


def test_a_transformer_moves_patches_and_puts_them_back(monkeypatch):
    # Without blocks, zero modulation and an identity output the network would be a permutation:
    # swapping two patches of the input swaps the same two of the output, position aside.
    network = make("dit")
    params = filled(jax.eval_shape(network.init, jax.random.key(0), Z, T, LABEL))
    params["input"]["kernel"] = jnp.zeros_like(params["input"]["kernel"])
    still = network.apply(params, Z, T, LABEL)
    np.testing.assert_allclose(still, network.apply(params, Z + 1, T, LABEL), atol=1e-6)
    assert float(jnp.abs(still[:, :2, :2] - still[:, 2:, 4:]).max()) > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 3}, "patch 3 does not divide the image of 4x6"),
        ({"width": 18, "heads": 2}, "width 18 must be divisible by 4"),
        ({"width": 16, "heads": 3}, "by heads = 3"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dit(Sizes(SHAPE, 3, 3), **options)


def test_sinusoid_has_the_golden_values(x64):
    # papers/progressive_and_guided.md, section 8.2: u = 0.25, 8 wide.
    golden = [-0.970528, -0.820565, 0.512942, 0.024997, 0.240988, 0.571553, 0.858423, 0.999688]
    np.testing.assert_allclose(sinusoid(jnp.asarray([0.25]), 8)[0], golden, atol=6e-7)


def test_positions_are_all_different_and_rows_differ_from_columns():
    table = position_embedding(4, 4, 16)
    assert table.shape == (16, 16)
    distances = np.linalg.norm(table[:, None] - table[None], axis=-1)
    assert (distances + np.eye(16) > 0.3).all()
