"""Reader of the checkpoints that Salimans & Ho (2022, arXiv:2202.00512) released, in msgpack.

gs://gresearch/diffusion-distillation has one file per network: teachers such as cifar_original, and
students such as cifar_8. A file is a training state in Flax's msgpack format, of which `ema_params`
and `num_sample_steps` are read. The networks were trained without label dropout.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import msgpack
import numpy as np
from etils import epath

from distill_jax.config import PAPER_UNETS
from distill_jax.runtime.options import whole
from distill_jax.runtime.text import plain, reason, short
from distill_jax.runtime.trees import by_name
from distill_jax.storage.entries import listed
from distill_jax.storage.weights import mapped, of_array
from distill_jax.teachers.base import Imported, configured
from distill_jax.teachers.given import check_given, split_key
from distill_jax.typing import Tree

UNET = {"name": "unet", "logsnr_input": "inv_cos", "resblock_resample": True}
# Salimans & Ho (2022), released networks; num_steps is where their chains start.
PUBLISHED: dict[str, dict[str, Any]] = {
    "cifar10": {"parameterization": "x", "shape": (32, 32, 3), "num_classes": 0, "num_steps": 8192},
    "imagenet64": {
        "parameterization": "both",
        "shape": (64, 64, 3),
        "num_classes": 1000,
        "num_steps": 1024,
    },
    "lsun128": {
        "parameterization": "both",
        "shape": (128, 128, 3),
        "num_classes": 0,
        "num_steps": 1024,
    },
}
COSINE = {"name": "cosine", "logsnr_min": -20.0, "logsnr_max": 20.0}
NDARRAY, SCALAR = 1, 3  # Flax's msgpack extension types; 2 is a complex number.
DTYPES = ("float32", "float16", "bfloat16", "float64", "bool", "uint8", "uint32", "int32", "int64")
CHUNKED = "__msgpack_chunked_array__"
PARAMS = "ema_params"
MAX_STEPS = 65_536  # Sampling steps; the released networks begin with 8,192.
MAX_OBJECTS = 100_000  # Entries of all dicts; a training state has some ten thousand.
MAX_AXES, MAX_DEPTH = 32, 32


def read(
    path: epath.PathLike,
    config: Mapping[str, Any] | None,
    given: Mapping[str, Any] | None = None,
) -> Imported:
    """Reads the network of a released training state.

    `num_sample_steps` is the number of steps of a student; it is 0 or absent for a teacher.

    Args:
      path: path of the file.
      config: config whose model, schedule, parameterization and data describe the network; None
        recognises a published network by the names and sizes of all its parameters.
      given: label_dropout, and num_steps of a teacher, of a network that a config describes.

    Raises:
      ValueError: if the file is damaged or no training state, or the network is not recognised.
    """
    key, given = split_key(given)
    state = _restore(path)
    params = state.get(key or PARAMS)
    if not isinstance(params, dict):
        kinds = {name: type(value).__name__ for name, value in state.items()}
        raise ValueError(
            f"{path} has the entries {listed(kinds)}; expected {key or PARAMS}: is it a training "
            "state of google-research/diffusion_distillation? --key=NAME chooses another entry"
        )
    steps = _steps(path, state.get("num_sample_steps"))
    params = _stored(params)
    if config is None:
        check_given(given, {})
        spec = {"label_dropout": 0.0, **published(path, params)}
    else:
        spec = configured(config, given)
    if steps and "num_steps" in given:
        raise ValueError(
            f"{path} has num_sample_steps {steps}, so it is a student; leave out --set num_steps, "
            "which is for teachers"
        )
    imported = Imported({}, **{**spec, "num_steps": steps or spec["num_steps"]})
    imported = imported._replace(continuous=not steps)
    return imported._replace(params=_reshaped(params, imported.expected_params()))


def _steps(path: epath.PathLike, value: Any) -> int:
    """Returns num_sample_steps; released students store it as an array without axes."""
    steps = (
        value.item() if isinstance(value, (np.ndarray, np.generic)) and not value.ndim else value
    )
    if steps is not None and not whole(0, high=MAX_STEPS).allows(steps):
        raise ValueError(
            f"{path} has num_sample_steps {short(steps)}; expected a whole number from 0 to "
            f"{MAX_STEPS:,}"
        )
    return steps or 0


def published(path: epath.PathLike, params: Tree) -> dict[str, Any]:
    """Returns the published network whose parameters have the same names and sizes.

    Raises:
      ValueError: if there is none, with the difference from the one of the same first convolution.
    """
    have = {name: leaf.size for name, leaf in by_name(params).items()}
    width = params["conv_in"]["kernel"].shape[-1:] if "conv_in/kernel" in have else ()
    for name, spec in PUBLISHED.items():
        if width != (PAPER_UNETS[name]["channels"],):
            continue
        model = {**UNET, **PAPER_UNETS[name], "dropout": 0.0}  # Dropout is for training only.
        found = {"model": model, "schedule": COSINE, **spec}
        like = Imported({}, **found, label_dropout=0.0).expected_params()
        want = {name: leaf.size for name, leaf in by_name(like).items()}
        if have == want:
            return found
        other = min(key for key in have.keys() | want.keys() if have.get(key) != want.get(key))
        raise ValueError(
            f"{path} is none of the published networks ({', '.join(PUBLISHED)}): it begins as "
            f"{name}, and {plain(other)} has {have.get(other, 'no')} elements in place of "
            f"{want.get(other, 'no')}; describe its network with --config=FILE.py"
        )
    raise ValueError(
        f"{path} is none of the published networks ({', '.join(PUBLISHED)}): its first convolution "
        f"has {width[0] if width else 'no'} channels; describe its network with --config=FILE.py"
    )


def _stored(params: Any, depth: int = 0) -> Tree:
    """Returns the arrays and numbers of a tree as Stored."""
    if isinstance(params, dict) and depth < MAX_DEPTH:
        return {name: _stored(leaf, depth + 1) for name, leaf in params.items()}
    if not isinstance(params, (np.ndarray, np.generic, int, float)):
        raise ValueError(
            f"the checkpoint has {short(params)} among its parameters; expected arrays"
        )
    return of_array(np.asarray(params))


def _reshaped(params: Tree, like: Tree) -> Tree:
    """Returns the leaves reshaped to those of `like` with as many elements.

    Old versions of Flax stored some leaves in other shapes, with the elements in the same order.
    """
    if isinstance(params, Mapping):
        inside = like if isinstance(like, Mapping) else {}
        return {name: _reshaped(leaf, inside.get(name)) for name, leaf in params.items()}
    if getattr(like, "size", None) != params.size:
        return params
    return params.changed(lambda array: array.reshape(like.shape))


def _restore(path: epath.PathLike) -> dict[str, Any]:
    """Reads the dict in a file of flax.serialization.to_bytes."""
    content = mapped(path)
    left = MAX_OBJECTS

    def counted(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Returns a dict, of names that occur once, after paying for its objects."""
        nonlocal left
        left -= 1 + len(pairs)
        found = dict(pairs)
        if left < 0 or len(found) < len(pairs):
            raise ValueError("too many entries, or two of one name")
        return found

    limits = {"max_array_len": MAX_AXES, "max_map_len": MAX_OBJECTS}
    try:
        state = msgpack.unpackb(content, ext_hook=_array, object_pairs_hook=counted, **limits)
        state = _joined(state)
    except Exception as error:  # The parser can raise any exception for a damaged file.
        raise ValueError(
            f"{path} is cut short, damaged, or not in Flax's msgpack format ({reason(error)}); "
            "compare its size and checksum with those of the original, and download it again"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}; expected a training state")
    return state


def _array(code: int, data: bytes) -> Any:
    """Reads an array or a number from a Flax extension type: shape, dtype and elements."""
    shape, dtype, elements = msgpack.unpackb(data, raw=True, max_array_len=MAX_AXES, max_map_len=0)
    if code not in (NDARRAY, SCALAR) or dtype.decode() not in DTYPES:
        raise ValueError(f"extension type {code} of {short(dtype)}")
    dtype = np.dtype(jnp.bfloat16 if dtype == b"bfloat16" else dtype.decode())
    array = np.frombuffer(elements, dtype).reshape(shape)
    return array if code == NDARRAY else array[()]


def _joined(tree: Any) -> Any:
    """Returns the tree with chunked arrays joined; Flax splits arrays of over a gigabyte."""
    if not isinstance(tree, dict):
        return tree
    if CHUNKED not in tree:
        return {name: _joined(value) for name, value in tree.items()}
    chunks, shape = (
        [part[str(i)] for i in range(len(part))] for part in (tree["chunks"], tree["shape"])
    )
    return np.concatenate(chunks).reshape(shape)
