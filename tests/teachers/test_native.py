"""Compares our networks in safetensors files layer by layer with torch."""

import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import import_memory
from distill_jax.models.build import abstract_params
from distill_jax.sampling.loading import load
from distill_jax.storage import safetensors
from distill_jax.storage.weights import of_array
from distill_jax.teachers import TEACHERS, adm, native, writer
from tests.teachers.foreign import arrays
from tests.teachers.test_adm import OTHERS, TINY, state_of
from tests.teachers.test_commands import CONFIG
from tests.teachers.toys import MLP, config_of, network_of
from tests.test_commands import one_message, run

SOURCE = {"format": "safetensors", "file": "model.safetensors", "sha256": "0"}
DIT = {"name": "dit", "width": 8, "blocks": 1, "heads": 2, "patch": 2}
UNET = {"channels": 32, "embedding": 8, "multipliers": (1,), "blocks": 1, "heads": 2}
UNET = {"name": "unet", **UNET, "attention": (4,)}


def state_for(config, dtype="float32"):
    """Returns the arrays of a file for a network, small and not zero."""
    rng = np.random.default_rng(0)
    leaves = native.leaves(abstract_params(network_of(config), ()))
    shapes = {leaf.name: leaf.shape for _, leaf in leaves}
    return {
        name: (rng.standard_normal(shape) / 8).astype(jnp.dtype(dtype))
        for name, shape in shapes.items()
    }


def save(path, state):
    safetensors.write(path, {name: of_array(array) for name, array in state.items()})
    return path


def imported(folder, config, state):
    return native.read(save(folder / "model.safetensors", state), config.to_dict())


def test_names_are_paths_and_kernels_have_torchs_layout(tmp_path):
    config = config_of(DIT)
    state = state_for(config)
    assert {
        "block_0.qkv.weight": (24, 8),
        "block_0.qkv.bias": (24,),
        "block_0.proj.weight": (8, 8),
        "block_0.up.weight": (32, 8),
        "conditioning.label_embed.weight": (4, 8),
    }.items() <= {name: array.shape for name, array in state.items()}.items()
    params = arrays(imported(tmp_path, config, state).params)
    x = np.random.default_rng(1).standard_normal((5, 8))
    block = jax.tree.map(lambda leaf: leaf[0], params["block[0:1]"])
    # torch: y = x W^T + b.
    dense = x @ block["up"]["kernel"] + block["up"]["bias"]
    torchs = x @ state["block_0.up.weight"].T + state["block_0.up.bias"]
    np.testing.assert_allclose(dense, torchs, atol=1e-6)
    # q, k and v of all heads come one after the other, each (heads, dim).
    qkv = np.einsum("bi,ithd->bthd", x, block["qkv"]["kernel"]) + block["qkv"]["bias"]
    torchs = x @ state["block_0.qkv.weight"].T + state["block_0.qkv.bias"]
    np.testing.assert_allclose(qkv, torchs.reshape(5, 3, 2, 4), atol=1e-6)
    proj = np.einsum("bhd,hdo->bo", x.reshape(5, 2, 4), block["proj"]["kernel"])
    np.testing.assert_allclose(proj, x @ state["block_0.proj.weight"].T, atol=1e-6)
    table = params["conditioning"]["label_embed"]["embedding"]
    np.testing.assert_array_equal(table, state["conditioning.label_embed.weight"])


def test_a_convolution_has_torchs_layout_and_a_norms_scale_is_its_weight(tmp_path):
    config = config_of(UNET)
    state = state_for(config)
    params = arrays(imported(tmp_path, config, state).params)
    kernel, there = params["conv_in"]["kernel"], state["conv_in.weight"]
    assert there.shape == (32, 1, 3, 3)
    for row in range(3):
        for column in range(3):
            np.testing.assert_array_equal(kernel[row, column], there[:, :, row, column].T)
    queries = [name for name in state if name.endswith(".q.weight")]
    assert {state[name].shape for name in queries} == {(32, 32)}
    norms = [name for name in state if "norm" in name and name.endswith("weight")]
    assert norms
    assert all(state[name].ndim == 1 for name in norms)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_file_becomes_a_student_in_its_own_precision(dtype, tmp_path):
    config = config_of(MLP)
    state = state_for(config, dtype)
    out = writer.write(imported(tmp_path, config, state), SOURCE, None, tmp_path / "out")
    student = load(out)
    assert {leaf.dtype for leaf in jax.tree.leaves(student.params)} == {jnp.dtype(dtype)}
    np.testing.assert_array_equal(student.params["input"]["kernel"], state["input.weight"].T)
    half = load(out, dtype="bfloat16").params
    assert half["input"]["kernel"].dtype == jnp.bfloat16
    assert half["input"]["bias"].dtype == dtype
    assert student.sample(jax.random.key(0), 2, num_steps=1).dtype == jnp.float32


