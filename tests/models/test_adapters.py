import functools

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from distill_jax.diffusion.spec import image_spec
from distill_jax.models import NETWORKS, adapters
from distill_jax.models.adapters import Adapted, merged, new_adapters
from distill_jax.runtime.sharding import AXES, Layout
from distill_jax.runtime.trees import by_name
from tests.toys import filled

KEY = jax.random.key(0)
SIZES = image_spec((8, 8, 3), 3, 3)
RESIDUAL = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}
OPTIONS = {
    "adm_unet": {**RESIDUAL, "head_dim": 16},
    "dit": {"width": 16, "blocks": 1, "heads": 2, "remat": "full"},
    "mlp": {"width": 16, "blocks": 1},
    "song_unet": RESIDUAL,
    "unet": {
        "channels": 32,
        "embedding": 32,
        "multipliers": (1,),
        "blocks": 1,
        "attention": (8,),
        "heads": 2,
    },
}


@functools.cache
def network_of(name):
    """Returns a network, its parameters, no array of which is zero, and its arguments."""
    network, (z, t, cond) = NETWORKS[name](SIZES, **OPTIONS[name]), SIZES.example(("target",), 2)
    given = jax.random.normal(KEY, z.shape), t + 0.3, cond
    return network, filled(jax.eval_shape(network.init, KEY, *given)), given


def adapters_of(name, rank=2, full=()):
    network, params, given = network_of(name)
    axes = network.input_axes(params, *given)
    return jax.eval_shape(lambda p: new_adapters(KEY, p, axes, rank, full), params)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_network_with_adapters_is_the_network_with_w_plus_a_b(name):
    """Equal up to float32 rounding: x W + (x a) b on one side, x (W + a b) on the other."""
    network, params, given = network_of(name)
    adapted = Adapted(params, filled(adapters_of(name, full=("target_embed",))))
    theirs, mine = (jax.jit(network.apply)(p, *given) for p in (merged(adapted), adapted))
    before = jax.jit(network.apply)(params, *given)
    size = float(jnp.abs(theirs).max())
    assert float(jnp.abs(theirs - before).max()) > 1e-2 * size
    np.testing.assert_allclose(mine, theirs, atol=2e-5 * size)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_large_kernel_of_every_layer_gets_a_pair(name):
    params, pairs = by_name(network_of(name)[1]), by_name(adapters_of(name, rank=1))
    for path, leaf in params.items():
        if path.endswith(("kernel", "embedding")) and min(leaf.shape[-1], leaf.size) > 2:
            assert f"{path}/lora_a" in pairs, path
        else:
            assert f"{path}/lora_a" not in pairs, path


@pytest.mark.parametrize("name", OPTIONS)
def test_new_adapters_change_nothing(name):
    network, params, given = network_of(name)
    axes = network.input_axes(params, *given)
    new = jax.jit(lambda p: new_adapters(KEY, p, axes, 2, ("target_embed",)))(params)
    before, after = (jax.jit(network.apply)(p, *given) for p in (params, Adapted(params, new)))
    # Different fusions round differently.
    np.testing.assert_allclose(after, before, atol=5e-6 * float(jnp.abs(before).max()))


def test_no_gradient_has_the_shape_of_a_frozen_kernel():
    """Nor has any other intermediate array: neither W + a b nor a gradient of W is computed."""
    network, params, given = network_of("dit")
    new = filled(adapters_of("dit"))

    def loss(new, params):
        return jnp.sum(network.apply(Adapted(params, new), *given) ** 2)

    def equations(jaxpr):
        for eqn in jaxpr.eqns:
            yield eqn
            for inner in jax.extend.core.jaxprs_in_params(eqn.params):
                yield from equations(inner)

    frozen = by_name(params)["block[0:1]/up/kernel"].shape
    assert frozen == (1, 16, 64)
    closed = jax.make_jaxpr(jax.grad(loss))(new, params)
    made = [
        e
        for e in equations(closed.jaxpr)
        if any(v.aval.shape in (frozen, frozen[1:]) for v in e.outvars)
    ]
    assert {str(e.primitive) for e in made} <= {"jit", "pjit", "copy", "convert_element_type"}


class Layers(nn.Module):
    """A network with one layer of every kind, with and without adapters."""

    @nn.compact
    def __call__(self, x, ids):
        outputs = [
            nn.Dense(24, name="dense")(x),
            nn.DenseGeneral((3, 4, 8), name="qkv")(x),
            nn.DenseGeneral(20, axis=(-3, -1), name="proj")(x),
            nn.Conv(24, (3, 3), strides=2, padding="VALID", name="conv")(x),
            nn.Conv(24, (2, 2), kernel_dilation=2, use_bias=False, name="conv_dilated")(x),
            nn.Conv(32, (3, 3), feature_group_count=2, name="grouped")(x),
            nn.Embed(64, 12, name="embed")(ids),
            nn.LayerNorm(name="norm")(x),
        ]
        return [jnp.tanh(output) for output in outputs]


