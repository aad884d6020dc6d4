"""Networks of Dhariwal & Nichol (2021, arXiv:2105.05233): the ADM checkpoints.

The files hold arrays and nothing else. Widths, blocks, attention and classes follow from names and
shapes; what does not (the image's side, heads, the order of the qkv channels, the noise schedule)
is known for the released networks by their multipliers, and a keyword for others.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from distill_jax.teachers.base import Imported
from distill_jax.teachers.leaves import Dialect, Leaf, Path, State, expected, take

NUM_STEPS = 250  # As in the paper.


class Released(NamedTuple):
    """What the arrays of a released network do not say.

    Attributes:
      side: of the image.
      heads: of every attention; None: 64 channels each.
      split_first: whether the qkv channels are split into q, k and v before heads
        ("use_new_attention_order"), or after.
      schedule: an entry of SCHEDULES.
    """

    side: int
    heads: int | None
    split_first: bool
    schedule: str


# By multipliers: the published command lines of the released networks.
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
    """What names and shapes say; levels count from the image inwards."""

    image_channels: int
    channels: int
    multipliers: tuple[int | float, ...]
    blocks: int
    attention: tuple[int, ...]  # Levels.
    num_classes: int


def convert(
    state: State,
    side: int | None = None,
    heads: int | None = None,
    split_first: bool | None = None,
    schedule: str | None = None,
) -> Imported:
    """A released ADM network, or another of its code, as ours.

    The channels of a learned variance are left out: our samplers have none. Labels were never
    dropped in training, so such a network has no null label and cannot be guided.

    Args:
      state: its arrays by torch's names.
      side: of the image. None, for this and the others, is what the released network with the
        same multipliers has.
      heads: of every attention; None for another network than a released one: 64 channels each.
      split_first: whether the qkv channels are split into q, k and v before heads
        ("use_new_attention_order").
      schedule: "iddpm" (their "cosine") or "ddpm" (their "linear").

    Raises:
      ValueError: for a network that is not supported, for what is not known and was not given,
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
    """Every parameter of such a network, with what its file calls it.

    Of the last convolution only the channels of eps, and the labels transposed.
    """
    shape = (rest.side, rest.side, found.image_channels)
    dialect = Dialect(_namer(found), "3hc" if rest.split_first else "h3c", (1,))
    return expected(_model(found, rest), shape, found.num_classes, dialect)


def _model(found: Found, rest: Released) -> dict[str, Any]:
    """Its options in our words."""
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
    """What names and shapes say of the network."""
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
    per_level = ups[0] + 1 if ups else count  # Its blocks and what comes before or after them.
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
    """Raises ValueError for kinds of layers that adm_unet lacks."""
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
            f"the network takes {ins} channels and puts out {outs}; expected as many, or twice as "
            "many with a learned variance (upsamplers, which take a second image, are not "
            "supported)"
        )


def _shape(state: State, name: str) -> tuple[int, ...]:
    """The shape of an array that must be there."""
    if name not in state:
        raise ValueError(f"{name} is missing; the checkpoint is of another network, or was cut")
    return state[name].shape


def _rest(found: Found, given: dict[str, Any]) -> Released:
    """What the caller says, and for the rest the released network with these multipliers."""
    given = {name: value for name, value in given.items() if value is not None}
    released = RELEASED.get(found.multipliers)
    if released is not None:
        return released._replace(**given)
    missing = [name for name in ("side", "split_first", "schedule") if name not in given]
    if missing:
        raise ValueError(
            f"no released network has the multipliers {found.multipliers}, so what its arrays do "
            f"not say must be given: {', '.join(missing)}"
        )
    return Released(heads=None, **given)


def _trimmed(state: State, found: Found) -> State:
    """Without the channels of the variance, and labels laid out like a dense layer's weights."""
    trimmed = dict(state)
    for name in ("out.2.weight", "out.2.bias"):
        if name in state:
            trimmed[name] = state[name].changed(lambda array: array[: found.image_channels])
    if "label_emb.weight" in state:
        trimmed["label_emb.weight"] = state["label_emb.weight"].changed(np.transpose)
    return trimmed


def _namer(found: Found) -> Callable[[Path], str]:
    """Our layers -> their names: the blocks are counted through there."""
    per_level, last = found.blocks + 1, len(found.multipliers) - 1

    def block(name: str) -> tuple[str, int]:
        """The list that holds a block, and its place there; attention has the next."""
        where, level, *index = name.split("_")
        level, index = int(level), int(index[-1]) if index else None
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
