"""Conversion of EDM's networks (Karras et al. 2022, arXiv:2206.00364): DDPM++, NCSN++ and ADM.

Their preconditioning is our parameterization "edm", their noise levels our schedule "karras".
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from distill_jax.diffusion.prediction import SIGMA_DATA
from distill_jax.diffusion.schedule import Karras
from distill_jax.teachers.base import Imported
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
# Options that do not change the network at sampling.
UNUSED = ("use_fp16", "augment_dim")
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
}
# Our parts of the U-Net -> their encoder or decoder, and the name of the resampling block.
PARTS = {"down": ("enc", "down"), "up": ("dec", "up"), "pyramid": ("enc", "aux_residual")}
NUM_STEPS = 80  # Close to the 79 calls of the paper's deterministic sampler at 64x64.


def convert(class_name: str, kwargs: Mapping[str, Any], state: State) -> Imported:
    """Converts a released EDM network to ours.

    The weights of augmentation in training (`map_augment`) are dropped, and so are the resampling
    filters, which follow from the options.

    Args:
      class_name: class of the pickled network; must be EDMPrecond.
      kwargs: named arguments of its constructor.
      state: arrays by torch's names.

    Raises:
      ValueError: for a network that is not supported, and for arrays that do not fit it.
    """
    if class_name != "EDMPrecond":
        raise ValueError(
            f"the checkpoint's network is a {class_name}; expected EDMPrecond. Networks with the "
            "older preconditionings (VP, VE, iDDPM: the files named baseline-*) are not supported; "
            "take one of the files named edm-*"
        )
    options = _options(kwargs)
    kept = {name: array for name, array in state.items() if not _is_dropped(name)}
    return Imported(
        params=take(kept, leaves(kwargs)),
        model=_model(options),
        schedule=_schedule(options),
        parameterization="edm",
        shape=_shape(options),
        num_classes=options["label_dim"],
        num_steps=NUM_STEPS,
        label_dropout=float(options["label_dropout"]),
    )


def leaves(kwargs: Mapping[str, Any]) -> Iterator[tuple[Path, Leaf]]:
    """Yields the path of every parameter of the network with its array in the file."""
    options = _options(kwargs)
    dialect = Dialect(_namer(options), "hc3", (1, 1))
    return expected(_model(options), _shape(options), options["label_dim"], dialect)


def _shape(options: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the shape (h, w, c) of one image."""
    side = options["img_resolution"]
    return side, side, options["img_channels"]


def _options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the defaults to a description; raises ValueError for options that are not supported."""
    options = {**DEFAULTS, **kwargs}
    families = {"SongUNet": SONG_DEFAULTS, "DhariwalUNet": DHARIWAL_DEFAULTS}
    family = families.get(options["model_type"])
    if family is None:
        raise ValueError(
            f"model_type is {options['model_type']!r}; expected one of {', '.join(families)}"
        )
    options = {**family, **options}
    for name in ("img_resolution", "img_channels"):
        if name not in options:
            raise ValueError(f"the network's description has no {name}: it is no EDM network")
    known = {*DEFAULTS, *family, *UNUSED, "img_resolution", "img_channels"}
    _only(options, "channel_mult_emb", 4)
    _only(options, "sigma_data", SIGMA_DATA)
    _only(options, "decoder_type", "standard")
    if options.get("encoder_type") == "skip":
        raise ValueError("encoder_type is 'skip'; supported are 'standard' and 'residual'")
    for name in options:
        if name not in known:
            raise ValueError(f"{name} = {options[name]!r} is no option of a known EDM network")
    return options


def _only(options: Mapping[str, Any], name: str, value: Any) -> None:
    """Raises ValueError unless an option has the one value that is supported."""
    if options.get(name, value) != value:
        raise ValueError(f"{name} is {options[name]!r}; only {value!r} is supported")


def _model(options: Mapping[str, Any]) -> dict[str, Any]:
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
    }


def _schedule(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the noise schedule of the paper's samplers, within the network's noise levels."""
    paper = Karras()
    low = max(paper.sigma_min, float(options["sigma_min"]))
    high = min(paper.sigma_max, float(options["sigma_max"]))
    if (low, high) == (paper.sigma_min, paper.sigma_max):
        return {"name": "karras"}
    return {"name": "karras", "sigma_min": low, "sigma_max": high}


def _is_dropped(name: str) -> bool:
    """Returns whether an array is dropped: augmentation weights and resampling filters."""
    return name == "model.map_augment.weight" or name.endswith(".resample_filter")


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
