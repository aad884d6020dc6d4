"""A config of networks on latents at full size, with random latents in place of data.

    python -m distill_jax.main --config=benchmarks/latents.py:sd15 --plan_for=1xh100
    python -m distill_jax.main --config=benchmarks/latents.py:dit --plan_for=8xh100

Sizes are sd15, sd21, sd15_inpaint and dit (DiT-XL/2, Peebles & Xie 2023), and smoke, a tiny sd15.
No directory of weights is needed. The stages are a teacher, guided distillation and a halving, in
bfloat16, with one image a device.
"""

import dataclasses
import itertools
import pathlib
import sys

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parent.parent))  # Of the config's dataset.

from distill_jax.config import base, check_size, halvings, pipeline, stage  # noqa: E402
from distill_jax.data.base import Rows, Source, index_of  # noqa: E402
from distill_jax.diffusion.spec import DataSpec, Leaf, label_leaf  # noqa: E402

# The network, channels of its text, side of the latents, and the range of w.
UNET = {"name": "sd_unet", "dtype": "bfloat16", "remat": "none"}
SMALL = {"widths": (16,), "heads": (2,), "transformers": (0,), "blocks": 1, "groups": 8}
SIZES = {
    "sd15": (UNET, 768, 64, (2.0, 14.0)),
    "sd21": (UNET | {"heads": (5, 10, 20, 20), "linear": True}, 1024, 96, (2.0, 14.0)),
    "sd15_inpaint": (UNET, 768, 64, (2.0, 14.0)),
    "dit": (
        {"name": "diffusers_dit", "dtype": "bfloat16", "remat": "none"},
        *(0, 32, (0.0, 14.0)),
    ),
    "smoke": (UNET | SMALL | {"dtype": "float32"}, 16, 8, (2.0, 14.0)),
}
TOKENS = 77


@dataclasses.dataclass(frozen=True)
class Latents:
    """Random latents (side, side, 4) with tokens of a text, or labels.

    Args:
      side: side of the latents.
      text: channels of the tokens; 0 for labels of 1000 classes.
      inpaint: whether there are the channels of an inpainting model.
    """

    side: int = 64
    text: int = 768
    inpaint: bool = False

    num_labels = 1000

    @property
    def spec(self):
        cond = [("label", label_leaf(1000))]
        if self.text:
            cond = [("text", Leaf((TOKENS, self.text))), ("text_mask", Leaf((TOKENS,), "bool"))]
        if self.inpaint:
            cond.append(("inpaint", Leaf((self.side, self.side, 5))))
        return DataSpec(Leaf((self.side, self.side, 4)), False, tuple(cond))

    @property
    def null(self):
        return self._drawn(np.random.default_rng(0), 1)

    def _drawn(self, rng, num):
        """Returns random conditions."""
        cond = {}
        for name, leaf in self.spec.cond:
            shape, whole = (num, *leaf.shape), np.dtype(leaf.dtype) != np.float32
            drawn = rng.integers(leaf.classes or 2, size=shape) if whole else rng.normal(size=shape)
            cond[name] = drawn.astype(leaf.dtype)
        return cond

    def batches(self, seed, start, size, part=(0, 1)):
        for step in itertools.count(start):
            rng, index = np.random.default_rng((seed, step)), index_of(step, size, part)
            x = rng.standard_normal((size, *self.spec.x.shape), np.float32)
            cond, rows = self._drawn(rng, size), index - step * size
            yield Rows(index, x[rows], {name: leaf[rows] for name, leaf in cond.items()})

    def without_images(self):
        return self

    def images(self, split, num=None):
        x = np.random.default_rng(0).standard_normal((num or 2, *self.spec.x.shape), np.float32)
        return Source(x, np.zeros(len(x), np.int32))


def get_config(size="sd15"):
    """Returns the config of a size, with one image a device where fsdp is at most 64."""
    check_size(size, *SIZES)
    model, text, side, w_range = SIZES[size]
    config = base()
    config.data = dict(name="benchmarks.latents:Latents", side=side, text=text)
    config.data.inpaint = size == "sd15_inpaint"
    config.model, config.batch_size = model, 64
    config.schedule = dict(name="ddpm", beta_min=0.00085, beta_max=0.012, power=2)
    config.frozen_dtype = "bfloat16"
    rates = dict(learning_rate=1e-5, ema_decay=0.9999)
    embed = "w_embed" if text == 0 else "time_embedding.cond_proj"
    config.stages = pipeline(
        stage("teacher", "diffusion", steps=10_000, **rates),
        stage("guided", "guided", steps=5000, w_range=w_range, new=(embed,), **rates),
        *halvings(start=64, end=64, steps=10_000, w_range=w_range, **rates),
    )
    return config
