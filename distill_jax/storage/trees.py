"""Reading and writing of trees of arrays in Orbax's format, leaf by leaf."""

import contextlib
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from distill_jax.runtime.app import cause_of
from distill_jax.runtime.files import read_json
from distill_jax.runtime.trees import (
    by_name,
    insert,
    is_stacked,
    is_vector,
    layers_of,
    name_of,
    stack_layers,
)
from distill_jax.storage.weights import Stored
from distill_jax.typing import Tree


class _LeafByLeaf(ocp.type_handlers.NumpyHandler):
    """Orbax's numpy handler, except that it reads each leaf when it is written, not all at once."""

    async def serialize(
        self,
        values: Sequence[Stored],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> Sequence[Any]:
        args = args or [ocp.SaveArgs()] * len(infos)
        for leaf, info, arg in zip(values, infos, args, strict=True):
            array = np.ascontiguousarray(leaf.read(())).reshape(leaf.shape)
            for future in await super().serialize([array], [info], [arg]):
                future.result()
        return []


HANDLERS = ocp.type_handlers.create_type_handler_registry(
    (jax.Array, ocp.type_handlers.get_type_handler(jax.Array)),
    (np.ndarray, ocp.type_handlers.get_type_handler(np.ndarray)),
    (Stored, _LeafByLeaf(deepcopy_host_arrays=False)),
)


def write(path: epath.Path, tree: Tree, options: ocp.options.AsyncOptions) -> None:
    """Writes a tree of arrays or of Stored; only one Stored leaf is in memory at a time."""
    # Stored leaves are not compressed: the freed buffers of that stay with the allocator.
    imported = any(isinstance(leaf, Stored) for leaf in jax.tree.leaves(tree))
    handler = ocp.PyTreeCheckpointHandler(
        type_handler_registry=HANDLERS, use_compression=not imported
    )
    with ocp.AsyncCheckpointer(handler, async_options=options) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree))


def read(path: epath.Path, like: Tree, advice: str) -> Tree:
    """Reads an undamaged checkpoint in the structure, dtypes and shardings of `like`.

    Stacked layers may be single ones in the checkpoint, as earlier versions wrote them.

    Raises:
      ValueError: if an array does not fit; the message ends with `advice`.
    """
    handler = ocp.StandardCheckpointHandler()  # Orbax's managers would wait for each other.
    there, wanted = _shapes(_metadata(handler, path, advice)), _shapes(like)
    if there.keys().isdisjoint(filter(is_stacked, wanted)) and any(map(is_stacked, wanted)):
        singles = _single_layers(like)
        if there.keys() == _shapes(singles).keys():
            return stack_layers(read(path, singles, advice), like, _stacked)
    for name in sorted(there.keys() | wanted.keys()):
        if there.get(name) != wanted.get(name):
            raise ValueError(
                f"{path} is intact but does not fit this run: {name} is "
                f"{there.get(name, 'absent')} there and {wanted.get(name, 'absent')} here; {advice}"
            )
    with _reading(path, advice):
        return handler.restore(path, args=ocp.args.StandardRestore(like))


def as_stored(path: epath.Path, like: Tree, dtype: str | None = None) -> Tree:
    """Returns `like` with the dtypes of the arrays in a checkpoint.

    Args:
      path: path of the checkpoint.
      like: tree of jax.ShapeDtypeStruct.
      dtype: dtype for arrays with more than one axis; None keeps the stored dtypes.

    Raises:
      ValueError: if the checkpoint's metadata cannot be read.
    """
    advice = f"move {path.parent} away and run the stage again, or copy it anew from where it came"
    there = by_name(_metadata(ocp.StandardCheckpointHandler(), path, advice))

    def typed(keys: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        name = name_of(keys)
        stored = there.get(name, there.get(layers_of(name)[0], leaf))  # Of a stack, one layer.
        kept = dtype if dtype and not is_vector(name, leaf) else stored.dtype
        return leaf.update(dtype=np.dtype(kept))

    return jax.tree_util.tree_map_with_path(typed, like)


def _metadata(handler: ocp.StandardCheckpointHandler, path: epath.Path, advice: str) -> Tree:
    """Returns the metadata of the arrays in a checkpoint; raises ValueError if they are damaged."""
    with _reading(path, advice):
        for key in read_json(path / "_METADATA")["tree_metadata"]:
            if "/" in key:
                raise ValueError(f"an array has the name {key}")
        tree = handler.metadata(path).tree
        for name, leaf in by_name(tree).items():
            if not all(map(operator.le, leaf.storage.chunk_shape, leaf.shape)):
                raise ValueError(f"{name} of shape {leaf.shape} has chunks of another shape")
        return tree


@contextlib.contextmanager
def _reading(path: epath.Path, advice: str) -> Iterator[None]:
    """Turns an error of Orbax or TensorStore about a checkpoint's content into one ValueError.

    Errors of the memory and of buckets, where a restart may succeed, are not changed.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # The libraries can raise any exception.
        if "://" in str(path):
            raise
        raise ValueError(f"{path} cannot be read ({cause_of(error)}); {advice}") from error


def _single_layers(like: Tree) -> Tree:
    """Returns nested dicts of the same arrays, in which every layer of a stack stands by itself."""
    singles: dict = {}
    for name, leaf in by_name(like).items():
        if is_stacked(name):
            split = leaf.sharding
            if split is not None:
                split = NamedSharding(split.mesh, PartitionSpec(*split.spec[1:]))
            leaf = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=split)
        for single in layers_of(name):
            insert(singles, single, leaf)
    return singles


def _stacked(layers: list[jax.Array], like: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns the arrays of single layers as one array, with the sharding of `like`."""
    return jax.jit(lambda *layers: jnp.stack(layers), out_shardings=like.sharding)(*layers)


def _shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the stored arrays by name."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        found[name_of(path)] = tuple(leaf.shape)
    return found
