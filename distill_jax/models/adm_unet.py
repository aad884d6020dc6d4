"""The ADM UNet of Dhariwal & Nichol (2021, arXiv:2105.05233), as they and as EDM trained it.

One network for both: their checkpoints embed the index of a table of 1,000 noise levels, those of
Karras et al. (2022, arXiv:2206.00364, appendix F.2) the logarithm of sigma.
"""

import dataclasses
import inspect
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Network
from distill_jax.diffusion.spec import Spec
from distill_jax.models.layers import as_network, with_numbers
from distill_jax.models.residual_unet import MULTIPLIERS, Architecture, ResidualUNet, noise_level
from distill_jax.runtime.options import choice, option, whole
from distill_jax.typing import Cond, Image, Output, Time

# (arch, t) -> the number that is embedded.
NOISE_INPUTS = {
    "logsigma": noise_level,
    # Entry k of a table is t = (k + 1) / 1000.
    "index": lambda arch, t: 1000 * t - 1,
}


@dataclasses.dataclass(frozen=True)
class AdmArchitecture(Architecture):
    """The numbers of an ADM UNet, beside those that every residual UNet has.

    Attributes:
      heads: of every attention; None: as many as there are
      head_dim: channels of a head in the width of the layer.
      group_dim: channels at least in each of the 32 groups of a normalisation; with fewer, there
        are fewer groups. 4 in EDM's networks, 1 in the released ADM ones.
      noise_input: a name in NOISE_INPUTS: "logsigma" is log(sigma / alpha) / 4, "index" 1000 t - 1.
      w_scale: the w that is embedded like t = 1.
    """

    channels: int = option(whole(4, 2), 192)
    multipliers: tuple[int | float, ...] = option(MULTIPLIERS, (1, 2, 3, 4))
    blocks: int = option(whole(1), 3)
    attention: tuple[int, ...] = (32, 16, 8)
    heads: int | None = None
    head_dim: int = 64
    group_dim: int = 4
    noise_input: str = option(choice(NOISE_INPUTS), "logsigma")
    w_scale: float = 4.0

    epsilon: ClassVar[float] = 1e-5
    gain: ClassVar[float] = 1.0
    modulated: ClassVar[bool] = True
    projected: ClassVar[bool] = False
    attends_last: ClassVar[bool] = False

    @property
    def first(self) -> int:
        """Channels after the first convolution: those of the first level."""
        return self.widths[0]

    def groups_of(self, width: int) -> int:
        """Groups of a normalisation: 32, but of at least group_dim channels each."""
        return min(32, max(width // self.group_dim, 1))

    def heads_of(self, width: int) -> int:
        """`heads`, or as many of head_dim channels as there are."""
        return self.heads or width // self.head_dim


def cosines_and_sines(u: Time, dim: int) -> jax.Array:
    """[cos(u f_k), sin(u f_k)], f_k = 10000^(-2 k / dim): (b,) -> (b, dim), dim even.

    The order and the ladder, which stops short of 1e-4, of Dhariwal & Nichol's released networks.
    """
    angle = u[:, None] * jnp.exp(-math.log(10000.0) * jnp.arange(dim // 2) / (dim // 2))
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class AdmUNet(nn.Module):
    """The embedding of ADM, and the U."""

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


def adm_unet(spec: Spec, **options: Any) -> Network:
    """The ADM UNet for the images of a spec; the defaults are the ImageNet 64x64 network.

    Args:
      spec: what it must fit.
      **options: the other attributes of AdmArchitecture.

    Raises:
      ValueError: when they do not fit each other.
    """
    return as_network(AdmUNet(AdmArchitecture(spec, **options)))


# What tables.build lets a config set.
vars(adm_unet)["__signature__"] = inspect.signature(AdmArchitecture)
