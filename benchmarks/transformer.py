"""A config for scaling.py: ImageNet 64x64 with a diffusion transformer of 24 blocks.

    python benchmarks/scaling.py --config=benchmarks/transformer.py --stages=0,1 --devices=1 \\
      --config.batch_size=1
"""

from distill_jax.config import load_file

DIT = dict(name="dit", patch=4, width=1024, blocks=24, heads=16, expand=4)


def get_config():
    """Returns imagenet64_guided with this network, in bfloat16 and with remat "full"."""
    config = load_file("configs/imagenet64_guided.py").get_config("deterministic")
    config.model = type(config)({**DIT, "dtype": "bfloat16", "remat": "full"})
    return config
