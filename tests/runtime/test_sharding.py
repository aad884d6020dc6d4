import functools
import itertools
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from distill_jax.diffusion.spec import image_data
from distill_jax.models.build import abstract_params, make_network
from distill_jax.runtime.sharding import AXES, RULES, Layout, make_layout
from distill_jax.training.update import new_state, optimizer
from tests.toys import ROOT


def layout_of(data=1, fsdp=4, tensor=1, rules=RULES):
    mesh = AbstractMesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3)
    return Layout(mesh, rules)


def specs(layout, **shapes):
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    return {name: sharding.spec for name, sharding in layout.shardings(tree).items()}


def test_the_largest_axis_that_fsdp_divides_is_split_in_large_arrays():
    got = specs(
        layout_of(), tall=(512, 64), wide=(66, 1024), odd=(513, 514), small=(8, 8), scalar=()
    )
    assert got["tall"] == PartitionSpec("fsdp")
    assert got["wide"] == PartitionSpec(None, "fsdp")
    assert got["odd"] == got["small"] == PartitionSpec()


def test_a_rule_that_matches_a_path_decides():
    rules = (("up.*/kernel", (None, "tensor")), ("down.*/kernel", ("tensor", "fsdp")))
    got = specs(layout_of(tensor=2, rules=rules), **{"up_0/kernel": (66, 512), "b/down": (64, 64)})
    assert got["up_0/kernel"] == PartitionSpec(None, "tensor")
    assert got["b/down"] == PartitionSpec("fsdp")


def test_what_a_rule_leaves_over_is_split_over_fsdp():
    layout = layout_of(tensor=2, rules=(("up/kernel", (None, "tensor")),))
    assert specs(layout, **{"up/kernel": (64, 512)})["up/kernel"] == PartitionSpec("fsdp", "tensor")


def test_an_axis_that_a_rule_cannot_split_stays_whole():
    got = specs(
        layout_of(tensor=4),
        **{
            "attn/q/kernel": (64, 2, 64),  # Two heads on four devices.
            "attn/k/kernel": (62, 4, 32),
            "attn/v/kernel": (64, 8),  # Another rank than the rule's.
            "up_1/kernel": (66, 66),
            "up_1/bias": (66,),
        },
    )
    assert got["attn/q/kernel"] == PartitionSpec("fsdp")
    assert got["attn/k/kernel"] == PartitionSpec(None, "tensor", "fsdp")
    assert got["attn/v/kernel"] == PartitionSpec(None, "tensor")
    assert got["up_1/kernel"] == got["up_1/bias"] == PartitionSpec()


MODELS = {
    "dit": ({"patch": 4, "width": 64, "heads": 4, "blocks": 1}, (8, 8, 1)),
    "diffusers_dit": ({"width": 64, "heads": 4, "blocks": 1}, (8, 8, 4)),
    "flux": (
        {"heads": 4, "head_dim": 16, "axes": (4, 4, 8), "blocks": 1, "singles": 1},
        (8, 8, 4),
    ),
    "mmdit": ({"heads": 4, "head_dim": 16, "blocks": 2, "dual": 1}, (8, 8, 4)),
    "mlp": ({"width": 64, "blocks": 1}, (8, 8, 1)),
    "unet": (
        {"channels": 32, "embedding": 64, "multipliers": (1, 1), "blocks": 1, "attention": (4, 8)}
        | {"heads": 4},
        (8, 8, 3),
    ),
    "adm_unet": (
        {"channels": 64, "multipliers": (1,), "blocks": 1, "attention": (8,), "heads": 4},
        (8, 8, 3),
    ),
    "sd_unet": (
        # Single blocks in the first level, and a stack of two in the middle.
        {"widths": (64, 64), "blocks": 1, "transformers": (0,), "heads": (4, 4), "groups": 8}
        | {"depths": (1, 2)},
        (8, 8, 4),
    ),
}


def states_of(name):
    """Returns the shapes of a network's parameters, and of a training state with them."""
    options, shape = MODELS[name]
    spec = {"model": {"name": name, **options}, "schedule": {"name": "cosine"}}
    network_spec = make_network({**spec, "parameterization": "v"}, image_data(shape, 3))
    params = abstract_params(network_spec, ())
    tx = optimizer(0.9, 0.99, 1.0)
    make = functools.partial(new_state, jax.random.key(0), tx=tx)
    return params, jax.eval_shape(lambda params: make({"student": params}), params)


