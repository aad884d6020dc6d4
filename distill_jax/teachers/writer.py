"""Writing of an imported network as a finished stage, for loading.load and a stage's `teacher`."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from distill_jax.runtime.files import absolute
from distill_jax.runtime.text import plain, short
from distill_jax.runtime.trees import by_name, name_of
from distill_jax.sampling.loading import find_final
from distill_jax.sampling.manifest import Lineage, Manifest
from distill_jax.storage import checkpoint, writing
from distill_jax.storage.weights import FLOATS
from distill_jax.teachers.base import Imported
from distill_jax.typing import Tree

BLOCK = 1 << 24  # Bytes per read.


def check_free(out: epath.PathLike) -> None:
    """Raises ValueError if a directory is a file, or already has a network or a final/."""
    out = absolute(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out={out} is a file; choose the name of a new directory")
    try:
        final = find_final(out)
    except FileNotFoundError:
        final = out / "final"
        if not final.exists():
            return
    raise ValueError(f"--out={out} holds a network already: {final}; choose another directory")


def checked(params: Tree, like: Tree) -> Tree:
    """Compares parameters with those of a network, and returns them unread with a check.

    Reading a returned parameter raises LeafError if it is not finite.

    Raises:
      ValueError: for the first parameter that is missing, left over, or of another shape or dtype.
    """
    have, want = by_name(params), by_name(like)
    for what, names in (
        ("lacks", want.keys() - have.keys()),
        ("has, and the network does not,", have.keys() - want.keys()),
    ):
        if names:
            raise ValueError(
                f"the checkpoint {what} {len(names)} of {len(want)} parameters, the first of them "
                f"{plain(min(names), 120)}; it is of another network"
            )
    for name, leaf in have.items():
        if leaf.shape != want[name].shape or leaf.dtype not in FLOATS:
            raise ValueError(
                f"{name} is {leaf.dtype} of shape {short(leaf.shape)}; the network expects "
                f"{' or '.join(map(str, FLOATS))} of shape {want[name].shape}"
            )
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf.checked(name_of(path)), params)


def write(
    imported: Imported,
    source: Mapping[str, Any],
    data: Mapping[str, Any] | None,
    out: epath.PathLike,
) -> epath.Path:
    """Writes OUT/final/ atomically: a kill leaves either nothing or all of it.

    The parameters are read, checked and written one by one.

    Args:
      imported: the network.
      source: origin of the file, for the lineage; "format" becomes part of the stage's name.
      data: dataset to evaluate it with, as in a config; None if unknown.
      out: directory without a network; created if absent.

    Returns:
      The final/ directory.

    Raises:
      ValueError: if the parameters do not fit or are not finite, or `out` has a network.
    """
    out = absolute(out)
    check_free(out)
    params = checked(imported.params, imported.expected_params())
    writing.check_room(out, sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
    # An existing folder, so that a failure leaves no new one.
    parent = next((path for path in out.parents if path.exists()), out.parent)
    partial = parent / f".{out.name}.partial"
    try:
        if partial.exists():
            partial.rmtree()
        checkpoint.save_final(partial, params, _manifest(imported, source, data).to_json())
        out.mkdir(parents=True, exist_ok=True)
        partial.rename(out / "final")
    finally:
        if partial.exists():
            partial.rmtree()
    return out / "final"


def _manifest(
    imported: Imported, source: Mapping[str, Any], data: Mapping[str, Any] | None
) -> Manifest:
    """Returns the manifest of an imported network, with its source in the lineage."""
    name = "diffusion" if imported.continuous else "progressive"
    return Manifest(
        stage=f"imported_{source['format'].rpartition(':')[2]}",
        trained=imported.trained,
        distilled=not imported.continuous,
        spec=imported.data,
        model=imported.model,
        schedule=imported.schedule,
        parameterization=imported.parameterization,
        data=data,
        lineage=Lineage({"name": name, "label_dropout": imported.label_dropout}, source=source),
    )


def sha256(path: epath.PathLike) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
