"""Reader of the Stable Diffusion and SDXL pipelines of diffusers, without PyTorch.

The UNet of a pipeline's directory becomes a teacher. Its autoencoder and its text encoder are read
by the codec and the conditioner of a run, from the same directory.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from distill_jax.diffusion.spec import DataSpec, Leaf
from distill_jax.models.diffusers_files import (
    ADVICE,
    WIDTH,
    Directory,
    Unet,
    read_directory,
    unet_of,
    vae_of,
    value_of,
)
from distill_jax.models.pretrained import read_config, stored_params, torch_state
from distill_jax.runtime.files import read_json
from distill_jax.runtime.options import MAX_STEPS, Rule, number, whole
from distill_jax.runtime.text import short
from distill_jax.sampling.fields import W_RANGE
from distill_jax.teachers.base import Imported
from distill_jax.teachers.given import DROPOUT, check_given, check_value
from distill_jax.typing import Tree

ENCODERS = ("text_encoder", "text_encoder_2")
FOLDERS = ("unet", "scheduler", ENCODERS[0], "vae")
XL_FOLDERS = ("unet", "scheduler", *ENCODERS, "vae")
DIT_FOLDERS = ("transformer", "scheduler", "vae")
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x"}
POWERS = {"linear": 1, "scaled_linear": 2}
SCHEDULERS = [  # Those whose noise levels are given by betas.
    f"{name}Scheduler"
    for name in (
        *("DDIM", "DDPM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete"),
        *("HeunDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep"),
        *("UniPCMultistep", "KDPM2Discrete", "KDPM2AncestralDiscrete", "LCM", "TCD"),
    )
]
LENGTH = whole(1, high=2**16)  # Of a text in tokens.
RATE = number(0, 1, without=(0, 1))
STEPS = 1000  # The number of noise levels that sd_unet embeds.
LABEL_DROPOUT = 0.1  # Of the published networks; their null condition is the empty prompt.
FACTS = "distill_jax.json"  # Beside model_index.json in the pipeline of a student.
STUDENT = {"num_steps": whole(1, high=MAX_STEPS), "w_range": W_RANGE}
MAX_SIDE = 4096
MAX_JSON = 2**20  # Bytes of a config.


def read(path: epath.PathLike, given: Mapping[str, Any] | None = None) -> Imported:
    """Reads the UNet in the directory of a pipeline, and its schedule, as a teacher.

    A UNet that takes w is a student of a few DDIM steps, such as those of teachers.pipelines.

    Args:
      path: directory with unet/, scheduler/, text_encoder/ and vae/, and SDXL's text_encoder_2/.
      given: label_dropout, the share of empty prompts in training, 0.1 otherwise; for a student,
        those facts of STUDENT that the directory does not contain.

    Raises:
      ValueError: for half a pipeline, damaged files, and networks that are not supported.
    """
    folder, given = epath.Path(path), dict(given or {})
    check_pipeline(folder)
    found = read_directory(folder / "unet", "UNet2DConditionModel")
    place = f"{folder}/unet/config.json"
    unet = unet_of(found.content, place)
    if unet.takes_w:
        facts = _student(folder, given)
    elif (folder / FACTS).exists():
        raise ValueError(
            f"{folder} is a student that takes no guidance strength, which has no reader; expected "
            "a teacher, or name the directory that the student was exported from"
        )
    else:
        check_given(given, {"label_dropout": DROPOUT})
        facts = {"num_steps": STEPS, "label_dropout": given.get("label_dropout", LABEL_DROPOUT)}
    schedule, parameterization = schedule_of(folder / "scheduler" / "scheduler_config.json")
    imported = Imported(
        params={},
        model=unet.model,
        schedule=schedule,
        parameterization=parameterization,
        shape=(_side(found, place),) * 2 + (unet.channels,),
        num_classes=0,
        spec=spec_of(folder, unet, _side(found, place)),
        **facts,
    )
    params = stored_params(imported.expected_params(), found.state, found.file, ADVICE)
    check_rest(params, found)
    return imported._replace(params=params)


def _student(folder: epath.Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what Imported says of a student that takes w, from FACTS in its directory or `given`.

    Raises:
      ValueError: for a fact that is missing or out of range, and for a consistency model.
    """
    check_given(given, STUDENT)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if scheduler.exists() and read_json(scheduler, MAX_JSON).get("_class_name") == "LCMScheduler":
        raise ValueError(
            f"{scheduler} is that of a consistency model, which adds noise between its calls; "
            "expected a teacher, or a student in DDIM steps"
        )
    place = folder / FACTS
    facts = {**(read_json(place, MAX_JSON) if place.exists() else {}), **given}
    for name, rule in STUDENT.items():
        if name not in facts:
            raise ValueError(
                f"{folder}/unet/config.json has time_cond_proj_dim: the network takes a guidance "
                f"strength, so it is a student; without {place} say its {name}, for example "
                "--set num_steps=4 --set w_range=[2,14]"
            )
        check_value(f"{place}: {name}", facts[name], rule)
    low, high = facts["w_range"]
    steps = {"num_steps": facts["num_steps"], "continuous": False, "label_dropout": 0.0}
    return steps | {"w_range": (float(low), float(high))}


def is_dit(folder: epath.Path) -> bool:
    """Returns whether the network of a pipeline is in transformer/."""
    return (folder / "transformer").is_dir() and not (folder / "unet").is_dir()


def class_of(folder: epath.Path) -> Any:
    """Returns the class of a pipeline's transformer in its config.json."""
    return read_config(folder / "transformer").get("_class_name")


def network_folder(folder: epath.Path) -> epath.Path:
    """Returns the folder of a pipeline's network; raises ValueError for half a pipeline."""
    check_pipeline(folder, DIT_FOLDERS if is_dit(folder) else FOLDERS)
    return folder / ("transformer" if is_dit(folder) else "unet")


