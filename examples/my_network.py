"""Your own network: convolutions at one resolution, scaled and shifted by time and class.

config.model = dict(name="examples.my_network:convolutions", width=32, blocks=4)

python -m distill_jax.main --config=examples/my_config.py
"""

import flax.linen as nn

from distill_jax.diffusion.denoiser import Network
from distill_jax.diffusion.spec import Spec
from distill_jax.models.layers import Conditioning, as_network, modulate, zeros
from distill_jax.typing import Cond, Image, Output, Time


class Convolutions(nn.Module):
    """A network of residual blocks with two convolutions each, from image to image."""

    spec: Spec
    width: int
    blocks: int

    @nn.compact
    def __call__(self, z: Image, t: Time, cond: Cond) -> Output:
        classes = self.spec.classes("label")
        emb = nn.swish(Conditioning(self.width, classes, name="conditioning")(t, cond))
        h = nn.Conv(self.width, (3, 3), name="input")(z)
        for block in range(self.blocks):
            scale, shift = (
                nn.Dense(self.width, kernel_init=zeros, name=f"{part}_{block}")(emb)[:, None, None]
                for part in ("scale", "shift")
            )
            y = nn.swish(modulate(nn.LayerNorm(name=f"norm_{block}")(h), shift, scale))
            y = nn.swish(nn.Conv(self.width, (3, 3), name=f"first_{block}")(y))
            h += nn.Conv(self.width, (3, 3), name=f"second_{block}")(y)
        # The output starts at zero.
        return nn.Conv(self.spec.channels_out, (3, 3), kernel_init=zeros, name="output")(h)


def convolutions(spec: Spec, width: int = 32, blocks: int = 4) -> Network:
    """Builds the network for the images of a spec, of any size.

    Args:
      spec: shapes and schedule that the network is built for.
      width: channels, an even number.
      blocks: residual blocks; each adds two pixels to the receptive field's radius.
    """
    return as_network(Convolutions(spec, width, blocks))
