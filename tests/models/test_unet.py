"""Tests of the papers' UNet against the released network."""

import functools
import gzip
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.config import PAPER_UNETS
from distill_jax.diffusion.denoiser import Network
from distill_jax.diffusion.schedule import SCHEDULES
from distill_jax.diffusion.spec import image_spec
from distill_jax.models import NETWORKS
from distill_jax.models.unet import unet
from distill_jax.runtime.registry import build
from tests.toys import filled, jitted

TREES = pathlib.Path(__file__).parent / "unet_trees"
PUBLISHED = {
    "cifar10": (image_spec((32, 32, 3), 0, 3), 60_004_099),
    "imagenet64": (image_spec((64, 64, 3), 1000, 6), 295_905_222),
    "lsun128": (image_spec((128, 128, 3), 0, 6), 139_578_502),
}
# Golden architectures A and B of papers/progressive_and_guided.md, section 8.6.
GOLDEN_A = {
    "channels": 32,
    "embedding": 128,
    "multipliers": (1, 2),
    "blocks": 2,
    "attention": (8,),
    "heads": 2,
    "dropout": 0.2,  # No effect, for no key is passed.
}
GOLDEN_B = {
    "channels": 32,
    "embedding": 96,
    "multipliers": (1, 1),
    "blocks": 1,
    "attention": (16, 8),
    "head_dim": 16,
    "resblock_resample": False,
}
X = np.sin(0.1 * np.arange(2 * 16 * 16 * 3)).reshape(2, 16, 16, 3).astype(np.float32)
SIZES = image_spec((4, 4, 3), 3, 3)
SMALL = {
    "channels": 32,
    "embedding": 32,
    "multipliers": (1,),
    "blocks": 1,
    "attention": (),
    "heads": 2,
    "dropout": 0.5,
}
KEY = jax.random.key(0)
Z = jax.random.normal(KEY, (2, 4, 4, 3))
T = jnp.asarray([0.2, 0.7])
LABEL = {"label": jnp.asarray([0, 2], jnp.int32)}


