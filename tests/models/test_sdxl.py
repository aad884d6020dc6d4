"""Tests of the UNet of SDXL against diffusers: outputs, names, and round trips."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from distill_jax.diffusion.spec import DataSpec, Leaf, Spec
from distill_jax.models import NETWORKS, adapters
from distill_jax.models.diffusers_files import unet_of
from distill_jax.models.pretrained import stored_params, torch_state
from distill_jax.models.sd_unet import PIXELS, sd_unet
from distill_jax.runtime.registry import build
from distill_jax.runtime.trees import by_name
from distill_jax.storage import safetensors
from distill_jax.storage.weights import of_array
from tests.models.diffusers import SIZES, TEXT
from tests.models.diffusers.sdxl import CHANNELS, POOLED, SDXL, arguments, weights
from tests.models.test_diffusers import HERE, names_of, tree_of

RECORDED = np.load(HERE / "recorded_sdxl.npz")
OPTIONS = {
    "widths": (8, 16, 24),
    "blocks": 1,
    "transformers": (1, 2),
    "heads": (1, 2, 3),
    "depths": (1, 2, 3),
    "size_channels": CHANNELS,
    "linear": True,
    "groups": 4,
}


@pytest.fixture(scope="module", autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def spec_of(shape, text, width, pooled):
    """Returns the spec of latents of 4 channels with a text of so many tokens."""
    leaves = {"text": Leaf((text, width)), "text_mask": Leaf((text,), "bool")}
    leaves |= {"pooled": Leaf((pooled,))} if pooled else {}
    return Spec(DataSpec(Leaf((*shape, 4)), False, tuple(leaves.items())), 4)


def state_of(dtype="float32"):
    """Returns the recorded weights."""
    names = json.loads(str(RECORDED["sdxl_names"]))
    return {key: of_array(weights(key, tuple(shape)).astype(dtype)) for key, shape in names.items()}


def unet(sizes, **options):
    """Returns the network, its parameters, and its arguments."""
    z, k, text, pooled = arguments(sizes)
    cond = {"text": text, "text_mask": np.ones((len(z), 7), bool), "pooled": pooled}
    given = jax.tree.map(jnp.asarray, (z, (k + 1) / np.float32(1000), cond))
    network = sd_unet(spec_of(sizes[1:], 7, TEXT, POOLED), **{**OPTIONS, **options})
    needed = jax.eval_shape(network.init, jax.random.key(0), *given)
    params = stored_params(needed, state_of(), epath.Path("sdxl"), "")
    return network, jax.tree.map(lambda leaf: jnp.asarray(leaf.read(())), params), given


@pytest.mark.parametrize("number", range(len(SIZES)))
def test_the_unet_of_sdxl_is_that_of_diffusers(number):
    network, params, given = unet(SIZES[number])
    expected = RECORDED[f"sdxl_{number}"]
    found = jax.jit(network.apply)(params, *given)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("number", range(len(SIZES)))
def test_the_sizes_are_those_of_the_pipeline_for_a_whole_image(number):
    height, width = (PIXELS * side for side in SIZES[number][1:])
    ids = RECORDED[f"sdxl_ids_{number}"]
    np.testing.assert_array_equal(ids, (height, width, 0, 0, height, width))


def test_a_unet_of_sdxl_that_stores_little_or_computes_in_bfloat16_agrees():
    network, params, given = unet(SIZES[1])
    less, _, _ = unet(SIZES[1], remat="full")
    half, _, _ = unet(SIZES[1], dtype="bfloat16", remat="dots")

    def gradient(network):
        loss = jax.jit(jax.value_and_grad(lambda p: jnp.abs(network.apply(p, *given)).mean()))
        return loss(params)

    (a, by_all), (b, by_less), (c, _) = map(gradient, (network, less, half))
    np.testing.assert_allclose(b, a, rtol=1e-6)
    np.testing.assert_allclose(c, a, rtol=0.05)
    for x, y in zip(jax.tree.leaves(by_all), jax.tree.leaves(by_less), strict=True):
        np.testing.assert_allclose(y, x, rtol=0, atol=1e-4 * float(jnp.abs(x).max()) + 1e-9)


def test_the_full_unet_of_sdxl_has_the_names_and_shapes_of_diffusers():
    config, expected = tree_of("sdxl_unet")
    found = unet_of(config, "sdxl_unet")
    assert (found.text_width, found.pooled_width, found.channels) == (2048, 1280, 4)
    assert (found.model["depths"], found.model["size_channels"]) == ((1, 2, 10), 256)
    spec = spec_of((128, 128), 77, found.text_width, found.pooled_width)
    network = build(NETWORKS, "network", found.model, spec)
    params = jax.eval_shape(network.init, jax.random.key(0), *spec.example(()))
    assert names_of(params) == expected
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2_567_463_684


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_of_sdxl_are_imported_and_exported_bit_for_bit(tmp_path, dtype):
    given, again = epath.Path(tmp_path / "given.safetensors"), tmp_path / "again.safetensors"
    safetensors.write(given, state_of(dtype))
    spec = spec_of(SIZES[1][1:], 7, TEXT, POOLED)
    network = sd_unet(spec, **OPTIONS)
    needed = jax.eval_shape(network.init, jax.random.key(0), *spec.example(()))
    params = stored_params(needed, safetensors.read(given), given, "")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(dtype)}
    safetensors.write(again, torch_state(params))
    assert again.read_bytes() == given.read_bytes()


def test_a_single_block_has_no_axis_of_blocks():
    spec = spec_of(SIZES[1][1:], 7, TEXT, 0)
    options = {**OPTIONS, "size_channels": 0, "transformers": (1,)}
    trees = []
    for depths in ((), (1, 1, 1)):
        network = sd_unet(spec, **{**options, "depths": depths})
        trees.append(jax.eval_shape(network.init, jax.random.key(0), *spec.example(())))
    assert trees[0] == trees[1]
    kernel = trees[0]["mid_block.attentions.0"]["transformer_blocks.0.attn1.to_q"]["kernel"]
    assert kernel.shape == (24, 24)


def test_adapters_of_a_stack_have_an_axis_of_blocks():
    network, params, given = unet(SIZES[1])
    axes = network.input_axes(params, *given)
    name = "down_blocks.2.attentions.0/transformer_blocks[0:3]/attn2.to_k/kernel"
    assert axes[name] == 1
    made = by_name(adapters.new_adapters(jax.random.key(0), params, axes, rank=2))
    shapes = [made[f"{name}/lora_{part}"].shape for part in "ab"]
    assert shapes == [(3, TEXT, 2), (3, 2, 24)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": (1, 2)}, r"depths is \(1, 2\); expected a number for each of the 3 levels"),
        ({"depths": (1, 0, 1)}, r"depths is \(1, 0, 1\); expected"),
        ({"size_channels": 7}, "size_channels is 7; expected"),
    ],
)
def test_options_that_do_not_fit_are_one_message(change, message):
    with pytest.raises(ValueError, match=message):
        sd_unet(spec_of((8, 8), 7, TEXT, POOLED), **{**OPTIONS, **change})


def test_sizes_without_a_pooled_text_are_one_message():
    with pytest.raises(ValueError, match="size_channels is 8, .* expected 'pooled' too"):
        sd_unet(spec_of((8, 8), 7, TEXT, 0), **OPTIONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer_layers_per_block": [1, 2]}, "transformer_layers_per_block is .* each level"),
        ({"transformer_layers_per_block": [[1], 2, 3]}, "transformer_layers_per_block is "),
        ({"reverse_transformer_layers_per_block": [3, 2, 2]}, r"expected null, or \[3, 2, 1\]"),
        ({"addition_embed_type": "text_image"}, "is 'text_image'; expected null or 'text_time'"),
        ({"addition_time_embed_dim": None}, "addition_time_embed_dim is None; expected"),
        ({"addition_time_embed_dim": 7}, "addition_time_embed_dim is 7; expected"),
        (
            {"projection_class_embeddings_input_dim": 48},
            "input_dim is 48; expected 6 x addition_time_embed_dim = 48 and the width of",
        ),
        ({"projection_class_embeddings_input_dim": "a"}, "input_dim is 'a'; expected"),
    ],
)
def test_a_config_of_sdxl_that_is_not_supported_is_one_message(change, message):
    with pytest.raises(ValueError, match=message):
        unet_of({**SDXL, **change}, "config.json")


def test_levels_upwards_may_be_named_in_reverse():
    change = {"reverse_transformer_layers_per_block": [3, 2, 1]}
    assert unet_of({**SDXL, **change}, "") == unet_of(SDXL, "")
    assert unet_of(SDXL, "").model == {"name": "sd_unet", **OPTIONS}
