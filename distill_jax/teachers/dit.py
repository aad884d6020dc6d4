"""Reader of the DiT in the directory of a DiTPipeline of diffusers, without PyTorch.

Its autoencoder is read by the codec of a run, from the same directory.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath

from distill_jax.diffusion.spec import image_data
from distill_jax.models.diffusers_files import ADVICE, read_directory
from distill_jax.models.dit_files import CLASSES, dit_of, tied, without_variance
from distill_jax.models.pretrained import stored_params
from distill_jax.runtime.options import whole
from distill_jax.teachers.base import Imported
from distill_jax.teachers.diffusers import (
    LABEL_DROPOUT,
    STEPS,
    check_rest,
    check_vae,
    network_folder,
    schedule_of,
)
from distill_jax.teachers.given import DROPOUT, check_given

FREQ_SHIFT = whole(0, high=1)


def read(path: epath.PathLike, given: Mapping[str, Any] | None = None) -> Imported:
    """Reads the DiT in the directory of a pipeline, and its schedule, as a teacher.

    The channels of the output for a learned variance are left out.

    Args:
      path: directory with transformer/, scheduler/ and vae/.
      given: label_dropout, the share of null labels in training, 0.1 otherwise; freq_shift, an
        option of diffusers_dit, 1 otherwise, as in diffusers.

    Raises:
      ValueError: for half a pipeline, damaged files, and networks that are not supported.
    """
    folder, given = epath.Path(path), dict(given or {})
    check_given(given, {"label_dropout": DROPOUT, "freq_shift": FREQ_SHIFT})
    found = read_directory(network_folder(folder), *CLASSES)
    dit = dit_of(found.content, f"{found.path}/config.json")
    check_vae(folder, dit.channels, "DiT")
    schedule, parameterization = schedule_of(folder / "scheduler" / "scheduler_config.json")
    shape = (dit.side, dit.side, dit.channels)
    imported = Imported(
        params={},
        model={**dit.model, **{k: v for k, v in given.items() if k == "freq_shift"}},
        schedule=schedule,
        parameterization=parameterization,
        shape=shape,
        num_classes=dit.classes,
        num_steps=STEPS,
        label_dropout=given.get("label_dropout", LABEL_DROPOUT),
        spec=image_data(shape, dit.classes, bounded=False),
    )
    found = found._replace(state=tied(without_variance(found.state, dit), found.file))
    params = stored_params(imported.expected_params(), found.state, found.file, ADVICE)
    check_rest(params, found)
    return imported._replace(params=params)
