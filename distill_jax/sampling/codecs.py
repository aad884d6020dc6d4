"""Between the images that people see and the x that a network works on."""

import dataclasses
import functools
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_jax.diffusion.spec import DataSpec
from distill_jax.runtime.registry import build
from distill_jax.storage import checkpoint
from distill_jax.typing import Image, Resized, Tree


@runtime_checkable
class Codec(Protocol):
    """Images in [-1, 1] in, latents of about unit variance out, and back."""

    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(h, w, c) of the images whose latents are of a shape."""
        ...

    def encode(self, images: Image, key: jax.Array | None = None) -> Resized:
        """The latents of images; a key draws from a codec that is a distribution."""
        ...

    def decode(self, latents: Resized) -> Image:
        """The images of latents."""
        ...


class Pixels(NamedTuple):
    """The identity: the network works on pixels."""

    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def encode(self, images: Image, key: jax.Array | None = None) -> Resized:
        return images

    def decode(self, latents: Resized) -> Image:
        return latents


PIXELS = Pixels()


@dataclasses.dataclass(frozen=True)
class PatchPca:
    """Patches of an image as coordinates on their principal components, of unit variance.

        z = V^T (patch - mean) / sqrt(lambda),   V, lambda: the largest eigenpairs of the covariance

    Fitted in closed form. With all components nothing is lost.

    Attributes:
      patch: side of a patch in pixels; it divides the sides of the images.
      channels: components that are kept; 0 for all.
    """

    patch: int = 2
    channels: int = 0

    def latents(self, data: DataSpec) -> DataSpec:
        """The spec of the latents of images like these.

        Raises:
          ValueError: when patches do not tile the images, or have fewer components.
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
        """Parameters from images (n, h, w, c) in [-1, 1]: mean (d,), basis (d, k), scale (k,)."""
        patches = np.asarray(_patches(jnp.asarray(images), self.patch), np.float64)
        patches = patches.reshape(-1, patches.shape[-1])
        variance, basis = np.linalg.eigh(np.cov(patches, rowvar=False, bias=True))
        kept = slice(None, -(self.channels or len(variance)) - 1, -1)  # The largest first.
        # A component that never varies, such as a border's, keeps a scale to divide by.
        scale = np.sqrt(np.maximum(variance[kept], 1e-6))
        found = {"mean": patches.mean(axis=0), "basis": basis[:, kept], "scale": scale}
        return {name: np.ascontiguousarray(leaf, np.float32) for name, leaf in found.items()}

    def shapes(self, data: DataSpec) -> Tree:
        """Shapes and types of the parameters."""
        d, k = self.patch**2 * data.x.shape[-1], self.latents(data).x.shape[-1]
        sizes = {"mean": (d,), "basis": (d, k), "scale": (k,)}
        return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in sizes.items()}

    def encode(self, params: Tree, images: Image) -> Resized:
        """Images (b, h, w, c) to latents (b, h / patch, w / patch, k)."""
        centred = _patches(images, self.patch) - params["mean"]
        return jnp.matmul(centred, params["basis"], precision="highest") / params["scale"]

    def decode(self, params: Tree, latents: Resized) -> Image:
        """Latents to images in [-1, 1]."""
        x = jnp.matmul(latents * params["scale"], params["basis"].T, precision="highest")
        (b, h, w, _), p = latents.shape, self.patch
        x = (x + params["mean"]).reshape(b, h, w, p, p, -1)
        return jnp.clip(x.swapaxes(2, 3).reshape(b, h * p, w * p, -1), -1.0, 1.0)


class Fitted(NamedTuple):
    """A codec with its parameters.

    Attributes:
      kind: an entry of CODECS, built.
      params: of it.
      data: the images that it was fitted to.
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
    """(b, h, w, c) -> (b, h / side, w / side, side side c)."""
    b, h, w, c = images.shape
    split = images.reshape(b, h // side, side, w // side, side, c)
    return split.swapaxes(2, 3).reshape(b, h // side, w // side, -1)


# What `config.codec` may name; each is fitted before the first stage.
CODECS = {"patch_pca": PatchPca}


def read_codec(final: epath.Path) -> tuple[PatchPca, DataSpec]:
    """The kind of a finished codec, and the spec of the images that it was fitted to.

    Raises:
      FileNotFoundError: without a manifest.
      ValueError: when it is damaged, or no codec.
    """
    content = checkpoint.read_manifest(final)
    try:
        data = DataSpec.from_json(content["data"])
        kind = build(CODECS, "codec", content["codec"])
        kind.latents(data)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{final / 'manifest.json'} is that of no codec: {error}") from error
    return kind, data


def load_codec(final: epath.Path) -> Fitted:
    """The finished codec in a final/; raises as read_codec, and for damaged parameters."""
    kind, data = read_codec(final)
    return Fitted(kind, checkpoint.load_params(final, kind.shapes(data)), data)
