"""Reading of config.json of the transformers of Stable Diffusion 3 in directories of diffusers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from distill_jax.models.diffusers_files import WIDTH, check_fixed, value_of
from distill_jax.runtime.options import Rule, whole
from distill_jax.runtime.text import short

BUFFER = "pos_embed.pos_embed"  # The table of positions, which mmdit computes.
SIDE = whole(1, high=4096)
NORMS = Rule(lambda value: value in (None, "rms_norm"), "null or 'rms_norm'")


class MMDiT(NamedTuple):
    """The description of a transformer in its config.json.

    Attributes:
      model: {"name": "mmdit", **options}.
      side: side of its latents.
      channels: channels of its latents.
      text_width: width of the tokens of its text.
      pooled_width: width of the vector of a whole text.
    """

    model: dict[str, Any]
    side: int
    channels: int
    text_width: int
    pooled_width: int


def mmdit_of(content: Mapping[str, Any], place: str) -> MMDiT:
    """Returns what config.json says about an SD3Transformer2DModel.

    Raises:
      ValueError: with the place, for values that mmdit does not have.
    """

    def size(key: str, default: int, rule: Rule = WIDTH) -> int:
        found: int = value_of(content, key, rule, default, place)
        return found

    heads, head_dim = size("num_attention_heads", 18), size("attention_head_dim", 64)
    channels, side = size("in_channels", 16), size("sample_size", 128, SIDE)
    fixed = {"out_channels": channels, "caption_projection_dim": heads * head_dim}
    check_fixed({**content, "out_channels": content.get("out_channels") or channels}, fixed, place)
    dual = content.get("dual_attention_layers", [])
    if not isinstance(dual, (list, tuple)) or list(dual) != list(range(len(dual))):
        raise ValueError(
            f"{place}: dual_attention_layers is {short(dual)}; expected the first blocks, 0, 1, ..."
        )
    patch = size("patch_size", 2)
    model = {
        "name": "mmdit",
        "patch": patch,
        "blocks": size("num_layers", 18),
        "heads": heads,
        "head_dim": head_dim,
        "dual": len(dual),
        "qk_norm": value_of(content, "qk_norm", NORMS, None, place) is not None,
        "places": size("pos_embed_max_size", 96),
        "base": max(side // patch, 1),
    }
    text, pooled = size("joint_attention_dim", 4096), size("pooled_projection_dim", 2048)
    return MMDiT(model, side, channels, text, pooled)
