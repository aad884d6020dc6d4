import os
import subprocess
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.runtime.sharding import make_layout
from distill_jax.storage import checkpoint
from distill_jax.storage.weights import (
    LeafError,
    Stored,
    mapped,
    of_array,
    place,
    stacked,
    unstacked,
)
from tests.toys import ROOT

ARRAY = np.arange(24, dtype=np.float32).reshape(4, 6)


def watched(array, parts):
    """A leaf that records its reads."""

    def read(index):
        parts.append(array[index].shape)
        return array[index]

    return Stored(array.shape, array.dtype, read)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "bool"])
def test_a_leaf_reads_any_part_in_the_type_it_has(dtype):
    array = ARRAY.astype(jnp.dtype(dtype))
    leaf = of_array(array)
    assert (leaf.shape, leaf.dtype, leaf.nbytes) == ((4, 6), array.dtype, array.nbytes)
    np.testing.assert_array_equal(leaf.read(()), array, strict=True)
    np.testing.assert_array_equal(leaf.read(np.s_[1:3, 2:]), array[1:3, 2:], strict=True)


def test_double_precision_is_read_as_single():
    leaf = of_array(ARRAY.astype(np.float64))
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(leaf.read(np.s_[1:, :]), ARRAY[1:], strict=True)


def test_a_changed_leaf_is_a_view_of_the_file(tmp_path):
    ARRAY.tofile(tmp_path / "raw")
    memory = mapped(tmp_path / "raw")
    leaf = of_array(memory.view(np.float32).reshape(4, 6))
    changed = leaf.changed(lambda array: array.T.reshape(3, 2, 4)).changed(lambda array: array[1:])
    assert changed.shape == (2, 2, 4)
    part = changed.read(np.s_[:, 1])
    assert np.shares_memory(part, memory)
    np.testing.assert_array_equal(part, ARRAY.T.reshape(3, 2, 4)[1:, 1])


def test_a_number_that_is_not_finite_is_found_where_it_is_read():
    array = ARRAY.copy()
    array[3, 5] = np.nan
    leaf = of_array(array).checked("input/kernel")
    leaf.read(np.s_[:3, :])
    with pytest.raises(LeafError, match="input/kernel has values that are not finite"):
        leaf.read(np.s_[3:, :])


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_placed_leaves_keep_their_type_or_get_the_one_that_is_asked_for(dtype):
    tree = {"half": ARRAY.astype(np.float16), "single": ARRAY}
    shardings = make_layout({}, jax.devices()[:1]).shardings(tree)
    found = place(jax.tree.map(of_array, tree), shardings, dtype)
    for name, array in tree.items():
        kept = jnp.dtype(dtype or array.dtype)
        np.testing.assert_array_equal(found[name], array.astype(kept), strict=True)


def test_a_stack_reads_only_the_layers_that_are_asked_for():
    parts = []
    stack = stacked([watched(ARRAY + layer, parts) for layer in range(3)])
    np.testing.assert_array_equal(
        stack.read((slice(1, 3), slice(0, 2))), [ARRAY[:2] + 1, ARRAY[:2] + 2]
    )
    assert parts == [(2, 6), (2, 6)]
    for layer, leaf in enumerate(unstacked(stack)):
        np.testing.assert_array_equal(leaf.read((slice(1, 2),)), ARRAY[1:2] + layer)
    assert len(parts) == 5
    mixed = stacked([of_array(ARRAY.astype("float16")), of_array(ARRAY / 3)])
    np.testing.assert_array_equal(mixed.read(()), [ARRAY, ARRAY / 3])


def test_placing_does_not_hold_on_to_the_file(tmp_path):
    path = tmp_path / "raw"
    ARRAY.tofile(path)
    memory = np.memmap(path, np.float32, "r+", shape=(4, 6))
    placed = place(of_array(memory), make_layout({}, jax.devices()[:1]).replicated)
    memory[:] = 0
    np.testing.assert_array_equal(placed, ARRAY)


def test_placing_reads_a_shard_for_each_of_eight_devices():
    command = [sys.executable, "-c", "from tests.storage.test_weights import eight; eight()"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def eight():
    """Runs the test above in a process with eight devices."""
    layout, parts = make_layout({"data": 2, "fsdp": 4}), {}
    rng = np.random.default_rng(0)
    tree = {"kernel": rng.standard_normal((64, 128), np.float32), "bias": np.ones(128, np.float16)}
    stored = {name: watched(array, parts.setdefault(name, [])) for name, array in tree.items()}
    placed = place(stored, layout.shardings(tree))
    assert {*parts["kernel"]} == {(64, 32)}, parts
    for name, array in tree.items():
        np.testing.assert_array_equal(placed[name], array, strict=True)
    assert placed["kernel"].addressable_shards[0].data.shape == (64, 32)


def test_leaves_are_written_one_by_one_and_read_back_in_their_types(tmp_path):
    alive, most = [], []

    def counted(array):
        """Returns the leaf of an array, and counts how many of its read arrays exist."""

        def read(index):
            part = array.copy()
            alive.append(part.shape)
            weakref.finalize(part, alive.pop)
            most.append(len(alive))
            return part

        return Stored(array.shape, array.dtype, read)

    kinds = ("float32", "bfloat16", "float16")
    arrays = {f"leaf_{n}": ARRAY.astype(jnp.dtype(kinds[n % 3])) + n for n in range(12)}
    params = jax.tree.map(counted, arrays)
    params["scalar"] = of_array(np.asarray(2.5, np.float32))
    checkpoint.save_final(tmp_path / "final", params, {"stage": "s"})
    assert len(most) == 12
    assert max(most) <= 2
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {
        name: jax.ShapeDtypeStruct(leaf.shape, np.float32, sharding=sharding)
        for name, leaf in params.items()
    }
    found = checkpoint.load_params(tmp_path / "final", like)
    for name, array in {**arrays, "scalar": np.asarray(2.5, np.float32)}.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
    found = checkpoint.load_params(tmp_path / "final", like, dtype="bfloat16")
    assert {str(leaf.dtype) for leaf in found.values() if leaf.ndim} == {"bfloat16"}
    assert found["scalar"].dtype == np.float32