def named(tree):
    """Returns the leaves of a tree by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def shapes(network, sizes):
    cond, z = sizes.example()[2], jnp.zeros((1, *sizes.shape))
    return jax.eval_shape(
        lambda key: network.init(key, z, jnp.zeros((1,)), cond), jax.random.key(0)
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_released_checkpoints(name):
    sizes, count = PUBLISHED[name]
    tree = named(shapes(unet(sizes, **PAPER_UNETS[name]), sizes))
    listing = gzip.decompress((TREES / f"{name}.txt.gz").read_bytes()).decode().splitlines()
    assert sorted(f"{path} {leaf.shape}" for path, leaf in tree.items()) == sorted(listing)
    assert sum(leaf.size for leaf in tree.values()) == count


def golden(sizes, options, power):
    """Returns the output of section 8.6: element k of a leaf is 0.05 sin(0.37 k^power + h).

    h depends on the bytes of the leaf's path, so that a wrong name gives a wrong output.
    """

    def fill(path, leaf):
        h = sum(jax.tree_util.keystr(path, simple=True, separator="/").encode()) % 97
        wave = 0.05 * np.sin(0.37 * np.arange(leaf.size, dtype=np.float64) ** power + h)
        return (wave + (path[-1].key == "scale")).reshape(leaf.shape).astype(np.float32)

    network = unet(sizes, **options)
    params = jax.tree_util.tree_map_with_path(fill, shapes(network, sizes))
    t = sizes.schedule.time(jnp.asarray([-3.0, 5.0]))
    cond = {"label": jnp.asarray([1, 7], jnp.int32)} if sizes.classes("label") else {}
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(network.apply)(params, X, t, cond))


def test_golden_output_with_resampling_convolutions():
    output = golden(image_spec((16, 16, 3), 0, 3), GOLDEN_B, power=1)
    # Printed to 5 and 6 digits.
    np.testing.assert_allclose(output[0, 0, 0], [0.05946, 0.02981, -0.00388], atol=6e-6)
    np.testing.assert_allclose(output[1, 8, 5], [0.0692, 0.05887, 0.04057], atol=6e-6)
    np.testing.assert_allclose([output.mean(), output.std()], [0.008088, 0.173239], atol=1e-6)


@pytest.mark.parametrize(
    ("logsnr_input", "first", "second"),
    [
        (
            "inv_cos",
            [-0.163064, -0.066786, 0.002884, 0.010262, 0.052592, -0.090484],
            [-0.172069, 0.059887, -0.502654, 1.042483, 0.438851, -0.659580],
        ),
        (
            "sigmoid",
            [-0.161432, -0.070768, 0.005656, 0.012331, 0.050181, -0.086213],
            [-0.171553, 0.081077, -0.488061, 1.071465, 0.471944, -0.636828],
        ),
        (
            "linear",
            [-0.162129, -0.070044, 0.003750, 0.013799, 0.049681, -0.091502],
            [-0.174742, 0.106592, -0.476724, 1.104313, 0.477600, -0.623116],
        ),
    ],
)
def test_golden_output_with_labels_and_resampling_blocks(logsnr_input, first, second):
    # Power 1 makes channels so similar that 32 groups of one channel amplify rounding to 1e-1: the
    # released network with and without jit differs by as much. With power 2 the difference is 7e-6;
    # its golden values were computed with the released network.
    options = {**GOLDEN_A, "logsnr_input": logsnr_input}
    output = golden(image_spec((16, 16, 3), 10, 6), options, power=2)
    np.testing.assert_allclose(output[0, 0, 0], first, atol=2e-5)
    np.testing.assert_allclose(output[1, 8, 5], second, atol=2e-5)


def test_golden_output_with_amplified_rounding_is_matched_up_to_that_rounding():
    output = golden(image_spec((16, 16, 3), 10, 6), GOLDEN_A, power=1)
    # The compiled released network has the same error.
    np.testing.assert_allclose([output.mean(), output.std()], [-0.0122, 0.0688], rtol=0.1)
    first = [0.03414, 0.02125, 0.00548, -0.01103, -0.02605, -0.03754]
    np.testing.assert_allclose(output[0, 0, 0], first, atol=0.013)


@functools.cache
def small(**options):
    """Returns a tiny network with compiled functions, and parameters that are not zero."""
    network = jitted(unet(SIZES, **{**SMALL, **options}))
    return network, filled(shapes(network, SIZES))


def test_the_null_label_is_embedded_as_no_class():
    network, params = small()
    kernel = 2 * params["class_emb"]["kernel"]
    changed = {**params, "class_emb": {**params["class_emb"], "kernel": kernel}}
    cond = {"label": jnp.asarray([SIZES.classes("label"), 1], jnp.int32)}
    difference = network.apply(params, Z, T, cond) - network.apply(changed, Z, T, cond)
    np.testing.assert_array_equal(difference[0], 0)
    assert float(jnp.abs(difference[1]).max()) > 0.1


def test_infinite_logsnr_at_the_ends_is_a_legal_input():
    sizes = SIZES._replace(schedule=SCHEDULES["rectified_flow"]())
    ends = jnp.asarray([0.0, 1.0])
    assert not jnp.isfinite(sizes.schedule.logsnr(ends)).any()
    network = unet(sizes, **SMALL, logsnr_input="linear")
    _, params = small()
    assert jnp.isfinite(jax.jit(network.apply)(params, Z, ends, LABEL)).all()


def test_dropout_needs_a_key_and_is_a_function_of_it():
    # The golden test covers that dropout without a key does nothing.
    network, params = small()
    still = network.apply(params, Z, T, LABEL)
    first, again, other = (
        network.apply(params, Z, T, LABEL, jax.random.key(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert float(jnp.abs(first - other).max()) > 0.1
    assert float(jnp.abs(first - still).max()) > 0.1


def test_in_bfloat16_parameters_and_output_stay_float32_and_agree():
    network, params = small()
    half, _ = small(dtype="bfloat16")
    made = jax.eval_shape(half.init, KEY, Z, T, LABEL)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    single, rounded = (made.apply(params, Z, T, LABEL) for made in (network, half))
    assert rounded.dtype == jnp.float32
    # 8 bits are steps of 0.4%, which add up to about 1% of the output's standard deviation.
    error = float(jnp.sqrt(jnp.mean((single - rounded) ** 2)) / single.std())
    assert 1e-4 < error < 0.04


def gradient(remat):
    network, params = small(remat=remat)

    def loss(params, key):
        return jnp.mean(network.apply(params, Z, T, LABEL, key) ** 2)

    return jax.grad(loss), params


def test_gradients_do_not_change_with_remat():
    # With dropout, the recomputation must drop the same activations.
    pairs = map(gradient, ("none", "full"))
    kept, again = (named(jax.jit(function)(params, KEY)) for function, params in pairs)
    assert kept.keys() == again.keys()
    for path, grad in kept.items():
        # Some biases only change rounding, 1e-8, because the next layer subtracts the mean.
        np.testing.assert_allclose(again[path], grad, rtol=1e-4, atol=1e-7, err_msg=path)


def test_remat_decides_what_is_computed_twice():
    def count(remat, primitive):
        function, params = gradient(remat)
        return str(jax.make_jaxpr(function)(params, KEY)).count(f"= {primitive}")

    for primitive in ("conv_general_dilated", "dot_general"):
        assert count("full", primitive) > count("none", primitive)
    assert count("dots", "conv_general_dilated") == count("none", "conv_general_dilated")
    products = count("dots", "dot_general") - count("none", "dot_general")
    assert products == 2  # q k^T and its product with v; the text has equal attentions once.
    assert count("dots", "rsqrt") > count("none", "rsqrt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 48}, "channels is 48; expected a multiple of 32 from 32"),
        ({"embedding": 33}, "embedding is 33; expected a multiple of 2 from 4"),
        ({"multipliers": ()}, "multipliers is .*; expected a number from 1 for each level"),
        ({"multipliers": (1, 0)}, "multipliers is .1, 0."),
        ({"blocks": 0}, "blocks is 0; expected a whole number from 1"),
        ({"multipliers": (1, 1, 1, 1)}, "image is 4x4; .* a multiple of 8"),
        ({"spec": image_spec((4, 6, 3), 3, 3)}, "image is 4x6; expected a square"),
        ({"attention": (4, 8)}, "attention is .4, 8.; expected sides .*: 4"),
        ({"heads": None}, "heads is None and head_dim None; set one"),
        ({"head_dim": 16}, "heads is 2 and head_dim 16; set one"),
        ({"heads": 5}, "heads is 5; expected a divisor of the 32 channels at side 4"),
        ({"heads": None, "head_dim": 64}, "head_dim is 64; expected a divisor of the 32"),
        ({"heads": 0}, "heads is 0; expected None or a whole number from 1"),
        ({"dropout": 1.0}, "dropout is 1.0; expected a probability"),
        ({"dtype": "float16"}, "dtype is 'float16'; expected one of float32, bfloat16"),
        ({"remat": "all"}, "remat is 'all'; expected one of none, dots, full"),
        ({"logsnr_input": "cos"}, "logsnr_input is 'cos'; expected one of inv_cos, sigmoid"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        unet(**{"spec": SIZES, **SMALL, **options})


def test_a_wrong_option_of_a_unet_is_refused_with_a_suggestion():
    with pytest.raises(KeyError, match="does not take 'chanels'.*did you mean 'channels'"):
        build(NETWORKS, "network", {"name": "unet", "chanels": 32}, SIZES)
    with pytest.raises(KeyError, match="needs a value for 'channels'"):
        build(NETWORKS, "network", {"name": "unet"}, SIZES)
    assert isinstance(build(NETWORKS, "network", {"name": "unet", **SMALL}, SIZES), Network)
