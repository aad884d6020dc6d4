"""Types of arrays that all modules use; the only file with dimension strings."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int, UInt8

# x, eps, v, z_t: NHWC images (or latents), x in [-1, 1], float32 outside the networks.
Image = Float[Array, "b *s"]
# Images on the way from disk to device: uint8 in 0 .. 255.
Bytes = UInt8[Array, "b *s"]
# Images at another size.
Resized = Float[Array, "b *r"]
# Network output; may have more channels than the image.
Output = Float[Array, "b *o"]
# t, s, mid in [0, 1]: 0 is clean, 1 is noise. Also any other array of one number per example.
Time = Float[Array, "b"]
# Numbers of examples.
Index = Int[Array, "b"]
# Leaves (b, ...): labels, text and masks, "w", "target", ...; {} for an unconditional model.
Cond = Mapping[str, jax.Array]
# A tree of arrays: parameters, optimizer states.
Tree = Any


class Batch(NamedTuple):
    """One batch: the numbers of its examples, their images and conditions, and the null condition.

    Attributes:
      index: numbers of the examples, (b,), which every batch has.
      x: images; None for data-free methods, uint8 0 .. 255 on the way to the device.
      cond: conditions, leaves (b, ...).
      null: the null condition, which means "no condition", of one example: leaves (1, ...). It
        lacks those conditions that guidance keeps.
      done: finished share of the stage's iterations, which an update sets; see `progress`.
    """

    index: Index  # type: ignore[assignment]  # Hides tuple.index, which nobody calls.
    x: Image | Bytes | None
    cond: Cond
    null: Cond
    done: jax.Array | None = None

    @property
    def progress(self) -> jax.Array | float:
        """The finished share of the stage's iterations, in [0, 1)."""
        return 0.0 if self.done is None else self.done

    @property
    def size(self) -> int:
        """The number of examples."""
        return len(self.index)
