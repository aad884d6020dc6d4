"""Reader of the pipelines of FLUX.1 of diffusers, without PyTorch."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from distill_jax.diffusion.spec import DataSpec
from distill_jax.diffusion.trained import RESOLUTIONS
from distill_jax.models.diffusers_files import ADVICE, Directory, read_directory
from distill_jax.models.flux_files import PATCH, Flux, flux_of, with_fixed_w
from distill_jax.models.pretrained import stored_params
from distill_jax.runtime.files import read_json
from distill_jax.runtime.options import MAX_W, number, whole
from distill_jax.sampling.fields import W_RANGE
from distill_jax.teachers.base import Imported
from distill_jax.teachers.diffusers import (
    FACTS,
    MAX_JSON,
    MAX_SIDE,
    check_rest,
    check_vae,
    network_folder,
)
from distill_jax.teachers.flow import (
    NUM_STEPS,
    check_sides,
    facts_of,
    latents_and_text,
    schedule_of,
    text_width,
)
from distill_jax.teachers.given import check_given, check_value

CLASSES = ("FluxTransformer2DModel",)
SIDE = 128  # Of the latents that the pipeline draws unless it is asked for others.
T5_TOKENS = 512  # The same.
SCHNELL = 4  # Steps of FLUX.1 schnell, a student that takes no guidance strength.
RANGE = (0.0, 4.0)  # Of w in FLUX.1 dev; nothing is published.
GIVEN = {
    "length": whole(1, high=4096),
    "side": whole(1, high=MAX_SIDE),
    "resolutions": RESOLUTIONS,
    "w": number(0, MAX_W),
    "w_range": W_RANGE,
}


def read(path: epath.PathLike, given: Mapping[str, Any] | None = None) -> Imported:
    """Reads the transformer in the directory of a pipeline, and its schedule.

    FLUX.1 dev takes w, which is its `guidance` less 1: its teacher was guided, and is not
    published. FLUX.1 schnell is a student of a few steps.

    Args:
      path: directory with transformer/, scheduler/, text_encoder/, text_encoder_2/ and vae/.
      given: length, the tokens of T5, 512 otherwise; side, that of the latents, 128 otherwise;
        resolutions, the sides that it was trained on, only `side` otherwise; of a network that
        takes w, w_range, [0, 4] otherwise, or w: the network becomes one for this w alone.

    Raises:
      ValueError: for half a pipeline, damaged files, and networks that are not supported.
    """
    folder, given = epath.Path(path), dict(given or {})
    check_given(given, GIVEN)
    found = read_directory(network_folder(folder), *CLASSES)
    place = f"{found.path}/config.json"
    network = flux_of(found.content, place)
    side, sides = given.get("side", SIDE), tuple(given.get("resolutions", ()))
    check_sides((side, *sides), PATCH, place)
    check_vae(folder, network.channels, "transformer")
    spec = spec_of(folder, network, side, given.get("length", T5_TOKENS))
    if network.takes_w and (w_range := _w_range(folder)):
        given = {"w_range": w_range, **given} if "w" not in given else given
    found, guided = _guided(found, network, given)
    imported = Imported(
        params={},
        schedule=schedule_of(folder / "scheduler", (side // PATCH) ** 2),
        parameterization="flow",
        shape=spec.x.shape,
        num_classes=0,
        spec=spec,
        **_steps(folder, network, sides),
        **guided,
    )
    params = stored_params(imported.expected_params(), found.state, found.file, ADVICE)
    check_rest(params, found)
    return imported._replace(params=params)


def _steps(folder: epath.Path, network: Flux, sides: tuple[int, ...]) -> dict[str, Any]:
    """Returns steps and sizes: of a network with FACTS in its directory, or of dev or schnell."""
    steps = NUM_STEPS if network.takes_w else SCHNELL
    found = {"num_steps": steps, "continuous": network.takes_w, "resolutions": sides}
    if (folder / FACTS).exists():
        found |= {"continuous": True, **facts_of(folder, {}, sides)}
    return {**found, "label_dropout": 0.0}


def _w_range(folder: epath.Path) -> Any:
    """Returns the range of w of a network that was written with FACTS; None without."""
    place = folder / FACTS
    found = read_json(place, MAX_JSON).get("w_range") if place.exists() else None
    if found is not None:
        check_value(f"{place}: w_range", found, W_RANGE)
    return found


def _guided(
    found: Directory, network: Flux, given: Mapping[str, Any]
) -> tuple[Directory, dict[str, Any]]:
    """Returns the arrays, and the model and guidance of an Imported.

    Raises:
      ValueError: for a guidance strength of a network that takes none, and for both of its values.
    """
    asked = [name for name in ("w", "w_range") if name in given]
    if not network.takes_w:
        if asked:
            raise ValueError(f"--set {asked[0]}: {found.path} takes no guidance; leave it out")
        return found, {"model": network.model}
    if len(asked) == 2:
        raise ValueError("--set w and --set w_range; expected one of them")
    if "w" not in given:
        low, high = given.get("w_range", RANGE)
        return found, {"model": network.model, "w_range": (float(low), float(high))}
    found = found._replace(state=with_fixed_w(found.state, given["w"]))
    return found, {"model": {**network.model, "guidance": False}, "fixed_w": float(given["w"])}


def spec_of(folder: epath.Path, network: Flux, side: int, length: int) -> DataSpec:
    """Returns the spec of the latents and of the text of two encoders.

    Raises:
      ValueError: for a text encoder that is missing or does not fit the transformer.
    """
    pooled = text_width(folder, "", "hidden_size")
    text = text_width(folder, "_2", "d_model")
    if (pooled, text) != (network.pooled_width, network.text_width):
        raise ValueError(
            f"the text encoders in {folder} have {pooled} pooled channels and {text} of tokens; "
            f"the transformer takes {network.pooled_width} and {network.text_width}"
        )
    return latents_and_text((side, network.channels), (length, text), pooled)
