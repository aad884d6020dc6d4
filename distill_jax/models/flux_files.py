"""Reading of config.json of the transformers of FLUX.1 in directories of diffusers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from distill_jax.models.diffusers_dit import CHANNELS as WAVES
from distill_jax.models.diffusers_dit import TIMESTEPS
from distill_jax.models.diffusers_files import WIDTH, YES_NO, check_fixed, value_of
from distill_jax.models.layers import cosines_and_sines
from distill_jax.runtime.options import MAX_WIDTH, Rule, every, whole
from distill_jax.storage.weights import Stored, of_array

EMBEDDER = "time_text_embed.guidance_embedder"
KINDS = ("weight", "bias")
BIAS = "time_text_embed.timestep_embedder.linear_2.bias"
PATCH = 2  # Pipelines pack patches of the latent into the channels of the network.
CHANNELS = whole(PATCH**2, PATCH**2, MAX_WIDTH)
AXES = every(whole(2, 2, MAX_WIDTH), 3, 3)


class Flux(NamedTuple):
    """The description of a transformer in its config.json.

    Attributes:
      model: {"name": "flux", **options}.
      channels: channels of its latents.
      text_width: width of the tokens of its text.
      pooled_width: width of the vector of a whole text.
      takes_w: whether it takes a guidance strength, as FLUX.1 dev does.
    """

    model: dict[str, Any]
    channels: int
    text_width: int
    pooled_width: int
    takes_w: bool


def flux_of(content: Mapping[str, Any], place: str) -> Flux:
    """Returns what config.json says about a FluxTransformer2DModel.

    Raises:
      ValueError: with the place, for values that flux does not have.
    """

    def size(key: str, default: int, rule: Rule = WIDTH) -> int:
        found: int = value_of(content, key, rule, default, place)
        return found

    packed = size("in_channels", 64, CHANNELS)
    fixed = {"patch_size": 1, "out_channels": packed}
    check_fixed({**content, "out_channels": content.get("out_channels") or packed}, fixed, place)
    guidance = value_of(content, "guidance_embeds", YES_NO, False, place)
    model = {
        "name": "flux",
        "patch": PATCH,
        "blocks": size("num_layers", 19),
        "singles": size("num_single_layers", 38),
        "heads": size("num_attention_heads", 24),
        "head_dim": size("attention_head_dim", 128),
        "axes": tuple(value_of(content, "axes_dims_rope", AXES, (16, 56, 56), place)),
        "guidance": guidance,
    }
    text, pooled = size("joint_attention_dim", 4096), size("pooled_projection_dim", 768)
    return Flux(model, packed // PATCH**2, text, pooled, guidance)


def with_fixed_w(state: Mapping[str, Stored], w: float) -> dict[str, Stored]:
    """Returns the arrays of a network that takes w as those of one for a single w.

    The embedding of w is added to the time's, so it becomes a part of its last bias, in float32.

    Args:
      state: arrays by their names.
      w: guidance strength.
    """
    layers = [
        [np.asarray(state[f"{EMBEDDER}.linear_{i}.{kind}"].read(()), np.float32) for kind in KINDS]
        for i in (1, 2)
    ]
    (first, first_bias), (second, second_bias) = layers
    waves = np.asarray(cosines_and_sines(jnp.asarray([TIMESTEPS * (1 + w)]), WAVES))[0]
    h = first @ waves + first_bias
    found = {name: leaf for name, leaf in state.items() if not name.startswith(f"{EMBEDDER}.")}
    bias = second @ (h / (1 + np.exp(-h))) + second_bias
    found[BIAS] = of_array(np.asarray(state[BIAS].read(()), np.float32) + bias)
    return found
