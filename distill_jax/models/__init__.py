"""The network families by name: (sizes, **options) -> Network."""

from distill_jax.models.dit import dit
from distill_jax.models.mlp import mlp
from distill_jax.models.unet import unet

NETWORKS = {
    "dit": dit,
    "mlp": mlp,
    "unet": unet,
}

__all__ = ["NETWORKS"]
