"""The networks of a config: that of a stage, checked against its method, and code of one's own."""

from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from distill_jax.diffusion.denoiser import NetworkSpec
from distill_jax.diffusion.spec import DataSpec
from distill_jax.methods import Method
from distill_jax.models.build import abstract_params, make_network
from distill_jax.run.stages import Stage
from distill_jax.run.validation import check_augmented
from distill_jax.runtime.registry import EVERYTHING, foreign
from distill_jax.runtime.sharding import Layout
from distill_jax.runtime.trees import flat


def student_network(
    config: ConfigDict,
    name: str,
    model: Mapping[str, Any],
    method: Method,
    data: DataSpec,
) -> NetworkSpec:
    """Returns the NetworkSpec of a student after checking that the method can train it.

    Args:
      config: config with schedule and parameterization.
      name: name of the method.
      model: the network and its options.
      method: the method.
      data: spec of the examples.

    Raises:
      KeyError: as make_network.
      ValueError: as make_network, and for a network that the method cannot train.
    """
    heads = method.parameterizations
    if heads and config.parameterization not in heads:
        raise ValueError(
            f"config.parameterization is {config.parameterization!r}; method {name!r} "
            f"works only with {', '.join(heads)}, in its teacher too"
        )
    described = {"schedule": config.schedule.to_dict(), "parameterization": config.parameterization}
    network_spec = make_network({**described, "model": model}, data, EVERYTHING)
    needed = method.needs_features or method.has_discriminator
    if needed and network_spec.network.features is None:
        raise ValueError(
            f"method {name!r} needs the features of its networks, and network "
            f"{model['name']!r} has no features; take one that does, such as mlp, dit and unet"
        )
    check_augmented(method, model, data)
    _check_resolutions(method, network_spec)
    return network_spec


def check_derivative(stage: Stage, layout: Layout) -> None:
    """Raises ValueError for a method that needs `jax.jvp` of layers which do not have it."""
    in_turn = stage.roles.student.network.in_turn and layout.mesh.shape["fsdp"] > 1
    if stage.method.differentiates and in_turn:
        raise ValueError(
            f"stage {stage.name}: method {stage.spec.method.name!r} takes the derivative of its "
            "network forwards, which remat 'full' with mesh.fsdp above 1 does not have; set "
            "config.model.remat='dots', or mesh.fsdp=1"
        )


def _check_resolutions(method: Method, network_spec: NetworkSpec) -> None:
    """Checks that a multi-resolution method ends at full size, and that its network takes them."""
    height, width, channels = network_spec.spec.shape
    if method.resolutions and (height, max(method.resolutions)) != (width, height):
        raise ValueError(
            f"resolutions are {tuple(method.resolutions)}, the data {height}x{width}; expected "
            f"square data and its own side as the largest: resolutions=(..., {height})"
        )
    inputs = method.trained(network_spec.schedule).inputs
    _, t, cond = network_spec.spec.example(inputs)
    params = abstract_params(network_spec, inputs)
    for side in sorted({*method.resolutions} - {height}):
        z = jax.ShapeDtypeStruct((1, side, side, channels), "float32")
        jax.eval_shape(network_spec.network.apply, params, z, t, cond)


def named(config: ConfigDict) -> tuple[str, ...]:
    """Returns the names of the user's own code in a config, including those in `allow`."""
    names = [value for key, value in flat(config.to_dict()).items() if key.endswith(".name")]
    return foreign((*names, *config.allow))
