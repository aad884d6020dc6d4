"""Reading of the DiT in directories of diffusers: config.json, and one embedding for all blocks.

A checkpoint has the embedding of time and label once in every block, always with the same values.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from distill_jax.models.diffusers_files import ADVICE, WIDTH, check_fixed, value_of
from distill_jax.runtime.options import Rule, number, whole
from distill_jax.storage.weights import Stored

CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")  # The second is of old checkpoints.
# Values of config.json that diffusers_dit computes with, and what a missing one means.
FIXED: Mapping[str, Any] = {
    **dict.fromkeys(("upcast_attention", "norm_elementwise_affine", "only_cross_attention"), False),
    **dict.fromkeys(("cross_attention_dim", "caption_channels", "num_vector_embeds"), None),
    "use_linear_projection": False,
    "double_self_attention": False,
    "attention_bias": True,
    "dropout": 0.0,
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_zero",
}
EPSILON = number(0, 1, without=(0,))
SIDE, LABELS = whole(1, high=4096), whole(1, high=10**6)
# The embedding in block i of a checkpoint, and the end of its name here.
BLOCK, EMB = "transformer_blocks.{}.norm1.", "emb."


class Dit(NamedTuple):
    """The description of a DiT in its config.json.

    Attributes:
      model: {"name": "diffusers_dit", **options}.
      side: side of its latents.
      channels: channels of its latents.
      outputs: channels of its output; those after the first `channels` are of the variance.
      classes: number of classes; label `classes` is the null label.
    """

    model: dict[str, Any]
    side: int
    channels: int
    outputs: int
    classes: int


def dit_of(content: Mapping[str, Any], place: str) -> Dit:
    """Returns what config.json says about a DiTTransformer2DModel.

    Raises:
      ValueError: with the place, for values that diffusers_dit does not have.
    """
    check_fixed(content, FIXED, place)

    def size(key: str, default: Any, rule: Rule = WIDTH) -> int:
        return value_of(content, key, rule, default, place)

    heads, channels = size("num_attention_heads", 16), size("in_channels", 4)
    outputs = channels if content.get("out_channels") is None else size("out_channels", None)
    if outputs not in (channels, 2 * channels):
        raise ValueError(
            f"{place}: out_channels is {outputs}; expected in_channels {channels}, or twice as "
            "many with those of the variance"
        )
    model = {
        "name": "diffusers_dit",
        "patch": size("patch_size", 2),
        "width": heads * size("attention_head_dim", 72),
        "blocks": size("num_layers", 28),
        "heads": heads,
        "epsilon": value_of(content, "norm_eps", EPSILON, 1e-5, place),
    }
    side, classes = size("sample_size", 32, SIDE), size("num_embeds_ada_norm", 1000, LABELS)
    return Dit(model, side, channels, outputs, classes)


def tied(state: Mapping[str, Stored], file: epath.Path) -> dict[str, Stored]:
    """Returns the arrays of a checkpoint with one embedding for all blocks.

    Raises:
      ValueError: if the embeddings of two blocks differ.
    """
    found, first = {}, BLOCK.format(0)
    for name, leaf in state.items():
        start, emb, rest = name.partition(EMB)
        if start == first:
            found[emb + rest] = leaf
        elif not emb or not start.startswith(BLOCK[: BLOCK.index("{")]):
            found[name] = leaf
        elif (one := state.get(first + emb + rest)) is None or not _equal(leaf, one):
            raise ValueError(
                f"{file}: {name} differs from that of block 0; expected one embedding of time and "
                f"label for all blocks; {ADVICE}"
            )
    return found


def repeated(state: Mapping[str, Stored], blocks: int) -> dict[str, Stored]:
    """Returns the arrays of a checkpoint with the embedding in every block, the inverse of tied."""
    found = {name: leaf for name, leaf in state.items() if not name.startswith(EMB)}
    for name in state.keys() - found.keys():
        found.update({BLOCK.format(block) + name: state[name] for block in range(blocks)})
    return found


def without_variance(state: Mapping[str, Stored], dit: Dit) -> dict[str, Stored]:
    """Returns the arrays of a checkpoint whose output has the channels of the latent only."""

    def cut(x: np.ndarray) -> np.ndarray:
        pixels = x.reshape(-1, dit.outputs, *x.shape[1:])
        return pixels[:, : dit.channels].reshape(-1, *x.shape[1:])

    ends = ("proj_out_2.weight", "proj_out_2.bias") if dit.outputs > dit.channels else ()
    rows = dit.model["patch"] ** 2 * dit.outputs
    fit = {name for name in ends if name in state and state[name].shape[:1] == (rows,)}
    return {**state, **{name: state[name].changed(cut) for name in fit}}


def _equal(a: Stored, b: Stored) -> bool:
    """Returns whether two arrays have the same bits."""
    same = (a.shape, a.dtype) == (b.shape, b.dtype)
    return same and a.read(()).tobytes() == b.read(()).tobytes()
