"""Conversion of the ADM checkpoints of Dhariwal & Nichol (2021, arXiv:2105.05233).

The files contain only arrays. Widths, blocks, attention and classes follow from names and shapes.
The side of the images, the heads, the order of the qkv channels and the noise schedule do not. For
a released network a table has them; for others they are given.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from distill_jax.runtime.options import choice, whole
from distill_jax.runtime.text import plain, short
from distill_jax.teachers import families
from distill_jax.teachers.base import Imported
from distill_jax.teachers.given import (
    DROPOUT,
    MAX_BLOCKS,
    MAX_CHANNELS,
    MAX_CLASSES,
    MAX_SIDE,
    MAX_WIDTH,
    YES_NO,
    check_given,
)
from distill_jax.teachers.leaves import Dialect, Leaf, Path, State, expected, take

NUM_STEPS = 250  # As in the paper.
HEAD_CHANNELS = 64  # Of the released networks without a number of heads.


class Found(NamedTuple):
    """Facts that follow from names and shapes of arrays; levels count from the image inwards."""

    image_channels: int
    channels: int
    multipliers: tuple[int | float, ...]
    blocks: int
    attention: tuple[int, ...]  # Levels with attention.
    num_classes: int
    learned: bool = True  # Whether the network also returns a variance.


class Released(NamedTuple):
    """Facts about a network that do not follow from its arrays.

    Attributes:
      side: side of the images in pixels.
      heads: heads of every attention layer; None for heads of `head_channels` channels.
      split_first: whether the qkv channels are split into q, k and v before heads
        ("use_new_attention_order"), or after.
      schedule: name in SCHEDULES: "iddpm" (their "cosine") or "ddpm" (their "linear").
      head_channels: channels of a head, if `heads` is None.
      label_dropout: probability of the null condition in training.
    """

    side: int
    heads: int | None
    split_first: bool
    schedule: str
    head_channels: int = HEAD_CHANNELS
    label_dropout: float = 0.0


# All released networks; values are from the published command lines.
RELEASED = {
    Found(3, 192, (1, 2, 3, 4), 3, (1, 2, 3), 1000): Released(64, None, True, "iddpm"),
    Found(3, 256, (1, 1, 2, 3, 4), 2, (2, 3, 4), 1000): Released(128, 4, False, "ddpm"),
    Found(3, 256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), 1000): Released(256, None, False, "ddpm"),
    Found(3, 256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), 0): Released(256, None, False, "ddpm"),
    Found(3, 256, (0.5, 1, 1, 2, 2, 4, 4), 2, (4, 5, 6), 1000): Released(512, None, False, "ddpm"),
}
# What can be given, and its rule.
GIVEN = {
    "side": whole(1, high=MAX_SIDE),
    "heads": whole(1, high=1024),
    "head_channels": whole(1, high=1024),
    "split_first": YES_NO,
    "schedule": choice(("iddpm", "ddpm")),
    "label_dropout": DROPOUT,
}
EXAMPLES = {"side": 64, "heads": 4, "split_first": "false", "schedule": "ddpm"}
LAYERS = {
    "norm_0": "in_layers.0",
    "conv_0": "in_layers.2",
    "emb": "emb_layers.1",
    "norm_1": "out_layers.0",
    "conv_1": "out_layers.3",
    "skip": "skip_connection",
    "norm": "norm",
    "qkv": "qkv",
    "proj": "proj_out",
}
TOPS = {
    "t_embed_0": "time_embed.0",
    "t_embed_1": "time_embed.2",
    "label_embed": "label_emb",
    "input": "input_blocks.0.0",
    "norm": "out.0",
    "output": "out.2",
}


def convert(state: State, given: Mapping[str, Any] | None = None) -> Imported:
    """Converts a released ADM network, or another network of its code, to ours.

    The channels of a learned variance are dropped, because our samplers do not use them. ADM never
    dropped labels in training, so these networks have no null condition and cannot be guided.

    Args:
      state: arrays by torch's names.
      given: fields of Released. They replace those of a released network with the same facts; for
        another network side, split_first, schedule, and heads or head_channels are needed.

    Raises:
      ValueError: for a network that is not supported, for a value that is needed and missing, and
        for arrays that do not fit.
    """
    found = infer(state)
    rest = _rest(found, dict(given or {}))
    return Imported(
        params=take(_trimmed(state, found), leaves(found, rest)),
        model=_model(found, rest),
        schedule={"name": rest.schedule},
        parameterization="eps",
        shape=(rest.side, rest.side, found.image_channels),
        num_classes=found.num_classes,
        num_steps=NUM_STEPS,
        label_dropout=rest.label_dropout,
    )


def leaves(found: Found, rest: Released) -> Iterator[tuple[Path, Leaf]]:
    """Yields the path of every parameter with its array in the file.

    The last convolution has only the channels of eps, and the label embedding is transposed.
    """
    shape = (rest.side, rest.side, found.image_channels)
    dialect = Dialect(_namer(found), "3hc" if rest.split_first else "h3c", (1,))
    return expected(_model(found, rest), shape, found.num_classes, dialect)


def _model(found: Found, rest: Released) -> dict[str, Any]:
    """Returns the options of our network."""
    return {
        "name": "adm_unet",
        "channels": found.channels,
        "multipliers": found.multipliers,
        "blocks": found.blocks,
        "attention": tuple(rest.side >> level for level in found.attention),
        "heads": rest.heads,
        **({} if rest.head_channels == HEAD_CHANNELS else {"head_dim": rest.head_channels}),
        "group_dim": 1,
        "noise_input": "index",
    }


def infer(state: State) -> Found:
    """Infers the network's architecture from names and shapes.

    Raises:
      ValueError: for a network that is not of ADM's code, or beyond the limits of any such network.
    """
    if "output_blocks.0.0.in_layers.2.weight" not in state:
        raise ValueError(
            "the checkpoint has no output_blocks.0.0.in_layers.2.weight; expected a diffusion "
            "model of openai/guided-diffusion (its classifiers are not supported). "
            f"{families.of_names(state)}".rstrip(".")
        )
    count = sum(f"input_blocks.{n}.0.in_layers.2.weight" in state for n in range(1, 1000)) + 1
    ups = [
        n
        for n in range(count)
        if any(f"output_blocks.{n}.{i}.in_layers.2.weight" in state for i in (1, 2))
    ]
    per_level = ups[0] + 1 if ups else count  # The blocks of a level and its resampling block.
    firsts = range(1, count, per_level)
    _check("blocks", len(firsts) * (per_level - 1), 1, MAX_BLOCKS)
    channels = _shape(state, "time_embed.0.weight", 2)[1]
    _check("channels", channels, 2, MAX_WIDTH)
    convs = (_shape(state, f"input_blocks.{n}.0.out_layers.3.weight", 4) for n in firsts)
    widths = [_check("channels", shape[0], 1, MAX_WIDTH) for shape in convs]
    multipliers = tuple(width / channels for width in widths)
    _check_supported(state, widths[0])
    ins, outs = (_shape(state, name, 4) for name in ("input_blocks.0.0.weight", "out.2.weight"))
    labels = _shape(state, "label_emb.weight", 2)[0] if "label_emb.weight" in state else 0
    return Found(
        image_channels=_check("image channels", ins[1], 1, MAX_CHANNELS),
        channels=channels,
        multipliers=tuple(int(m) if m == int(m) else m for m in multipliers),
        blocks=per_level - 1,
        attention=tuple(
            level for level, n in enumerate(firsts) if f"input_blocks.{n}.1.qkv.weight" in state
        ),
        num_classes=_check("labels", labels, 0, MAX_CLASSES),
        learned=outs[0] == 2 * ins[1],
    )


def _check(what: str, value: int, low: int, high: int) -> int:
    """Returns a number of the network; raises ValueError outside its limits."""
    if not low <= value <= high:
        raise ValueError(
            f"the network has {value:,} {what}; networks of openai/guided-diffusion have {low:,} "
            f"to {high:,}"
        )
    return value


def _check_supported(state: State, width: int) -> None:
    """Raises ValueError for kinds of layers that adm_unet does not have."""
    for name in state:
        if name.endswith((".op.weight", "0.conv.weight", "1.conv.weight", "2.conv.weight")):
            raise ValueError(
                f"{plain(name)} is a convolution that changes the resolution, as in "
                "openai/improved-diffusion; only networks with resblock_updown are supported. A "
                "network without it must be trained again, or get a reader (docs/extending.md)"
            )
        if name.endswith(".qkv.weight") and len(state[name].shape) == 4:
            raise ValueError(
                f"{plain(name)} is a two-dimensional convolution, as in "
                "openai/consistency_models. Those networks have EDM's preconditioning and no "
                "reader here; take the teacher from NVlabs/edm (edm-imagenet-64x64-cond-adm.pkl)"
            )
    if _shape(state, "input_blocks.1.0.emb_layers.1.weight", 2)[0] != 2 * width:
        raise ValueError(
            "the embedding only shifts features; only networks with use_scale_shift_norm are "
            "supported"
        )
    ins = _shape(state, "input_blocks.0.0.weight", 4)[1]
    outs = _shape(state, "out.2.weight", 4)[0]
    if outs not in (ins, 2 * ins) or ins == 6:
        raise ValueError(
            f"the network takes {ins} channels and returns {outs}; expected as many, or twice as "
            "many with a learned variance (upsamplers, which take a second image, are not "
            "supported)"
        )


def _shape(state: State, name: str, axes: int) -> tuple[int, ...]:
    """Returns the shape of a required array; raises ValueError without it or of other axes."""
    if name not in state:
        raise ValueError(f"{name} is missing; the checkpoint is of another network or incomplete")
    shape = state[name].shape
    if len(shape) != axes:
        raise ValueError(f"{name} has the shape {short(shape)}; expected {axes} axes")
    return shape


def _rest(found: Found, given: dict[str, Any]) -> Released:
    """Completes the given values by those of the released network with these facts."""
    check_given(given, GIVEN)
    if {"heads", "head_channels"} <= given.keys():
        raise ValueError("heads and head_channels are both given; give one of them")
    released = RELEASED.get(found)
    missing = [name for name in EXAMPLES if name not in given]
    if "head_channels" in given:
        missing.remove("heads")
    if missing and released is None:
        facts = ", ".join(f"{name} {value}" for name, value in found._asdict().items())
        example = " ".join(f"--set {name}={EXAMPLES[name]}" for name in missing)
        raise ValueError(
            f"no released network has the arrays of this one ({facts}), and arrays do not say "
            f"{', '.join(missing)}: give them, for example {example}. They are in the command line "
            "that trained it: image_size, num_heads (or --set head_channels for "
            "num_head_channels), use_new_attention_order, noise_schedule (cosine is iddpm, linear "
            "is ddpm)"
        )
    if "head_channels" in given:
        given["heads"] = None
    rest = (released or Released(0, None, False, ""))._replace(**given)
    for level in found.attention:
        width = int(found.channels * found.multipliers[level])
        if width % (rest.heads or rest.head_channels):
            raise ValueError(
                f"a layer has {width} channels, which {rest.heads or rest.head_channels} "
                f"{'heads' if rest.heads else 'channels of a head'} do not divide"
            )
    return rest


def _trimmed(state: State, found: Found) -> State:
    """Drops the variance channels, and transposes the label embedding to a dense layer's layout."""
    trimmed = dict(state)
    for name in ("out.2.weight", "out.2.bias"):
        if name in state:
            trimmed[name] = state[name].changed(lambda array: array[: found.image_channels])
    if "label_emb.weight" in state:
        trimmed["label_emb.weight"] = state["label_emb.weight"].changed(np.transpose)
    return trimmed


def _namer(found: Found) -> Callable[[Path], str]:
    """Returns a map from our layers to their names, which number the blocks consecutively."""
    per_level, last = found.blocks + 1, len(found.multipliers) - 1

    def block(name: str) -> tuple[str, int]:
        """Returns the list of a block and its index there; attention has the next index."""
        where, *numbers = name.split("_")
        level, index = int(numbers[0]), int(numbers[-1]) if numbers[1:] else None
        if where == "mid":
            return "middle_block", 2 * level
        if where == "down":
            return f"input_blocks.{per_level * level + (0 if index is None else 1 + index)}", 0
        before = per_level * (last - level)
        if index is None:
            return f"output_blocks.{before - 1}", 2 if level + 1 in found.attention else 1
        return f"output_blocks.{before + index}", 0

    def name(path: Path) -> str:
        layer = path[1] if path[0] == "unet" else path[0]
        if layer in TOPS:
            return TOPS[layer]
        parent, place = block(layer)
        return f"{parent}.{place + ('attention' in path)}.{LAYERS[path[-1]]}"

    return name
