"""DDPM++ and NCSN++, the UNets of Song et al. (2021, arXiv:2011.13456), for EDM checkpoints.

Karras et al. (2022, arXiv:2206.00364), appendix F.2 and Table 7. DDPM++ is the default; NCSN++ has
embedding "fourier", noise_multiplier 2, filter (1, 3, 3, 1) and pyramid True.
"""

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from distill_jax.diffusion.augmentation import AUGMENT, LABELS
from distill_jax.diffusion.denoiser import Network
from distill_jax.diffusion.spec import Spec
from distill_jax.models.layers import as_network, sinusoid, with_numbers
from distill_jax.models.residual_unet import (
    W_SCALE,
    Architecture,
    ResidualUNet,
    Taps,
    noise_level,
)
from distill_jax.runtime.options import Rule, choice, option, takes_fields, whole
from distill_jax.typing import Cond, Image, Output, Time

FILTER = Rule(
    lambda taps: len(taps) in range(2, 17, 2) and taps == taps[::-1] and sum(taps) > 0,
    "a symmetric one of even length up to 16 and a positive sum, such as (1, 1) or (1, 3, 3, 1)",
)


@dataclasses.dataclass(frozen=True)
class SongArchitecture(Architecture):
    """The options of DDPM++ and NCSN++, in addition to those of every residual UNet.

    Attributes:
      embedding: embedding of the noise level, "positional" or "fourier" (fixed random frequencies,
        which are parameters without a gradient).
      noise_multiplier: width of that embedding over `channels`.
      filter: resampling filter, symmetric and of even length.
      pyramid: whether every level adds the image again on the way down ("residual").
      w_scale: the w whose embedding is that of t = 1.
      augment: whether it takes the labels of augmented images, see diffusion.augmentation.
    """

    embedding: str = option(choice(("positional", "fourier")), "positional")
    noise_multiplier: int = option(whole(1, high=16), 1)
    filter: Taps = option(FILTER, (1, 1))  # type: ignore[misc]  # Other families have one only.
    pyramid: bool = False  # type: ignore[misc]  # The same.
    w_scale: float = option(W_SCALE, 4.0)
    augment: bool = False

    epsilon: ClassVar[float] = 1e-6
    gain: ClassVar[float] = 0.5**0.5
    modulated: ClassVar[bool] = False
    projected: ClassVar[bool] = True
    attends_last: ClassVar[bool] = True


class SongUNet(nn.Module):
    """The network: the embedding of DDPM++ and NCSN++, and a ResidualUNet."""

    arch: SongArchitecture

    @nn.compact
    def __call__(self, z: Image, t: Time, cond: Cond) -> Output:
        arch, width = self.arch, 4 * self.arch.channels
        emb = self._noise(noise_level(arch, t))
        if "label" in cond:
            classes = arch.spec.classes("label")
            label = jax.nn.one_hot(cond["label"], classes) * math.sqrt(classes)
            emb += nn.Dense(emb.shape[-1], name="label_embed")(label)
        if arch.augment:  # Without a bias, so that labels of 0 and no labels are the same.
            labels = cond.get(AUGMENT, jnp.zeros((len(z), LABELS)))
            emb += nn.Dense(emb.shape[-1], use_bias=False, name="augment_embed")(labels)
        emb = nn.Dense(width, name="t_embed_0")(emb)
        emb = nn.Dense(width, name="t_embed_1")(nn.swish(emb))
        emb = with_numbers(emb, cond, arch.w_scale)
        return ResidualUNet(arch, name="unet")(z, nn.swish(emb))

    def _noise(self, c_noise: Time) -> jax.Array:
        """Returns the embedded noise level, (b, channels noise_multiplier)."""
        width = self.arch.channels * self.arch.noise_multiplier
        if self.arch.embedding == "positional":
            return sinusoid(c_noise / 1000, width)
        frequencies = self.param("frequencies", nn.initializers.normal(16.0), (width // 2,))
        angle = 2 * math.pi * c_noise[:, None] * jax.lax.stop_gradient(frequencies)
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


@takes_fields(SongArchitecture)
def song_unet(spec: Spec, **options: Any) -> Network:
    """Returns DDPM++ or NCSN++ for the images of a spec.

    With the same parameters it also takes images of other sizes, if its levels can halve their
    sides; attention stays at the same levels.

    Args:
      spec: spec of the images and conditions.
      **options: the other attributes of SongArchitecture.

    Raises:
      ValueError: when the options do not fit the spec or each other.
    """
    arch = SongArchitecture(spec, **options)
    return as_network(SongUNet(arch), features=True, policy=arch.remat)
