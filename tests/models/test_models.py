"""Contracts that hold for every entry of NETWORKS."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.spec import image_spec
from distill_jax.models import NETWORKS
from distill_jax.models.dit import centres, dit, position_embedding
from distill_jax.models.graft import graft
from distill_jax.models.layers import attention, has_flash_attention, sinusoid, stacked
from distill_jax.run.flops import flops
from tests.toys import filled, jitted

SMALL = {
    "mlp": {"width": 16, "blocks": 1},
    "dit": {"width": 16, "blocks": 1, "heads": 2, "patch": 2},
    "diffusers_dit": {"width": 16, "blocks": 1, "heads": 2},
    "flux": {
        "heads": 2,
        "head_dim": 8,
        "axes": (2, 2, 4),
        "blocks": 1,
        "singles": 1,
        "guidance": True,
    },
    "mmdit": {"heads": 2, "head_dim": 8, "blocks": 2, "dual": 1},
    # 64 channels are two per group: a group of one channel would remove its bias.
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
    # Two channels per group, for the same reason; the middle has the only transformer.
    "sd_unet": {
        "widths": (8,),
        "blocks": 1,
        "transformers": (),
        "heads": (2,),
        "groups": 4,
        "w_channels": 8,
    },
}
SHAPE = (4, 6, 3)
Z = jax.random.normal(jax.random.key(0), (5, *SHAPE))
T = jnp.linspace(0, 1, 5)
LABEL = {"label": jnp.asarray([0, 1, 2, 3, 0], jnp.int32)}
ALL = {**LABEL, "w": jnp.linspace(0, 4, 5), "target": jnp.linspace(1, 0, 5)}
FEATURES = {
    "mlp": (5, 1, 16),
    "dit": (5, 6, 16),
    "diffusers_dit": (5, 6, 16),
    "flux": (5, 6, 16),
    "mmdit": (5, 6, 16),
    "unet": (5, 16, 64),
    "adm_unet": (5, 24, 8),
    "song_unet": (5, 24, 8),
    "sd_unet": (5, 24, 8),
}
# Number of attentions, their tokens and their channels.
ATTENTIONS = {
    "dit": (1, 6, 16),
    "diffusers_dit": (1, 6, 16),
    "flux": (2, 6, 16),
    "mmdit": (3, 6, 16),
    "unet": (4, 16, 64),
    "adm_unet": (4, 24, 8),
    "song_unet": (3, 24, 8),
    "sd_unet": (2, 24, 8),
}
STACKS = {
    "dit": "block[0:3]",
    "diffusers_dit": "transformer_blocks[0:3]",
    "flux": "transformer_blocks[0:3]",
    "mmdit": "transformer_blocks[1:2]",
}
# Modules, or layers of a stack, before the middle of a network of 3 blocks, and after it.
AROUND_THE_MIDDLE = {
    "mlp": ("down_1", "down_2"),
    "dit": (1, 2),
    "diffusers_dit": (1, 2),
    "flux": (1, 2),
    "mmdit": (0, "transformer_blocks.2"),
    "unet": ("mid.block_2", "up_0.block_0"),
    "adm_unet": ("unet/mid_1", "unet/up_0_block_0"),
    "song_unet": ("unet/mid_1", "unet/up_0_block_0"),
    "sd_unet": ("mid_block.resnets.1", "up_blocks.0.resnets.0"),
}


def images(name):
    """Returns the arguments of a network; the UNet takes only squares."""
    return Z[:, :, :4] if name == "unet" else Z


def conditions(name):
    """Returns every condition that a network has modules for."""
    text = {"text": jax.random.normal(jax.random.key(1), (5, 2, 3)), "pooled": Z[:, 0, 0]}
    return {**ALL, **text} if name in ("flux", "mmdit") else ALL


def make(name, channels=3):
    return NETWORKS[name](image_spec(images(name).shape[1:], 3, channels), **SMALL[name])


@functools.cache
def compiled(name):
    """Returns a network that takes every condition, compiled once for all tests, and parameters."""
    network = jitted(make(name))
    key = jax.random.key(0, impl="unsafe_rbg")  # Half the time to compile.
    return network, network.init(key, images(name), T, conditions(name))


def test_every_network_is_tried_here():
    # The exact network has one shape, and does not start at zero: test_exact.py.
    assert SMALL.keys() | {"mixture"} == NETWORKS.keys()


@pytest.mark.parametrize("name", SMALL)
def test_output_has_the_images_shape_and_the_specs_channels(name):
    network, z = make(name, channels=6), images(name)
    params = jax.eval_shape(network.init, jax.random.key(0), z, T, LABEL)
    output = jax.eval_shape(network.apply, params, z, T, LABEL)
    assert output.shape == (*z.shape[:3], 6)
    assert output.dtype == jnp.float32


@pytest.mark.parametrize("name", SMALL)
def test_every_input_has_an_effect_on_its_own_example_and_on_no_other(name):
    (network, params), z = compiled(name), images(name)
    params = filled(params)
    base = network.apply(params, z, T, ALL)
    changes = {
        "z": (z.at[2].add(0.1), T, ALL),
        "t": (z, T.at[2].add(0.1), ALL),
        "label": (z, T, {**ALL, "label": ALL["label"].at[2].set(1)}),
        "w": (z, T, {**ALL, "w": ALL["w"].at[2].add(0.1)}),
        "target": (z, T, {**ALL, "target": ALL["target"].at[2].add(0.04)}),
    }
    for what, arguments in changes.items():
        difference = jnp.abs(network.apply(params, *arguments) - base).max(axis=(1, 2, 3))
        assert float(difference[2]) > 1e-4, what
        np.testing.assert_allclose(difference[jnp.asarray([0, 1, 3, 4])], 0, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_a_new_w_and_a_new_target_have_modules_of_their_own_and_no_effect(name):
    (network, with_both), z = compiled(name), images(name)
    cond = {key: x for key, x in conditions(name).items() if key not in ("w", "target")}
    without = filled(jax.eval_shape(network.init, jax.random.key(0), z, T, cond))
    guidance = (f"time_text_embed.guidance_embedder.linear_{i}" for i in (1, 2))
    new = ("w_embed", "target_embed", "time_embedding.cond_proj", *guidance)
    grafted = graft(with_both, without, new=new)
    # Two programs, in which XLA may fuse the sums of a normalisation differently: roundings.
    y, expected = network.apply(grafted, z, T, ALL), network.apply(without, z, T, LABEL)
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=2e-6)


def test_targets_a_25th_apart_are_embedded_further_apart_than_rounding():
    # The step between adjacent targets of a BOOT student is 1/25 (Gu et al. 2023).
    embedded = sinusoid(jnp.linspace(0, 1, 26), 16)
    distances = jnp.linalg.norm(embedded[:, None] - embedded[None], axis=-1)
    assert float((distances + 9 * jnp.eye(26)).min()) > 1


@pytest.mark.parametrize("name", ["mlp", "dit"])
def test_the_time_scale_stretches_the_embedding_of_the_time_only(name):
    network, params = compiled(name)
    smooth = NETWORKS[name](image_spec(SHAPE, 3, 3), **SMALL[name], time_scale=10.0)
    params = filled(params)
    expected = network.apply(params, Z, T / 100, ALL)
    np.testing.assert_allclose(smooth.apply(params, Z, T, ALL), expected, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_a_new_network_returns_zero_and_learns_in_every_parameter(name):
    (network, params), z, cond = compiled(name), images(name), conditions(name)
    np.testing.assert_array_equal(network.apply(params, z, T, cond), jnp.zeros_like(z))
    grads = jax.jit(jax.grad(lambda p: jnp.sum(network.apply(p, z, T, cond) ** 2)))(filled(params))
    # The softmax cancels the bias of keys; nothing reads the text after the last block of mmdit.
    without = ("['k']['bias']", "to_k']['bias']")
    unread = ("['transformer_blocks.1']['attn.add_q", "['transformer_blocks.1']['attn.norm_added_q")
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path)
        if not name.endswith(without) and not name.startswith(unread):
            assert float(jnp.abs(grad).max()) > 1e-5, name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", SMALL)
def test_half_precision_parameters_give_the_output_of_their_float32_values(name, dtype):
    (network, params), z = compiled(name), images(name)
    half = jax.tree.map(lambda leaf: leaf.astype(dtype), filled(params))
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    output = network.apply(half, z, T, ALL)
    assert output.dtype == jnp.float32
    # They are cast to float32 where they are used, so only the order of sums may differ.
    expected = network.apply(single, z, T, ALL)
    np.testing.assert_allclose(output, expected, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("name", ["diffusers_dit", "dit", "flux", "mmdit"])
def test_a_transformer_in_bfloat16_keeps_float32_parameters_and_agrees(name):
    sizes, make = image_spec(SHAPE, 3, 3), NETWORKS[name]
    single, half = (make(sizes, **SMALL[name], dtype=d) for d in ("float32", "bfloat16"))
    params = filled(jax.eval_shape(single.init, jax.random.key(0), Z, T, LABEL))
    made = jax.eval_shape(half.init, jax.random.key(0), Z, T, LABEL)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    a, b = (jax.jit(network.apply)(params, Z, T, LABEL) for network in (single, half))
    # bfloat16 has 8 bits: a few per cent of the output's standard deviation.
    assert float(jnp.abs(a - b.astype(jnp.float32)).max()) < 0.05 * float(a.std()) * 4


def test_a_transformer_moves_patches_and_puts_them_back(monkeypatch):
    # With a zero input kernel the output depends on positions, and not on the image.
    network = make("dit")
    params = filled(jax.eval_shape(network.init, jax.random.key(0), Z, T, LABEL))
    params["input"]["kernel"] = jnp.zeros_like(params["input"]["kernel"])
    still = network.apply(params, Z, T, LABEL)
    np.testing.assert_allclose(still, network.apply(params, Z + 1, T, LABEL), atol=1e-6)
    assert float(jnp.abs(still[:, :2, :2] - still[:, 2:, 4:]).max()) > 1e-3


def gradient(name, remat):
    network = NETWORKS[name](image_spec(images(name).shape[1:], 3, 3), **SMALL[name], remat=remat)
    params = filled(jax.eval_shape(network.init, jax.random.key(0), images(name), T, LABEL))

    def loss(params):
        return jnp.mean(network.apply(params, images(name), T, LABEL) ** 2)

    return jax.grad(loss), params


@pytest.mark.parametrize("name", ATTENTIONS)
def test_more_rematerialisation_means_more_computation(name):
    # "dots" recomputes all but convolutions and products with weights. So it recomputes the two
    # products of an attention, q k^T and softmax(q k^T) v, each of 2 batch tokens^2 width FLOPs.
    none, dots, full = (flops(*gradient(name, remat)) for remat in ("none", "dots", "full"))
    attentions, tokens, width = ATTENTIONS[name]
    assert dots - none == attentions * 2 * (2 * len(Z) * tokens**2 * width)
    assert dots < full < 2 * none
    none, dots, full = (
        str(jax.make_jaxpr(function)(params)).count(" rsqrt ")
        for function, params in (gradient(name, remat) for remat in ("none", "dots", "full"))
    )
    assert none < dots == full


def test_rematerialisation_does_not_change_gradients():
    pairs = (gradient("dit", remat) for remat in ("none", "full"))
    kept, again = (jax.jit(function)(params) for function, params in pairs)
    for one, other in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remat": "all"}, "remat is 'all'; expected one of none, dots, full"),
        ({"patch": 3}, "patch 3 does not divide the image of 4x6"),
        ({"width": 18, "heads": 2}, "width is 18; expected a multiple of 4 from 4"),
        ({"width": 16, "heads": 3}, "by heads = 3"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dit(image_spec(SHAPE, 3, 3), **options)


def test_sinusoid_has_the_golden_values(x64):
    # papers/progressive_and_guided.md, section 8.2: u = 0.25, 8 wide.
    golden = [-0.970528, -0.820565, 0.512942, 0.024997, 0.240988, 0.571553, 0.858423, 0.999688]
    np.testing.assert_allclose(sinusoid(jnp.asarray([0.25]), 8)[0], golden, atol=6e-7)


@pytest.mark.parametrize("name", SMALL)
def test_features_are_float32_vectors_at_positions_or_are_not_offered(name):
    network, z = make(name), images(name)
    if name not in FEATURES:
        assert network.features is None
        return
    params = jax.eval_shape(network.init, jax.random.key(0), z, T, LABEL)
    features = jax.eval_shape(network.features, params, z, T, LABEL)
    assert (features.shape, features.dtype) == (FEATURES[name], jnp.float32)


@pytest.mark.parametrize("name", FEATURES)
def test_features_come_from_the_middle(name):
    blocks = {} if "unet" in name else {"blocks": 3}
    sizes = image_spec(images(name).shape[1:], 3, 3)
    network = jitted(NETWORKS[name](sizes, **{**SMALL[name], **blocks}))
    arguments = (images(name), T, LABEL)
    shapes = jax.eval_shape(network.init, jax.random.key(0), *arguments)
    params, (before, after) = filled(shapes), AROUND_THE_MIDDLE[name]
    base = network.features(params, *arguments)

    def change(module):
        module, layer = (STACKS[name], module) if isinstance(module, int) else (module, ...)

        def moved(path, leaf):
            place = jax.tree_util.keystr(path, simple=True, separator="/")
            return leaf.at[layer].add(0.1) if place.startswith(f"{module}/") else leaf

        changed = jax.tree_util.tree_map_with_path(moved, params)
        return float(jnp.abs(network.features(changed, *arguments) - base).max())

    assert change(before) > 1e-3
    assert change(after) == 0
    other = network.features(params, arguments[0].at[2].add(0.1), T, LABEL) - base
    moved = jnp.abs(other).max(axis=(1, 2)) > 1e-4
    np.testing.assert_array_equal(moved, [False, False, True, False, False])


def test_features_of_a_transformer_in_bfloat16_are_float32():
    network = dit(image_spec(SHAPE, 3, 3), **SMALL["dit"], dtype="bfloat16")
    params = jax.eval_shape(network.init, jax.random.key(0), Z, T, LABEL)
    assert jax.eval_shape(network.features, params, Z, T, LABEL).dtype == jnp.float32


SQUARE = image_spec((8, 8, 3), 3, 3)
LEVELS = {"multipliers": (1, 1), "attention": (4,)}


@pytest.mark.parametrize("side", [2, 4, 16])
@pytest.mark.parametrize(
    "name", ["adm_unet", "diffusers_dit", "dit", "flux", "mmdit", "song_unet", "unet"]
)
def test_one_set_of_parameters_serves_several_sizes(name, side):
    network = NETWORKS[name](SQUARE, **{**SMALL[name], **(LEVELS if "unet" in name else {})})
    full, z = jnp.zeros((5, 8, 8, 3)), jnp.zeros((5, side, side, 3))
    params = jax.eval_shape(network.init, jax.random.key(0), full, T, LABEL)
    assert params == jax.eval_shape(network.init, jax.random.key(0), z, T, LABEL)
    assert jax.eval_shape(network.apply, params, z, T, LABEL).shape == z.shape


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("mlp", 4, r"image is \(4, 4, 3\); this mlp was made for \(8, 8, 3\).*: take dit or unet"),
        ("dit", 3, "patch 2 does not divide the image of 3x3; expected sides that are multiples"),
        ("unet", 3, "image is 3x3; this unet halves its sides 1 times, so expected multiples of 2"),
        ("song_unet", 3, "image is 3x3; this unet halves its sides 1 times"),
    ],
)
def test_an_image_of_a_size_that_a_network_cannot_take_is_refused(name, side, message):
    network = NETWORKS[name](SQUARE, **{**SMALL[name], **(LEVELS if "unet" in name else {})})
    z = jnp.zeros((5, side, side, 3))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(network.init, jax.random.key(0), z, T, LABEL)


def test_positions_are_places_in_the_image_at_every_size():
    np.testing.assert_array_equal(centres(4, 4), [0, 1, 2, 3])
    # Two patches cover the area of four: the centre of the first is between those of 0 and 1.
    np.testing.assert_array_equal(centres(2, 4), [0.5, 2.5])
    np.testing.assert_array_equal(centres(1, 4), [1.5])
    np.testing.assert_array_equal(centres(8, 4)[:3], [-0.25, 0.25, 0.75])


def test_a_transformer_places_the_patches_of_a_smaller_image():
    # With all parameters zero, only the positions have an effect.
    network = jitted(dit(SQUARE, **SMALL["dit"]))
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), T[:1], {})
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    for side, places in ((8, np.arange(4)), (4, np.asarray([0.5, 2.5]))):
        features = network.features(params, jnp.ones((1, side, side, 3)), T[:1], {})
        np.testing.assert_allclose(features[0], position_embedding(places, places, 16), atol=1e-6)


def test_positions_are_all_different_and_rows_differ_from_columns():
    table = position_embedding(np.arange(4), np.arange(4), 16)
    assert table.shape == (16, 16)
    distances = np.linalg.norm(table[:, None] - table[None], axis=-1)
    assert (distances + np.eye(16) > 0.3).all()


def test_flash_attention_is_for_half_precision_and_heads_that_cudnn_has():
    half = jnp.dtype("bfloat16")
    assert has_flash_attention(8.0, half, 64)
    assert has_flash_attention(9.0, half, 256)
    assert not has_flash_attention(8.9, half, 256)
    assert not has_flash_attention(7.5, half, 64)
    assert not has_flash_attention(9.0, half, 60)
    assert not has_flash_attention(9.0, jnp.dtype("float32"), 64)


@pytest.mark.parametrize("kernel", ["auto", "xla", "cudnn"])
def test_attention_is_softmax_of_products_on_every_device_with_every_kernel(kernel):
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 5, 3, 8)) for i in range(3))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, precision="highest") / 8**0.5
    expected = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v, precision="highest")
    np.testing.assert_allclose(attention(q, k, v, kernel), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_masked_attention_and_its_gradient_are_those_of_jax(dtype):
    q, k, v, change = (
        jax.random.normal(jax.random.key(i), (3, 5, 2, 8)).astype(dtype) for i in range(4)
    )
    mask = jnp.asarray([[1, 1, 0, 0, 0], [1, 0, 0, 1, 0], [1, 1, 1, 1, 1]])
    outputs = []
    for function in (
        lambda q, k, v: attention(q, k, v, "auto", mask),
        lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None] > 0),
    ):
        y, gradient = jax.vjp(function, q, k, v)
        outputs.append([leaf.astype(jnp.float32) for leaf in (y, *gradient(change))])
    tolerance = 3e-2 if dtype == "bfloat16" else 1e-5  # JAX rounds the divided softmax.
    for mine, others in zip(*outputs, strict=True):
        np.testing.assert_allclose(mine, others, rtol=tolerance, atol=tolerance)


def test_a_gpu_without_the_requested_kernel_is_one_message(monkeypatch):
    class Gpu:
        platform, compute_capability = "gpu", "7.5"

    monkeypatch.setattr(jax, "devices", lambda: [Gpu()])
    q = jnp.ones((1, 2, 1, 8))
    with pytest.raises(ValueError, match="'cudnn', which has no kernel for float32 .* take 'auto'"):
        attention(q, q, q, "cudnn")
    np.testing.assert_array_equal(attention(q, q, q, "auto"), q)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def test_a_transformers_program_holds_one_block_whatever_their_number():
    def size(blocks):
        network = dit(image_spec(SHAPE, 3, 3), **{**SMALL["dit"], "blocks": blocks})
        params = jax.eval_shape(network.init, jax.random.key(0), Z, T, LABEL)
        assert params[f"block[0:{blocks}]"]["up"]["kernel"].shape == (blocks, 16, 64)
        return len(list(equations(jax.make_jaxpr(network.apply)(params, Z, T, LABEL).jaxpr)))

    assert size(2) == size(24)


class Toy(nn.Module):
    @nn.compact
    def __call__(self, h, add):
        return nn.tanh(nn.Dense(4, name="dense")(h) + add), None


@pytest.mark.parametrize(("policy", "first"), [("none", 3), ("full", 3), ("dots", 2)])
def test_stacked_blocks_are_the_first_blocks_one_after_the_other(policy, first):
    h, add = jax.random.normal(jax.random.key(0), (2, 4)), 0.1
    every = stacked(Toy, policy, 3, 3)(name="block[0:3]")
    params = filled(every.init(jax.random.key(1), h, add)["params"])
    assert jax.tree.map(jnp.shape, params) == {"dense": {"kernel": (3, 4, 4), "bias": (3, 4)}}
    got, _ = stacked(Toy, policy, 3, first)(name="block[0:3]").apply({"params": params}, h, add)
    for layer in range(first):
        own = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params)
        h, _ = Toy().apply({"params": own}, h, add)
    np.testing.assert_allclose(got, h, rtol=1e-5)


def test_blocks_start_with_weights_of_their_own():
    params = stacked(Toy, "none", 3, 3)().init(jax.random.key(1), jnp.ones((2, 4)), 0.0)["params"]
    kernels = params["dense"]["kernel"]
    assert float(jnp.abs(kernels[0] - kernels[1]).max()) > 0.1
