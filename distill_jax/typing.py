"""The array types every module speaks: the only file with dimension strings."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, UInt8

# x, eps, v, z_t: NHWC images (or latents), x in [-1, 1], float32 outside the networks.
Image = Float[Array, "b *s"]
# The same on the way from disk to device: uint8 in 0 .. 255.
Bytes = UInt8[Array, "b *s"]
# The same at another size.
Resized = Float[Array, "b *r"]
# What a network puts out: the same, but perhaps for the channels.
Output = Float[Array, "b *o"]
# t, s, mid in [0, 1]: 0 is clean, 1 is noise. Also everything that is one number per example.
Time = Float[Array, "b"]
# "label" (int32, (b,)), "w", "target" (float32, (b,)), ...: {} for an unconditional model.
Cond = Mapping[str, jax.Array]
# A tree of arrays: parameters, optimizer states.
Tree = Any


class Batch(NamedTuple):
    """One batch: images, their conditions, and the conditions that stand for "no condition".

    `x` is None for data-free methods, and uint8 0 .. 255 on its way to the device. `null` has
    the keys of `cond` that can be dropped, and without x it has a "label" always.
    """

    x: Image | Bytes | None
    cond: Cond
    null: Cond

    @property
    def size(self) -> int:
        """How many examples it has."""
        return len(self.null["label"] if self.x is None else self.x)
