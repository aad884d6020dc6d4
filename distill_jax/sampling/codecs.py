"""Codecs: maps between images and the latents that a network works on."""

import dataclasses
import functools
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_jax.diffusion.spec import DataSpec
from distill_jax.runtime.options import MAX_WIDTH, option, whole
from distill_jax.runtime.registry import build
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

        z = V^T (patch - mean) / sqrt(lambda),   V, lambda: the largest eigenpairs of the covariance

    It is fitted in closed form. With all components it is lossless.

    Attributes:
      patch: side of a patch in pixels; must divide the sides of the images.
      channels: number of components that are kept; 0 for all.
    """

    patch: int = option(whole(1, high=MAX_WIDTH), 2)
    channels: int = option(whole(0, high=MAX_WIDTH), 0)

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
        scale = np.sqrt(np.maximum(variance[kept], 1e-6))
        found = {"mean": patches.mean(axis=0), "basis": basis[:, kept], "scale": scale}
        return {name: np.ascontiguousarray(leaf, np.float32) for name, leaf in found.items()}

    def shapes(self, data: DataSpec) -> Tree:
        """Returns the shapes and dtypes of the parameters."""
        d, k = self.patch**2 * data.x.shape[-1], self.latents(data).x.shape[-1]
        sizes = {"mean": (d,), "basis": (d, k), "scale": (k,)}
        return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in sizes.items()}

    def encode(self, params: Tree, images: Image) -> Resized:
        """Encodes images (b, h, w, c) into latents (b, h / patch, w / patch, k)."""
        centred = _patches(images, self.patch) - params["mean"]
        return jnp.matmul(centred, params["basis"], precision="highest") / params["scale"]

    def decode(self, params: Tree, latents: Resized) -> Image:
        """Decodes latents into images in [-1, 1]."""
        x = jnp.matmul(latents * params["scale"], params["basis"].T, precision="highest")
        (b, h, w, _), p = latents.shape, self.patch
        x = (x + params["mean"]).reshape(b, h, w, p, p, -1)
        return jnp.clip(x.swapaxes(2, 3).reshape(b, h * p, w * p, -1), -1.0, 1.0)


class Fitted(NamedTuple):
    """A codec with its fitted parameters.

    Attributes:
      kind: instance of an entry of CODECS.
      params: its parameters.
      data: spec of the images that it was fitted to.
    """

    kind: PatchPca
    params: Tree
    data: DataSpec

    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.data.x.shape

    def encode(self, images: Image, key: jax.Array | None = None) -> Resized:
        if images.shape[1:] != self.data.x.shape:
            raise ValueError(
                f"images are of shape {images.shape[1:]}; the codec takes {self.data.x.shape}"
            )
        return _encode(self.kind, self.params, images)

    def decode(self, latents: Resized) -> Image:
        return _decode(self.kind, self.params, latents)


@functools.partial(jax.jit, static_argnums=0)
def _encode(kind: PatchPca, params: Tree, images: Image) -> Resized:
    return kind.encode(params, images)


@functools.partial(jax.jit, static_argnums=0)
def _decode(kind: PatchPca, params: Tree, latents: Resized) -> Image:
    return kind.decode(params, latents)


def _patches(images: Image, side: int) -> jax.Array:
    """Cuts images into patches, (b, h, w, c) -> (b, h / side, w / side, side side c)."""
    b, h, w, c = images.shape
    split = images.reshape(b, h // side, side, w // side, side, c)
    return split.swapaxes(2, 3).reshape(b, h // side, w // side, -1)


# Codecs that `config.codec` may name; a run fits its codec before the first stage.
CODECS = {"patch_pca": PatchPca}


def read_codec(final: epath.Path) -> tuple[PatchPca, DataSpec]:
    """Reads the kind of a finished codec, and the spec of the images that it was fitted to.

    Raises:
      FileNotFoundError: if there is no manifest.
      ValueError: if the manifest is damaged, or not that of a codec.
    """
    content = checkpoint.read_manifest(final)
    try:
        data = DataSpec.from_json(content["data"])
        kind = build(CODECS, "codec", content["codec"])
        kind.latents(data)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{final / 'manifest.json'} does not describe a codec: {error}") from error
    return kind, data


def load_codec(final: epath.Path) -> Fitted:
    """Loads the codec in a final/; raises as read_codec does, and for damaged parameters."""
    kind, data = read_codec(final)
    return Fitted(kind, checkpoint.load_params(final, kind.shapes(data)), data)
