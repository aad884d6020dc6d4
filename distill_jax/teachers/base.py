"""What every reader of foreign checkpoints returns, and the network that it must fit."""

from typing import Any, NamedTuple

from distill_jax.diffusion.denoiser import Binding
from distill_jax.methods import METHODS, Method
from distill_jax.models.build import abstract_params, make_binding
from distill_jax.runtime.registry import build
from distill_jax.typing import Tree


class Imported(NamedTuple):
    """A foreign network in our terms: parameters, and what a manifest says of them.

    Attributes:
      params: nested dict of float32 numpy arrays.
      model: {"name": an entry of NETWORKS, **options}.
      schedule: {"name": an entry of SCHEDULES, **options}.
      parameterization: an entry of PARAMETERIZATIONS.
      shape: (h, w, c) of one image.
      num_classes: of its labels; 0 without labels.
      num_steps: DDIM steps to sample with by default.
      label_dropout: probability in its training; 0 means no null label: it cannot be guided.
      continuous: whether it was trained at all times, or is a student on the grid of num_steps.
    """

    params: Tree
    model: dict[str, Any]
    schedule: dict[str, Any]
    parameterization: str
    shape: tuple[int, ...]
    num_classes: int
    num_steps: int
    label_dropout: float
    continuous: bool = True

    def method_spec(self) -> dict[str, Any]:
        """What a manifest says of its method: how it is sampled, and what is known of its training.

        Released students were halved with targets that are not clipped.
        """
        if self.continuous:
            known = {"name": "diffusion", "label_dropout": self.label_dropout}
        else:
            known = {"name": "progressive", "clip_target": False}
        return {**known, "num_steps": self.num_steps}

    def method(self) -> Method:
        """What samples it."""
        return build(METHODS, "method", self.method_spec())

    def binding(self) -> Binding:
        """Its network, parameterization and schedule."""
        return make_binding(self._asdict(), self.shape, self.num_classes)

    def expected_params(self) -> Tree:
        """Shapes and types of the parameters that its network has."""
        return abstract_params(self.binding(), self.method().inputs)
