"""Reading of networks in directories of diffusers: config.json, and weights by their names."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from distill_jax.models.pretrained import (
    find_weights,
    read_config,
    read_options,
    read_weights,
)
from distill_jax.models.vae import Layers
from distill_jax.runtime.options import MAX_WIDTH, Rule, every, number, whole
from distill_jax.runtime.text import short
from distill_jax.storage.weights import Stored

NAME = "diffusion_pytorch_model"
WEIGHTS = tuple(
    f"{NAME}{kind}"
    for kind in (
        *(".safetensors", ".safetensors.index.json", ".fp16.safetensors"),
        *(".safetensors.index.fp16.json", ".bin", ".fp16.bin"),
    )
)
ADVICE = "take config.json and weights that were published together"
# Values of config.json that this package computes with, and what a missing one means.
UNET: Mapping[str, Any] = {
    **dict.fromkeys(("center_input_sample", "only_cross_attention", "dual_cross_attention"), False),
    **dict.fromkeys(("resnet_skip_time_act", "class_embeddings_concat"), False),
    **dict.fromkeys(("encoder_hid_dim", "encoder_hid_dim_type", "class_embed_type"), None),
    **dict.fromkeys(("num_class_embeds", "time_embedding_dim"), None),
    **dict.fromkeys(("time_embedding_act_fn", "timestep_post_act", "cross_attention_norm"), None),
    **dict.fromkeys(("downsample_padding", "mid_block_scale_factor", "resnet_out_scale_factor"), 1),
    **dict.fromkeys(("conv_in_kernel", "conv_out_kernel"), 3),
    **dict.fromkeys(("resnet_time_scale_shift", "attention_type"), "default"),
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "act_fn": "silu",
    "norm_eps": 1e-5,
    "time_embedding_type": "positional",
    "mid_block_type": "UNetMidBlock2DCrossAttn",
}
VAE: Mapping[str, Any] = {
    "act_fn": "silu",
    "in_channels": 3,
    "out_channels": 3,
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
}
WIDTH = whole(1, high=MAX_WIDTH)
WIDTHS = every(WIDTH, 16, 1)
SCALE = number(0, 1e6, without=(0,))
SHIFT = number(-1e6, 1e6)
ADDITION = Rule(lambda value: value in (None, "text_time"), "null or 'text_time'")
YES_NO = Rule(lambda value: type(value) is bool, "true or false")
# Old names in the attention of an autoencoder, and those of today.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class Directory(NamedTuple):
    """A network of diffusers on disk.

    Attributes:
      path: its directory.
      content: content of config.json.
      file: file of the weights, or the index of their files.
      state: arrays by their names, not read yet.
    """

    path: epath.Path
    content: dict[str, Any]
    file: epath.Path
    state: dict[str, Stored]


class Unet(NamedTuple):
    """The description of a UNet in its config.json.

    Attributes:
      model: {"name": "sd_unet", **options}.
      channels: channels of its latents.
      inpaint: channels that it takes beside those of the latent; 5 in inpainting models.
      text_width: width of the tokens of its text.
      takes_w: whether it takes a guidance strength.
      pooled_width: width of the vector of a whole text, in SDXL; 0 without one.
    """

    model: dict[str, Any]
    channels: int
    inpaint: int
    text_width: int
    takes_w: bool
    pooled_width: int = 0


class Vae(NamedTuple):
    """The description of an autoencoder in its config.json; latents are (z - shift) scale.

    Attributes:
      layers: its layers.
      scale: scale of the latents.
      shift: shift of the latents.
    """

    layers: Layers
    scale: float
    shift: float


def read_directory(directory: epath.PathLike, *kinds: str) -> Directory:
    """Opens a directory with config.json and weights of one of the named classes of diffusers.

    Raises:
      ValueError: if a file is missing, damaged or of another class.
    """
    folder = epath.Path(directory)
    content = read_config(folder)
    if content.get("_class_name") not in kinds:
        raise ValueError(
            f"{folder}/config.json has _class_name {short(content.get('_class_name'))}; expected "
            f"{' or '.join(kinds)}"
        )
    file = find_weights(folder, WEIGHTS)
    return Directory(folder, content, file, _renamed(read_weights(file)))


def unet_of(content: Mapping[str, Any], place: str) -> Unet:
    """Returns what config.json says about a UNet2DConditionModel.

    Raises:
      ValueError: with the place, for values that sd_unet does not have.
    """
    check_fixed(content, UNET, place)
    widths = value_of(content, "block_out_channels", WIDTHS, [320, 640, 1280, 1280], place)
    levels = range(len(widths))
    across, plain = "CrossAttnDownBlock2D", "DownBlock2D"
    down = content.get("down_block_types", [across] * 3 + [plain])
    up = content.get("up_block_types", ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3)
    _check_types(down, (across, plain), len(widths), f"{place}: down_block_types")
    if up != [name.replace("Down", "Up") for name in reversed(down)]:
        raise ValueError(
            f"{place}: up_block_types is {short(up)}; expected those of down_block_types in reverse"
        )
    depths = _depths(content, levels, place)
    size_channels, pooled = _additions(content, place)
    key = "num_attention_heads" if content.get("num_attention_heads") else "attention_head_dim"
    heads = _each(content, key, 8, levels, place)  # Either key is the number of heads.
    channels = value_of(content, "out_channels", WIDTH, 4, place)
    inputs = value_of(content, "in_channels", WIDTH, 4, place)
    w_channels = content.get("time_cond_proj_dim")
    model = {
        "name": "sd_unet",
        "widths": tuple(widths),
        "blocks": value_of(content, "layers_per_block", WIDTH, 2, place),
        "transformers": tuple(level for level in levels if down[level] == across),
        "heads": tuple(heads),
        "linear": value_of(content, "use_linear_projection", YES_NO, False, place),
        "groups": value_of(content, "norm_num_groups", WIDTH, 32, place),
    }
    if {*depths} != {1}:
        model["depths"] = tuple(depths)
    if size_channels:
        model["size_channels"] = size_channels
    if w_channels is not None:
        model["w_channels"] = value_of(content, "time_cond_proj_dim", WIDTH, None, place)
    if inputs < channels:
        raise ValueError(
            f"{place}: in_channels is {inputs} and out_channels {channels}; expected at least as "
            "many inputs"
        )
    text = value_of(content, "cross_attention_dim", WIDTH, 1280, place)
    return Unet(model, channels, inputs - channels, text, w_channels is not None, pooled)


def vae_of(content: Mapping[str, Any], place: str) -> Vae:
    """Returns what config.json says about an AutoencoderKL.

    Raises:
      ValueError: with the place, for values that models.vae does not have.
    """
    check_fixed(content, VAE, place)
    widths = value_of(content, "block_out_channels", WIDTHS, [64], place)
    for way, name in (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D")):
        key = f"{way}_block_types"
        _check_types(content.get(key, [name]), (name,), len(widths), f"{place}: {key}")
    options = {
        "widths": tuple(widths),
        "blocks": value_of(content, "layers_per_block", WIDTH, 1, place),
        "channels": value_of(content, "latent_channels", WIDTH, 4, place),
        "groups": value_of(content, "norm_num_groups", WIDTH, 32, place),
        "quant": value_of(content, "use_quant_conv", YES_NO, True, place),
        "post_quant": value_of(content, "use_post_quant_conv", YES_NO, True, place),
    }
    layers = read_options(Layers, options, place)
    scale = value_of(content, "scaling_factor", SCALE, 0.18215, place)
    shift = content.get("shift_factor")
    shift = 0.0 if shift is None else value_of(content, "shift_factor", SHIFT, None, place)
    return Vae(layers, float(scale), float(shift))


def _renamed(state: Mapping[str, Stored]) -> dict[str, Stored]:
    """Returns arrays with the names of today for the attention of an autoencoder."""
    found = {}
    for name, leaf in state.items():
        *parts, module, kind = name.split(".") if name.count(".") > 1 else ("", "", name)
        if "mid_block" in parts and module in OLD_NAMES and "attentions" in parts:
            name = ".".join((*parts, OLD_NAMES[module], kind))
        found[name] = leaf
    return found


def value_of(content: Mapping[str, Any], key: str, rule: Rule, default: Any, place: str) -> Any:
    """Returns a value of a config that satisfies its rule."""
    value = content.get(key, default)
    if not rule.allows(value):
        raise ValueError(f"{place}: {key} is {short(value)}; expected {rule.expected}")
    return value


def _each(
    content: Mapping[str, Any], key: str, default: int, levels: Sequence[int], place: str
) -> list[int]:
    """Returns a whole number for each level, from one number or a list."""
    value = content.get(key, default)
    values = value if isinstance(value, list) else [value] * len(levels)
    if len(values) != len(levels) or not all(map(WIDTH.allows, values)):
        raise ValueError(
            f"{place}: {key} is {short(value)}; expected {WIDTH.expected}, or one for each level"
        )
    return values


def check_fixed(content: Mapping[str, Any], fixed: Mapping[str, Any], place: str) -> None:
    """Raises ValueError for a value that the network here does not have."""
    for key, expected in fixed.items():
        value = content.get(key, expected)
        if value != expected and not (expected is None and value is False):
            raise ValueError(f"{place}: {key} is {short(value)}; only {expected!r} is supported")


def _depths(content: Mapping[str, Any], levels: Sequence[int], place: str) -> list[int]:
    """Returns the transformer blocks of each level; raises ValueError if those upwards differ."""
    depths = _each(content, "transformer_layers_per_block", 1, levels, place)
    key = "reverse_transformer_layers_per_block"
    if content.get(key) not in (None, depths[::-1]):
        raise ValueError(
            f"{place}: {key} is {short(content[key])}; expected null, or {depths[::-1]}, the "
            "numbers of transformer_layers_per_block in reverse"
        )
    return depths


def _additions(content: Mapping[str, Any], place: str) -> tuple[int, int]:
    """Returns channels of the sinusoid of a size, and of the pooled text, of SDXL; 0 for others."""
    if value_of(content, "addition_embed_type", ADDITION, None, place) is None:
        return 0, 0
    channels = value_of(content, "addition_time_embed_dim", whole(2, 2, MAX_WIDTH), None, place)
    key, sizes = "projection_class_embeddings_input_dim", 6 * channels
    inputs = value_of(content, key, whole(1, high=2**20), None, place)
    if inputs <= sizes:
        raise ValueError(
            f"{place}: {key} is {inputs}; expected 6 x addition_time_embed_dim = {sizes} and the "
            "width of the pooled text"
        )
    return channels, inputs - sizes


def _check_types(value: Any, known: Sequence[str], count: int, place: str) -> None:
    """Raises ValueError unless a list has a known name of a block for each level."""
    if not isinstance(value, list) or len(value) != count or not all(v in known for v in value):
        raise ValueError(
            f"{place} is {short(value)}; expected {count} times {' or '.join(known)}, one for each "
            "number in block_out_channels"
        )
