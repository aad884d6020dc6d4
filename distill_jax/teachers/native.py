"""Networks of ours in files of safetensors: our names and torch's layouts, described by a config.

An array's name is the path of our parameter, joined by ".", with "weight" for a kernel, the scale
of a norm or a table of embeddings. Kernels are laid out as in torch, see `leaves`.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath

from distill_jax.storage import safetensors
from distill_jax.teachers.base import Imported, configured
from distill_jax.teachers.leaves import Leaf, Path, take
from distill_jax.typing import Tree

WEIGHTS = ("kernel", "scale", "embedding")


def read(path: epath.PathLike, config: Mapping[str, Any] | None) -> Imported:
    """The network in a file, or in all files of an index.

    Args:
      path: *.safetensors or *.safetensors.index.json.
      config: its model, schedule, parameterization and data say what the network is.

    Raises:
      ValueError: without a config, when a file is damaged, and for arrays that do not fit.
    """
    if config is None:
        raise ValueError(
            f"{path} does not say what its network is; describe it with --config=FILE.py, whose "
            "model, schedule, parameterization and data are read"
        )
    imported = Imported({}, **configured(config))
    state = safetensors.read(path)
    return imported._replace(params=take(state, leaves(imported.expected_params())))


def leaves(params: Tree) -> Iterator[tuple[Path, Leaf]]:
    """Every parameter of a network of ours, with its name and layout in the file.

    A kernel of a convolution (rows, columns, in, out) is (out, in, rows, columns) there. Any other
    is a matrix (out, in), with the axes of attention heads joined: a kernel (width, 3, heads, dim)
    is (3 heads dim, width), and one of (heads, dim, width) is (width, heads dim). Which axes are
    outputs is what the layer's bias says; it has one axis there. The rest is as it is.
    """
    found = jax.tree_util.tree_leaves_with_path(params)
    paths = {tuple(key.key for key in keys): leaf for keys, leaf in found}
    for (*layer, kind), leaf in paths.items():
        name = ".".join((*layer, "weight" if kind in WEIGHTS else kind))
        bias = paths.get((*layer, "bias"))
        yield (*layer, kind), _leaf(name, kind, leaf.shape, 1 if bias is None else bias.ndim)


def _leaf(name: str, kind: str, shape: tuple[int, ...], outs: int) -> Leaf:
    if kind == "bias":
        return Leaf(name, (math.prod(shape),), lambda array: array.reshape(shape))
    if kind != "kernel":
        return Leaf(name, shape, lambda array: array)
    if len(shape) == 4 and outs == 1:
        rows, columns, ins, channels = shape
        there = (channels, ins, rows, columns)
        return Leaf(name, there, lambda array: array.transpose(2, 3, 1, 0))
    there = (math.prod(shape[-outs:]), math.prod(shape[:-outs]))
    return Leaf(name, there, lambda array: array.T.reshape(shape))
