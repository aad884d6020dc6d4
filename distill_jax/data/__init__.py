"""The datasets by name: (**options) -> Dataset."""

from distill_jax.data.base import Dataset, Source, normalise
from distill_jax.data.digits import digits
from distill_jax.data.noise import noise

DATASETS = {
    "digits": digits,
    "noise": noise,
}

__all__ = ["DATASETS", "Dataset", "Source", "normalise"]
