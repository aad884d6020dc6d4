import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from distill_jax.diffusion.spec import image_spec
from distill_jax.models import NETWORKS
from distill_jax.models.adapters import merge, new_adapters
from distill_jax.runtime.sharding import AXES, Layout
from tests.toys import filled

KEY = jax.random.key(0)
SIZES = image_spec((8, 8, 3), 3, 3)
OPTIONS = {
    "dit": {"width": 16, "blocks": 1, "heads": 2},
    "unet": {
        "channels": 32,
        "embedding": 32,
        "multipliers": (1,),
        "blocks": 1,
        "attention": (),
        "heads": 2,
    },
}


@functools.cache
def params_of(name):
    network = NETWORKS[name](SIZES, **OPTIONS[name])
    arguments = SIZES.example(("target",))
    return filled(jax.eval_shape(network.init, KEY, *arguments))


def named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@pytest.mark.parametrize("name", OPTIONS)
def test_new_adapters_change_nothing(name):
    params = params_of(name)

    @jax.jit
    def merged(key, params):
        return merge(params, new_adapters(key, params, 2, new=("target_embed",)))

    jax.tree.map(np.testing.assert_array_equal, merged(KEY, params), params)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_kernel_changes_by_the_product_of_its_pair(name):
    params = params_of(name)
    adapters = filled(jax.eval_shape(lambda params: new_adapters(KEY, params, 2), params))
    merged, pairs = named(jax.jit(merge)(params, adapters)), named(adapters)
    for path, leaf in named(params).items():
        change = np.asarray(merged[path] - leaf, np.float64)
        if f"{path}/a" not in pairs:
            assert not change.any()
            continue
        a, b = (np.asarray(pairs[f"{path}/{side}"], np.float64) for side in "ab")
        np.testing.assert_allclose(change.reshape(len(a), -1), a @ b, atol=1e-6)
        assert np.linalg.matrix_rank(change.reshape(len(a), -1), tol=1e-4) == 2


def test_kernels_are_split_between_inputs_and_outputs():
    shapes = {
        "dense": ((32, 48), (32, 48)),
        "conv": ((3, 3, 16, 24), (144, 24)),
        "conv_1x1": ((1, 1, 16, 24), (16, 24)),
        "qkv": ((32, 3, 4, 8), (32, 96)),
        "q": ((32, 4, 8), (32, 32)),
        "proj": ((4, 8, 32), (32, 32)),
    }
    params = {name: {"kernel": jnp.ones(shape)} for name, (shape, _) in shapes.items()}
    adapters = jax.eval_shape(lambda params: new_adapters(KEY, params, 4), params)
    for name, (_, (inputs, outputs)) in shapes.items():
        pair = adapters[name]["kernel"]
        assert (pair["a"].shape, pair["b"].shape) == ((inputs, 4), (4, outputs)), name


def test_a_is_noise_that_keeps_the_size_of_its_input_and_b_is_zero():
    params = {name: {"kernel": jnp.ones((400, 300))} for name in "xy"}
    adapters = new_adapters(KEY, params, 50)
    a = adapters["x"]["kernel"]["a"]
    # 20,000 draws: the spread is known to half a per cent.
    np.testing.assert_allclose(float(a.std()) * 400**0.5, 1, atol=0.03)
    assert not np.array_equal(a, adapters["y"]["kernel"]["a"])
    assert not adapters["x"]["kernel"]["b"].any()


def test_only_kernels_that_a_pair_is_smaller_than_get_one():
    params = {
        "dense": {"kernel": jnp.ones((16, 16)), "bias": jnp.ones((16,))},
        "label_embed": {"embedding": jnp.ones((64, 64))},
        "output": {"kernel": jnp.ones((16, 12))},
    }
    # 7 (16 + 16) < 16 16, but 7 (16 + 12) > 16 12.
    seven, six = (jax.eval_shape(lambda p, r=r: new_adapters(KEY, p, r), params) for r in (7, 6))
    assert named(seven).keys() == {"dense/kernel/a", "dense/kernel/b"}
    assert named(six).keys() == {*named(seven), "output/kernel/a", "output/kernel/b"}


def test_new_modules_are_trained_in_full():
    params = params_of("dit")
    new = ("target_embed", "output")
    adapters = filled(jax.eval_shape(lambda params: new_adapters(KEY, params, 2, new), params))
    full = {path for path in named(params) if "target_embed" in path or "output" in path}
    assert len(full) == 6
    assert {path for path in named(adapters) if path.split("/")[-1] not in "ab"} == full
    merged = named(jax.jit(merge)(params, adapters))
    for path in full:
        np.testing.assert_array_equal(merged[path], named(adapters)[path])


def test_the_gradient_reaches_the_adapters_and_starts_in_b():
    params = {"dense": {"kernel": jnp.ones((8, 8))}}
    adapters = new_adapters(KEY, params, 2)
    grads = jax.grad(lambda tree: jnp.sum(merge(params, tree)["dense"]["kernel"] ** 2))(adapters)
    pair = grads["dense"]["kernel"]
    assert float(jnp.abs(pair["b"]).min()) > 1e-3
    assert not pair["a"].any()


def test_adapters_of_shapes_are_planned_and_placed_without_making_any():
    params = params_of("dit")
    make = functools.partial(new_adapters, rank=2, new=("target_embed",))
    shapes = jax.eval_shape(make, KEY, params)
    assert "conditioning/target_embed/Dense_1/bias" in named(shapes)
    mesh = AbstractMesh((1, 4, 2), AXES, axis_types=(AxisType.Auto,) * 3)
    layout = Layout(mesh, rules=(("up/kernel/b", (None, "tensor")),), min_size=32)
    specs = {path: sharding.spec for path, sharding in named(layout.shardings(shapes)).items()}
    assert specs["block_0/up/kernel/a"] == PartitionSpec("fsdp")
    assert specs["block_0/up/kernel/b"] == PartitionSpec(None, "tensor")


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (0, "lora rank is 0; expected a whole number from 1"),
        (-4, "lora rank is -4; expected"),
        (12, "lora rank is 12, which saves nothing .*; expected at most 9"),
    ],
)
def test_a_rank_that_makes_no_sense_is_refused(rank, message):
    params = {"a": {"kernel": jnp.ones((16, 24)), "bias": jnp.ones((64,))}}
    with pytest.raises(ValueError, match=message):
        new_adapters(KEY, params, rank)
