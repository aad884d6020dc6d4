"""The compiled program that draws images: a sampler around a guided denoiser, on all devices."""

import functools

import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Denoiser, NetworkSpec, guided
from distill_jax.diffusion.noise import keys_of
from distill_jax.diffusion.trained import Sampler
from distill_jax.models.sharded import as_called
from distill_jax.runtime.sharding import Layout
from distill_jax.typing import Cond, Image, Tree

# Guidance strengths w (num,) and the null condition, see denoiser.guided.
Guiding = tuple[jax.Array, Cond]


@functools.partial(jax.jit, static_argnames=("network_spec", "layout"))
def run_sampler(
    network_spec: NetworkSpec,
    layout: Layout,
    sampler: Sampler,
    networks: tuple[Tree, Guiding | None],
    drawn: tuple[jax.Array, jax.Array | int, Image],
    cond: Cond,
) -> Image:
    """Runs the sampler on sharded noise; one program serves all w and all numbers of steps."""
    (params, guiding), (key, first, z), num = networks, drawn, len(drawn[-1])
    z, cond = layout.pad_and_shard((z, cond))
    key = keys_of(key, first + jnp.arange(len(z)))
    if guiding is not None:
        guiding = layout.pad_and_shard(guiding[0]), guiding[1]
    params = as_called(params, layout, network_spec.network)
    denoiser = bound(network_spec, params, guiding)
    x = layout.unpad(sampler(key, denoiser, z, cond), num)
    return jnp.clip(x, -1.0, 1.0) if denoiser.bounded and sampler.decodes else x


def bound(network_spec: NetworkSpec, params: Tree, guiding: Guiding | None) -> Denoiser:
    """Returns the denoiser with these parameters, guided if `guiding` is given."""
    denoiser = network_spec(params)
    return denoiser if guiding is None else guided(denoiser, *guiding)
