"""Reader of the pipelines of Stable Diffusion 3 and 3.5 of diffusers, without PyTorch.

Their transformer is a rectified flow. Their autoencoder and text encoders are read by the codec and
the conditioner of a run, from the same directory.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from distill_jax.diffusion.spec import DataSpec, Leaf
from distill_jax.diffusion.trained import CALLS, RESOLUTIONS, STEPS, Renoise
from distill_jax.models.diffusers_files import (
    ADVICE,
    YES_NO,
    Directory,
    check_fixed,
    read_directory,
    value_of,
)
from distill_jax.models.mmdit_files import BUFFER, MMDiT, mmdit_of
from distill_jax.models.pretrained import read_config, stored_params
from distill_jax.runtime.files import read_json
from distill_jax.runtime.options import Rule, number, whole
from distill_jax.runtime.text import short
from distill_jax.teachers.base import Imported
from distill_jax.teachers.diffusers import FACTS, MAX_JSON, check_rest, check_vae, network_folder
from distill_jax.teachers.given import DROPOUT, check_given, check_value
from distill_jax.typing import Tree

CLASSES = ("SD3Transformer2DModel",)
SCHEDULERS = [f"FlowMatch{name}Scheduler" for name in ("EulerDiscrete", "HeunDiscrete", "LCM")]
INDEX = "model_index.json"
# Tokens of T5, as the pipeline has them unless it is asked for more.
T5_TOKENS = 256
# Share of empty prompts. Esser et al. (2024, arXiv:2403.03206), section 5.3, drop each of three
# text encoders with probability 0.464.
LABEL_DROPOUT = 0.1
NUM_STEPS = 28  # Of the pipeline.
GIVEN = {"label_dropout": DROPOUT, "length": whole(1, high=4096), "resolutions": RESOLUTIONS}
STUDENT = {"times": CALLS, "resolutions": RESOLUTIONS, "num_steps": STEPS}
POSITIVE = number(1e-3, 1e3)
TOKENS = number(1, 2**24)
# What other noise levels than those of RectifiedFlow would need.
FIXED: Mapping[str, Any] = {
    **dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), False),
    **dict.fromkeys(("invert_sigmas", "stochastic_sampling"), False),
    "shift_terminal": None,
    "num_train_timesteps": 1000,
    "time_shift_type": "exponential",
}


def read(path: epath.PathLike, given: Mapping[str, Any] | None = None) -> Imported:
    """Reads the transformer in the directory of a pipeline, and its schedule, as a teacher.

    The table of positions, a buffer of the file, is computed by the network.

    Args:
      path: directory with transformer/, scheduler/, text_encoder/, text_encoder_2/,
        text_encoder_3/ and vae/.
      given: label_dropout, the share of empty prompts in training, 0.1 otherwise; length, the
        tokens of the text encoder T5, 256 otherwise, as in diffusers; resolutions, the sides of
        the latents that it was trained on, only that of config.json otherwise.

    Raises:
      ValueError: for half a pipeline, damaged files, and networks that are not supported.
    """
    folder, given = epath.Path(path), dict(given or {})
    check_given(given, GIVEN)
    found = read_directory(network_folder(folder), *CLASSES)
    place = f"{found.path}/config.json"
    network = mmdit_of(found.content, place)
    patch, sides = network.model["patch"], tuple(given.get("resolutions", ()))
    check_sides((network.side, *sides), patch, place)
    check_vae(folder, network.channels, "transformer")
    spec = spec_of(folder, network, given.get("length", T5_TOKENS))
    facts = facts_of(folder, given, sides)
    schedule = schedule_of(folder / "scheduler", (network.side // patch) ** 2)
    imported = Imported(
        params={},
        model=network.model,
        schedule=schedule,
        parameterization="flow",
        shape=spec.x.shape,
        num_classes=0,
        spec=spec,
        **facts,
    )
    return imported._replace(params=_params(imported, found))


def check_sides(sides: Sequence[int], patch: int, place: str) -> None:
    """Raises ValueError for a side of latents that a patch does not divide."""
    for side in sides:
        if side % patch:
            raise ValueError(
                f"{place}: latents of {side}x{side}; expected multiples of patch_size = {patch}"
            )


def facts_of(
    folder: epath.Path, given: Mapping[str, Any], sides: tuple[int, ...]
) -> dict[str, Any]:
    """Returns what Imported says of a teacher, or of a student with FACTS in its directory.

    Raises:
      ValueError: for facts that are out of range.
    """
    place = folder / FACTS
    facts = read_json(place, MAX_JSON) if place.exists() else {}
    for name, rule in STUDENT.items():
        if name in facts:
            check_value(f"{place}: {name}", facts[name], rule)
    sides = sides or tuple(facts.get("resolutions", ()))
    if "times" in facts:
        if len(sides) not in (0, len(facts["times"])):
            raise ValueError(f"{place}: {len(sides)} resolutions; expected one for each of times")
        sampler = Renoise(tuple(facts["times"]), sides)
        steps: dict[str, Any] = {"num_steps": sampler.num_steps, "sampler": sampler}
    elif "num_steps" in facts:
        steps = {"num_steps": facts["num_steps"], "resolutions": sides}
    else:
        dropout = given.get("label_dropout", LABEL_DROPOUT)
        return {"num_steps": NUM_STEPS, "label_dropout": dropout, "resolutions": sides}
    return {**steps, "continuous": False, "label_dropout": 0.0}


def _params(imported: Imported, found: Directory) -> Tree:
    """Returns the parameters, unread; raises ValueError for arrays that do not fit."""
    places, width = imported.model["places"], found.content["caption_projection_dim"]
    table = found.state.pop(BUFFER, None)
    if table is not None and table.shape != (1, places**2, width):
        raise ValueError(
            f"{found.file}: {BUFFER} is of shape {table.shape}; expected {(1, places**2, width)}; "
            f"{ADVICE}"
        )
    params = stored_params(imported.expected_params(), found.state, found.file, ADVICE)
    check_rest(params, found)
    return params


def schedule_of(folder: epath.Path, tokens: int) -> dict[str, Any]:
    """Returns the rectified flow of a scheduler_config.json, with its shift.

    A shift that depends on the resolution is exp(mu), mu linear in the number of tokens.

    Args:
      folder: directory of the scheduler.
      tokens: number of the network's patches at its own resolution.

    Raises:
      ValueError: for other noise levels, and for a scheduler without a shift.
    """
    file = folder / "scheduler_config.json"
    if not file.exists():
        raise ValueError(f"{file} does not exist; expected the scheduler of the pipeline")
    content = read_json(file, MAX_JSON)

    def value(key: str, rule: Rule, default: Any = None) -> Any:
        return value_of(content, key, rule, default, str(file))

    known = Rule(lambda v: v in SCHEDULERS, f"one of {', '.join(map(repr, SCHEDULERS))}")
    value("_class_name", known)
    check_fixed(content, FIXED, str(file))
    if value("use_dynamic_shifting", YES_NO, False):
        low, high = value("base_shift", POSITIVE, 0.5), value("max_shift", POSITIVE, 1.15)
        least = value("base_image_seq_len", TOKENS, 256)
        most = value("max_image_seq_len", TOKENS, 4096)
        if least >= most:
            raise ValueError(
                f"{file}: base_image_seq_len is {least} and max_image_seq_len {most}; expected the "
                "second to be larger"
            )
        mu = low + (high - low) * (tokens - least) / (most - least)
        return {"name": "rectified_flow", "shift": float(math.exp(mu))}
    if "shift" not in content:
        raise ValueError(
            f"{file} has no shift; expected one, such as 3.0 of Stable Diffusion 3, because a flow "
            "without it has other noise levels"
        )
    return {"name": "rectified_flow", "shift": float(value("shift", POSITIVE))}


def spec_of(folder: epath.Path, network: MMDiT, length: int) -> DataSpec:
    """Returns the spec of the latents and of the text of three encoders.

    Raises:
      ValueError: for a text encoder that is missing or does not fit the transformer.
    """
    pooled = sum(text_width(folder, name, "projection_dim") for name in ("", "_2"))
    text = sum(text_width(folder, name, "hidden_size") for name in ("", "_2"))
    index = read_config(folder, (INDEX,)) if (folder / INDEX).exists() else {}
    # Without T5 the pipeline takes zeros for its tokens.
    absent = index.get("text_encoder_3", ()) in (None, [None, None])
    third = network.text_width if absent else text_width(folder, "_3", "d_model")
    if pooled != network.pooled_width or third != network.text_width or text > third:
        raise ValueError(
            f"the text encoders in {folder} have {pooled} pooled channels, and {text} and {third} "
            f"of tokens; the transformer takes {network.pooled_width} and {network.text_width}"
        )
    count = text_width(folder, "", "max_position_embeddings") + length
    return latents_and_text((network.side, network.channels), (count, third), pooled)


def latents_and_text(latents: tuple[int, int], text: tuple[int, int], pooled: int) -> DataSpec:
    """Returns the spec of (side, channels) of latents, (tokens, channels) of a text, and pooled."""
    side, channels = latents
    cond = {
        "text": Leaf(text),
        "text_mask": Leaf(text[:1], "bool"),
        "pooled": Leaf((pooled,)),
    }
    return DataSpec(Leaf((side, side, channels)), False, tuple(cond.items()))


def text_width(folder: epath.Path, name: str, key: str) -> int:
    """Returns a number from the config.json of a text encoder."""
    place = folder / f"text_encoder{name}"
    if not place.is_dir():
        raise ValueError(
            f"{folder} has no text_encoder{name}/; expected a whole pipeline as diffusers saves "
            "it, with all of its text encoders, T5 too"
        )
    content = read_config(place)
    if not whole(1, high=2**20).allows(content.get(key)):
        raise ValueError(
            f"{place}/config.json: {key} is {short(content.get(key))}; expected a whole number"
        )
    width: int = content[key]
    return width
