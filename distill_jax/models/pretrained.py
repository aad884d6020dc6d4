"""Networks in directories of Hugging Face: config.json, and weights by their names in PyTorch.

Modules are named as in the checkpoints, so the path of a parameter, joined by dots, is the name of
its array; only the last part differs (LEAVES). A stack of layers, blocks[0:12], has an array for
each layer, blocks.0 to blocks.11.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
import numpy as np
from etils import epath

from distill_jax.runtime.files import absolute, read_json
from distill_jax.runtime.options import check_arguments
from distill_jax.runtime.trees import is_stacked, layers_of, name_of
from distill_jax.storage import pytorch, safetensors
from distill_jax.storage.entries import EntryError
from distill_jax.storage.weights import Stored, mapped, of_array, stacked, unstacked
from distill_jax.typing import Tree

Options = TypeVar("Options")
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
WEIGHTS = (
    *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"),
    *("model.fp16.safetensors", "pytorch_model.fp16.bin"),
)
MAX_CONFIG = 2**20  # Bytes of a config.json.


def read_config(directory: epath.PathLike, names: Sequence[str] = ("config.json",)) -> dict:
    """Returns the content of the first of the files that the directory has.

    Raises:
      ValueError: if there is none, or it is no JSON object.
    """
    folder = absolute(directory)
    for name in names:
        if (folder / name).exists():
            return read_json(folder / name, MAX_CONFIG)
    raise ValueError(
        f"{folder} has no {' or '.join(names)}; expected the directory of a network as Hugging "
        "Face publishes it, downloaded to this machine"
    )


def read_options(kind: type[Options], content: Any, place: str) -> Options:
    """Returns a dataclass of options from an object of a JSON file, whose other keys are ignored.

    Raises:
      ValueError: with the place, if the content is no object or a value breaks its rule.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{place} is a {type(content).__name__}; expected an object")
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]  # Options are dataclasses.
    options = {name: content[name] for name in names if name in content}
    try:
        check_arguments(kind, options)
        return kind(**options)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def find_weights(directory: epath.PathLike, names: Sequence[str] = WEIGHTS) -> epath.Path:
    """Returns the first file of weights that a directory has; raises ValueError without one."""
    folder = absolute(directory)
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise ValueError(f"{folder} has no weights; expected one of {', '.join(names)}")


def read_weights(file: epath.Path) -> dict[str, Stored]:
    """Returns the arrays of a file by their names in PyTorch; a "state_dict" inside is opened."""
    if file.suffix in (".safetensors", ".json"):
        return safetensors.read(file)
    try:
        return pytorch.read_state(file)
    except EntryError:
        return pytorch.read_state(file, "state_dict")


def digest_of(file: epath.Path) -> str:
    """Returns the SHA-256 of a file of weights, or of all files of an index one after another."""
    found = hashlib.sha256()
    for part in safetensors.shards(file) if file.suffix == ".json" else [file]:
        found.update(mapped(part).data)
    return found.hexdigest()


def variables_of(
    module: nn.Module, like: Any, state: Mapping[str, Stored], file: epath.Path, advice: str
) -> Tree:
    """Returns the variables of a module from arrays by their names in PyTorch, as float32.

    Args:
      module: the network.
      like: an input of the network, of which only the shape counts.
      state: arrays; those that the network does not have are ignored.
      file: where they come from, for messages.
      advice: end of the messages: what to do.

    Raises:
      ValueError: if an array is missing, of another shape, or not finite.
    """
    needed = jax.eval_shape(module.init, jax.random.key(0), like)

    def take(path: tuple, like: jax.ShapeDtypeStruct) -> np.ndarray:
        (name,), is_kernel, _ = torch_names(path[1:])
        if name not in state:
            raise ValueError(f"{file} has no {name}: it is of another network; {advice}")
        leaf = np.asarray(state[name].read(()), np.float32)
        leaf = _turned(leaf) if is_kernel else leaf
        if leaf.shape != like.shape or not np.isfinite(leaf).all():
            raise ValueError(
                f"{file}: {name} is of shape {leaf.shape}, or not finite; expected {like.shape}; "
                f"{advice}"
            )
        return leaf

    return jax.tree_util.tree_map_with_path(take, needed)


def stored_params(needed: Tree, state: Mapping[str, Stored], file: epath.Path, advice: str) -> Tree:
    """Returns parameters in our layout from arrays by their names in PyTorch, which are not read.

    Every leaf keeps its dtype. Reading a leaf raises LeafError if it is not finite.

    Args:
      needed: shapes of the parameters.
      state: arrays; those that the network does not have are ignored.
      file: where they come from, for messages.
      advice: end of the messages: what to do.

    Raises:
      ValueError: if an array is missing, or of another shape.
    """

    def layer(name: str, is_kernel: bool, expected: tuple[int, ...]) -> Stored:
        if name not in state:
            raise ValueError(f"{file} has no {name}: it is of another network; {advice}")
        leaf = state[name].changed(_turned) if is_kernel else state[name]
        if leaf.shape != expected:
            raise ValueError(
                f"{file}: {name} is of shape {leaf.shape} in our layout; expected {expected}; "
                f"{advice}"
            )
        return leaf.checked(name)

    def take(path: tuple, like: jax.ShapeDtypeStruct) -> Stored:
        names, is_kernel, is_stack = torch_names(path)
        layers = [layer(name, is_kernel, like.shape[is_stack:]) for name in names]
        return stacked(layers) if is_stack else layers[0]

    return jax.tree_util.tree_map_with_path(take, needed)


def torch_state(params: Tree) -> dict[str, Stored]:
    """Returns the leaves of parameters (Stored or arrays) by their names in PyTorch, transposed."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names, is_kernel, is_stack = torch_names(path)
        stored = leaf if isinstance(leaf, Stored) else of_array(np.asarray(leaf))
        for name, layer in zip(names, unstacked(stored) if is_stack else [stored], strict=True):
            found[name] = layer.changed(_turned_back) if is_kernel else layer
    return found


def torch_names(path: tuple) -> tuple[list[str], bool, bool]:
    """Returns the names in PyTorch of a parameter, and whether it is a kernel and of a stack."""
    *modules, leaf = name_of(path).split("/")
    name = ".".join((*modules, LEAVES.get(leaf, leaf)))
    return layers_of(name, "."), leaf == "kernel", is_stacked(name)


def _turned(x: np.ndarray) -> np.ndarray:
    """Returns a kernel of PyTorch in our layout."""
    return x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T


def _turned_back(x: np.ndarray) -> np.ndarray:
    """Returns a kernel of ours in the layout of PyTorch."""
    return x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T
