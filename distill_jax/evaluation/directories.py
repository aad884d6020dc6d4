"""Feature networks that are read from a directory, with the sizes that its config.json says."""

import os
from typing import Any, NoReturn

from etils import epath

from distill_jax.models.clip import ImageOptions
from distill_jax.models.clip_files import read_clip
from distill_jax.models.dinov2 import NAMES, read_dinov2
from distill_jax.runtime.files import absolute
from distill_jax.typing import Tree

# Names of CLIP's image towers by width and side of the patches.
TOWERS = {(768, 32): "B32", (768, 16): "B16", (1024, 14): "L14", (1280, 14): "H14"}
TOWERS |= {(1408, 14): "g14", (1664, 14): "bigG14"}


def unread() -> NoReturn:
    """Stands for the module of a network whose directory was not read."""
    raise ValueError("a network of a directory has no module before it is read")


def of_dinov2(kind: Any, directory: epath.Path) -> tuple[Any, Tree, epath.Path]:
    """Returns the kind of DINOv2 in a directory, its variables and the file of weights.

    The distance is FD-DINOv2 for the large network, which the published numbers have, and
    FD-DINOv2-S, -B or -g for others.
    """
    module, variables, file = read_dinov2(directory)
    width = module.options.hidden_size
    label = NAMES.get(width, f"DINOv2-{width}")
    return kind._replace(module=lambda: module, label=label), variables, file


def of_clip(kind: Any, directory: epath.Path) -> tuple[Any, Tree, epath.Path]:
    """Returns the kind of CLIP's image tower in a directory, its variables and file of weights.

    CMMD has its name without an addition for ViT-L/14 at 336 pixels only.
    """
    found = read_clip(directory)
    module, variables = found.image()
    options = module.options
    label = f"CLIP-{tower_of(options)}"
    shift, scale = (tuple(255 * part for part in pair) for pair in (found.mean, found.std))
    kind = kind._replace(module=lambda: module, side=options.image_size, label=label)
    cmmd = "CMMD" if label == "CLIP-L14-336" else f"CMMD-{label}"
    return kind._replace(shift=shift, scale=scale, cmmd=cmmd), variables, found.file


def tower_of(options: ImageOptions) -> str:
    """Returns the name of an image tower, such as L14-336, or its sizes."""
    size = options.hidden_size, options.patch_size
    return f"{TOWERS.get(size, '-'.join(map(str, size)))}-{options.image_size}"


def in_hub(repository: str) -> epath.Path | None:
    """Returns a snapshot of a repository in the cache of Hugging Face, None if there is none."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    hub = absolute(os.environ.get("HF_HOME", f"{cache}/huggingface")) / "hub"
    folder = hub / f"models--{repository.replace('/', '--')}" / "snapshots"
    found = sorted(folder.iterdir()) if folder.exists() else []
    return found[-1] if found else None
