"""New files, and pipelines of diffusers as directories that are written whole or not at all."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from distill_jax.runtime.files import absolute
from distill_jax.storage import safetensors
from distill_jax.storage.weights import Stored

VERSION = "0.42.1"  # Of the diffusers whose format it is; the loader of inpainting reads it.
SUFFIXES = (".json", ".safetensors", ".txt", ".bin", ".model")


def new_file(out: epath.PathLike, what: str, suffix: str, *beside: str) -> epath.Path:
    """Returns the absolute path of a file that can be written, with its suffix.

    Args:
      out: name of the file.
      what: what the file is, for the message, with its article.
      suffix: its suffix.
      beside: suffixes of files with the same name that are written too.

    Raises:
      ValueError: for a name without the suffix, and for files that exist.
    """
    out = absolute(out)
    if out.suffix != suffix:
        raise ValueError(f"--out={out} is no name of {what}; expected FILE{suffix}")
    for file in (out, *map(out.with_suffix, beside)):
        if file.exists():
            raise ValueError(f"--out={out}: {file} exists; choose the name of a new file")
    return out


def write_directory(
    out: epath.Path,
    contents: Mapping[str, Any],
    card: str,
    weights: Mapping[str, Mapping[str, Stored]],
    copied: Iterable[epath.Path],
) -> epath.Path:
    """Writes a pipeline; `out` appears as a whole.

    Args:
      out: the new directory.
      contents: contents of its files of JSON by their places.
      card: text of its README.md.
      weights: arrays of its files of weights by their places.
      copied: directories of another pipeline that are copied under their names.

    Raises:
      ValueError: if `out` exists.
    """
    if out.exists():
        raise ValueError(f"--out={out} exists; choose the name of a new directory")
    partial = out.parent / f".{out.name}.partial"
    if partial.exists():
        partial.rmtree()
    for place, content in contents.items():
        (partial / place).parent.mkdir(parents=True, exist_ok=True)
        (partial / place).write_text(json.dumps(content, indent=2) + "\n")
    (partial / "README.md").write_text(card)
    for folder in copied:
        _copy(folder, partial / folder.name)
    for place, arrays in weights.items():
        safetensors.write(partial / place, arrays)
    partial.rename(out)
    return out


def _copy(source: epath.Path, target: epath.Path) -> None:
    """Copies the files of a part of a pipeline.

    Weights that exist only as *.fp16.* get the names that diffusers reads without being asked to.
    """
    target.mkdir()
    names = {file.name for file in source.iterdir() if file.suffix in SUFFIXES}
    for name in sorted(names):
        plain = name.replace(".fp16.", ".")
        (source / name).copy(target / (name if plain in names else plain))
