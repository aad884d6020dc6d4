"""Text encoders of a pipeline as one: those of SDXL, Stable Diffusion 3 and FLUX, or a single one.

Podell et al. (2023, arXiv:2307.01952), section 2.1; Esser et al. (2024, arXiv:2403.03206), section
4; and the pipelines of diffusers.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.diffusion.spec import Leaf
from distill_jax.models import text_encoders
from distill_jax.models.clip import TextOptions, TextOutputs
from distill_jax.models.t5 import T5Options
from distill_jax.models.text_encoders import FOLDER, Options
from distill_jax.runtime.options import MAX_WIDTH, Rule, whole
from distill_jax.runtime.text import short
from distill_jax.typing import Tree

COUNT = whole(3, high=4096)
LENGTH = Rule(lambda v: v == 0 or COUNT.holds(v), f"0, or {COUNT.expected}")
CONDITIONS = ("text", "text_mask", "pooled")  # In their order in a spec.
Arrays = dict[str, jax.Array]


class Composition(NamedTuple):
    """A way to make the conditions of a network from the outputs of several text encoders.

    Attributes:
      kinds: classes of the encoders' options.
      projected: which of the encoders have a projection.
      length: number of tokens of the last encoder that the pipeline takes.
      join: maps a Joint, outputs and masks of its encoders to the conditions.
    """

    kinds: tuple[type, ...]
    projected: tuple[bool, ...]
    length: int
    join: Callable[["Joint", Sequence[Any], Sequence[jax.Array]], Arrays]


@dataclasses.dataclass(frozen=True)
class Joint:
    """The options of text encoders that are one.

    Attributes:
      name: a key of COMPOSITIONS.
      encoders: options of the encoders.
      length: number of tokens of every prompt, with start and end. Beside T5 it is T5's, and CLIP
        has all of its positions.
      width: channels of zeros in the place of T5's tokens, for Stable Diffusion 3 without T5; 0.
      zeros: whether zeros stand for the empty prompt.

    Raises:
      ValueError: for encoders that do not fit each other, and a length that they do not have.
    """

    name: str
    encoders: tuple[Options, ...]
    length: int
    width: int = 0
    zeros: bool = False

    def __post_init__(self) -> None:
        kinds = tuple(map(type, self.encoders))
        expected = self.composition.kinds
        if self.name and kinds != (expected[:2] if self.width else expected):
            names = [kind.__name__ for kind in expected]
            raise ValueError(
                f"the text encoders of {self.name} are {[kind.__name__ for kind in kinds]}; "
                f"expected {names}"
            )
        for options, count in zip(self.encoders, self.lengths, strict=True):
            if not COUNT.allows(count) or count > options.max_position_embeddings:
                raise ValueError(
                    f"conditioner.length is {count}; this network takes at most "
                    f"{options.max_position_embeddings} tokens, and at least 3"
                )
        self._check_widths()

    def _check_widths(self) -> None:
        """Raises ValueError if the tokens of several CLIPs cannot be joined, or padded to T5's."""
        towers = [each for each in self.encoders if isinstance(each, TextOptions)]
        if len({each.max_position_embeddings for each in towers}) > 1:
            counts = [each.max_position_embeddings for each in towers]
            raise ValueError(
                f"the text encoders do not fit each other: {counts} tokens; expected equal numbers"
            )
        wide = self.width or self.encoders[-1].hidden_size
        clip = sum(each.hidden_size for each in towers)
        if self.name == "sd3" and clip > wide:
            raise ValueError(
                f"the text encoders do not fit each other: those of CLIP have {clip} channels "
                f"together, and T5 has {wide}; expected no more than T5's"
            )

    @property
    def composition(self) -> Composition:
        """The entry of COMPOSITIONS."""
        return COMPOSITIONS[self.name]

    @property
    def lengths(self) -> tuple[int, ...]:
        """The numbers of tokens of every prompt, one for each encoder."""
        beside = T5Options in self.composition.kinds
        return tuple(
            each.max_position_embeddings
            if beside and isinstance(each, TextOptions)
            else self.length
            for each in self.encoders
        )

    @functools.cached_property
    def leaves(self) -> dict[str, Leaf]:
        """The leaves of the conditions by name."""

        def made() -> Arrays:
            found: list[Any] = []
            for each, count in zip(self.encoders, self.lengths, strict=True):
                tokens = jnp.zeros((1, count, each.hidden_size))
                if isinstance(each, TextOptions):
                    embeds = jnp.zeros((1, each.projection_dim))
                    found.append(TextOutputs(tokens, tokens, tokens[:, 0], embeds))
                else:
                    found.append(tokens)
            return self.composition.join(
                self, found, [jnp.zeros((1, count), bool) for count in self.lengths]
            )

        leaves = jax.eval_shape(made)
        found = {name: leaves[name] for name in CONDITIONS if name in leaves}
        return {name: Leaf(leaf.shape[1:], str(leaf.dtype)) for name, leaf in found.items()}

    def described(self) -> str:
        """Returns the options but for `length` as JSON, which `parse` reads."""
        parts = [text_encoders.described(each) for each in self.encoders]
        if not self.name:
            return json.dumps(parts[0])
        facts = {"width": self.width, "zeros": self.zeros}
        return json.dumps({"model_type": self.name, "encoders": parts, **facts})


