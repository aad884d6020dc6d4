"""The checkpoints that Salimans & Ho (2022, arXiv:2202.00512) released, in Flax's msgpack.

gs://gresearch/diffusion-distillation holds one file per network: teachers such as
cifar_original, and students such as cifar_8. A file is the training state as a dict, of which
`ema_params` and `num_sample_steps` are read. The networks were trained without label dropout.
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
# Salimans & Ho (2022), released networks. The steps are those that their chains start from.
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
    """The network of a released training state.

    `num_sample_steps` is 0 or absent in a teacher; a student has its number of steps there.

    Args:
      path: of the file.
      config: its model, schedule, parameterization and data say what the network is; None for one
        of the published ones, which is known by the width of its first convolution.

    Raises:
      ValueError: when the file is damaged, is something else, or has a network of no known kind.
    """
    state = _restore(path)
    params = state.get("ema_params")
    if not isinstance(params, dict):
        raise ValueError(
            f"{path} has the entries {', '.join(map(str, state))}; expected ema_params: is it a "
            "training state of google-research/diffusion_distillation?"
        )
    # Of a released student it is an array without axes.
    steps = np.asarray(state.get("num_sample_steps") or 0)
    if steps.ndim or not np.issubdtype(steps.dtype, np.integer) or steps < 0:
        raise ValueError(f"{path} has num_sample_steps {steps}; expected a whole number from 0")
    spec = published(path, params) if config is None else configured(config)
    options = {"label_dropout": 0.0, **spec, "num_steps": int(steps) or spec["num_steps"]}
    imported = Imported(params, **options, continuous=not steps)
    return imported._replace(params=_reshaped(params, imported.expected_params()))


def published(path: epath.PathLike, params: Tree) -> Mapping[str, Any]:
    """The released architecture whose first convolution is as wide as this one."""
    conv_in = params.get("conv_in")
    kernel = conv_in.get("kernel") if isinstance(conv_in, dict) else None
    width = kernel.shape[-1] if getattr(kernel, "ndim", 0) else None
    for name, spec in PUBLISHED.items():
        if PAPER_UNETS[name]["channels"] == width:
            model = {**UNET, **PAPER_UNETS[name], "dropout": 0.0}  # A finished network has none.
            return {"model": model, "schedule": COSINE, **spec}
    raise ValueError(
        f"{path} is none of the published networks ({', '.join(PUBLISHED)}): its first convolution "
        f"has {width or 'no'} channels; describe its network with --config=FILE.py"
    )


def _reshaped(params: Tree, like: Tree) -> Tree:
    """The leaves as Stored in the shapes of `like`, where that has one of as many elements.

    Old versions of Flax kept some of them in other shapes, with the elements in the same order.
    """
    if isinstance(params, Mapping):
        inside = like if isinstance(like, Mapping) else {}
        return {str(name): _reshaped(leaf, inside.get(name)) for name, leaf in params.items()}
    if not isinstance(params, (np.ndarray, np.generic, int, float)):
        raise ValueError(f"the checkpoint has {params!r:.50} among its parameters; expected arrays")
    leaf = np.asarray(params)
    return of_array(leaf.reshape(like.shape) if getattr(like, "size", None) == leaf.size else leaf)


def _restore(path: epath.PathLike) -> dict[str, Any]:
    """The dict in a file of flax.serialization.to_bytes."""
    content = epath.Path(path).read_bytes()
    try:
        state = _joined(msgpack.unpackb(content, ext_hook=_array, strict_map_key=False))
    except Exception as error:  # The parser of a damaged file raises anything.
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ValueError(
            f"{path} is cut short, damaged, or not in Flax's msgpack format ({reason}); compare "
            "its size and checksum with those of the original, and download it again"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}; expected a training state")
    return state


def _array(code: int, data: bytes) -> Any:
    """An array or a number from one of Flax's extension types: shape, type and elements."""
    shape, dtype, elements = msgpack.unpackb(data, raw=True)
    if code not in (NDARRAY, SCALAR) or dtype.decode() not in DTYPES:
        raise ValueError(f"extension type {code} of {dtype!r}")
    dtype = np.dtype(jnp.bfloat16 if dtype == b"bfloat16" else dtype.decode())
    array = np.frombuffer(elements, dtype).reshape(shape)
    return array if code == NDARRAY else array[()]


def _joined(tree: Any) -> Any:
    """The tree with arrays that Flax cut into pieces of a gigabyte in one."""
    if not isinstance(tree, dict):
        return tree
    if CHUNKED not in tree:
        return {name: _joined(value) for name, value in tree.items()}
    chunks, shape = (
        [part[str(i)] for i in range(len(part))] for part in (tree["chunks"], tree["shape"])
    )
    return np.concatenate(chunks).reshape(shape)
