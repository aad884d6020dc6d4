"""The result of every reader of foreign checkpoints, and the network that it must fit."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from distill_jax.data import DATASETS, Dataset
from distill_jax.diffusion.denoiser import NetworkSpec
from distill_jax.diffusion.spec import DataSpec, Leaf, image_data
from distill_jax.diffusion.trained import STEPS, Ddim, Guidance, Sampler, Trained
from distill_jax.models.build import abstract_params, make_network
from distill_jax.runtime.registry import EVERYTHING, build
from distill_jax.sampling.manifest import Manifest
from distill_jax.teachers.given import DROPOUT, check_given
from distill_jax.typing import Tree


class Part(NamedTuple):
    """A codec or a text encoder in the file of its network.

    Attributes:
      content: content of its manifest.
      params: nested dict of Stored.
      like: shapes and dtypes of the parameters that its manifest describes.
    """

    content: Mapping[str, Any]
    params: Tree
    like: Tree


class Imported(NamedTuple):
    """A foreign network as our parameters, with the values for its manifest.

    Attributes:
      params: nested dict of Stored, each in the dtype of the file.
      model: {"name": an entry of NETWORKS, **options}.
      schedule: {"name": an entry of SCHEDULES, **options}.
      parameterization: name in PARAMETERIZATIONS.
      shape: shape (h, w, c) of one image.
      num_classes: number of labels; 0 without labels.
      num_steps: default number of steps in sampling.
      label_dropout: probability of the null condition in training; with 0 it cannot be guided.
      continuous: whether it was trained at all times, or is a student on the grid of num_steps.
      sampler: its sampler; None for DDIM in num_steps steps.
      spec: spec of its inputs, for a network on latents or texts; None for images with labels.
      w_range: smallest and largest w of a student that takes w as an input; None without it.
      resolutions: sides of the images or latents that it was trained on; () for that of `shape`.
      fixed_w: guidance strength in its weights.
      manifest: manifest of a network of ours, which then says everything; None for others.
      parts: codec and text encoder by their name in the manifest.
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
    sampler: Sampler | None = None
    spec: DataSpec | None = None
    w_range: tuple[float, float] | None = None
    resolutions: tuple[int, ...] = ()
    fixed_w: float = 0.0
    manifest: Manifest | None = None
    parts: Mapping[str, Part] = {}

    @property
    def trained(self) -> Trained:
        """The record of its training; the targets of released students were not clipped."""
        if self.manifest is not None:
            return self.manifest.trained
        guidance = Guidance(self.w_range, self.fixed_w, self.label_dropout > 0)
        sampler = self.sampler or Ddim(self.num_steps)
        return Trained(sampler, guidance, self.continuous, resolutions=self.resolutions)

    @property
    def data(self) -> DataSpec:
        """The spec of its inputs."""
        return self.spec or image_data(self.shape, self.num_classes)

    def network_spec(self) -> NetworkSpec:
        """Returns its network with parameterization and spec; a config may name your own code."""
        return make_network(self._asdict(), self.data, EVERYTHING)

    def expected_params(self) -> Tree:
        """Returns the shapes and dtypes of the parameters of its network."""
        return abstract_params(self.network_spec(), self.trained.inputs)


# What can be given for a network that a config describes.
GIVEN = {"label_dropout": DROPOUT, "num_steps": STEPS}


def configured(config: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns fields of Imported from a config that describes a network, and label_dropout.

    Args:
      config: config with model, schedule, parameterization and data.
      given: label_dropout, 0 otherwise; num_steps of a teacher, 1024 otherwise.
    """
    check_given(given or {}, GIVEN)
    spec = build(DATASETS, "dataset", config["data"], allow=EVERYTHING, makes=Dataset).spec
    return {
        **{name: config[name] for name in ("model", "schedule", "parameterization")},
        "shape": spec.x.shape,
        "num_classes": dict(spec.cond).get("label", Leaf()).classes or 0,
        "num_steps": 1024,
        "label_dropout": 0.0,
        **(given or {}),
    }


def data_of(config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Returns the dataset of a config, to evaluate the network with."""
    return None if config is None else config["data"]
