"""Conversion of torch's names and layouts to our parameters, one leaf at a time.

Our abstract parameters define the required leaves; a Dialect defines their names in the other code.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from distill_jax.diffusion.spec import image_data
from distill_jax.models.build import abstract_params, make_network
from distill_jax.runtime.text import plain, short
from distill_jax.storage.weights import Stored
from distill_jax.typing import Tree

Path = tuple[str, ...]
State = Mapping[str, Stored]
# Names of the leaves of a layer: ours -> torch's.
SUFFIXES = {"kernel": "weight", "scale": "weight", "bias": "bias", "frequencies": "freqs"}


class Dialect(NamedTuple):
    """The naming and layout of our parameters in a torch code.

    Attributes:
      name: maps the path of one of our layers, such as ("unet", "mid_0", "attention", "qkv"), to
        its name in the torch code.
      rows: order of the output channels of a qkv projection, slowest first: the three projections
        "3", heads "h", channels of a head "c".
      attention: trailing axes of attention kernels, (1, 1) for a 2-D convolution.
    """

    name: Callable[[Path], str]
    rows: str
    attention: tuple[int, ...]


class Leaf(NamedTuple):
    """An array of the torch code: its name, its shape, and the conversion to our layout."""

    name: str
    shape: tuple[int, ...]
    ours: Callable[[np.ndarray], np.ndarray]


def expected(
    model: Mapping[str, Any], shape: tuple[int, ...], num_classes: int, dialect: Dialect
) -> Iterator[tuple[Path, Leaf]]:
    """Yields the path of every parameter of our network with its array in the other code.

    Args:
      model: {"name": an entry of NETWORKS, **options}.
      shape: shape (h, w, c) of one image.
      num_classes: number of labels; 0 without labels.
      dialect: naming and layout of the other code.
    """
    spec = {"model": model, "schedule": {"name": "cosine"}, "parameterization": "x"}
    network_spec = make_network(spec, image_data(shape, num_classes))
    params = abstract_params(network_spec, ())
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = tuple(key.key for key in keys)
        yield path, _leaf(path, leaf.shape, dialect)


def take(state: State, leaves: Iterator[tuple[Path, Leaf]]) -> Tree:
    """Converts the arrays of `state` to our parameters without reading them yet.

    Raises:
      ValueError: for the first array that is missing, has another shape, or is not used.
    """
    params: dict[str, Any] = {}
    rest = dict(state)
    for path, leaf in leaves:
        found = rest.pop(leaf.name, None)
        if found is None or tuple(found.shape) != leaf.shape:
            what = "is missing" if found is None else f"has the shape {short(tuple(found.shape))}"
            raise ValueError(
                f"{leaf.name} {what}; expected an array of shape {leaf.shape}. The checkpoint does "
                "not match its description and names, or is incomplete"
            )
        tree = params
        for key in path[:-1]:
            tree = tree.setdefault(key, {})
        tree[path[-1]] = found.changed(leaf.ours)
    if rest:
        name, array = next(iter(rest.items()))
        raise ValueError(
            f"{plain(name)} of shape {short(tuple(array.shape))} is not part of the network "
            f"that the checkpoint describes; {len(rest)} such arrays in all"
        )
    return params


def _leaf(path: Path, shape: tuple[int, ...], dialect: Dialect) -> Leaf:
    """Returns the array in the other code for our parameter at `path`."""
    *layer, kind = path
    name = f"{dialect.name(tuple(layer))}.{SUFFIXES[kind]}".removeprefix(".")
    if layer and layer[-1] == "qkv":
        return _qkv(name, shape, dialect)
    if kind != "kernel":
        return Leaf(name, shape, lambda array: array)
    if len(shape) == 4:
        rows, columns, ins, outs = shape
        return Leaf(name, (outs, ins, rows, columns), lambda array: array.transpose(2, 3, 1, 0))
    outs = shape[-1]
    ins = int(np.prod(shape[:-1]))
    trailing = {"skip": (1, 1), "proj": dialect.attention}.get(layer[-1], ())
    return Leaf(
        name, (outs, ins, *trailing), lambda array: array.reshape(outs, ins).T.reshape(shape)
    )


def _qkv(name: str, shape: tuple[int, ...], dialect: Dialect) -> Leaf:
    """Returns the array of a qkv projection, converted to axes (inputs, 3, heads, channels)."""
    *ins, three, heads, channels = shape
    sizes = {"3": three, "h": heads, "c": channels}
    split = [sizes[letter] for letter in dialect.rows]
    order = [dialect.rows.index(letter) for letter in "3hc"]
    if not ins:  # A bias has no input axes.
        return Leaf(
            name, (int(np.prod(split)),), lambda array: array.reshape(split).transpose(order)
        )
    return Leaf(
        name,
        (int(np.prod(split)), *ins, *dialect.attention),
        lambda array: array.reshape(*split, *ins).transpose(3, *order),
    )
