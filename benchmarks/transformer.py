"""A config for scaling.py: ImageNet 64x64 with a diffusion transformer of 24 blocks.

    python benchmarks/scaling.py --config=benchmarks/transformer.py --stages=0,1 --devices=1 \\
      --config.batch_size=1
"""

import pathlib

from distill_jax.runtime.config_file import load_file

DIT = dict(name="dit", patch=4, width=1024, blocks=24, heads=16, expand=4)


def get_config():
    """Returns imagenet64_guided with this network, in bfloat16 and with remat "full"."""
    file = pathlib.Path(__file__).parent.parent / "configs" / "imagenet64_guided.py"
    config = load_file(file).get_config("deterministic")
    config.model = type(config)({**DIT, "dtype": "bfloat16", "remat": "full"})
    return config