def test_double_precision_becomes_single(tmp_path):
    config = config_of(MLP)
    state = state_for(config, "float64")
    student = load(writer.write(imported(tmp_path, config, state), SOURCE, None, tmp_path / "out"))
    expected = state["output.bias"].astype(np.float32)
    np.testing.assert_array_equal(student.params["output"]["bias"], expected, strict=True)


def test_a_file_without_a_config_is_refused(tmp_path):
    with pytest.raises(ValueError, match="describe it with --config=FILE.py"):
        TEACHERS["safetensors"](tmp_path / "model.safetensors", None)


def test_a_state_dict_of_adm_is_read_from_safetensors_too(tmp_path):
    path = tmp_path / "adm.safetensors"
    safetensors.write(path, state_of(TINY))
    given = {**OTHERS, "split_first": True}
    theirs = arrays(adm.convert(state_of(TINY), given).params)
    ours = TEACHERS["adm"](path, None, given)
    jax.tree.map(np.testing.assert_array_equal, arrays(ours.params), theirs)
    # The command's reader looks for a released network, which the tiny one is not.
    with pytest.raises(ValueError, match="no released network has the arrays"):
        TEACHERS["adm"](path, None)


def command(folder, file="model.safetensors"):
    (folder / "config.py").write_text(CONFIG)
    flags = (f"--config={folder / 'config.py'}", f"--out={folder / 'teachers' / 'out'}")
    return run("teachers", "safetensors", str(folder / file), *flags)


def test_the_command_reads_an_index_and_its_files(tmp_path):
    config = config_of(MLP)
    state = state_for(config, "bfloat16")
    names = sorted(state)
    parts = {"one.safetensors": names[:3], "two.safetensors": names[3:]}
    for file, part in parts.items():
        save(tmp_path / file, {name: state[name] for name in part})
    weight_map = {name: file for file, part in parts.items() for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    code, _, stderr = command(tmp_path, "model.safetensors.index.json")
    assert code == 0, stderr
    student = load(tmp_path / "teachers" / "out")
    np.testing.assert_array_equal(student.params["input"]["bias"], state["input.bias"])
    source = student.manifest.lineage.source
    assert source["two.safetensors"] == writer.sha256(tmp_path / "two.safetensors")


def with_leaf(name, change):
    """Returns a state with one array changed."""
    state = state_for(config_of(MLP))
    return {**state, name: change(state[name])}


MALFORMED = {
    "truncated": (lambda right: right[:50], "exceeds the file"),
    "huge header": (lambda right: struct.pack("<Q", 2**40) + right[8:], "exceeds the file"),
    "a pickle": (lambda right: b"\x80\x04cos\nsystem\n(X\x05\0\0\0truetR.", "exceeds the file"),
    "cut": (lambda right: right[:-4], "lies at bytes"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_file_is_one_message_and_leaves_nothing(kind, tmp_path):
    change, message = MALFORMED[kind]
    path = save(tmp_path / "model.safetensors", state_for(config_of(MLP)))
    path.write_bytes(change(path.read_bytes()))
    assert message in one_message(*command(tmp_path))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.py", "model.safetensors"]


MISFITS = {
    "a wrong shape": (with_leaf("input.weight", lambda array: array.T), "has the shape (16, 8)"),
    "not finite": (
        with_leaf("output.bias", lambda array: array * np.nan),
        "output/bias has values that are not finite",
    ),
    "whole numbers": (with_leaf("output.bias", lambda array: array.astype(int)), "is int64"),
    "a missing array": (
        {name: array for name, array in state_for(config_of(MLP)).items() if name != "input.bias"},
        "input.bias is missing",
    ),
    "an extra array": (
        {**state_for(config_of(MLP)), "extra": np.zeros(2)},
        "extra of shape (2,) is not part of the network",
    ),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_arrays_that_do_not_fit_are_one_message_and_leave_nothing(kind, tmp_path):
    state, message = MISFITS[kind]
    config = config_of(MLP)
    with pytest.raises(ValueError) as caught:
        network = imported(tmp_path, config, state)
        writer.write(network, SOURCE, None, tmp_path / "teachers" / "out")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_command_takes_memory_of_one_leaf_and_not_of_the_file(tmp_path):
    row = import_memory.measure(tmp_path, width=1024, blocks=6, dtype="float32")
    assert row["file"] > 170e6
    assert row["largest leaf"] < 13e6
    assert row["beyond tiny and leaf"] < 70e6
