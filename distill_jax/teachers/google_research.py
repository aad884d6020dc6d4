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
from distill_jax.storage.weights import of_array
from distill_jax.teachers.base import Imported, configured
from distill_jax.typing import Tree

UNET = {"name": "unet", "logsnr_input": "inv_cos", "resblock_resample": True}
# Salimans & Ho (2022), released networks; num_steps is where their chains start.
PUBLISHED = {
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


def read(path: epath.PathLike, config: Mapping[str, Any] | None) -> Imported:
    """Reads the network of a released training state.

    `num_sample_steps` is the number of steps of a student; it is 0 or absent for a teacher.

    Args:
      path: path of the file.
      config: config whose model, schedule, parameterization and data describe the network; None
        recognises a published network by the width of its first convolution.

    Raises:
      ValueError: if the file is damaged or no training state, or the network is not recognised.
    """
    state = _restore(path)
    params = state.get("ema_params")
    if not isinstance(params, dict):
        raise ValueError(
            f"{path} has the entries {', '.join(map(str, state))}; expected ema_params: is it a "
            "training state of google-research/diffusion_distillation?"
        )
    # Released students store the number as an array without axes.
    steps = np.asarray(state.get("num_sample_steps") or 0)
    if steps.ndim or not np.issubdtype(steps.dtype, np.integer) or steps < 0:
        raise ValueError(f"{path} has num_sample_steps {steps}; expected a whole number from 0")
    spec = published(path, params) if config is None else configured(config)
    options = {"label_dropout": 0.0, **spec, "num_steps": int(steps) or spec["num_steps"]}
    imported = Imported(params, **options, continuous=not steps)
    return imported._replace(params=_reshaped(params, imported.expected_params()))


def published(path: epath.PathLike, params: Tree) -> Mapping[str, Any]:
    """Returns the published network whose first convolution has the same width."""
    conv_in = params.get("conv_in")
    kernel = conv_in.get("kernel") if isinstance(conv_in, dict) else None
    width = (getattr(kernel, "shape", None) or (None,))[-1]
    for name, spec in PUBLISHED.items():
        if PAPER_UNETS[name]["channels"] == width:
            model = {**UNET, **PAPER_UNETS[name], "dropout": 0.0}  # Dropout is for training only.
            return {"model": model, "schedule": COSINE, **spec}
    raise ValueError(
        f"{path} is none of the published networks ({', '.join(PUBLISHED)}): its first convolution "
        f"has {width or 'no'} channels; describe its network with --config=FILE.py"
    )


def _reshaped(params: Tree, like: Tree) -> Tree:
    """Returns the leaves as Stored, reshaped to those of `like` with as many elements.

    Old versions of Flax stored some leaves in other shapes, with the elements in the same order.
    """
    if isinstance(params, Mapping):
        inside = like if isinstance(like, Mapping) else {}
        return {str(name): _reshaped(leaf, inside.get(name)) for name, leaf in params.items()}
    if not isinstance(params, (np.ndarray, np.generic, int, float)):
        raise ValueError(f"the checkpoint has {params!r:.50} among its parameters; expected arrays")
    leaf = np.asarray(params)
    return of_array(leaf.reshape(like.shape) if getattr(like, "size", None) == leaf.size else leaf)


def _restore(path: epath.PathLike) -> dict[str, Any]:
    """Reads the dict in a file of flax.serialization.to_bytes."""
    content = epath.Path(path).read_bytes()
    try:
        state = _joined(msgpack.unpackb(content, ext_hook=_array, strict_map_key=False))
    except Exception as error:  # The parser can raise any exception for a damaged file.
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ValueError(
            f"{path} is cut short, damaged, or not in Flax's msgpack format ({reason}); compare "
            "its size and checksum with those of the original, and download it again"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}; expected a training state")
    return state


def _array(code: int, data: bytes) -> Any:
    """Reads an array or a number from a Flax extension type: shape, dtype and elements."""
    shape, dtype, elements = msgpack.unpackb(data, raw=True)
    if code not in (NDARRAY, SCALAR) or dtype.decode() not in DTYPES:
        raise ValueError(f"extension type {code} of {dtype!r}")
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
