"""The datasets by name: (**options) -> Dataset."""

from distill_jax.data.arrays import Dataset, Source
from distill_jax.data.digits import digits
from distill_jax.data.noise import noise

DATASETS = {
    "digits": digits,
    "noise": noise,
}

__all__ = ["DATASETS", "Dataset", "Source"]
