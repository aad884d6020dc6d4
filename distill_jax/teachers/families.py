"""Families of networks that have no reader, recognised by the names of their arrays or classes."""

from collections.abc import Iterable

from distill_jax.runtime.text import short
from distill_jax.storage.entries import listed, prefixes

ADVICE = (
    "it has no reader here: write one (docs/extending.md), or save its arrays under our names as "
    "safetensors, if one of our networks has its architecture (docs/teachers.md)"
)
# A part of an array's name -> the family. The first that fits is named.
NAMES = {
    "model.diffusion_model.": "a latent diffusion model of CompVis, such as Stable Diffusion",
    "first_stage_model.": "a latent diffusion model of CompVis, such as Stable Diffusion",
    "x_embedder.": "a DiT of facebookresearch/DiT, whose pipeline of diffusers has a reader, or a "
    "network like it",
    "double_blocks.": "a Flux network",
    "joint_blocks.": "an MMDiT of Stable Diffusion 3",
    "down_blocks.": "a network of diffusers",
    "all_modules.": "a network of yang-song/score_sde_pytorch",
    "downs.": "a network of lucidrains/denoising-diffusion-pytorch",
    "inner_model.": "a network of crowsonkb/k-diffusion",
    "map_noise.": "a network of NVlabs/edm without its description: take the *.pkl, format edm",
}
# Classes in pickles of NVIDIA's torch_utils -> the family.
CLASSES = {
    "Precond": "EDM2 (NVlabs/edm2), whose magnitude-preserving network",
    "VPPrecond": "EDM's baseline-*-vp files (VP preconditioning), which",
    "VEPrecond": "EDM's baseline-*-ve files (VE preconditioning), which",
    "iDDPMPrecond": "EDM's iDDPM preconditioning, which",
    "Generator": "StyleGAN, which",
}


def of_names(names: Iterable[str]) -> str:
    """Returns a sentence about the family of a state dict, and how its names begin."""
    names = list(names)
    found = (family for part, family in NAMES.items() if any(part in name for name in names))
    family = next(found, None)
    begins = f"its names begin with {listed(prefixes(dict.fromkeys(names)))}"
    if family is None:
        return f"{begins}; if one of these is the network's prefix, choose it with --key=PREFIX"
    return f"it looks like {family}; {ADVICE}; {begins}"


def of_class(name: str) -> str:
    """Returns a sentence about the family of a class in a pickle of torch_utils."""
    family = CLASSES.get(name)
    if family is None:
        return f"the class {short(name)} is of no family that is known here; {ADVICE}"
    extra = " is not supported: take one of the files named edm-*" if "EDM's" in family else ""
    return f"that is {family}{extra or f' is not supported; {ADVICE}'}"
