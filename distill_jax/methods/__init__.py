"""The methods by name: one paper, one file."""

from distill_jax.methods.base import Method, Nets, Phase
from distill_jax.methods.diffusion import Diffusion
from distill_jax.methods.encoder import Encoder
from distill_jax.methods.guided import Guided
from distill_jax.methods.progressive import Progressive
from distill_jax.methods.stochastic import Stochastic

METHODS = {
    "diffusion": Diffusion,
    "encoder": Encoder,
    "guided": Guided,
    "progressive": Progressive,
    "stochastic": Stochastic,
}

__all__ = ["METHODS", "Method", "Nets", "Phase"]
