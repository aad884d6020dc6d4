"""Compiles and times sampling of Stable Diffusion 1.5: rows of benchmarks/accelerator.

A student that takes w, or the guided teacher with two network calls a step, on random weights and
tokens. The kernels of the UNet are bfloat16, and the autoencoder is float32.
"""

import time

import jax
import jax.numpy as jnp

from benchmarks.accelerator_update import filled, pace, peak_memory, planned, rates
from distill_jax.diffusion.trained import Ddim
from distill_jax.models.build import rounded
from distill_jax.run import costs
from distill_jax.run.flops import flops
from distill_jax.sampling.autoencoder import Autoencoder
from distill_jax.sampling.drawing import run_sampler

CODECS = {"full": Autoencoder(), "smoke": Autoencoder(widths=(8,), blocks=1, groups=4)}
W = 6.5


def prepared(guided, size, batch):
    """Returns the run, the network, its parameters and the arrays that it is called with."""
    run, stage = planned("latents", "s01", size, batch)
    stage = run.stages[0] if guided else stage
    params = filled(stage.shapes["student"])
    if stage.model["dtype"] == "bfloat16":
        params = rounded(params, "bfloat16")
    rows = next(run.dataset.batches(1, 0, batch))
    w, cond = jnp.full(batch, W), dict(rows.cond)
    guiding = (w, dict(run.dataset.null)) if guided else None
    return run, stage, params, (rows.x, cond if guided else {**cond, "w": w}, guiding)


def sample(calls, guided, decode, size, batch, seconds):
    """Returns the row of a sampler with so many calls, two for each if it is guided."""
    run, stage, params, (z, cond, guiding) = prepared(guided, size, batch)
    codec, network = CODECS[size], stage.roles.student
    weights = filled(codec.shapes(run.dataset.spec), 1) if decode else {}

    @jax.jit
    def draw(params, weights, z, cond, guiding):
        drawn = jax.random.key(0), 0, z
        x = run_sampler(network, run.layout, Ddim(calls), (params, guiding), drawn, cond)
        return codec.decode(weights, x) if decode else x

    given = jax.device_put((params, weights, z, cond, guiding))
    began = time.perf_counter()
    compiled = draw.lower(*given).compile()
    compile_seconds, last = time.perf_counter() - began, None

    def one():
        nonlocal last
        last = compiled(*given)

    each, timed = pace(one, lambda: jax.block_until_ready(last), seconds)
    flop = calls * (1 + guided) * costs.forward_flops(network, stage.trained.inputs)
    flop += flops(codec.decode, weights, z[:1]) if decode else 0
    memory, kind = peak_memory()
    where = jax.devices()[0].device_kind, jax.device_count()
    row = {"compile_seconds": compile_seconds, "timed": timed}
    row.update(rates(stage, batch, flop * batch, each, *where))
    return {**row, "peak_bytes": memory, "peak_of": kind}
