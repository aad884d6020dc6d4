"""A residual MLP with adaLN conditioning, for images of a few hundred numbers.

The network of the digits demo. On a CPU it trains an order of magnitude faster than a transformer
of as many parameters (`python benchmarks/networks.py`; figures in docs/results.md), for its work is
a few large matrix products and not many small ones, and at 64 pixels it is enough. For larger
images take the transformer.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion.denoiser import Network, Sizes
from distill_jax.models.layers import Conditioning, as_network, modulate, zeros
from distill_jax.typing import Cond, Image, Output, Time


class MLP(nn.Module):
    """Flattened image -> residual blocks -> image."""

    channels_out: int
    num_classes: int
    width: int
    blocks: int
    expand: int

    @nn.compact
    def __call__(self, z: Image, t: Time, cond: Cond) -> Output:
        emb = nn.swish(Conditioning(self.width, self.num_classes, name="conditioning")(t, cond))
        h = nn.Dense(self.width, name="input")(z.reshape(z.shape[0], -1))
        for block in range(self.blocks):
            mod = nn.Dense(3 * self.width, kernel_init=zeros, name=f"modulation_{block}")(emb)
            shift, scale, gate = jnp.split(mod, 3, axis=-1)
            y = modulate(nn.LayerNorm(use_bias=False, use_scale=False)(h), shift, scale)
            y = nn.swish(nn.Dense(self.expand * self.width, name=f"up_{block}")(y))
            h += gate * nn.Dense(self.width, name=f"down_{block}")(y)
        mod = nn.Dense(2 * self.width, kernel_init=zeros, name="modulation_out")(emb)
        h = modulate(nn.LayerNorm(use_bias=False, use_scale=False)(h), *jnp.split(mod, 2, axis=-1))
        shape = z.shape[:-1] + (self.channels_out,)
        return nn.Dense(int(np.prod(shape[1:])), kernel_init=zeros, name="output")(h).reshape(shape)


def mlp(
    sizes: Sizes,
    width: int = 256,
    blocks: int = 3,
    expand: int = 2,
) -> Network:
    """The residual MLP for images of these sizes.

    Args:
      sizes: what it must fit; label num_classes is the null label.
      width: of the residual stream, even.
      blocks: residual blocks.
      expand: hidden width of a block over the width of the stream.
    """
    return as_network(MLP(sizes.channels_out, sizes.num_classes, width, blocks, expand))
