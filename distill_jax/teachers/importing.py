"""The import of a foreign checkpoint: a file becomes a finished stage, or one message."""

import inspect
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from distill_jax.models.diffusers_files import WEIGHTS
from distill_jax.models.pretrained import find_weights
from distill_jax.runtime.files import absolute
from distill_jax.runtime.registry import EVERYTHING, lookup
from distill_jax.storage import safetensors
from distill_jax.teachers import TEACHERS, Imported, diffusers, writer
from distill_jax.teachers.base import data_of

DIFFUSERS = ("model_index.json", "unet", "transformer", "config.json")  # In its directories.


def convert(
    kind: str,
    source: epath.PathLike,
    out: epath.PathLike,
    config: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] | None = None,
) -> epath.Path:
    """Reads a foreign checkpoint and writes it as a finished stage.

    Args:
      kind: format, a name in TEACHERS or package.module:Name.
      source: path of the file.
      out: directory without a network; created if absent.
      config: config that describes the network, if the format needs one.
      given: facts about the network that the file does not contain, by name, and "key".

    Returns:
      The final/ directory.

    Raises:
      ValueError: for a source that is no file, or no network in that format, and for an `out` that
        has a network.
    """
    source, given = epath.Path(source), given or {}
    read = lookup(TEACHERS, "format", kind, EVERYTHING)
    weights = _check_file(kind, source)
    writer.check_free(out)
    if given and len(inspect.signature(read).parameters) < 3:
        raise ValueError(f"format {kind!r} takes no --set and no --key")
    imported = read(source, config, given) if given else read(source, config)
    if not isinstance(imported, Imported):
        raise ValueError(f"format {kind!r} read a {type(imported).__name__}; expected an Imported")
    shards = safetensors.shards(weights) if weights.suffix == ".json" else []
    origin = {"format": kind, "file": source.name, "path": str(absolute(source))}
    origin["sha256"] = writer.sha256(weights)
    origin.update({file.name: writer.sha256(file) for file in shards})
    origin.update({"given": dict(given)} if given else {})
    return writer.write(imported, origin, data_of(config), out)


def _check_file(kind: str, source: epath.Path) -> epath.Path:
    """Returns the file of the weights: the source, or one in a pipeline of diffusers.

    Raises:
      ValueError: unless the source is a file, or with the format diffusers a pipeline; names the
        kind of a known directory.
    """
    if kind == "diffusers":
        return find_weights(diffusers.network_folder(source), WEIGHTS)
    if "://" in str(source) or os.path.isfile(source):
        return source
    expected = f"expected a checkpoint in the format {kind}"
    if any((source / name).exists() for name in DIFFUSERS):
        raise ValueError(
            f"{source} is a directory of diffusers; {expected}: take the format diffusers for a "
            "pipeline of Stable Diffusion, SD3 or DiT, or else the file that the authors published"
        )
    what = "does not exist"
    if source.exists():
        what = "is a directory" if source.is_dir() else "is a pipe or a device"
    raise ValueError(f"{source} is no file: it {what}; {expected}")