@pytest.mark.parametrize("name", MODELS)
def test_heads_and_hidden_units_are_split_over_tensor_in_every_network(name):
    params, _ = states_of(name)
    layout = layout_of(fsdp=2, tensor=2)
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): spec.spec
        for path, spec in jax.tree_util.tree_leaves_with_path(layout.shardings(params))
    }
    for path, spec in found.items():
        *_, module, leaf = path.split("/")
        heads = module in ("q", "k", "v", "qkv", "proj", "proj_out") and ".attentions." not in path
        heads &= (name, path) != ("mmdit", f"proj_out/{leaf}")  # That of the whole network.
        heads &= (name, path) != ("flux", f"proj_out/{leaf}")
        heads |= module.endswith((".to_q", ".to_k", ".to_v", ".to_out.0", ".to_add_out"))
        heads |= ".add_" in module
        hidden = module.rstrip("_0123456789") in ("up", "down")
        hidden |= module.startswith(("ff.net.", "ff_context.net.")) or ".ff.net." in module
        hidden |= module == "proj_mlp"
        one_sided = leaf == "bias" and module.startswith(("proj", "down")) and module != "proj_mlp"
        one_sided |= leaf == "bias" and module.endswith((".to_out.0", ".to_add_out", ".net.2"))
        expected = leaf in ("kernel", "bias") and (heads or hidden) and not one_sided
        assert ("tensor" in spec) == expected, path


@pytest.mark.parametrize("name", MODELS)
def test_optimizer_states_and_emas_have_the_shardings_of_the_parameters(name):
    params, state = states_of(name)
    layout = layout_of(fsdp=2, tensor=2)
    expected = [spec.spec for spec in jax.tree.leaves(layout.shardings(params))]
    got = layout.shardings(state)
    assert [spec.spec for spec in jax.tree.leaves(got.ema)] == expected
    moments = [
        spec.spec
        for path, spec in jax.tree_util.tree_leaves_with_path(got.opt)
        if "mu" in jax.tree_util.keystr(path) or "nu" in jax.tree_util.keystr(path)
    ]
    assert moments == 2 * expected


NAMES = ("blocks/qkv/kernel", "q/kernel", "qkv/bias", "proj/kernel", "up_0/kernel", "down/kernel")


@pytest.mark.parametrize("sizes", [*itertools.product((1, 3), (1, 2, 4), (1, 2, 4))], ids=str)
def test_every_axis_is_divisible_by_its_mesh_axes(sizes):
    """This holds for random shapes, 0 to 4 axes of 1 to 96, with and without a rule."""
    layout, rng = layout_of(*sizes), np.random.default_rng(sizes)
    mesh = dict(zip(AXES, sizes, strict=True))
    for _ in range(200):
        shape = tuple(int(n) for n in rng.choice([1, 2, 3, 4, 6, 8, 30, 64, 96], rng.integers(5)))
        name = rng.choice([*NAMES, "input/kernel"])
        spec = specs(layout, **{name: shape})[name]
        used = [axis for axis in spec if axis is not None]
        assert len(used) == len(set(used)) and {*used} <= {"fsdp", "tensor"}
        assert all(mesh[axis] > 1 for axis in used)
        assert all(n % mesh[axis] == 0 for n, axis in zip(shape, spec, strict=False) if axis)
        large = math.prod(shape) >= layout.min_size
        left = (n for n, axis in itertools.zip_longest(shape, spec) if axis != "tensor")
        possible = large and mesh["fsdp"] > 1 and any(n % mesh["fsdp"] == 0 for n in left)
        assert ("fsdp" in used) == possible, (name, shape, spec)


@pytest.mark.parametrize("what", ["rows", "shares", "gather"])
def test_arrays_on_eight_devices(what):
    """Padded rows are unpadded unchanged; gathered weights are whole, their gradients sharded."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-m", "tests.meshes", what]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def test_replicated_arrays_are_listed_the_largest_first():
    layout = layout_of(tensor=2)
    shapes = {"odd": (513, 513), "small": (8, 8), "wide": (512, 512), "up/bias": (4,)}
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    assert list(layout.replicated_bytes(tree).items()) == [("odd", 4 * 513**2), ("small", 4 * 64)]


def test_one_axis_of_the_mesh_takes_the_rest_of_the_devices():
    layout = make_layout({"data": -1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    assert dict(layout.mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    "sizes", [{"data": 2}, {"data": -1, "fsdp": 3}, {"data": 0}, {"data": -1, "fsdp": -1}]
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes):
    with pytest.raises(ValueError, match="does not fit 1 devices"):
        make_layout(sizes, jax.devices()[:1])


def test_a_batch_that_the_devices_do_not_divide_is_refused_with_one_that_they_do():
    layout_of(data=2).check_batch(16)
    with pytest.raises(ValueError, match="not divisible by data x fsdp = 8 .* such as 16"):
        layout_of(data=2).check_batch(15)


def test_placing_a_batch_keeps_its_values():
    layout = make_layout({"data": -1}, jax.devices()[:1])
    placed = layout.shard_batch({"x": np.arange(6.0, dtype=np.float32)})
    np.testing.assert_array_equal(placed["x"], np.arange(6.0))
