"""ImageNet 64x64: guided distillation of ADM's published network to 1 step, w in [0, 4].

The way of Meng et al. (2023, arXiv:2210.03142), after a fine-tuning to v with label dropout: ADM
predicts eps, which says nothing about the image in one step, and has not seen the null label.
Nothing is published for this teacher; steps, updates and learning rates are ours. Not run.
docs/teachers.md says where the file is:

    python -m distill_jax.teachers adm 64x64_diffusion.pt --out=teachers/adm_imagenet64
    python -m distill_jax.main --config=configs/imagenet64_adm_guided.py --workdir=gs://bucket/adm
    python -m distill_jax.main --config=configs/imagenet64_adm_guided.py:plan --plan_for=64xh100
    python -m distill_jax.main --config=configs/imagenet64_adm_guided.py:smoke    # fake data, CPU
"""

from distill_jax.config import check_size, from_published, guided_stages, pipeline, sized_import


def get_config(size="full"):
    """Returns the config of the chain finetune -> guided -> 256, 128, ..., 1 steps."""
    check_size(size, "full", "plan", "smoke")
    config = from_published("adm_imagenet64", dtype="bfloat16")
    config.parameterization = "v"
    config.evaluate.w = (0.0, 0.3, 1.0, 2.0, 4.0)
    start = 1 if size == "smoke" else 256
    config.stages = pipeline(*guided_stages("adm_imagenet64", start))
    return sized_import(config, size)