def test_every_kind_of_layer_is_split_between_its_inputs_and_outputs():
    module, x = Layers(), jax.random.normal(KEY, (2, 9, 9, 16))
    ids = jnp.arange(6).reshape(2, 3)
    params = filled(jax.eval_shape(module.init, KEY, x, ids)["params"])
    axes = adapters.input_axes(module, params, x, ids)
    assert axes == {
        "dense/kernel": 1,
        "qkv/kernel": 1,
        "proj/kernel": 2,
        "conv/kernel": 3,
        "conv_dilated/kernel": 3,
        "embed/embedding": 1,
    }
    pairs = filled(jax.eval_shape(lambda p: new_adapters(KEY, p, axes, 3), params))
    shapes = {name: leaf.shape for name, leaf in by_name(pairs).items()}
    assert shapes["proj/kernel/lora_a"] == (9, 16, 3)
    assert shapes["qkv/kernel/lora_b"] == (3, 96)
    assert shapes["embed/embedding/lora_a"] == (64, 3)
    adapted = Adapted(params, pairs)
    mine = adapters.call(module, adapted, x, ids)
    theirs = module.apply({"params": merged(adapted)}, x, ids)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_kernel_changes_by_the_product_of_its_pair(name):
    _, params, _ = network_of(name)
    new = filled(adapters_of(name))
    whole, pairs = by_name(jax.jit(merged)(Adapted(params, new))), by_name(new)
    for path, leaf in by_name(params).items():
        change = np.asarray(whole[path] - leaf, np.float64)
        if f"{path}/lora_a" not in pairs:
            assert not change.any()
            continue
        a, b = (np.asarray(pairs[f"{path}/lora_{side}"], np.float64) for side in "ab")
        product = (a.reshape(-1, 2) @ b).reshape(leaf.shape)
        np.testing.assert_allclose(change, product, atol=1e-6)
        assert np.linalg.matrix_rank(change.reshape(-1, b.shape[1]), tol=1e-4) == 2


def test_a_is_noise_that_keeps_the_size_of_its_input_and_b_is_zero():
    params = {name: {"kernel": jnp.ones((20, 20, 300))} for name in "xy"}
    new = new_adapters(KEY, params, {"x/kernel": 2, "y/kernel": 2}, 50)
    a = new["x"]["kernel"]["lora_a"]
    assert a.shape == (20, 20, 50)
    # 20,000 draws estimate the standard deviation to half a per cent.
    np.testing.assert_allclose(float(a.std()) * 400**0.5, 1, atol=0.03)
    assert not np.array_equal(a, new["y"]["kernel"]["lora_a"])
    assert not new["x"]["kernel"]["lora_b"].any()


def test_only_kernels_larger_than_a_pair_get_adapters():
    params = {
        "dense": {"kernel": jnp.ones((16, 16)), "bias": jnp.ones((16,))},
        "output": {"kernel": jnp.ones((16, 12))},
    }
    axes = {"dense/kernel": 1, "output/kernel": 1}
    # 7 (16 + 16) < 16 16, but 7 (16 + 12) > 16 12.
    seven, six = (
        by_name(jax.eval_shape(lambda p, r=r: new_adapters(KEY, p, axes, r), params))
        for r in (7, 6)
    )
    assert seven.keys() == {"dense/kernel/lora_a", "dense/kernel/lora_b"}
    assert six.keys() == {*seven, "output/kernel/lora_a", "output/kernel/lora_b"}


def test_modules_in_full_replace_the_weights_and_may_be_new():
    network, params, given = network_of("dit")
    new = filled(adapters_of("dit", full=("target_embed", "output")))
    full = {path for path in by_name(params) if "target_embed" in path or "output" in path}
    assert len(full) == 6
    assert {path for path in by_name(new) if "lora" not in path} == full
    conditioning = dict(params["conditioning"])
    del conditioning["target_embed"]
    without = {**params, "conditioning": conditioning}
    whole = by_name(merged(Adapted(without, new)))
    assert whole.keys() == by_name(params).keys()
    for path in full:
        np.testing.assert_array_equal(whole[path], by_name(new)[path])
    both = (network.apply(Adapted(p, new), *given) for p in (without, params))
    np.testing.assert_array_equal(*both)


def test_the_gradient_reaches_the_adapters_and_starts_in_b():
    network, params, given = network_of("mlp")
    axes = network.input_axes(params, *given)
    new = new_adapters(KEY, params, axes, 2)
    loss = jax.grad(lambda new: jnp.sum(network.apply(Adapted(params, new), *given) ** 2))
    for path, gradient in by_name(loss(new)).items():
        assert bool(jnp.abs(gradient).max() > 1e-6) == path.endswith("lora_b"), path


def test_adapters_are_planned_and_sharded_from_shapes_only():
    shapes = adapters_of("dit", full=("target_embed",))
    assert "conditioning/target_embed/Dense_1/bias" in by_name(shapes)
    mesh = AbstractMesh((1, 4, 2), AXES, axis_types=(AxisType.Auto,) * 3)
    layout = Layout(mesh, rules=(("up/kernel/lora_b", (None, "tensor")),), min_size=32)
    specs = {path: sharding.spec for path, sharding in by_name(layout.shardings(shapes)).items()}
    assert specs["block[0:1]/up/kernel/lora_a"] == PartitionSpec(None, "fsdp")
    assert specs["block[0:1]/up/kernel/lora_b"] == PartitionSpec(None, None, "tensor")


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (0, "lora rank is 0; expected a whole number from 1"),
        (-4, "lora rank is -4; expected"),
        (12, "lora rank is 12, which saves nothing .*; expected at most 9"),
    ],
)
def test_an_invalid_rank_is_refused(rank, message):
    params = {"a": {"kernel": jnp.ones((16, 24)), "bias": jnp.ones((64,))}}
    with pytest.raises(ValueError, match=message):
        new_adapters(KEY, params, {"a/kernel": 1}, rank)
