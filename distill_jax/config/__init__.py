"""Builders of configs: plain functions that return ConfigDicts. Imports no other module of ours.

A config has the data, the network, and the `stages` in their order. `base` and `stage` list every
key. The options of a method, network or dataset are the arguments of the entry of METHODS, NETWORKS
or DATASETS with that `name`.
"""

from distill_jax.config.chains import (
    base,
    check_size,
    halvings,
    pipeline,
    smoke,
    stage,
    with_teacher,
)
from distill_jax.config.latents import (
    CLIP_H,
    CLIP_L,
    COND_PROJ,
    latent_stages,
    latents,
    plan_latents,
    smoke_latents,
    stable_diffusion,
)
from distill_jax.config.presets import (
    MATCHING,
    PAPER_UNETS,
    SMALLEST,
    cifar10,
    digits,
    digits_teacher,
    imagenet64,
    mixture,
    mixture_teachers,
    paper_teacher,
    paper_unet,
    shapes,
    shapes_teacher,
    smoke_images,
    smoke_shapes,
)
from distill_jax.config.scalewise import (
    flow_latents,
    plan_scalewise,
    scalewise,
    smoke_scalewise,
)
from distill_jax.config.text import (
    FLUX_TEXT,
    SD3_TEXT,
    SDXL_TEXT,
)

__all__ = [
    "flow_latents",
    "plan_scalewise",
    "scalewise",
    "smoke_scalewise",
    "FLUX_TEXT",
    "SD3_TEXT",
    "SDXL_TEXT",
    "CLIP_H",
    "CLIP_L",
    "COND_PROJ",
    "latent_stages",
    "latents",
    "plan_latents",
    "smoke_latents",
    "stable_diffusion",
    "MATCHING",
    "PAPER_UNETS",
    "SMALLEST",
    "base",
    "check_size",
    "cifar10",
    "digits",
    "digits_teacher",
    "halvings",
    "imagenet64",
    "mixture",
    "mixture_teachers",
    "paper_teacher",
    "paper_unet",
    "pipeline",
    "shapes",
    "shapes_teacher",
    "smoke",
    "smoke_images",
    "smoke_shapes",
    "stage",
    "with_teacher",
]
