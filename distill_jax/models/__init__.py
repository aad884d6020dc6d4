"""The network families by name: (sizes, **options) -> Network."""

from distill_jax.models.dit import dit
from distill_jax.models.mlp import mlp

NETWORKS = {
    "dit": dit,
    "mlp": mlp,
}

__all__ = ["NETWORKS"]
