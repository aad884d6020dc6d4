"""Reader of PyTorch's files without PyTorch: state dicts, and the networks of NVIDIA's torch_utils.

Formats: torch.save of torch 1.6 and later (a zip archive) and before (a sequence of pickles), and
the plain pickles of NVIDIA's torch_utils. Those contain the source code of their networks, which is
never compiled. The pickles become inert records (see unpickle), which are interpreted here.
"""

import itertools
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from distill_jax.runtime.text import plain, short
from distill_jax.storage.entries import EntryError, chosen, listed, unwrapped
from distill_jax.storage.numpy_pickle import dtype_of
from distill_jax.storage.torch_save import open_legacy, open_zip
from distill_jax.storage.unpickle import (
    BYTES,
    DICTS,
    MODULES,
    PARAMETER,
    PART,
    PERSISTENT,
    SCALARS,
    TENSOR,
    Budget,
    ForbiddenError,
    Reader,
    Record,
    Unpickler,
    is_size,
    origin_of,
    reading,
)
from distill_jax.storage.weights import Stored, mapped, of_array

MAX_NAME = 500  # Characters of an array's name.
MAX_ENTRIES, MAX_COUNT = 50, 10_000  # Entries of a file, and arrays in each, that a message counts.


class Persisted(NamedTuple):
    """A network of NVIDIA's torch_utils: its constructor arguments and its tensors.

    Attributes:
      class_name: class of the outermost module, such as EDMPrecond.
      init_args: positional arguments of its constructor.
      init_kwargs: named arguments of its constructor.
      state: tensors by PyTorch's names, such as "model.enc.32x32_conv.weight".
    """

    class_name: str
    init_args: tuple
    init_kwargs: dict[str, Any]
    state: dict[str, Stored]


def read_state(path: epath.PathLike, key: str | None = None) -> dict[str, Stored]:
    """Reads the tensors of a state dict that torch.save wrote, by name.

    Tensors are views of the file. A prefix that torch gives to every name of a wrapped module is
    removed.

    Args:
      path: path of the file.
      key: entry of the file that is the state dict, "NAME" or "NAME/NAME"; or the first part of the
        names of its tensors.

    Raises:
      EntryError: if the file has other entries than tensors, with their names.
      ValueError: if the file is damaged, of another format, or names code that is not allowed.
    """
    content = mapped(path)
    with reading(path, "a state dict of PyTorch"):
        budget = Budget()
        with epath.Path(path).open("rb") as file:
            zipped = zipfile.is_zipfile(file)
            found = open_zip(file, content, budget) if zipped else open_legacy(content, budget)
        state = _mapping(found)
        for part in (key or "").split("/") if key else ():
            state = _mapping(chosen(state, part))
        if any(_is_mapping(value) or origin_of(value) == PERSISTENT for value in state.values()):
            _refuse_choice(path, state)
        return _bounded(
            unwrapped({_string(name): _leaf(it, budget) for name, it in state.items()}), content
        )


def read_persisted(path: epath.PathLike, key: str | None = None) -> Persisted:
    """Reads one network of a dict that was pickled with NVIDIA's torch_utils.persistence.

    Args:
      path: path of the pickle.
      key: key of the network in the dict; None for "ema", which EDM's files have.

    Raises:
      EntryError: if the dict has no such network, with the entries that it has.
      ValueError: if the file is damaged, of another format, or names code that is not allowed.
    """
    content = mapped(path)
    with reading(path, "a pickled dict with a network of torch_utils"):
        if content[:4].tobytes() == b"PK\x03\x04":
            raise EntryError(
                f"{path} is an archive of torch.save; EDM's networks are in *.pkl files"
            )
        budget = Budget()
        found = _mapping(Unpickler(Reader(content), budget).load())
        if (key or "ema") not in found or origin_of(found[key or "ema"]) != PERSISTENT:
            _refuse_choice(path, found)
        network = found[key or "ema"]
        meta, fields = _persistent(network)
        args, kwargs = (_plain(fields[name], budget) for name in ("_init_args", "_init_kwargs"))
        state: dict[str, Stored] = {}
        _collect(network, "", state, budget)
        return Persisted(_string(meta["class_name"]), args, kwargs, _bounded(state, content))


def read_module(path: epath.PathLike) -> dict[str, Stored]:
    """Reads the tensors of one network of NVIDIA's torch_utils that is a whole pickle, by name.

    Raises:
      ValueError: if the file is damaged, of another format, or names code that is not allowed.
    """
    content = mapped(path)
    with reading(path, "a pickled network of torch_utils"):
        state: dict[str, Stored] = {}
        budget = Budget()
        _collect(Unpickler(Reader(content), budget).load(), "", state, budget)
        return _bounded(state, content)


def _refuse_choice(path: epath.PathLike, tree: Mapping[Any, Any]) -> None:
    """Raises EntryError with the entries of a file and the --key of one of them."""
    items = itertools.islice(tree.items(), MAX_ENTRIES)
    kinds = {name: _kind(value) for name, value in items if isinstance(name, str)}
    network = "arrays", "a network"
    names = [name for name, kind in kinds.items() if any(word in kind for word in network)]
    first = next((name for name in names if "ema" in name.lower()), (names or ["NAME"])[0])
    raise EntryError(
        f"{path} has the entries {listed(kinds)}; name the one that is the network, for example "
        f"--key={plain(first)}"
    )


