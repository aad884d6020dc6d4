"""Networks by name, as functions (spec, **options) -> Network, and discriminator heads by name."""

from distill_jax.models.adm_unet import adm_unet
from distill_jax.models.diffusers_dit import diffusers_dit
from distill_jax.models.discriminators import DISCRIMINATORS
from distill_jax.models.dit import dit
from distill_jax.models.exact import mixture
from distill_jax.models.flux import flux
from distill_jax.models.mlp import mlp
from distill_jax.models.mmdit import mmdit
from distill_jax.models.pooled import pooled_head
from distill_jax.models.sd_unet import sd_unet
from distill_jax.models.song_unet import song_unet
from distill_jax.models.unet import unet

NETWORKS = {
    "adm_unet": adm_unet,
    "diffusers_dit": diffusers_dit,
    "dit": dit,
    "flux": flux,
    "mixture": mixture,
    "mlp": mlp,
    "mmdit": mmdit,
    "sd_unet": sd_unet,
    "song_unet": song_unet,
    "unet": unet,
}

# Networks that read the condition "text"; others would ignore it.
TEXT_NETWORKS = ("dit", "flux", "mmdit", "sd_unet")
# Networks that read the condition INPAINT.
INPAINTING_NETWORKS = ("sd_unet",)

__all__ = ["DISCRIMINATORS", "INPAINTING_NETWORKS", "NETWORKS", "TEXT_NETWORKS", "pooled_head"]