def _single(joint: Joint, found: Sequence[Any], masks: Sequence[jax.Array]) -> Arrays:
    """Returns the last tokens of one encoder."""
    return {"text": getattr(found[0], "last", found[0]), "text_mask": masks[0]}


def _clips(found: Sequence[Any]) -> jax.Array:
    """Returns the penultimate tokens of the text towers, joined on the channels."""
    return jnp.concatenate([each.penultimate for each in found[:2]], axis=-1)


def _sdxl(joint: Joint, found: Sequence[Any], masks: Sequence[jax.Array]) -> Arrays:
    return {"text": _clips(found), "text_mask": masks[0], "pooled": found[1].embeds}


def _sd3(joint: Joint, found: Sequence[Any], masks: Sequence[jax.Array]) -> Arrays:
    """Returns CLIP's tokens, with zeros up to T5's width, and T5's tokens after them."""
    clip = _clips(found)
    if joint.width:
        tokens = jnp.zeros((len(clip), joint.length, joint.width))
        mask = jnp.zeros(tokens.shape[:2], bool)
    else:
        tokens, mask = found[2], masks[2]
    clip = jnp.pad(clip, ((0, 0), (0, 0), (0, tokens.shape[-1] - clip.shape[-1])))
    return {
        "text": jnp.concatenate([clip, tokens], axis=1),
        "text_mask": jnp.concatenate([masks[0], mask], axis=1),
        "pooled": jnp.concatenate([each.embeds for each in found[:2]], axis=-1),
    }


def _flux(joint: Joint, found: Sequence[Any], masks: Sequence[jax.Array]) -> Arrays:
    return {"text": found[1], "text_mask": masks[1], "pooled": found[0].pooled}


# By the model_type of Joint.described; "" is any single encoder.
COMPOSITIONS = {
    "": Composition((), (False,), 77, _single),
    "sdxl": Composition((TextOptions, TextOptions), (False, True), 77, _sdxl),
    "sd3": Composition((TextOptions, TextOptions, T5Options), (True, True, False), 256, _sd3),
    "flux": Composition((TextOptions, T5Options), (False, False), 512, _flux),
}


def folder_of(number: int) -> str:
    """Returns the name of the folder of a pipeline's text encoder 0, 1 or 2."""
    return f"{FOLDER}_{number + 1}" if number else FOLDER


def joined(
    name: str, encoders: tuple[Options, ...], length: int, width: int = 0, zeros: bool = False
) -> Joint:
    """Returns a Joint; length 0 is that of the pipeline, or less for encoders that have less."""
    most = 2**16 if width else encoders[-1].max_position_embeddings
    return Joint(name, encoders, length or min(COMPOSITIONS[name].length, most), width, zeros)


def parse(described: str, length: int, place: str) -> Joint:
    """Returns the options in a Joint.described(); length 0 is that of the pipeline.

    Raises:
      ValueError: with `place`, if they are damaged or do not fit each other.
    """
    try:
        content = json.loads(described)
    except (ValueError, RecursionError):
        content = described
    name = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(name, str) or name not in COMPOSITIONS or not name:
        return joined("", (text_encoders.parse(content, place),), length)
    parts, width, zeros = (content.get(key, 0) for key in ("encoders", "width", "zeros"))
    if not isinstance(parts, list) or not isinstance(zeros, (bool, int)):
        raise ValueError(f"{place} is {short(described)}; expected a list of encoders, and zeros")
    if not whole(0, high=MAX_WIDTH).allows(width) or (width and name != "sd3"):
        raise ValueError(f"{place}: width is {short(width)}; expected 0, or of sd3 T5's width")
    encoders = tuple(text_encoders.parse(part, f"{place}: an encoder") for part in parts)
    return joined(name, encoders, length, width, bool(zeros))


def by_encoder(name: str, trees: Sequence[Any]) -> Any:
    """Returns the trees of the encoders as one: that of a single one, or a dict by folder."""
    if not name:
        return trees[0]
    return {folder_of(number): tree for number, tree in enumerate(trees)}


def shapes(joint: Joint) -> Tree:
    """Returns the shapes and dtypes of the parameters."""
    flags = joint.composition.projected
    trees = [text_encoders.shapes(*given) for given in zip(joint.encoders, flags, strict=False)]
    return by_encoder(joint.name, trees)


def conditions(
    joint: Joint, params: Tree, ids: Sequence[jax.Array], masks: Sequence[jax.Array]
) -> Arrays:
    """Returns the conditions of texts: "text" (b, n, d), "text_mask" (b, n), of some "pooled".

    Args:
      joint: options of the encoders.
      params: their parameters.
      ids: int32 token numbers (b, n) for each encoder.
      masks: (b, n), True for tokens of the text. Only a single encoder reads its mask: the
        pipelines of several let T5 attend to the padding.
    """
    folders = map(folder_of, range(len(joint.encoders)))
    trees = [params[folder] for folder in folders] if joint.name else [params]
    seen = [None] * len(masks) if joint.name else masks
    given = zip(joint.encoders, trees, ids, seen, strict=True)
    return _join(joint, [text_encoders.outputs(*each) for each in given], masks)


@functools.partial(jax.jit, static_argnums=0)
def _join(joint: Joint, found: Sequence[Any], masks: Sequence[jax.Array]) -> Arrays:
    return joint.composition.join(joint, found, masks)
