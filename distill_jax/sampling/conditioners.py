"""Conditioners: maps from a person's requests, such as labels, to a network's conditions."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion.spec import DataSpec, Leaf
from distill_jax.typing import Cond


@runtime_checkable
class Conditioner(Protocol):
    """A map from requests, such as labels or prompts, to the conditions of a network.

    Attributes:
      null: null condition, one example with leaves (1, ...).
    """

    @property
    def null(self) -> Cond: ...

    def __call__(self, requests: Any, num: int) -> dict[str, jax.Array]:
        """Returns conditions, leaves (num, ...), from one request for all images or one per image.

        Raises:
          ValueError: for requests that the network was not trained on.
        """
        ...


# Labels or prompts: one for all images, or one per image.
Requests = int | np.ndarray | Sequence[int] | str | Sequence[str] | None


class Labels:
    """The conditioner of integer labels 0 .. classes - 1; without classes, {} is the condition."""

    def __init__(self, spec: DataSpec):
        self.classes: int = dict(spec.cond).get("label", Leaf()).classes or 0
        self._others = [name for name in spec.null if name != "label" or not self.classes]

    @property
    def null(self) -> dict[str, jax.Array]:
        return {"label": jnp.full((1,), self.classes, jnp.int32)} if self.classes else {}

    def in_turn(self, num: int, first: int = 0) -> np.ndarray | None:
        """Returns labels that take the classes in turn; None without classes."""
        return (first + np.arange(num)) % self.classes if self.classes else None

    def __call__(self, requests: Requests, num: int) -> dict[str, jax.Array]:
        if self._others:
            raise ValueError(
                f"this network takes the conditions {', '.join(self._others)}; only networks of "
                "integer labels can be sampled"
            )
        if not self.classes:
            if requests is not None:
                raise ValueError(
                    f"label is {requests!r}; this network was trained without labels: leave it out"
                )
            return {}
        labels = np.asarray(self.in_turn(num) if requests is None else requests)
        if not np.issubdtype(labels.dtype, np.integer) or labels.shape not in ((), (num,)):
            raise ValueError(f"label is {requests!r}; expected an integer, or {num} of them")
        if labels.size and (labels.min() < 0 or labels.max() >= self.classes):
            raise ValueError(
                f"label is {requests!r}; this network was trained on 0 to {self.classes - 1}"
            )
        return {"label": jnp.broadcast_to(jnp.asarray(labels, jnp.int32), (num,))}


def on_device(cond: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns conditions as arrays of JAX."""
    return {name: jnp.asarray(leaf) for name, leaf in cond.items()}
