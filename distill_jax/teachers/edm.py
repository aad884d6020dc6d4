"""Conversion of EDM's networks (Karras et al. 2022, arXiv:2206.00364): DDPM++, NCSN++ and ADM.

Their preconditioning is our parameterization "edm", their noise levels our schedule "karras".
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp

from distill_jax.diffusion.augmentation import LABELS
from distill_jax.diffusion.prediction import SIGMA_DATA
from distill_jax.diffusion.schedule import Karras
from distill_jax.diffusion.trained import Heun, Renoise
from distill_jax.runtime.options import Rule, choice, every, number, whole
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
    check_value,
    one_value,
)
from distill_jax.teachers.leaves import Dialect, Leaf, Path, State, expected, take

# Defaults of the released code for options that a network's description may omit.
DEFAULTS = {
    "label_dim": 0,
    "sigma_min": 0.0,
    "sigma_max": float("inf"),
    "sigma_data": 0.5,
    "model_type": "DhariwalUNet",
    "channel_mult_emb": 4,
    "label_dropout": 0.0,
    "dropout": 0.1,
}
SONG_DEFAULTS = {
    "model_channels": 128,
    "channel_mult": (1, 2, 2, 2),
    "num_blocks": 4,
    "attn_resolutions": (16,),
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": (1, 1),
}
DHARIWAL_DEFAULTS = {
    "model_channels": 192,
    "channel_mult": (1, 2, 3, 4),
    "num_blocks": 3,
    "attn_resolutions": (32, 16, 8),
}
FAMILIES = {"SongUNet": SONG_DEFAULTS, "DhariwalUNet": DHARIWAL_DEFAULTS}
# Options that do not change the network at sampling.
UNUSED = ("use_fp16", "augment_dim")
# The rule for every other option of a description.
RULES = {
    "img_resolution": whole(1, high=MAX_SIDE),
    "img_channels": whole(1, high=MAX_CHANNELS),
    "label_dim": whole(0, high=MAX_CLASSES),
    "sigma_min": number(0, 1e6),
    "sigma_max": Rule(lambda v: v == math.inf or number(0).allows(v), "a number from 0, or inf"),
    "sigma_data": one_value(SIGMA_DATA),
    "model_type": choice(FAMILIES),
    "model_channels": whole(2, high=MAX_WIDTH),
    "channel_mult": every(whole(1, high=64), 12, 1),
    "channel_mult_emb": one_value(4),
    "num_blocks": whole(1, high=MAX_BLOCKS),
    "attn_resolutions": every(whole(1, high=MAX_SIDE), 12, 0),
    "dropout": DROPOUT,
    "label_dropout": DROPOUT,
    "embedding_type": choice(("positional", "fourier")),
    "channel_mult_noise": whole(1, high=64),
    "encoder_type": choice(("standard", "residual")),
    "decoder_type": one_value("standard"),
    "resample_filter": every(number(-1000, 1000), 16, 1),
}
REALS = ("sigma_min", "sigma_max", "dropout", "label_dropout")  # Also read from text.
ARRAYS_OF_BLOCK = 8  # A residual block has at least as many.
GIVEN = {"init_sigma": number(Karras().sigma_min, Karras().sigma_max), "augment": YES_NO}
LAYERS = {
    "norm_0": "norm0",
    "conv_0": "conv0",
    "emb": "affine",
    "norm_1": "norm1",
    "conv_1": "conv1",
    "skip": "skip",
    "norm": "norm2",
    "qkv": "qkv",
    "proj": "proj",
}
EMBEDDING = {
    (): "map_noise",
    ("t_embed_0",): "map_layer0",
    ("t_embed_1",): "map_layer1",
    ("label_embed",): "map_label",
    ("augment_embed",): "map_augment",
}
# Our parts of the U-Net -> their encoder or decoder, and the name of the resampling block.
PARTS = {"down": ("enc", "down"), "up": ("dec", "up"), "pyramid": ("enc", "aux_residual")}
STEPS, STEPS_AT_64 = 18, 40  # Karras et al. (2022), Table 2: 35 calls at 32x32, 79 at 64x64.


def convert(
    class_name: str,
    kwargs: Mapping[str, Any],
    state: State,
    given: Mapping[str, Any] | None = None,
) -> Imported:
    """Converts a released EDM network to ours.

    The resampling filters, which follow from the options, are dropped, and so are the weights of
    augmentation in training (`map_augment`) unless `given` keeps them.

    Args:
      class_name: class of the pickled network; must be EDMPrecond.
      kwargs: named arguments of its constructor.
      state: arrays by torch's names.
      given: "augment" to keep the inputs for augmented images, and "init_sigma" for a student of
        one call at that noise level, as SiD's, whose files are like those of its teacher.

    Raises:
      ValueError: for a network that is not supported, and for arrays that do not fit it.
    """
    given = given or {}
    check_given(given, GIVEN)
    if class_name != "EDMPrecond":
        raise ValueError(
            f"the checkpoint's network is a {plain(class_name)}; expected EDMPrecond: "
            f"{families.of_class(class_name)}"
        )
    options = _options(kwargs)
    blocks = options["num_blocks"] * len(options["channel_mult"])
    if not ARRAYS_OF_BLOCK * blocks <= min(ARRAYS_OF_BLOCK * MAX_BLOCKS, len(state)):
        raise ValueError(
            f"the network's description has {blocks:,} blocks, and its {len(state):,} arrays are "
            f"too few, or these are more than {MAX_BLOCKS}"
        )
    augment = given.get("augment", False)
    if augment and (kwargs.get("augment_dim"), options["model_type"]) != (LABELS, "SongUNet"):
        raise ValueError(
            f"augment is true; expected a SongUNet of augment_dim {LABELS}, not a "
            f"{options['model_type']} of {short(kwargs.get('augment_dim', 0))}"
        )
    kept = {name: array for name, array in state.items() if not _is_dropped(name, augment)}
    steps = STEPS if options["img_resolution"] <= 32 else STEPS_AT_64
    imported = Imported(
        params=take(kept, leaves(kwargs, augment)),
        model=_model(options, augment),
        schedule=_schedule(options),
        parameterization="edm",
        shape=_shape(options),
        num_classes=options["label_dim"],
        num_steps=steps,
        sampler=Heun(steps),
        label_dropout=float(options["label_dropout"]),
    )
    return _student(imported, given["init_sigma"]) if "init_sigma" in given else imported


def _student(imported: Imported, sigma: float) -> Imported:
    """Returns the network as a student that maps noise of that level to images in one call."""
    schedule = imported.network_spec().schedule
    t = float(schedule.time(jnp.asarray(-2 * math.log(sigma))))
    return imported._replace(num_steps=1, continuous=False, sampler=Renoise((t,)))


def leaves(kwargs: Mapping[str, Any], augment: bool = False) -> Iterator[tuple[Path, Leaf]]:
    """Yields the path of every parameter of the network with its array in the file."""
    options = _options(kwargs)
    dialect = Dialect(_namer(options), "hc3", (1, 1))
    return expected(_model(options, augment), _shape(options), options["label_dim"], dialect)


def _shape(options: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the shape (h, w, c) of one image."""
    side = options["img_resolution"]
    return side, side, options["img_channels"]


