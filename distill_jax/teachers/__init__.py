"""Readers of foreign checkpoints by format, without PyTorch and TensorFlow.

A reader maps (path, config or None, given) to Imported. `given` has the values of --set, and of
--key under "key". A reader that takes two arguments takes neither.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath

from distill_jax.runtime.text import short
from distill_jax.storage import safetensors
from distill_jax.storage.entries import chosen, unwrapped
from distill_jax.storage.pytorch import read_persisted, read_state
from distill_jax.teachers import adm, diffusers, dit, edm, flow, flux, google_research, native
from distill_jax.teachers.base import Imported
from distill_jax.teachers.given import split_key


def read_edm(
    path: epath.PathLike,
    config: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] | None = None,
) -> Imported:
    """Reads the network in a pickle of EDM (Karras et al. 2022), which contains its description."""
    _check_no_config(path, config)
    key, given = split_key(given)
    network = read_persisted(path, key)
    if network.init_args:
        raise ValueError(
            f"{path}: its network was made with unnamed arguments {short(network.init_args)}; "
            "EDM's own training names all of them"
        )
    return edm.convert(network.class_name, network.init_kwargs, network.state, given)


def read_adm(
    path: epath.PathLike,
    config: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] | None = None,
) -> Imported:
    """Reads the network in a state dict of guided-diffusion (Dhariwal & Nichol 2021).

    The file was written by torch.save, or by safetensors with the same names.
    """
    _check_no_config(path, config)
    key, given = split_key(given)
    if epath.Path(path).suffix not in (".safetensors", ".json"):
        return adm.convert(read_state(path, key), given)
    state = unwrapped(safetensors.read(path))
    return adm.convert(state if key is None else chosen(state, key), given)


def read_diffusers(
    path: epath.PathLike,
    config: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] | None = None,
) -> Imported:
    """Reads the network in the directory of a pipeline: its UNet or its transformer."""
    _check_no_config(path, config)
    if not diffusers.is_dit(epath.Path(path)):
        return diffusers.read(path, given)
    kind = diffusers.class_of(epath.Path(path))
    module = next((each for each in (flow, flux) if kind in each.CLASSES), dit)
    return module.read(path, given)


def _check_no_config(path: epath.PathLike, config: Mapping[str, Any] | None) -> None:
    """Raises ValueError if a config is given for a file that contains its own description."""
    if config is not None:
        raise ValueError(f"{path} contains the description of its network; leave --config out")


TEACHERS = {
    "google_research": google_research.read,
    "edm": read_edm,
    "adm": read_adm,
    "safetensors": native.read,
    "diffusers": read_diffusers,
}

__all__ = ["TEACHERS", "Imported"]
