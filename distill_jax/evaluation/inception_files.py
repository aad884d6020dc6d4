"""Published files of FID's Inception in other formats than PyTorch's, by pytorch-fid's names."""

import re

import numpy as np
from etils import epath

from distill_jax.storage.numpy_pickle import read_arrays
from distill_jax.storage.pytorch import read_module

STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
BLOCKS = [f"Mixed_5{i}" for i in "bcd"] + [f"Mixed_6{i}" for i in "abcde"]
BLOCKS += [f"Mixed_7{i}" for i in "abc"]
TOWERS = {  # Branches of the blocks after the first convolution, in TensorFlow's order.
    "Mixed_5": ("branch5x5", "branch3x3dbl", "branch_pool"),
    "Mixed_6": ("branch7x7", "branch7x7dbl", "branch_pool"),
    "Mixed_7": ("branch3x3", "branch3x3dbl", "branch_pool"),
    "Mixed_6a": ("branch3x3dbl", "", ""),
    "Mixed_7a": ("branch3x3", "branch7x7x3", ""),
}
LEAVES = {
    "weight": "conv.weight",
    "beta": "bn.bias",
    "mean": "bn.running_mean",
    "var": "bn.running_var",
}
END = r"\.(?P<leaf>weight|beta|mean|var)"
CONV = re.compile(r"layers\.conv(?:_(?P<index>[1-4]))?" + END)
MIXED = re.compile(
    r"layers\.mixed(?:_(?P<index>10|[1-9]))?\.(?P<tower>tower(?:_[12])?[._])?(?P<fork>mixed_)?"
    r"conv(?:_(?P<step>[1-4]))?" + END
)
FLAX = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def read_jax_fid(path: epath.Path) -> dict[str, np.ndarray]:
    """Reads inception_v3_weights_fid.pickle of jax-fid: pytorch-fid's modules with Flax's leaves.

    Raises:
      ValueError: as numpy_pickle.read_arrays.
    """
    state = {}
    for name, leaf in read_arrays(path).items():
        module, _, last = name.rpartition(".")
        order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(leaf.ndim)
        state[f"{module}.{FLAX.get(last, last)}"] = leaf if order is None else leaf.transpose(order)
    return state


def read_nvidia(path: epath.Path) -> dict[str, np.ndarray]:
    """Reads inception-2015-12-05.pkl of NVIDIA, which has TensorFlow's names and no bn.weight.

    Raises:
      ValueError: as pytorch.read_module.
    """
    state = {}
    for name, stored in read_module(path).items():
        leaf, found = stored.read(()), _renamed(name)
        state[found] = leaf
        if found.endswith("bn.bias"):
            state[found.replace("bn.bias", "bn.weight")] = np.ones_like(leaf)
    return state


def _renamed(name: str) -> str:
    """Returns pytorch-fid's name: layers.mixed_4.tower.conv_1.beta is Mixed_6b.branch7x7_2.bn.bias.

    A name that follows no rule stays.
    """
    if found := CONV.fullmatch(name):
        module = STEM[int(found["index"] or 0)]
    elif found := MIXED.fullmatch(name):
        block = BLOCKS[int(found["index"] or 0)]
        module = f"{block}.{_branch(block, found['tower'], found['fork'], int(found['step'] or 0))}"
    else:
        return name.replace("output.", "fc.")
    return f"{module}.{LEAVES[found['leaf']]}"


def _branch(block: str, tower: str | None, fork: str | None, step: int) -> str:
    """Returns the name of convolution number `step` of a tower, or of the one outside towers."""
    if tower is None:
        return "branch3x3" if block == "Mixed_6a" else "branch1x1"
    number = int(re.sub(r"\D", "", tower) or 0)
    branch = (TOWERS.get(block) or TOWERS[block[:-1]])[number]
    if branch == "branch_pool":
        return branch
    return f"{branch}_{number + 2}{'ab'[step % 2]}" if fork else f"{branch}_{step + 1}"
