"""The datasets by name: each entry builds a Dataset from options."""

from collections.abc import Callable

from distill_jax.data.base import Dataset, Source
from distill_jax.data.captioned_folder import captioned_folder
from distill_jax.data.captioned_tfds import captioned_tfds
from distill_jax.data.digits import digits
from distill_jax.data.folder import folder
from distill_jax.data.mixture import mixture
from distill_jax.data.noise import noise
from distill_jax.data.prompts import prompts
from distill_jax.data.shapes import shapes
from distill_jax.data.tfds import Tfds

DATASETS: dict[str, Callable[..., Dataset]] = {
    "captioned_folder": captioned_folder,
    "captioned_tfds": captioned_tfds,
    "digits": digits,
    "folder": folder,
    "mixture": mixture,
    "noise": noise,
    "prompts": prompts,
    "shapes": shapes,
    "tfds": Tfds,  # type: ignore[dict-item]  # Its num_labels is an int after __post_init__.
}

# Datasets that come with the package and read no files.
EMBEDDED = ("digits", "mixture", "noise", "shapes")

__all__ = ["DATASETS", "EMBEDDED", "Dataset", "Source"]
