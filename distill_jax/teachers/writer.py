"""Writing of an imported network as a finished stage, for loading.load and a stage's `teacher`."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from distill_jax.runtime.files import absolute
from distill_jax.runtime.text import plain, short
from distill_jax.runtime.trees import by_name, name_of
from distill_jax.sampling.loading import find_final
from distill_jax.sampling.manifest import Lineage, Manifest, Reference
from distill_jax.storage import checkpoint, writing
from distill_jax.storage.weights import FLOATS
from distill_jax.teachers.base import Imported, Part
from distill_jax.typing import Tree

BLOCK = 1 << 24  # Bytes per read.
STAGE = re.compile(r"s[0-9]+_\w+")


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

    The parameters are read, checked and written one by one. A network with a codec or a text
    encoder in its file becomes the only stage of a workdir: OUT/STAGE/final, OUT/codec/final.

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
    parts = {name: checked(part.params, part.like) for name, part in imported.parts.items()}
    if parts and out.exists() and any(out.iterdir()):
        raise ValueError(
            f"--out={out} is not empty; a network with its {', '.join(parts)} needs a new directory"
        )
    writing.check_room(out, sum(leaf.nbytes for leaf in jax.tree.leaves((params, parts))))
    # An existing folder, so that a failure leaves no new one.
    parent = next((path for path in out.parents if path.exists()), out.parent)
    partial = parent / f".{out.name}.partial"
    try:
        if partial.exists():
            partial.rmtree()
        manifest = _manifest(imported, source, data)
        if parts:
            manifest = _write_parts(partial, imported.parts, parts, manifest)
        place = f"{manifest.stage}/final" if parts else "final"
        checkpoint.save_final(partial / place if parts else partial, params, manifest.to_json())
        out.mkdir(parents=True, exist_ok=True)
        if parts:
            out.rmdir()  # It is empty, and a folder cannot be renamed to one that exists.
        partial.rename(out if parts else out / "final")
    finally:
        if partial.exists():
            partial.rmtree()
    return out / place


def _write_parts(
    workdir: epath.Path,
    described: Mapping[str, Part],
    params: Mapping[str, Tree],
    manifest: Manifest,
) -> Manifest:
    """Writes the final/ of each part, and returns the manifest with references to them."""
    refer: dict[str, Any] = {}
    for name, tree in params.items():
        content = described[name].content
        kept = {key: content[key] for key in content.keys() - checkpoint.WRITTEN}
        checkpoint.save_final(final := workdir / name / "final", tree, kept)
        refer[name] = Reference(f"../../{name}/final", checkpoint.fingerprint(final))
    # The only stage of the workdir, whose folder has the form of a stage's name.
    stage = manifest.stage if STAGE.fullmatch(manifest.stage) else f"s00_{manifest.stage}"
    return dataclasses.replace(manifest, stage=stage, **refer)


def _manifest(
    imported: Imported, source: Mapping[str, Any], data: Mapping[str, Any] | None
) -> Manifest:
    """Returns the manifest of an imported network, with its source in the lineage."""
    if imported.manifest is not None:
        before = imported.manifest.lineage
        lineage = dataclasses.replace(before, source={**source, "source": before.source})
        return dataclasses.replace(imported.manifest, lineage=lineage)
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
