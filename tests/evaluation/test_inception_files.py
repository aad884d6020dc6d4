"""Inception's weights are read from the files of NVIDIA and jax-fid as from pytorch-fid's.

files/module_of_torch_utils.pkl was written by PyTorch 2.13 and NVIDIA's torch_utils.persistence:
modules of the kinds in inception-2015-12-05.pkl, with a few channels.
"""

import pathlib
import pickle

import jax
import numpy as np
import pytest
from etils import epath

from distill_jax.evaluation.feature_networks import load_network
from distill_jax.evaluation.inception_files import read_jax_fid, read_nvidia
from tests.evaluation.small import state_of
from tests.teachers.pickles import Call, dump, network

FILE = epath.Path(__file__).parent / "files" / "module_of_torch_utils.pkl"
BLOCK_35 = {
    "conv": "branch1x1",
    "tower.conv": "branch5x5_1",
    "tower.conv_1": "branch5x5_2",
    "tower_1.conv": "branch3x3dbl_1",
    "tower_1.conv_1": "branch3x3dbl_2",
    "tower_1.conv_2": "branch3x3dbl_3",
    "tower_2.conv": "branch_pool",
}
HALVE_35 = {
    "conv": "branch3x3",
    "tower.conv": "branch3x3dbl_1",
    "tower.conv_1": "branch3x3dbl_2",
    "tower.conv_2": "branch3x3dbl_3",
}
BLOCK_17 = {
    "conv": "branch1x1",
    "tower.conv": "branch7x7_1",
    "tower.conv_1": "branch7x7_2",
    "tower.conv_2": "branch7x7_3",
    "tower_1.conv": "branch7x7dbl_1",
    "tower_1.conv_1": "branch7x7dbl_2",
    "tower_1.conv_2": "branch7x7dbl_3",
    "tower_1.conv_3": "branch7x7dbl_4",
    "tower_1.conv_4": "branch7x7dbl_5",
    "tower_2.conv": "branch_pool",
}
HALVE_17 = {
    "tower.conv": "branch3x3_1",
    "tower.conv_1": "branch3x3_2",
    "tower_1.conv": "branch7x7x3_1",
    "tower_1.conv_1": "branch7x7x3_2",
    "tower_1.conv_2": "branch7x7x3_3",
    "tower_1.conv_3": "branch7x7x3_4",
}
BLOCK_8 = {
    "conv": "branch1x1",
    "tower_conv": "branch3x3_1",
    "tower_mixed_conv": "branch3x3_2a",
    "tower_mixed_conv_1": "branch3x3_2b",
    "tower_1_conv": "branch3x3dbl_1",
    "tower_1_conv_1": "branch3x3dbl_2",
    "tower_1_mixed_conv": "branch3x3dbl_3a",
    "tower_1_mixed_conv_1": "branch3x3dbl_3b",
    "tower_2_conv": "branch_pool",
}
BLOCKS = {
    "mixed": ("Mixed_5b", BLOCK_35),
    "mixed_1": ("Mixed_5c", BLOCK_35),
    "mixed_2": ("Mixed_5d", BLOCK_35),
    "mixed_3": ("Mixed_6a", HALVE_35),
    "mixed_4": ("Mixed_6b", BLOCK_17),
    "mixed_5": ("Mixed_6c", BLOCK_17),
    "mixed_6": ("Mixed_6d", BLOCK_17),
    "mixed_7": ("Mixed_6e", BLOCK_17),
    "mixed_8": ("Mixed_7a", HALVE_17),
    "mixed_9": ("Mixed_7b", BLOCK_8),
    "mixed_10": ("Mixed_7c", BLOCK_8),
}
MODULES = {
    "conv": "Conv2d_1a_3x3",
    "conv_1": "Conv2d_2a_3x3",
    "conv_2": "Conv2d_2b_3x3",
    "conv_3": "Conv2d_3b_1x1",
    "conv_4": "Conv2d_4a_3x3",
    **{
        f"{block}.{theirs}": f"{ours}.{branch}"
        for block, (ours, names) in BLOCKS.items()
        for theirs, branch in names.items()
    },
}


@pytest.fixture(scope="module")
def state():
    """Returns random weights by pytorch-fid's names, with the scales that NVIDIA's file lacks."""
    found = dict(state_of("inception"))
    ones = {name: np.ones_like(leaf) for name, leaf in found.items() if name.endswith("bn.weight")}
    return {**found, **ones}


