"""The ADM UNet of Dhariwal & Nichol (2021, arXiv:2105.05233), for ADM and EDM checkpoints.

ADM checkpoints embed the index in a table of 1,000 noise levels. EDM checkpoints (Karras et al.
2022, arXiv:2206.00364, appendix F.2) embed the logarithm of sigma.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax

from distill_jax.diffusion.denoiser import Network
from distill_jax.diffusion.spec import Spec
from distill_jax.models.layers import as_network, cosines_and_sines, with_numbers
from distill_jax.models.residual_unet import (
    MULTIPLIERS,
    W_SCALE,
    Architecture,
    ResidualUNet,
    noise_level,
)
from distill_jax.runtime.options import (
    MAX_BLOCKS,
    MAX_WIDTH,
    choice,
    option,
    optional,
    takes_fields,
    whole,
)
from distill_jax.typing import Cond, Image, Output, Time

# Functions (arch, t) -> the number to embed.
NOISE_INPUTS = {
    "logsigma": noise_level,
    # Entry k of a table is t = (k + 1) / 1000.
    "index": lambda arch, t: 1000 * t - 1,
}


@dataclasses.dataclass(frozen=True)
class AdmArchitecture(Architecture):
    """The options of an ADM UNet, in addition to those of every residual UNet.

    Attributes:
      heads: number of heads of every attention; None: width of the layer over `head_dim`.
      head_dim: channels of a head if `heads` is None.
      group_dim: smallest number of channels in each of the 32 groups of a normalisation; narrow
        layers have fewer groups. 4 in EDM's networks, 1 in the released ADM networks.
      noise_input: a name in NOISE_INPUTS: "logsigma" is log(sigma / alpha) / 4, "index" 1000 t - 1.
      w_scale: the w whose embedding is that of t = 1.
    """

    channels: int = option(whole(4, 2, MAX_WIDTH), 192)
    multipliers: tuple[int | float, ...] = option(MULTIPLIERS, (1, 2, 3, 4))
    blocks: int = option(whole(1, high=MAX_BLOCKS), 3)
    attention: tuple[int, ...] = (32, 16, 8)
    heads: int | None = option(optional(whole(1, high=MAX_WIDTH)), None)
    head_dim: int = option(whole(1, high=MAX_WIDTH), 64)
    group_dim: int = option(whole(1, high=MAX_WIDTH), 4)
    noise_input: str = option(choice(NOISE_INPUTS), "logsigma")
    w_scale: float = option(W_SCALE, 4.0)

    epsilon: ClassVar[float] = 1e-5
    gain: ClassVar[float] = 1.0
    modulated: ClassVar[bool] = True
    projected: ClassVar[bool] = False
    attends_last: ClassVar[bool] = False

    @property
    def first(self) -> int:
        """Channels after the first convolution, the width of the first level."""
        return self.widths[0]

    def groups_of(self, width: int) -> int:
        """Returns the groups of a normalisation: at most 32, of group_dim channels or more each."""
        return min(32, max(width // self.group_dim, 1))

    def heads_of(self, width: int) -> int:
        """Returns `heads`, or the width over head_dim."""
        return self.heads or width // self.head_dim


class AdmUNet(nn.Module):
    """The network: ADM's embedding of noise level and conditions, and a ResidualUNet."""

    arch: AdmArchitecture

    @nn.compact
    def __call__(self, z: Image, t: Time, cond: Cond) -> Output:
        arch, width = self.arch, 4 * self.arch.channels
        emb = cosines_and_sines(NOISE_INPUTS[arch.noise_input](arch, t), arch.channels)
        emb = nn.Dense(width, name="t_embed_0")(emb)
        emb = nn.Dense(width, name="t_embed_1")(nn.swish(emb))
        if "label" in cond:
            label = jax.nn.one_hot(cond["label"], arch.spec.classes("label"))
            emb += nn.Dense(width, use_bias=False, name="label_embed")(label)
        emb = with_numbers(emb, cond, arch.w_scale)
        return ResidualUNet(arch, name="unet")(z, nn.swish(emb))


@takes_fields(AdmArchitecture)
def adm_unet(spec: Spec, **options: Any) -> Network:
    """Returns the ADM UNet for the images of a spec; by default the ImageNet 64x64 network.

    With the same parameters it also takes images of other sizes, if its levels can halve their
    sides; attention stays at the same levels.

    Args:
      spec: spec of the images and conditions.
      **options: the other attributes of AdmArchitecture.

    Raises:
      ValueError: when the options do not fit the spec or each other.
    """
    arch = AdmArchitecture(spec, **options)
    return as_network(AdmUNet(arch), features=True, policy=arch.remat)
