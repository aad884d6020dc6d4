"""The exact denoiser of the toy mixture as a network, which needs no training."""

import jax
import jax.numpy as jnp

from distill_jax.diffusion.analytic import mixture_prediction, ring
from distill_jax.diffusion.denoiser import Network
from distill_jax.diffusion.prediction import v_from
from distill_jax.diffusion.spec import Spec
from distill_jax.typing import Cond, Image, Output, Time, Tree


def mixture(spec: Spec) -> Network:
    """Returns the exact denoiser of diffusion.analytic.ring, only for the parameterization "v".

    v = alpha eps - sigma x is well conditioned at both ends of every schedule, where x does not
    determine eps or eps does not determine x. The parameters are means (k, 2), log std and log
    weights (k,). They start at the mixture's values, so a stage of one step with learning rate 0
    makes a finished teacher.

    Args:
      spec: spec of the dataset "mixture".

    Raises:
      ValueError: for the spec of other data.
    """
    data = ring()
    shape, classes = (1, 1, jnp.asarray(data.means).shape[1]), data.num_classes
    there = spec.classes("label")
    if (spec.shape, there, spec.channels_out) != (shape, classes, shape[-1]):
        raise ValueError(
            f"network 'mixture' is for the dataset 'mixture', {shape} and {classes} classes, with "
            f"parameterization 'v'; here are {spec.shape}, {there} classes and an "
            f"output of {spec.channels_out} channels"
        )

    def init(key: jax.Array, z: Image, t: Time, cond: Cond) -> Tree:
        return {
            "means": jnp.asarray(data.means, jnp.float32),
            "log_std": jnp.log(jnp.float32(data.std)),
            "log_weights": jnp.zeros(len(data.labels)),
        }

    def apply(params: Tree, z: Image, t: Time, cond: Cond, key: jax.Array | None = None) -> Output:
        means, std = params["means"], jnp.exp(params["log_std"])
        log_weights = data.log_weights(z, cond) + params["log_weights"]
        prediction = mixture_prediction(spec.schedule, z, t, means, std, log_weights)
        return v_from(prediction, spec.schedule, t)

    return Network(init, apply, parameterizations=("v",))
