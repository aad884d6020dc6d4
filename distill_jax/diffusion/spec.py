"""Specs of the data and of networks: hashable, JSON, and equal by value."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from distill_jax.diffusion.schedule import Cosine, Schedule
from distill_jax.typing import Cond, Image, Time

INPAINT = "inpaint"  # The condition of networks that inpaint, see diffusion.inpainting.


class Leaf(NamedTuple):
    """One array of an example, without its batch axis.

    Attributes:
      shape: shape without the batch axis, () for a number.
      dtype: name of the dtype, such as "float32"; "str" for a text, which no network takes.
      classes: number of classes of an integer label, whose values are 0 .. classes - 1 and
        `classes` for the null condition; None for other arrays.
    """

    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    classes: int | None = None


class DataSpec(NamedTuple):
    """The arrays of one example, in the form that a network takes.

    Attributes:
      x: leaf of the image or latent (h, w, c).
      bounded: whether x lies in [-1, 1], so that samplers clip; latents are never clipped.
      cond: leaves of the conditions by name.
    """

    x: Leaf
    bounded: bool = True
    cond: tuple[tuple[str, Leaf], ...] = ()

    @property
    def null(self) -> dict[str, Leaf]:
        """The leaves of the null condition; guidance keeps the image of a network that inpaints."""
        return {name: leaf for name, leaf in self.cond if name != INPAINT}

    def to_json(self) -> dict[str, Any]:
        """Returns the spec as plain data, which `from_json` reads."""
        cond = {name: leaf._asdict() for name, leaf in self.cond}
        return {"x": self.x._asdict(), "bounded": self.bounded, "cond": cond}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "DataSpec":
        """Reads the spec from a manifest's data."""

        def leaf(entry: Mapping[str, Any]) -> Leaf:
            return Leaf(tuple(entry["shape"]), entry["dtype"], entry["classes"])

        cond = tuple((name, leaf(entry)) for name, entry in content["cond"].items())
        return cls(leaf(content["x"]), content["bounded"], cond)


class Spec(NamedTuple):
    """Shapes and schedule that a network is built for.

    Attributes:
      data: spec of the examples.
      channels_out: channels of the network's output.
      schedule: noise schedule; networks that embed the noise level read it.
    """

    data: DataSpec
    channels_out: int
    schedule: Schedule = Cosine()  # Frozen, so a shared default is safe.

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (h, w, c) of one x."""
        return self.data.x.shape

    def classes(self, name: str) -> int:
        """Returns the number of classes of a condition; 0 if it is absent or has no classes."""
        return (dict(self.data.cond).get(name, Leaf()).classes) or 0

    def example(self, inputs: Sequence[str] = (), num: int = 1) -> tuple[Image, Time, Cond]:
        """Returns zeros for the network's arguments z, t and cond, with numbers for `inputs`."""
        leaves = {**dict(self.data.cond), **{name: Leaf() for name in inputs}}
        cond = {k: jnp.zeros((num, *leaf.shape), leaf.dtype) for k, leaf in leaves.items()}
        return jnp.zeros((num, *self.shape)), jnp.zeros((num,)), cond


def label_leaf(classes: int) -> Leaf:
    """Returns the leaf of an integer label."""
    return Leaf((), "int32", classes)


def image_data(shape: Sequence[int], num_classes: int, bounded: bool = True) -> DataSpec:
    """Returns the spec of images (h, w, c) with integer labels; 0 classes for no labels."""
    cond = (("label", label_leaf(num_classes)),) if num_classes else ()
    return DataSpec(Leaf(tuple(shape)), bounded, cond)


def image_spec(
    shape: Sequence[int], num_classes: int, channels_out: int, schedule: Schedule | None = None
) -> Spec:
    """Returns the spec of a network for images with labels; the default schedule is cosine."""
    return Spec(image_data(shape, num_classes), channels_out, schedule or Cosine())


def caption_data(shape: Sequence[int]) -> DataSpec:
    """Returns the spec of images (h, w, c) with captions, which a conditioner has to encode."""
    return DataSpec(Leaf(tuple(shape)), cond=(("caption", Leaf((), "str")),))


def has_captions(data: DataSpec) -> bool:
    """Returns whether the conditions of the data are captions that are not encoded yet."""
    return any(leaf.dtype == "str" for _, leaf in data.cond)


def is_point(shape: Sequence[int]) -> bool:
    """Returns whether images (h, w, c) have one pixel, so that they are drawn as points."""
    return tuple(shape[:2]) == (1, 1)
