"""From torch's names and layouts to our parameters, one leaf at a time.

Our own abstract parameters say what must be there; a Dialect says what the other code calls it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from distill_jax.diffusion.spec import image_data
from distill_jax.models.build import abstract_params, make_network
from distill_jax.storage.weights import Stored
from distill_jax.typing import Tree

Path = tuple[str, ...]
State = Mapping[str, Stored]
# The leaves of our layers in torch's words.
SUFFIXES = {"kernel": "weight", "scale": "weight", "bias": "bias", "frequencies": "freqs"}


class Dialect(NamedTuple):
    """How a torch code names and lays out what we have.

    Attributes:
      name: the path of one of our layers, such as ("unet", "mid_0", "attention", "qkv") -> its
        name there.
      rows: the order of the output channels of a qkv projection, from the slowest: the three
        projections "3", heads "h", channels of a head "c".
      attention: the trailing axes of the kernels of attention, (1, 1) for a 2-D convolution.
    """

    name: Callable[[Path], str]
    rows: str
    attention: tuple[int, ...]


class Leaf(NamedTuple):
    """One array there: its name, its shape, and what makes it ours."""

    name: str
    shape: tuple[int, ...]
    ours: Callable[[np.ndarray], np.ndarray]


def expected(
    model: Mapping[str, Any], shape: tuple[int, ...], num_classes: int, dialect: Dialect
) -> Iterator[tuple[Path, Leaf]]:
    """Every parameter of a network of ours, with where it is in the other code.

    Args:
      model: {"name": an entry of NETWORKS, **options}.
      shape: (h, w, c) of one image.
      num_classes: of its labels; 0 without labels.
      dialect: of the other code.
    """
    spec = {"model": model, "schedule": {"name": "cosine"}, "parameterization": "x"}
    network_spec = make_network(spec, image_data(shape, num_classes))
    params = abstract_params(network_spec, ())
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = tuple(key.key for key in keys)
        yield path, _leaf(path, leaf.shape, dialect)


def take(state: State, leaves: Iterator[tuple[Path, Leaf]]) -> Tree:
    """Our parameters from the arrays of `state`, every one of which is used; none is read yet.

    Raises:
      ValueError: naming the first array that is missing, has another shape or is too much.
    """
    params: dict[str, Any] = {}
    rest = dict(state)
    for path, leaf in leaves:
        found = rest.pop(leaf.name, None)
        if found is None or tuple(found.shape) != leaf.shape:
            what = "is missing" if found is None else f"has the shape {tuple(found.shape)}"
            raise ValueError(
                f"{leaf.name} {what}; expected an array of shape {leaf.shape}. The checkpoint is "
                "not of the network that its description and names say, or was cut"
            )
        tree = params
        for key in path[:-1]:
            tree = tree.setdefault(key, {})
        tree[path[-1]] = found.changed(leaf.ours)
    if rest:
        name, array = next(iter(rest.items()))
        raise ValueError(
            f"{name} of shape {tuple(array.shape)} is not part of the network that the "
            f"checkpoint's description and other names say; {len(rest)} such arrays in all"
        )
    return params


def _leaf(path: Path, shape: tuple[int, ...], dialect: Dialect) -> Leaf:
    """What is there for a parameter of ours at `path`."""
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
    """Output channels to the axes ("3", heads, channels of a head), inputs in front."""
    *ins, three, heads, channels = shape
    sizes = {"3": three, "h": heads, "c": channels}
    split = [sizes[letter] for letter in dialect.rows]
    order = [dialect.rows.index(letter) for letter in "3hc"]
    if not ins:  # A bias.
        return Leaf(
            name, (int(np.prod(split)),), lambda array: array.reshape(split).transpose(order)
        )
    return Leaf(
        name,
        (int(np.prod(split)), *ins, *dialect.attention),
        lambda array: array.reshape(*split, *ins).transpose(3, *order),
    )