def _kind(value: Any) -> str:
    """Returns in a few words what an entry is."""
    if _is_mapping(value):
        inside = _mapping(value)
        arrays = sum(map(_is_tensor, itertools.islice(inside.values(), MAX_COUNT)))
        return f"{arrays} arrays" if arrays else f"a dict of {len(inside)}"
    if _is_tensor(value):
        return "an array"
    if origin_of(value) == PERSISTENT:
        return f"a network {plain(_persistent(value)[0].get('class_name'))}"
    return origin_of(value)


def _bounded(state: dict[str, Stored], content: np.ndarray) -> dict[str, Stored]:
    """Returns the arrays; raises ForbiddenError if they are larger than their file."""
    size = sum(leaf.nbytes for leaf in state.values())
    if size > len(content):
        raise ForbiddenError(f"its arrays have {size:,} bytes, and the file {len(content):,}")
    return state


def _is_tensor(record: Any) -> bool:
    return origin_of(record) in (TENSOR, PARAMETER)


def _leaf(record: Any, budget: Budget) -> Stored:
    """Returns the array that the record of a tensor or a parameter describes."""
    budget.spend()
    if origin_of(record) == PARAMETER:
        record = record.args[0]
    if origin_of(record) != TENSOR:
        raise ValueError(f"a tensor was expected, not {origin_of(record)}")
    storage, offset, shape, strides = record.args[:4]
    elements = _elements(storage, budget)
    sizes = (offset, *shape, *strides)
    if not all(map(is_size, sizes)) or len(shape) != len(strides) or len(shape) > 32:
        raise ValueError(
            f"a tensor has offset {short(offset)}, shape {short(shape)} and strides "
            f"{short(strides)}"
        )
    size = int(np.prod(shape, dtype=object))
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    # A tensor cannot have more elements than its storage; strides of 0 would forge a large one.
    if size > elements.size or (size and last >= elements.size):
        raise ForbiddenError(
            f"a tensor of shape {short(shape)} reaches outside its storage of {elements.size} "
            "elements"
        )
    steps = tuple(step * elements.itemsize if size else 0 for step in strides)
    rest = elements[offset:]
    return of_array(np.lib.stride_tricks.as_strided(rest, shape, steps, writeable=False))


def _elements(storage: Any, budget: Budget) -> np.ndarray:
    """Returns the numbers of a storage, which may lie in a file of torch.save within the pickle."""
    if origin_of(storage) == BYTES and storage.state is None:
        (content,) = storage.args
        if type(content) is not bytes:
            raise ValueError("the data of a tensor are no bytes")
        storage.state = open_legacy(content, budget).state
    elements = storage.state
    if not isinstance(elements, np.ndarray):
        raise ValueError("the data of a tensor are missing")
    return elements


def _collect(module: Any, prefix: str, state: dict[str, Stored], budget: Budget) -> None:
    """Adds the parameters and buffers of a module and its submodules to `state`, by name."""
    fields = module.state if origin_of(module) in MODULES else _persistent(module)[1]
    parts = [_mapping(fields[name]) for name in ("_parameters", "_buffers", "_modules")]
    budget.spend(PART + sum(map(len, parts)))
    passing = fields.get("_non_persistent_buffers_set", ())
    for name, value in (*parts[0].items(), *parts[1].items()):
        if value is not None and name not in passing:
            state[_named(prefix, name)] = _leaf(value, budget)
    for name, value in parts[2].items():
        if value is not None:
            _collect(value, f"{_named(prefix, name)}.", state, budget)


def _named(prefix: str, name: Any) -> str:
    """Returns the name of a part of a module."""
    if len(prefix) + len(_string(name)) > MAX_NAME:
        raise ForbiddenError(f"it has an array with a name of more than {MAX_NAME} characters")
    return prefix + name


def _persistent(record: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Returns the metadata of a persistent object and its attributes; never runs `module_src`."""
    if origin_of(record) != PERSISTENT:
        raise ValueError(f"a network was expected, not {origin_of(record)}")
    (meta,) = record.args
    return _mapping(meta), _mapping(_mapping(meta)["state"])


def _plain(value: Any, budget: Budget) -> Any:
    """Converts an argument to Python's own types."""
    budget.spend()
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item, budget) for item in value)
    if _is_mapping(value):
        return {_string(key): _plain(item, budget) for key, item in _mapping(value).items()}
    if origin_of(value) in SCALARS:
        kind, data = value.args
        return np.frombuffer(data, dtype_of(kind)).item()
    if isinstance(value, Record):
        raise ForbiddenError(f"it was made with an argument of type {origin_of(value)}")
    return value


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict) or origin_of(value) in DICTS


def _mapping(value: Any) -> Mapping[Any, Any]:
    """Returns a dict from a dict or the record of a dict."""
    if isinstance(value, dict):
        return value
    if origin_of(value) not in DICTS or value.args:
        raise ValueError(f"a dict was expected, not {origin_of(value)}")
    return value.items


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a name was expected, not {origin_of(value)}")
    return value
