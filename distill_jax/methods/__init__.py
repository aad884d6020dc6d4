"""The distillation methods by name; each file implements one paper."""

from distill_jax.methods.base import Method, Nets, Phase
from distill_jax.methods.boot import Boot
from distill_jax.methods.consistency import Consistency
from distill_jax.methods.decoupled_dmd import DecoupledDmd
from distill_jax.methods.diffusion import Dedistill, Diffusion
from distill_jax.methods.dmd2 import Dmd2
from distill_jax.methods.encoder import Encoder
from distill_jax.methods.guided import Guided
from distill_jax.methods.meanflow import MeanFlow
from distill_jax.methods.progressive import Progressive
from distill_jax.methods.scm import Scm
from distill_jax.methods.sid_lsg import SidLsg
from distill_jax.methods.stochastic import Stochastic
from distill_jax.methods.swd import Swd

METHODS = {
    "boot": Boot,
    "consistency": Consistency,
    "decoupled_dmd": DecoupledDmd,
    "dedistill": Dedistill,
    "diffusion": Diffusion,
    "dmd2": Dmd2,
    "encoder": Encoder,
    "guided": Guided,
    "meanflow": MeanFlow,
    "progressive": Progressive,
    "scm": Scm,
    "sid_lsg": SidLsg,
    "stochastic": Stochastic,
    "swd": Swd,
}

__all__ = ["METHODS", "Method", "Nets", "Phase"]
