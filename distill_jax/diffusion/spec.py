"""Specs of the data and of networks: hashable, JSON, and equal by value."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from distill_jax.diffusion.schedule import Cosine, Schedule
from distill_jax.typing import Cond, Image, Time


class Leaf(NamedTuple):
    """One array of an example, without its batch axis.

    Attributes:
      shape: () for a number.
      dtype: such as "float32".
      classes: values are 0 .. classes - 1, and `classes` stands for "no condition"; None for
        arrays that are no class.
    """

    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    classes: int | None = None


class DataSpec(NamedTuple):
    """The examples of a dataset, as a network is given them.

    Attributes:
      x: an image (h, w, c), or a latent.
      bounded: whether x lies in [-1, 1], so that samplers clip; latents are never clipped.
      cond: the conditions by name.
    """

    x: Leaf
    bounded: bool = True
    cond: tuple[tuple[str, Leaf], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain data; `from_json` is the way back."""
        cond = {name: leaf._asdict() for name, leaf in self.cond}
        return {"x": self.x._asdict(), "bounded": self.bounded, "cond": cond}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "DataSpec":
        """The spec in a manifest."""

        def leaf(entry: Mapping[str, Any]) -> Leaf:
            return Leaf(tuple(entry["shape"]), entry["dtype"], entry["classes"])

        cond = tuple((name, leaf(entry)) for name, entry in content["cond"].items())
        return cls(leaf(content["x"]), content["bounded"], cond)


class Spec(NamedTuple):
    """Shapes and schedule that a network is built for.

    Attributes:
      data: of the examples.
      channels_out: of its output.
      schedule: of the times it is called with; networks that embed the noise level ask it.
    """

    data: DataSpec
    channels_out: int
    schedule: Schedule = Cosine()  # Frozen, so a shared default is safe.

    @property
    def shape(self) -> tuple[int, ...]:
        """(h, w, c) of one x."""
        return self.data.x.shape

    def classes(self, name: str) -> int:
        """Classes of a condition, 0 where it is not there or has none."""
        return (dict(self.data.cond).get(name, Leaf()).classes) or 0

    def example(self, inputs: Sequence[str] = (), num: int = 1) -> tuple[Image, Time, Cond]:
        """Zeros for every argument of the network: z, t, and cond with numbers for `inputs`."""
        leaves = {**dict(self.data.cond), **{name: Leaf() for name in inputs}}
        cond = {k: jnp.zeros((num, *leaf.shape), leaf.dtype) for k, leaf in leaves.items()}
        return jnp.zeros((num, *self.shape)), jnp.zeros((num,)), cond


def label_leaf(classes: int) -> Leaf:
    """The leaf of an integer label."""
    return Leaf((), "int32", classes)


def image_data(shape: Sequence[int], num_classes: int, bounded: bool = True) -> DataSpec:
    """Images (h, w, c) with integer labels; 0 classes for none."""
    cond = (("label", label_leaf(num_classes)),) if num_classes else ()
    return DataSpec(Leaf(tuple(shape)), bounded, cond)


def image_spec(
    shape: Sequence[int], num_classes: int, channels_out: int, schedule: Schedule | None = None
) -> Spec:
    """The spec of a network for images with integer labels; None is the cosine schedule."""
    return Spec(image_data(shape, num_classes), channels_out, schedule or Cosine())


def is_point(shape: Sequence[int]) -> bool:
    """Whether an image (h, w, c) is one pixel: a point, which is drawn and compared as one."""
    return tuple(shape[:2]) == (1, 1)
