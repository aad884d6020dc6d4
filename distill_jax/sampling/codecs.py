"""Between the pixels that people see and the x that a network works on."""

from typing import NamedTuple, Protocol, runtime_checkable

import jax

from distill_jax.typing import Image


@runtime_checkable
class Codec(Protocol):
    """Images in [-1, 1] in, latents of about unit variance out, and back."""

    def encode(self, images: Image, key: jax.Array | None = None) -> Image:
        """The latents of images; a key draws from a codec that is a distribution."""
        ...

    def decode(self, latents: Image) -> Image:
        """The images of latents."""
        ...


class Pixels(NamedTuple):
    """The identity: the network works on pixels."""

    def encode(self, images: Image, key: jax.Array | None = None) -> Image:
        return images

    def decode(self, latents: Image) -> Image:
        return latents


PIXELS = Pixels()
