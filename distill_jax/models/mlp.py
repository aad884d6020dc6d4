"""A residual MLP with adaLN conditioning, for images of a few hundred numbers.

This is the network of the digits demo. On a CPU it trains an order of magnitude faster than a
transformer of as many parameters (`python benchmarks/networks.py`; figures in docs/results.md),
because its work is a few large matrix products instead of many small ones. It is good enough for
64 pixels; use the transformer for larger images.
"""

from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion.denoiser import Network
from distill_jax.diffusion.spec import Spec
from distill_jax.models.layers import (
    TIME_SCALE,
    Conditioning,
    as_network,
    middle_of,
    modulate,
    zeros,
)
from distill_jax.runtime.options import MAX_BLOCKS, MAX_WIDTH, whole
from distill_jax.typing import Cond, Image, Output, Time


class MLP(nn.Module):
    """The network: residual blocks on the flattened image."""

    spec: Spec
    width: int
    blocks: int
    expand: int
    time_scale: float

    @nn.compact
    def __call__(self, z: Image, t: Time, cond: Cond) -> Output:
        shape = tuple(self.spec.shape)
        if z.shape[1:] != shape:
            raise ValueError(
                f"the image is {z.shape[1:]}; this mlp was made for {shape} and takes no other "
                "size: take dit or unet"
            )
        classes = self.spec.classes("label")
        conditioning = Conditioning(
            self.width, classes, time_scale=self.time_scale, name="conditioning"
        )
        emb = nn.swish(conditioning(t, cond))
        h = nn.Dense(self.width, name="input")(z.reshape(z.shape[0], -1))
        for block in range(self.blocks):
            mod = nn.Dense(3 * self.width, kernel_init=zeros, name=f"modulation_{block}")(emb)
            shift, scale, gate = jnp.split(mod, 3, axis=-1)
            y = modulate(nn.LayerNorm(use_bias=False, use_scale=False)(h), shift, scale)
            y = nn.swish(nn.Dense(self.expand * self.width, name=f"up_{block}")(y))
            h += gate * nn.Dense(self.width, name=f"down_{block}")(y)
            if block == middle_of(self.blocks):
                self.sow("features", "middle", h[:, None])
        mod = nn.Dense(2 * self.width, kernel_init=zeros, name="modulation_out")(emb)
        h = modulate(nn.LayerNorm(use_bias=False, use_scale=False)(h), *jnp.split(mod, 2, axis=-1))
        shape = z.shape[:-1] + (self.spec.channels_out,)
        return nn.Dense(int(np.prod(shape[1:])), kernel_init=zeros, name="output")(h).reshape(shape)


def mlp(
    spec: Spec,
    width: Annotated[int, whole(4, 2, MAX_WIDTH)] = 256,
    blocks: Annotated[int, whole(1, high=MAX_BLOCKS)] = 3,
    expand: Annotated[int, whole(1, high=64)] = 2,
    time_scale: Annotated[float, TIME_SCALE] = 1000.0,
) -> Network:
    """Returns the residual MLP for images of the spec's shape only.

    Args:
      spec: spec of the images and conditions; label num_classes is the null label.
      width: width of the residual stream, even.
      blocks: number of residual blocks.
      expand: hidden width of a block over the width of the stream.
      time_scale: largest angle in the embedding of the time; small for a network that is smooth in
        the time, as `scm` needs.
    """
    return as_network(MLP(spec, width, blocks, expand, time_scale), features=True)
