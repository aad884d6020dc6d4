"""The codec of Stable Diffusion's autoencoders."""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_jax.diffusion.spec import DataSpec
from distill_jax.models import vae
from distill_jax.models.diffusers_files import (
    ADVICE,
    SCALE,
    SHIFT,
    WIDTHS,
    Vae,
    read_directory,
    vae_of,
)
from distill_jax.models.pretrained import stored_params
from distill_jax.runtime.files import absolute
from distill_jax.runtime.options import MAX_BLOCKS, MAX_WIDTH, option, whole
from distill_jax.storage.weights import LeafError, Stored
from distill_jax.typing import Image, Resized, Tree

PIXELS = 2**21  # Of the images that are encoded or decoded at a time, such as 8 of 512x512.


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """The autoencoder of Stable Diffusion, read from its directory and kept in the run's codec/.

        z = (encoder's latent - shift) scale

    Attributes:
      path: directory of diffusers, an AutoencoderKL or a pipeline with one in vae/; "" for one that
        was read before. The other attributes, except `tile` and `draw`, are then those in it.
      tile: side of tiles in latent pixels; larger latents are decoded tile by tile, see vae.decode.
        0 decodes whole images.
      draw: whether training takes draws from the encoder's distribution, new in every epoch, as
        Stable Diffusion was trained; otherwise its mean.
      widths: channels of each level.
      blocks: residual blocks of a level of the encoder.
      channels: channels of the latents.
      groups: groups of the normalisations.
      quant: whether a 1x1 convolution follows the encoder.
      post_quant: whether a 1x1 convolution precedes the decoder.
      scale: scale of the latents.
      shift: shift of the latents.
    """

    path: str = ""
    tile: int = option(whole(0, 4, MAX_WIDTH), 0)
    draw: bool = False
    widths: tuple[int, ...] = option(WIDTHS, (128, 256, 512, 512))
    blocks: int = option(whole(1, high=MAX_BLOCKS), 2)
    channels: int = option(whole(1, high=MAX_WIDTH), 4)
    groups: int = option(whole(1, high=MAX_WIDTH), 32)
    quant: bool = True
    post_quant: bool = True
    scale: float = option(SCALE, 0.18215)
    shift: float = option(SHIFT, 0.0)

    images: ClassVar[int] = 16  # Images that a run shows it, for the mean error that it prints.

    def described(self) -> "Autoencoder":
        """Returns the codec with the layers that its config.json describes, and without its path.

        Raises:
          ValueError: if the files are missing, damaged or of another network.
        """
        if not self.path:
            return self
        said = self._files[0]
        fields = dataclasses.asdict(said.layers)
        return Autoencoder("", self.tile, self.draw, **fields, scale=said.scale, shift=said.shift)

    @functools.cached_property
    def _files(self) -> tuple[Vae, Tree, epath.Path]:
        """The content of config.json, the parameters, which are not read yet, and their file."""
        folder = absolute(self.path)
        folder = folder / "vae" if (folder / "vae").is_dir() else folder
        found = read_directory(folder, "AutoencoderKL")
        said = vae_of(found.content, f"{folder}/config.json")
        needed = vae.shapes(said.layers)
        return said, stored_params(needed, found.state, found.file, ADVICE), found.file

    @property
    def layers(self) -> vae.Layers:
        """The layers of the autoencoder."""
        names = [field.name for field in dataclasses.fields(vae.Layers)]
        return vae.Layers(**{name: getattr(self.described(), name) for name in names})

    def latents(self, data: DataSpec) -> DataSpec:
        """Returns the spec of the latents of images with this spec; raises as `described`."""
        layers, (height, width, colours) = self.layers, data.x.shape
        factor = layers.factor
        if colours != 3 or height % factor or width % factor:
            raise ValueError(
                f"images are {height}x{width}x{colours}; this codec takes 3 channels and sides "
                f"that are multiples of {factor}"
            )
        shape = height // factor, width // factor, layers.channels
        return data._replace(x=data.x._replace(shape=shape), bounded=False)

    def fit(self, images: np.ndarray) -> Tree:
        """Returns the parameters in the files as float32; the images are not used.

        Raises:
          ValueError: for an autoencoder without a path, and for values that are not finite.
        """
        if not self.path:
            raise ValueError("codec.path is ''; expected the directory of an autoencoder")
        _, params, file = self._files

        def read(leaf: Stored) -> np.ndarray:
            try:
                return np.ascontiguousarray(leaf.read(()), np.float32)
            except LeafError as error:
                raise ValueError(f"{file}: {error}") from error

        return jax.tree.map(read, params)

    def shapes(self, data: DataSpec) -> Tree:
        """Returns the shapes and dtypes of the parameters."""
        return vae.shapes(self.layers)

    def encode(self, params: Tree, images: Image, key: jax.Array | None = None) -> Resized:
        """Encodes images (b, h, w, 3) in [-1, 1] into latents (b, h / f, w / f, channels).

        They are draws from the encoder's distribution with a key, and its mean without one.
        """
        z, std = self.moments(params, images)
        return z if key is None else z + std * jax.random.normal(key, z.shape)

    def moments(self, params: Tree, images: Image) -> tuple[Resized, Resized]:
        """Returns mean and standard deviation of the latents of images."""

        def encoded(x: Image) -> tuple[jax.Array, jax.Array]:
            return vae.encode(self.layers, params, x)

        z, std = _in_parts(encoded, images, images.shape[1] * images.shape[2])
        return (z - self.shift) * self.scale, std * self.scale

    def decode(self, params: Tree, latents: Resized) -> Image:
        """Decodes latents into images in [-1, 1]."""

        def decoded(z: Resized) -> Image:
            return jnp.clip(vae.decode(self.layers, params, z, self.tile), -1.0, 1.0)

        pixels = latents.shape[1] * latents.shape[2] * self.layers.factor**2
        return _in_parts(decoded, latents / self.scale + self.shift, pixels)


def _in_parts(function: Callable, x: jax.Array, pixels: int) -> Tree:
    """Returns function(x), computed part by part if the images have many pixels together."""
    most = max(PIXELS // pixels, 1)
    if len(x) <= most:
        return function(x)

    def of_one(part: jax.Array) -> Tree:
        return jax.tree.map(lambda y: y[0], function(part[None]))

    return jax.lax.map(of_one, x, batch_size=most)
