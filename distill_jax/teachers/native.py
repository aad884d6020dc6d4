"""Reader of our own networks from safetensors files, in torch's layout, described by a config.

An array's name is the path of our parameter, joined by ".", with "weight" for a kernel, the scale
of a norm or a table of embeddings. Kernels are laid out as in torch, see `leaves`.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from distill_jax.runtime.trees import by_name, is_stacked, layers_of, stack_layers
from distill_jax.storage import safetensors
from distill_jax.storage.entries import chosen
from distill_jax.storage.weights import stacked
from distill_jax.teachers.base import Imported, configured
from distill_jax.teachers.given import split_key
from distill_jax.teachers.leaves import Leaf, Path, take
from distill_jax.typing import Tree

WEIGHTS = ("kernel", "scale", "embedding")


def read(
    path: epath.PathLike,
    config: Mapping[str, Any] | None,
    given: Mapping[str, Any] | None = None,
) -> Imported:
    """Reads the network in a file, or in all files of an index.

    Args:
      path: *.safetensors or *.safetensors.index.json.
      config: config whose model, schedule, parameterization and data describe the network.
      given: label_dropout, as for base.configured, and "key", the first part of the names of the
        network's arrays, which our names do not have.

    Raises:
      ValueError: without a config, for a damaged file, and for arrays that do not fit.
    """
    if config is None:
        raise ValueError(
            f"{path} does not describe its network; describe it with --config=FILE.py, whose "
            "model, schedule, parameterization and data are read"
        )
    key, given = split_key(given)
    imported = Imported({}, **configured(config, given))
    state, ours = safetensors.read(path), imported.expected_params()
    state = state if key is None else chosen(state, key)
    return imported._replace(params=stack_layers(take(state, leaves(ours)), ours, stacked))


def leaves(params: Tree) -> Iterator[tuple[Path, Leaf]]:
    """Yields the path of every parameter of our network with its array in the file.

    Stacked layers are single ones in the file: block[0:12]/qkv/kernel is block_0.qkv.weight etc.
    A convolution kernel (rows, columns, in, out) is (out, in, rows, columns) in the file. Any other
    kernel is a matrix (out, in) with joined attention axes: (width, 3, heads, dim) becomes (3 heads
    dim, width), and (heads, dim, width) becomes (width, heads dim). The bias of the layer decides
    which axes are outputs; in the file it has one axis. All other arrays are unchanged.
    """
    shapes = {
        tuple(single.split("/")): leaf.shape[is_stacked(name) :]
        for name, leaf in by_name(params).items()
        for single in layers_of(name)
    }
    for (*layer, kind), shape in shapes.items():
        name = ".".join((*layer, "weight" if kind in WEIGHTS else kind))
        bias = shapes.get((*layer, "bias"), (1,))
        yield (*layer, kind), _leaf(name, kind, shape, len(bias))


def _leaf(name: str, kind: str, shape: tuple[int, ...], outs: int) -> Leaf:
    if kind == "bias":
        return Leaf(name, (math.prod(shape),), lambda array: array.reshape(shape))
    if kind != "kernel":
        return Leaf(name, shape, lambda array: array)
    if len(shape) == 4 and outs == 1:
        rows, columns, ins, channels = shape
        there = (channels, ins, rows, columns)
        return Leaf(name, there, lambda array: array.transpose(2, 3, 1, 0))
    flat = (math.prod(shape[-outs:]), math.prod(shape[:-outs]))
    return Leaf(name, flat, lambda array: array.T.reshape(shape))