def _options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the defaults to a description; raises ValueError for options that are not supported."""
    options = {**DEFAULTS, **kwargs}
    check_value("model_type", options["model_type"], RULES["model_type"])
    family = FAMILIES[options["model_type"]]
    options = {**family, **options}
    for name in ("img_resolution", "img_channels"):
        if name not in options:
            raise ValueError(f"the network's description has no {name}: it is no EDM network")
    known = {*DEFAULTS, *family, *UNUSED, "img_resolution", "img_channels"}
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"{plain(name)} = {short(value)} is no option of a known EDM network")
        if name not in UNUSED:
            options[name] = _float(value) if name in REALS else value
            check_value(name, options[name], RULES[name])
    return options


def _float(value: Any) -> Any:
    """Returns the number that a short text describes, or any other value."""
    try:
        return float(value) if type(value) is str and len(value) < 32 else value
    except ValueError:
        return value


def _model(options: Mapping[str, Any], augment: bool) -> dict[str, Any]:
    """Returns the options of our network."""
    multipliers = tuple(options["channel_mult"])
    heights = [options["img_resolution"] >> level for level in range(len(multipliers))]
    model = {
        "channels": options["model_channels"],
        "multipliers": multipliers,
        "blocks": options["num_blocks"],
        "attention": tuple(side for side in heights if side in options["attn_resolutions"]),
        "dropout": float(options["dropout"]),
    }
    if options["model_type"] == "DhariwalUNet":
        return {"name": "adm_unet", **model}
    return {
        "name": "song_unet",
        **model,
        "embedding": options["embedding_type"],
        "noise_multiplier": options["channel_mult_noise"],
        "filter": tuple(options["resample_filter"]),
        "pyramid": options["encoder_type"] == "residual",
        **({"augment": True} if augment else {}),
    }


def _schedule(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the noise schedule of the paper's samplers, within the network's noise levels."""
    paper = Karras()
    low = max(paper.sigma_min, options["sigma_min"])
    high = min(paper.sigma_max, options["sigma_max"])
    if not low < high:
        raise ValueError(f"noise levels from {low:g} to {high:g} are none that can be sampled")
    if (low, high) == (paper.sigma_min, paper.sigma_max):
        return {"name": "karras"}
    return {"name": "karras", "sigma_min": low, "sigma_max": high}


def _is_dropped(name: str, augment: bool) -> bool:
    """Returns whether an array is dropped: a resampling filter, or weights of augmentation."""
    return (name == "model.map_augment.weight" and not augment) or name.endswith(".resample_filter")


def _namer(options: Mapping[str, Any]) -> Callable[[Path], str]:
    """Returns a map from our layers to their names, which contain the side of the feature map."""
    sides = [options["img_resolution"] >> level for level in range(len(options["channel_mult"]))]
    tops = {"norm": "out_norm", "output": "out_conv"}
    if options["model_type"] == "SongUNet":
        tops = {"norm": "dec.{0}x{0}_aux_norm", "output": "dec.{0}x{0}_aux_conv"}
    tops["input"] = "enc.{0}x{0}_conv"

    def part(name: str) -> str:
        where, level, *block = name.split("_")
        if where == "mid":
            return f"dec.{sides[-1]}x{sides[-1]}_in{level}"
        folder, resampled = PARTS[where]
        side = sides[int(level)]
        return f"{folder}.{side}x{side}_{''.join(block) or resampled}"

    def name(path: Path) -> str:
        if path[:1] != ("unet",):
            return f"model.{EMBEDDING[path]}"
        if path[1] in tops:
            return f"model.{tops[path[1]].format(sides[0])}"
        layer = f".{LAYERS[path[-1]]}" if len(path) > 2 else ""
        return f"model.{part(path[1])}{layer}"

    return name
