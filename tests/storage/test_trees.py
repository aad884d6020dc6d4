"""Trees of arrays in Orbax's format."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from distill_jax.models.build import rounded
from distill_jax.runtime.sharding import make_layout
from distill_jax.storage import checkpoint

RNG = np.random.default_rng(0)
BLOCKS = RNG.standard_normal((3, 4, 5)).astype(np.float32)
INPUT = RNG.standard_normal((2, 4)).astype(np.float32)


def like(**leaves):
    layout = make_layout({}, jax.devices()[:1])
    return layout.abstract({name: {"kernel": leaf} for name, leaf in leaves.items()})


def test_layers_that_earlier_versions_wrote_one_by_one_are_read_into_a_stack(tmp_path):
    single = {f"block_{i}": {"kernel": kernel} for i, kernel in enumerate(BLOCKS)}
    checkpoint.save_final(tmp_path / "final", {**single, "input": {"kernel": INPUT}}, {})
    wanted = like(**{"block[0:3]": BLOCKS, "input": INPUT})
    read = checkpoint.load_params(tmp_path / "final", wanted)
    np.testing.assert_array_equal(read["block[0:3]"]["kernel"], BLOCKS)
    np.testing.assert_array_equal(read["input"]["kernel"], INPUT)
    expected = NamedSharding(wanted["input"]["kernel"].sharding.mesh, PartitionSpec())
    assert read["block[0:3]"]["kernel"].sharding.is_equivalent_to(expected, 3)


def test_a_stack_keeps_the_dtype_of_layers_that_were_written_one_by_one(tmp_path):
    half = jax.numpy.asarray(BLOCKS, "bfloat16")
    single = {f"block_{i}": {"kernel": kernel} for i, kernel in enumerate(half)}
    checkpoint.save_final(tmp_path / "final", single, {})
    read = checkpoint.load_params(tmp_path / "final", like(**{"block[0:3]": BLOCKS}))
    assert read["block[0:3]"]["kernel"].dtype == "bfloat16"
    np.testing.assert_array_equal(read["block[0:3]"]["kernel"], half)


def test_vectors_of_stacked_layers_keep_their_dtype_where_kernels_are_rounded(tmp_path):
    stack = {"kernel": BLOCKS, "bias": BLOCKS[:, 0]}
    params = {"block[0:3]": jax.tree.map(jax.numpy.asarray, stack)}
    checkpoint.save_final(tmp_path / "final", params, {})
    wanted = make_layout({}, jax.devices()[:1]).abstract(params)
    read = checkpoint.load_params(tmp_path / "final", wanted, dtype="bfloat16")
    for leaves in (read["block[0:3]"], rounded(params, "bfloat16")["block[0:3]"]):
        assert leaves["kernel"].dtype == "bfloat16" and leaves["bias"].dtype == "float32"


def test_a_stack_of_another_number_of_layers_is_one_message(tmp_path):
    checkpoint.save_final(tmp_path / "final", {"block[0:3]": {"kernel": BLOCKS}}, {})
    wanted = like(**{"block[0:2]": BLOCKS[:2]})
    with pytest.raises(ValueError, match=r"does not fit this run: block\[0:2\]/kernel is absent"):
        checkpoint.load_params(tmp_path / "final", wanted)