@pytest.fixture(scope="module")
def folder(state, tmp_path_factory):
    """Returns a folder with the same weights in the three formats."""
    folder = tmp_path_factory.mktemp("weights")
    np.savez(folder / "inception-2015-12-05.npz", **state)
    theirs = {"output.weight": state["fc.weight"], "output.bias": state["fc.bias"]}
    for name, module in MODULES.items():
        leaves = ("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var")
        for leaf, mine in zip(("weight", "beta", "mean", "var"), leaves, strict=True):
            theirs[f"layers.{name}.{leaf}"] = state[f"{module}.{mine}"]
    (folder / "inception-2015-12-05.pkl").write_bytes(dump(network(theirs, "InceptionV3")))
    tree = {}
    for name, leaf in state.items():
        *modules, last = name.split(".")
        inside = tree
        for module in modules:
            inside = inside.setdefault(module, {})
        flax = {"weight": "scale" if leaf.ndim == 1 else "kernel"}
        last = {**flax, "running_mean": "mean", "running_var": "var"}.get(last, last)
        inside[last] = leaf.transpose(2, 3, 1, 0) if leaf.ndim == 4 else leaf.T
    content = pickle.dumps(tree, protocol=4)
    (folder / "inception_v3_weights_fid.pickle").write_bytes(content)
    return folder


@pytest.mark.parametrize("name", ["inception-2015-12-05.pkl", "inception_v3_weights_fid.pickle"])
def test_other_formats_have_the_weights_of_pytorch(folder, name):
    expected, found = (
        load_network("inception", folder / file).variables
        for file in ("inception-2015-12-05.npz", name)
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_network_that_persistence_pickled_is_read_by_name():
    found, count = read_nvidia(FILE), 0
    assert b"raise SystemExit" in FILE.read_bytes()
    assert found["Mixed_5b.branch5x5_2.conv.weight"].shape == (2, 1, 1, 3)
    for module in ("Conv2d_1a_3x3", *(f"Mixed_5b.branch{i}" for i in ("1x1", "5x5_1", "5x5_2"))):
        for leaf in ("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var"):
            array = found[f"{module}.{leaf}"]
            np.testing.assert_array_equal(array.ravel(), np.arange(array.size) / 8 + count)
            count += 1
        np.testing.assert_array_equal(found[f"{module}.bn.weight"], np.ones(len(array)))
    assert found["fc.weight"].shape == (3, 2)


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("dtype", [np.float32, ">f8", np.float16])
def test_arrays_of_any_order_and_dtype_are_read_from_nested_dicts(tmp_path, protocol, dtype):
    kernel = np.arange(24, dtype=np.float64).reshape(1, 2, 3, 4).astype(dtype)
    for array in (kernel, np.asfortranarray(kernel), kernel[:, ::-1]):
        tree = {"fc": {"kernel": array, "bias": array[0, 0, 0]}}
        path = epath.Path(tmp_path / "x.pickle")
        path.write_bytes(pickle.dumps(tree, protocol=protocol))
        found = read_jax_fid(path)
        np.testing.assert_array_equal(found["fc.weight"], array.transpose(3, 2, 0, 1))
        np.testing.assert_array_equal(found["fc.bias"], array[0, 0, 0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"a": np.asarray([{}])}), "a number of type 'O8'"),
        (dump({"a": Call("os", "system", "true")}), "names os.system"),
        (pickle.dumps({"a": np.ones(3)})[:-20], "is cut short, damaged, or not"),
        (pickle.dumps({"a": [1.0]}), "an array was expected, not list"),
        (pickle.dumps(3), "an array was expected, not int"),
        (b"", "is cut short, damaged"),
    ],
)
def test_other_pickles_are_refused(tmp_path, content, message):
    path = tmp_path / "inception_v3_weights_fid.pickle"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_network("inception", path)


def test_a_network_of_another_kind_is_refused(tmp_path):
    path = pathlib.Path(tmp_path / "inception-2015-12-05.pkl")
    path.write_bytes(FILE.read_bytes())
    with pytest.raises(
        ValueError, match=r"is of shape \(2,\), or not finite; .*; get pt_inception"
    ):
        load_network("inception", path)
    path.write_bytes(pickle.dumps({"ema": 1}))
    with pytest.raises(ValueError, match="a network was expected, not dict"):
        load_network("inception", path)
