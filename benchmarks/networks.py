"""Measures the training speed of the network families on this machine, at the digits' size.

python benchmarks/networks.py
"""

import time

import jax
import jax.numpy as jnp

from distill_jax.data import DATASETS
from distill_jax.diffusion.denoiser import NetworkSpec
from distill_jax.diffusion.prediction import PARAMETERIZATIONS
from distill_jax.diffusion.spec import image_spec
from distill_jax.methods import METHODS
from distill_jax.models import NETWORKS
from distill_jax.models.build import initial_params
from distill_jax.run.plan import Roles
from distill_jax.training.update import Rates, make_update, new_state, optimizer
from distill_jax.typing import Batch

SIZE = 256
FAMILIES = [
    ("mlp", {"width": 256, "blocks": 3, "expand": 2}),
    ("dit", {"width": 128, "blocks": 6, "heads": 4, "expand": 4, "patch": 2}),
    ("dit", {"width": 128, "blocks": 6, "heads": 4, "expand": 4, "patch": 4}),
]


def identity(tree):
    return tree


def main():
    data = DATASETS["digits"]()
    x, label = next(data.batches(0, 0, SIZE))
    null = jnp.full((SIZE,), 10, jnp.int32)
    batch = Batch(
        jnp.arange(len(x)), jnp.asarray(x), {"label": jnp.asarray(label)}, {"label": null}
    )
    method, tx = METHODS["diffusion"](), optimizer(0.9, 0.99, 1.0)
    print("| network | parameters | compile s | updates/s | images/s |\n| - | - | - | - | - |")
    for name, options in FAMILIES:
        sizes = image_spec(data.shape, 10, 1)
        network_spec = NetworkSpec(NETWORKS[name](sizes, **options), PARAMETERIZATIONS["v"], sizes)
        params = initial_params(jax.random.key(0), network_spec, ())
        update = make_update(method.phases, 0, Roles(network_spec, None), tx)
        state = new_state(jax.random.key(1), {"student": params}, tx)
        rates = Rates(1e-3, 0, 0.0, 1000, 0.995)
        began = time.perf_counter()
        state, metrics = update(method, rates, state, {}, batch)
        metrics["loss"].block_until_ready()
        compiled = time.perf_counter()
        count = 0
        while time.perf_counter() - compiled < 10:
            state, metrics = update(method, rates, state, {}, batch)
            metrics["loss"].block_until_ready()
            count += 1
        speed = count / (time.perf_counter() - compiled)
        shown = ", ".join(f"{key} {value}" for key, value in options.items())
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        print(
            f"| {name} ({shown}) | {size:,} | {compiled - began:.1f} | {speed:.1f} "
            f"| {speed * SIZE:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
