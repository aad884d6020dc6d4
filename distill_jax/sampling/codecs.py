"""Codecs: maps between images and the latents that a network works on."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, TypeGuard, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_jax.diffusion.spec import DataSpec
from distill_jax.models import taesd
from distill_jax.models.build import as_tuples
from distill_jax.runtime.options import MAX_WIDTH, number, option, whole
from distill_jax.runtime.registry import build
from distill_jax.sampling.autoencoder import Autoencoder
from distill_jax.storage import checkpoint
from distill_jax.typing import Image, Resized, Tree


@runtime_checkable
class Codec(Protocol):
    """A map from images in [-1, 1] to latents of about unit variance, and back."""

    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape (h, w, c) of images whose latents have this shape."""
        ...

    def encode(self, images: Image, key: jax.Array | None = None) -> Resized:
        """Encodes images into latents; a stochastic codec draws them with the key."""
        ...

    def decode(self, latents: Resized) -> Image:
        """Decodes latents into images."""
        ...


class Pixels(NamedTuple):
    """The identity codec of networks that work on pixels."""

    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def encode(self, images: Image, key: jax.Array | None = None) -> Resized:
        return images

    def decode(self, latents: Resized) -> Image:
        return latents


PIXELS = Pixels()


@dataclasses.dataclass(frozen=True)
class PatchPca:
    """A codec that maps patches of an image to their principal components, of unit variance.

        z = V^T (patch - mean) / scale,   scale = c lambda^(p / 2),   mean variance of z: 1,
        V, lambda: the largest eigenpairs of the covariance

    It is fitted in closed form. With all components it is lossless.

    Attributes:
      patch: side of a patch in pixels; must divide the sides of the images.
      channels: number of components that are kept; 0 for all.
      power: p from 0, where components keep their variances, to 1, where each has variance 1.
        Between, a network sees large structures at higher noise levels than small ones.
    """

    patch: int = option(whole(1, high=MAX_WIDTH), 2)
    channels: int = option(whole(0, high=MAX_WIDTH), 0)
    power: float = option(number(0, 1), 1.0)

    images: ClassVar[int] = 10_000  # Largest number of training images that it is fitted to.

    def described(self) -> "PatchPca":
        """Returns itself: its options say everything."""
        return self

    def latents(self, data: DataSpec) -> DataSpec:
        """Returns the spec of the latents of images with this spec.

        Raises:
          ValueError: if patches do not tile the images, or have fewer components than `channels`.
        """
        height, width, colours = data.x.shape
        most = self.patch**2 * colours
        if self.patch < 1 or height % self.patch or width % self.patch:
            raise ValueError(
                f"codec.patch is {self.patch}, and images are {height}x{width}; expected a divisor "
                "of both sides"
            )
        if not 0 <= self.channels <= most:
            raise ValueError(
                f"codec.channels is {self.channels}; patches of {self.patch}x{self.patch} pixels "
                f"have {most} components: expected at most that, or 0 for all"
            )
        shape = height // self.patch, width // self.patch, self.channels or most
        return data._replace(x=data.x._replace(shape=shape), bounded=False)

    def fit(self, images: np.ndarray) -> Tree:
        """Fits mean (d,), basis (d, k) and scale (k,) to images (n, h, w, c) in [-1, 1]."""
        patches = np.asarray(_patches(jnp.asarray(images), self.patch), np.float64)
        patches = patches.reshape(-1, patches.shape[-1])
        variance, basis = np.linalg.eigh(np.cov(patches, rowvar=False, bias=True))
        kept = slice(None, -(self.channels or len(variance)) - 1, -1)  # Largest variance first.
        # The smallest scale is above 0, because constant pixels, such as a border, have variance 0.
        spread = np.sqrt(np.maximum(variance[kept], 1e-6))
        scale = spread**self.power
        scale *= np.sqrt(np.mean((spread / scale) ** 2))
        found = {"mean": patches.mean(axis=0), "basis": basis[:, kept], "scale": scale}
        return {name: np.ascontiguousarray(leaf, np.float32) for name, leaf in found.items()}

    def shapes(self, data: DataSpec) -> Tree:
        """Returns the shapes and dtypes of the parameters."""
        d, k = self.patch**2 * data.x.shape[-1], self.latents(data).x.shape[-1]
        sizes = {"mean": (d,), "basis": (d, k), "scale": (k,)}
        return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in sizes.items()}

    def encode(self, params: Tree, images: Image, key: jax.Array | None = None) -> Resized:
        """Encodes images (b, h, w, c) into latents (b, h / patch, w / patch, k)."""
        centred = _patches(images, self.patch) - params["mean"]
        return jnp.matmul(centred, params["basis"], precision="highest") / params["scale"]

    def decode(self, params: Tree, latents: Resized) -> Image:
        """Decodes latents into images in [-1, 1]."""
        x = jnp.matmul(latents * params["scale"], params["basis"].T, precision="highest")
        (b, h, w, _), p = latents.shape, self.patch
        x = (x + params["mean"]).reshape(b, h, w, p, p, -1)
        return jnp.clip(x.swapaxes(2, 3).reshape(b, h * p, w * p, -1), -1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Taesd:
    """A tiny autoencoder of the TAESD family, read from its files and kept in the run's codec/.

    Attributes:
      path: directory with the files `*encoder*` and `*decoder*` of PyTorch or safetensors; "" for
        one that was read before.
      encoder: layers of the encoder, see taesd.layout; "" reads them from the files.
      decoder: layers of the decoder.
      channels: channels of the latents.
      width: channels between the layers.
    """

    path: str = ""
    encoder: str = option(taesd.LAYOUT, "")
    decoder: str = option(taesd.LAYOUT, "")
    channels: int = option(whole(0, high=MAX_WIDTH), 0)
    width: int = option(whole(0, high=MAX_WIDTH), 0)

    images: ClassVar[int] = 10_000  # Images that a run shows it, for the mean error that it prints.

    def described(self) -> "Taesd":
        """Returns the codec with the layers that its files have, and without their path.

        Raises:
          ValueError: if the files are missing, damaged or of another network, or there is no path
            and a layer, the channels or the width are missing too.
        """
        if self.path:
            return Taesd(**taesd.describe(self._params))
        for name, value in dataclasses.asdict(self).items():
            if name != "path" and not value:
                raise ValueError(
                    f"codec.path is '' and codec.{name} {value!r}; expected the directory of a "
                    "tiny autoencoder"
                )
        return self

    @functools.cached_property
    def _params(self) -> Tree:
        return taesd.read(self.path)

    def latents(self, data: DataSpec) -> DataSpec:
        """Returns the spec of the latents of images with this spec; raises as `described`."""
        kind, (height, width, colours) = self.described(), data.x.shape
        factor = taesd.factor(kind.encoder)
        if colours != 3 or height % factor or width % factor:
            raise ValueError(
                f"images are {height}x{width}x{colours}; this codec takes 3 channels and sides "
                f"that are multiples of {factor}"
            )
        shape = height // factor, width // factor, kind.channels
        return data._replace(x=data.x._replace(shape=shape), bounded=False)

    def fit(self, images: np.ndarray) -> Tree:
        """Returns the parameters in the files; the images are not used."""
        return self._params

    def shapes(self, data: DataSpec) -> Tree:
        """Returns the shapes and dtypes of the parameters."""
        return taesd.shapes(self.encoder, self.decoder, self.channels, self.width)

    def encode(self, params: Tree, images: Image, key: jax.Array | None = None) -> Resized:
        """Encodes images (b, h, w, 3) in [-1, 1] into latents (b, h / f, w / f, channels)."""
        return taesd.encode(params["encoder"], (images + 1) / 2)

    def decode(self, params: Tree, latents: Resized) -> Image:
        """Decodes latents into images in [-1, 1]."""
        return jnp.clip(2 * taesd.decode(params["decoder"], latents) - 1, -1.0, 1.0)


Kind = PatchPca | Taesd | Autoencoder


class Fitted(NamedTuple):
    """A codec with its fitted parameters.

    Attributes:
      kind: instance of an entry of CODECS.
      params: its parameters.
      data: spec of the images that it was fitted to.
    """

    kind: Kind
    params: Tree
    data: DataSpec

    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.data.x.shape

    def encode(self, images: Image, key: jax.Array | None = None) -> Resized:
        self._check(images)
        return _encode(self.kind, self.params, images, key)

    def moments(self, images: Image) -> Resized:
        """Returns what training takes of images; see the function `moments`."""
        self._check(images)
        return _moments(self.kind, self.params, images)

    def _check(self, images: Image) -> None:
        """Raises ValueError for images of another shape than those of the codec."""
        if images.shape[1:] != self.data.x.shape:
            raise ValueError(
                f"images are of shape {images.shape[1:]}; the codec takes {self.data.x.shape}"
            )

    def decode(self, latents: Resized) -> Image:
        return _decode(self.kind, self.params, latents)


@functools.partial(jax.jit, static_argnums=0)
def _encode(kind: Kind, params: Tree, images: Image, key: jax.Array | None) -> Resized:
    return kind.encode(params, images, key)


def draws(kind: Kind) -> TypeGuard[Autoencoder]:
    """Returns whether training takes draws of a codec's latents rather than their mean."""
    return isinstance(kind, Autoencoder) and kind.draw


def moments(kind: Kind, params: Tree, images: Image) -> Resized:
    """Returns the latents of images; their mean and standard deviation if training draws them.

    The standard deviation follows the mean on the channels.
    """
    if draws(kind):
        return jnp.concatenate(kind.moments(params, images), axis=-1)
    return kind.encode(params, images)


_moments = jax.jit(moments, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _decode(kind: Kind, params: Tree, latents: Resized) -> Image:
    return kind.decode(params, latents)


def _patches(images: Image, side: int) -> jax.Array:
    """Cuts images into patches, (b, h, w, c) -> (b, h / side, w / side, side side c)."""
    b, h, w, c = images.shape
    split = images.reshape(b, h // side, side, w // side, side, c)
    return split.swapaxes(2, 3).reshape(b, h // side, w // side, -1)


# Codecs that `config.codec` may name; a run fits its codec before the first stage.
CODECS = {"patch_pca": PatchPca, "taesd": Taesd, "autoencoder": Autoencoder}


def read_codec(final: epath.Path) -> tuple[Kind, DataSpec]:
    """Reads the kind of a finished codec, and the spec of the images that it was fitted to.

    Raises:
      FileNotFoundError: if there is no manifest.
      ValueError: if the manifest is damaged, or not that of a codec.
    """
    return described_codec(checkpoint.read_manifest(final), final / "manifest.json")


def described_codec(content: Mapping[str, Any], place: epath.PathLike) -> tuple[Kind, DataSpec]:
    """Returns what read_codec does, of a manifest that was read at `place`."""
    try:
        data = DataSpec.from_json(content["data"])
        kind = build(CODECS, "codec", as_tuples(content["codec"]))
        kind.latents(data)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{place} does not describe a codec: {error}") from error
    return kind, data


def load_codec(final: epath.Path) -> Fitted:
    """Loads the codec in a final/; raises as read_codec does, and for damaged parameters."""
    kind, data = read_codec(final)
    return Fitted(kind, checkpoint.load_params(final, kind.shapes(data)), data)
