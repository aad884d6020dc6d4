"""The text encoders in a directory: those of a pipeline of diffusers, or a single one."""

from typing import Any, NamedTuple

from etils import epath

from distill_jax.models import text_encoders
from distill_jax.models.clip import TextOptions
from distill_jax.models.pretrained import read_config
from distill_jax.models.text_compositions import (
    COMPOSITIONS,
    Joint,
    by_encoder,
    folder_of,
    joined,
)
from distill_jax.models.text_encoders import Directory
from distill_jax.runtime.files import absolute
from distill_jax.runtime.options import MAX_WIDTH, whole
from distill_jax.runtime.text import short
from distill_jax.typing import Tree

INDEX = "model_index.json"  # It names the parts of a pipeline; a part that is null is left out.
THIRD = folder_of(2)  # T5 of Stable Diffusion 3.
ZEROS = "set conditioner.t5 to False, which takes zeros for its tokens, as diffusers does"


class Directories(NamedTuple):
    """The text encoders of a directory.

    Attributes:
      root: the directory.
      parts: the directories of the encoders.
      name: a key of text_compositions.COMPOSITIONS.
      width: see text_compositions.Joint.
      zeros: see text_compositions.Joint.
    """

    root: epath.Path
    parts: tuple[Directory, ...]
    name: str = ""
    width: int = 0
    zeros: bool = False

    def joint(self, length: int) -> Joint:
        """Returns the options of the encoders; length 0 is that of the pipeline.

        Raises:
          ValueError: for a damaged config.json, and encoders that do not fit each other.
        """
        options = tuple(part.options() for part in self.parts)
        try:
            return joined(self.name, options, length, self.width, self.zeros)
        except ValueError as error:
            raise ValueError(f"{self.root}: {error}") from error

    def params(self) -> Tree:
        """Returns the parameters, unread; raises ValueError if weights are damaged or of others."""
        flags = COMPOSITIONS[self.name].projected
        found = [part.params(flag) for part, flag in zip(self.parts, flags, strict=False)]
        return by_encoder(self.name, found)

    def digest(self) -> str:
        """Returns the SHA-256 of the weights of each encoder, with spaces between them."""
        return " ".join(part.digest() for part in self.parts)

    def tokenizers(self) -> list[epath.Path]:
        """Returns the directories of the encoders' tokenizers."""
        if self.name:
            names = [folder_of(number) for number in range(len(self.parts))]
            return [self.root / name.replace("text_encoder", "tokenizer") for name in names]
        folder = self.parts[0].folder
        beside = (folder.parent / "tokenizer").exists() and folder.name == text_encoders.FOLDER
        return [folder.parent if beside else folder]


def find(directory: epath.PathLike, t5: bool = True) -> Directories:
    """Finds the text encoders of a directory.

    Args:
      directory: the directory of a pipeline of diffusers, or of a single encoder.
      t5: whether to take T5 of Stable Diffusion 3; zeros stand for its tokens otherwise, and where
        model_index.json says that it is null.

    Raises:
      ValueError: if an encoder is missing, or they are not those of a known pipeline.
    """
    root = absolute(directory)
    index = read_config(root, (INDEX,)) if (root / INDEX).exists() else {}
    names = [name for name in map(folder_of, range(3)) if _has(root, index, name)]
    names = [name for name in names if t5 or name != THIRD]
    for name in names:
        if not (root / name).is_dir():
            raise ValueError(
                f"{root} has no {name}/, which its {INDEX} names: download the whole pipeline, "
                "from a gated repository with a token, after its licence is accepted"
                + (f"; or {ZEROS}" if name == THIRD else "")
            )
    parts = tuple(text_encoders.find(root / name) for name in (names if names[1:] else ()))
    kind = _name(root, index, parts)
    if not t5 and kind != "sd3":
        raise ValueError(f"conditioner.t5 is False, and {root} is no Stable Diffusion 3")
    if kind == "sd3" and len(parts) < 3:
        if t5 and THIRD not in index:
            raise ValueError(
                f"{root} has no {THIRD}/, the T5 of Stable Diffusion 3: download it, or {ZEROS}"
            )
        return Directories(root, parts, kind, _width(root))
    parts = parts or (text_encoders.find(root),)
    return Directories(root, parts, kind, zeros=kind == "sdxl" and _zeros(root, index))


def _has(root: epath.Path, index: dict[str, Any], name: str) -> bool:
    """Returns whether a pipeline has a text encoder, by its index, or else by its folders."""
    if not index:
        return bool((root / name).is_dir())
    return index.get(name) not in (None, [None, None])


def _name(root: epath.Path, index: dict[str, Any], parts: tuple[Directory, ...]) -> str:
    """Returns the key of COMPOSITIONS for encoders, "" for none; raises ValueError for others."""
    kinds = tuple(part.family.kind for part in parts)
    names = [part.folder.name for part in parts]
    in_turn = names == [folder_of(number) for number in range(len(parts))]
    is_sd3 = THIRD in index or (root / "transformer").is_dir()
    if kinds == (TextOptions, TextOptions) and in_turn and is_sd3:
        return "sd3"
    for name, composition in COMPOSITIONS.items():
        if kinds == composition.kinds and in_turn:
            return name
    raise ValueError(
        f"{root} has {', '.join(f'{part.folder.name} ({part.name})' for part in parts)}; expected "
        "the text encoders of SDXL (two of CLIP), SD3 (two of CLIP, and T5) or FLUX (CLIP and T5)"
    )


def _zeros(root: epath.Path, index: dict[str, Any]) -> bool:
    """Returns whether zeros stand for the empty prompt of SDXL, as they do by default."""
    found = index.get("force_zeros_for_empty_prompt", True)
    if not isinstance(found, bool):
        raise ValueError(
            f"{root / INDEX}: force_zeros_for_empty_prompt is {short(found)}; expected a boolean"
        )
    return found


def _width(root: epath.Path) -> int:
    """Returns the width of the text that the transformer of Stable Diffusion 3 takes."""
    width = read_config(root / "transformer").get("joint_attention_dim", 4096)
    if not whole(1, high=MAX_WIDTH).allows(width):
        raise ValueError(
            f"{root}/transformer/config.json: joint_attention_dim is {short(width)}; expected a "
            "whole number"
        )
    found: int = width
    return found
