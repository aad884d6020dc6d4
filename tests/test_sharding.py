import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from distill_jax.sharding import AXES, Layout, make_layout


def layout_of(data=1, fsdp=4, tensor=1, rules=()):
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
    rules = (("up.*/kernel", (None, "tensor")),)
    layout = layout_of(tensor=2, rules=rules)
    tree = {"up_0": {"kernel": jax.ShapeDtypeStruct((64, 512), jnp.float32)}}
    assert layout.shardings(tree)["up_0"]["kernel"].spec == PartitionSpec(None, "tensor")


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
    placed = layout.place({"x": np.arange(6.0, dtype=np.float32)})
    np.testing.assert_array_equal(placed["x"], np.arange(6.0))
