"""The datasets by name: each entry builds a Dataset from options."""

from distill_jax.data.base import Dataset, Source
from distill_jax.data.digits import digits
from distill_jax.data.folder import folder
from distill_jax.data.mixture import mixture
from distill_jax.data.noise import noise
from distill_jax.data.tfds import Tfds

DATASETS = {
    "digits": digits,
    "folder": folder,
    "mixture": mixture,
    "noise": noise,
    "tfds": Tfds,
}

# Datasets that come with the package and read no files.
EMBEDDED = ("digits", "mixture", "noise")

__all__ = ["DATASETS", "EMBEDDED", "Dataset", "Source"]
