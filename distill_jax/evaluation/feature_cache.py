"""Features of real images, kept between commands in a folder that only the user can write.

50,000 images take a thousand seconds of a CPU, and every evaluation of a run needs the same ones.
"""

import hashlib
import inspect
import os
import pathlib
from typing import Any

import jax
import numpy as np
from etils import epath

from distill_jax.diffusion.pixels import to_uint8
from distill_jax.evaluation import feature_networks
from distill_jax.evaluation.feature_networks import FeatureNetwork, read_npz
from distill_jax.metrics import resizing
from distill_jax.runtime import logging
from distill_jax.runtime.files import private_folder, written

MAX_ENTRIES = 16  # Number of files that are kept; 50,000 images have one of 260 or 410 MB.


def pooled_features(x: np.ndarray, network: FeatureNetwork) -> np.ndarray:
    """Returns the pooled features (n, d) of real images, which are computed once per user.

    A file counts only for the same pixels, network, weights, resize, kind of device and code of
    the network. One that is damaged is made again. Without a folder that only the user can write,
    one line says so and nothing is kept.

    Args:
      x: images (n, h, w, c), float32 in [-1, 1] or uint8.
      network: the feature network.
    """
    images = x if x.dtype == np.uint8 else to_uint8(x)
    key = _key(images, network)
    try:
        path = epath.Path(private_folder("references") / f"{network.name}-{key[:32]}.npz")
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home.
        logging.say(f"features of real images are not kept: {error}")
        return _computed(images, network)
    found = _read(path, key, (len(images), network.size)) if path.exists() else None
    if found is None:
        found = _computed(images, network)
        try:
            with written(path) as part, part.open("wb") as file:
                np.savez(file, pooled=found, key=key)
            for old in sorted(path.parent.glob("*.npz"), key=_age)[:-MAX_ENTRIES]:
                old.unlink(missing_ok=True)
        except OSError as error:
            logging.say(f"features of real images are not kept: {error}")
    return found


def _key(images: np.ndarray, network: FeatureNetwork) -> str:
    """Returns a hash of everything that the features depend on."""
    code = inspect.getmodule(type(network.kind.module())), resizing, feature_networks
    parts: list[Any] = [
        pathlib.Path(str(module.__file__)).read_bytes() for module in code if module
    ]
    names = network.name, network.digest, network.resize, jax.default_backend(), images.shape
    pixels = network.kind.shift, network.kind.scale
    digest = hashlib.sha256(repr((*names, *pixels, *map(len, parts))).encode())
    for part in (*parts, np.ascontiguousarray(images)):
        digest.update(part)
    return digest.hexdigest()


def _computed(images: np.ndarray, network: FeatureNetwork) -> np.ndarray:
    parts = (images[start : start + 1000] for start in range(0, len(images), 1000))
    return network(logging.followed("features of real images", parts, len(images)))["pooled"]


def _read(path: epath.Path, key: str, shape: tuple[int, int]) -> np.ndarray | None:
    """Returns the features in a file; None, which is said, if it is damaged or has another key."""
    try:
        arrays = read_npz(path)
        found = np.asarray(arrays["pooled"], np.float32)
        if str(arrays["key"]) != key or found.shape != shape or not np.isfinite(found).all():
            raise ValueError("it has other features")
    except (KeyError, OSError, ValueError) as error:
        logging.say(f"{path} is damaged and made again ({error})")
        return None
    os.utime(path)
    return found


def _age(path: epath.Path) -> int:
    """Returns the time of the last use in nanoseconds; those of epath are whole seconds."""
    return os.stat(path).st_mtime_ns