def check_pipeline(folder: epath.Path, folders: Sequence[str] = FOLDERS) -> None:
    """Raises ValueError unless a directory has the folders of a pipeline."""
    if not folder.exists():
        raise ValueError(
            f"{folder} does not exist; expected the directory of a pipeline on this machine: "
            "download it first, from a gated repository with a token, after its licence is accepted"
        )
    missing = [name for name in folders if not (folder / name).is_dir()]
    kind = "pipeline with a transformer" if folders == DIT_FOLDERS else "pipeline with a UNet"
    if missing:
        raise ValueError(
            f"{folder} has no {', '.join(f'{name}/' for name in missing)}; expected a whole {kind} "
            f"as diffusers saves it, with {', '.join(folders)}"
        )


def schedule_of(file: epath.Path) -> tuple[dict[str, Any], str]:
    """Returns the schedule and the parameterization that a scheduler_config.json describes.

    Raises:
      ValueError: for noise levels that are not supported, and for the prediction of eps with a
        terminal SNR of zero, where eps says nothing about the image.
    """
    if not file.exists():
        raise ValueError(f"{file} does not exist; expected the scheduler of the pipeline")
    content = read_json(file, MAX_JSON)

    def value(key: str, default: Any, rule: Rule) -> Any:
        return value_of(content, key, rule, default, str(file))

    value("_class_name", SCHEDULERS[0], _one_of(SCHEDULERS))
    kind = value("prediction_type", "epsilon", _one_of(PREDICTIONS))
    zero = bool(value("rescale_betas_zero_snr", False, _one_of((False, True))))
    if zero and kind == "epsilon":
        raise ValueError(
            f"{file}: prediction_type is 'epsilon' and rescale_betas_zero_snr true; at a signal of "
            "zero eps says nothing about the image: expected 'v_prediction'"
        )
    value("trained_betas", None, _one_of((None,)))
    schedule = {
        "name": "ddpm",
        "beta_min": float(value("beta_start", 0.0001, RATE)),
        "beta_max": float(value("beta_end", 0.02, RATE)),
        "num_steps": value("num_train_timesteps", STEPS, whole(STEPS, high=STEPS)),
        "power": POWERS[value("beta_schedule", "linear", _one_of(POWERS))],
    }
    return schedule | ({"zero_snr": True} if zero else {}), PREDICTIONS[kind]


def _one_of(known: Any) -> Rule:
    return Rule(lambda v: v in tuple(known), f"one of {', '.join(map(repr, known))}")


def _side(found: Directory, place: str) -> int:
    """Returns the side of the latents that the network was trained with."""
    side = found.content.get("sample_size", 64)
    if not whole(1, high=MAX_SIDE).allows(side):
        raise ValueError(f"{place}: sample_size is {short(side)}; expected a whole number")
    return side


def spec_of(folder: epath.Path, unet: Unet, side: int) -> DataSpec:
    """Returns the spec of the latents, the text, and the channels of an inpainting model.

    Raises:
      ValueError: if text encoders or autoencoder are missing or do not fit the UNet.
    """
    cond = _text_leaves(folder, unet)
    check_vae(folder, unet.channels, "UNet")
    if unet.inpaint:
        cond["inpaint"] = Leaf((side, side, unet.inpaint))
    return DataSpec(Leaf((side, side, unet.channels)), False, tuple(cond.items()))


def _text_leaves(folder: epath.Path, unet: Unet) -> dict[str, Leaf]:
    """Returns the leaves of a text, from its encoder or from the two of SDXL.

    The channels of both encoders are joined, and the second one has the pooled text.
    """
    check_pipeline(folder, XL_FOLDERS if unet.pooled_width else FOLDERS)
    names: Sequence[str] = ENCODERS if unet.pooled_width else ENCODERS[:1]
    found: list[Mapping[str, Any]] = [read_config(folder / name) for name in names]
    widths = [each.get("hidden_size", 0) for each in found]
    lengths = [each.get("max_position_embeddings", 0) for each in found]
    wide = all(map(WIDTH.allows, widths)) and sum(widths) == unet.text_width
    if not wide or not LENGTH.allows(lengths[0]) or lengths != lengths[:1] * len(lengths):
        raise ValueError(
            f"{folder}/{' and '.join(f'{name}/config.json' for name in names)} has hidden_size "
            f"{' and '.join(map(short, widths))} and max_position_embeddings "
            f"{' and '.join(map(short, lengths))}; the UNet takes {unet.text_width} channels"
        )
    cond = {"text": Leaf((lengths[0], sum(widths))), "text_mask": Leaf((lengths[0],), "bool")}
    if unet.pooled_width:
        pooled = found[1].get("projection_dim")
        if pooled != unet.pooled_width:
            raise ValueError(
                f"{folder}/{names[1]}/config.json has projection_dim {short(pooled)}; the UNet "
                f"takes a pooled text of {unet.pooled_width}"
            )
        cond["pooled"] = Leaf((pooled,))
    return cond


def check_vae(folder: epath.Path, channels: int, network: str) -> None:
    """Raises ValueError unless the latents of a pipeline's autoencoder have these channels."""
    place = f"{folder}/vae/config.json"
    found = vae_of(read_config(folder / "vae"), place).layers.channels
    if found != channels:
        raise ValueError(f"{place}: latent_channels is {found}; the {network} takes {channels}")


def check_rest(params: Tree, found: Directory) -> None:
    """Raises ValueError for arrays in the file that the network does not have."""
    extra = found.state.keys() - torch_state(params).keys()
    if extra:
        raise ValueError(
            f"{found.file} has the array {short(min(extra))}, which the network of its config.json "
            f"lacks; {ADVICE}"
        )
