"""Conversion of the ADM checkpoints of Dhariwal & Nichol (2021, arXiv:2105.05233).

The files contain only arrays. Widths, blocks, attention and classes follow from names and shapes.
The side of the images, the heads, the order of the qkv channels and the noise schedule do not. For
the released networks a table by channel multipliers has them; for others they are keywords.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from distill_jax.teachers.base import Imported
from distill_jax.teachers.leaves import Dialect, Leaf, Path, State, expected, take

NUM_STEPS = 250  # As in the paper.


class Released(NamedTuple):
    """Facts about a network that do not follow from its arrays.

    Attributes:
      side: side of the images in pixels.
      heads: heads of every attention layer; None for heads of 64 channels.
      split_first: whether the qkv channels are split into q, k and v before heads
        ("use_new_attention_order"), or after.
      schedule: name in SCHEDULES.
    """

    side: int
    heads: int | None
    split_first: bool
    schedule: str


# Released networks by their multipliers; values are from the published command lines.
RELEASED = {
    (1, 2, 3, 4): Released(64, None, True, "iddpm"),
    (1, 1, 2, 3, 4): Released(128, 4, False, "ddpm"),
    (1, 1, 2, 2, 4, 4): Released(256, None, False, "ddpm"),
    (0.5, 1, 1, 2, 2, 4, 4): Released(512, None, False, "ddpm"),
}
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


class Found(NamedTuple):
    """Facts that follow from names and shapes of arrays; levels count from the image inwards."""

    image_channels: int
    channels: int
    multipliers: tuple[int | float, ...]
    blocks: int
    attention: tuple[int, ...]  # Levels with attention.
    num_classes: int


def convert(
    state: State,
    side: int | None = None,
    heads: int | None = None,
    split_first: bool | None = None,
    schedule: str | None = None,
) -> Imported:
    """Converts a released ADM network, or another network of its code, to ours.

    The channels of a learned variance are dropped, because our samplers do not use them. ADM never
    dropped labels in training, so these networks have no null condition and cannot be guided.

    Args:
      state: arrays by torch's names.
      side: side of the images in pixels. For this and the other arguments, None is the value of
        the released network with the same multipliers.
      heads: heads of every attention layer; None without such a network: heads of 64 channels.
      split_first: whether the qkv channels are split into q, k and v before heads
        ("use_new_attention_order").
      schedule: "iddpm" (their "cosine") or "ddpm" (their "linear").

    Raises:
      ValueError: for a network that is not supported, for an argument that is needed and missing,
        and for arrays that do not fit.
    """
    found = infer(state)
    rest = _rest(found, {"side": side, "split_first": split_first, "schedule": schedule})
    rest = rest._replace(heads=heads or rest.heads)
    return Imported(
        params=take(_trimmed(state, found), leaves(found, rest)),
        model=_model(found, rest),
        schedule={"name": rest.schedule},
        parameterization="eps",
        shape=(rest.side, rest.side, found.image_channels),
        num_classes=found.num_classes,
        num_steps=NUM_STEPS,
        label_dropout=0.0,
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
        "group_dim": 1,
        "noise_input": "index",
    }


def infer(state: State) -> Found:
    """Infers the network's architecture from names and shapes."""
    if "output_blocks.0.0.in_layers.2.weight" not in state:
        raise ValueError(
            "the checkpoint has no output_blocks.0.0.in_layers.2.weight; expected a diffusion "
            "model of openai/guided-diffusion (its classifiers are not supported)"
        )
    count = sum(f"input_blocks.{n}.0.in_layers.2.weight" in state for n in range(1, 1000)) + 1
    ups = [
        n
        for n in range(count)
        if any(f"output_blocks.{n}.{i}.in_layers.2.weight" in state for i in (1, 2))
    ]
    per_level = ups[0] + 1 if ups else count  # The blocks of a level and its resampling block.
    firsts = range(1, count, per_level)
    channels = _shape(state, "time_embed.0.weight")[1]
    widths = [_shape(state, f"input_blocks.{n}.0.out_layers.3.weight")[0] for n in firsts]
    multipliers = tuple(width / channels for width in widths)
    _check_supported(state, widths[0])
    return Found(
        image_channels=_shape(state, "input_blocks.0.0.weight")[1],
        channels=channels,
        multipliers=tuple(int(m) if m == int(m) else m for m in multipliers),
        blocks=per_level - 1,
        attention=tuple(
            level for level, n in enumerate(firsts) if f"input_blocks.{n}.1.qkv.weight" in state
        ),
        num_classes=state["label_emb.weight"].shape[0] if "label_emb.weight" in state else 0,
    )


def _check_supported(state: State, width: int) -> None:
    """Raises ValueError for kinds of layers that adm_unet does not have."""
    for name in state:
        if name.endswith((".op.weight", "0.conv.weight", "1.conv.weight", "2.conv.weight")):
            raise ValueError(
                f"{name} is a convolution that changes the resolution; only networks with "
                "resblock_updown are supported"
            )
    if _shape(state, "input_blocks.1.0.emb_layers.1.weight")[0] != 2 * width:
        raise ValueError(
            "the embedding only shifts features; only networks with use_scale_shift_norm are "
            "supported"
        )
    ins = _shape(state, "input_blocks.0.0.weight")[1]
    outs = _shape(state, "out.2.weight")[0]
    if outs not in (ins, 2 * ins) or ins == 6:
        raise ValueError(
            f"the network takes {ins} channels and returns {outs}; expected as many, or twice as "
            "many with a learned variance (upsamplers, which take a second image, are not "
            "supported)"
        )


def _shape(state: State, name: str) -> tuple[int, ...]:
    """Returns the shape of a required array; raises ValueError if it is missing."""
    if name not in state:
        raise ValueError(f"{name} is missing; the checkpoint is of another network or incomplete")
    return state[name].shape


def _rest(found: Found, given: dict[str, Any]) -> Released:
    """Completes the caller's values by those of the released network with these multipliers."""
    given = {name: value for name, value in given.items() if value is not None}
    released = RELEASED.get(found.multipliers)
    if released is not None:
        return released._replace(**given)
    missing = [name for name in ("side", "split_first", "schedule") if name not in given]
    if missing:
        raise ValueError(
            f"no released network has the multipliers {found.multipliers}, so values that do not "
            f"follow from its arrays must be given: {', '.join(missing)}"
        )
    return Released(heads=None, **given)


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
