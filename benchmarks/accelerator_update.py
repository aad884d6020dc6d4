"""Compiles and times one update of a preset on the devices here: a row of benchmarks/accelerator.

The update is the one that a run compiles, on weights and images of noise that stay on the device.
What the loop around it adds is measured by benchmarks/updates.py.
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import resource
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from distill_jax.config import base, pipeline, stage
from distill_jax.diffusion.pixels import normalise
from distill_jax.models.build import matmul_precision
from distill_jax.run import costs, devices, plan
from distill_jax.runtime.config_file import load_file
from distill_jax.training.update import make_update
from distill_jax.typing import Batch

ROOT = pathlib.Path(__file__).parent.parent
# (width, blocks, heads, patch), side of the image, classes: DiT-B of Peebles & Xie (2023). It has
# 256 tokens, as for 32x32 latents in patches of 2, but from 64x64 pixels in patches of 4.
DIT = {"full": ((768, 12, 12, 4), 64, 1000), "smoke": ((32, 1, 2, 8), 16, 10)}


def device():
    """Returns JAX's device, and the versions of JAX, PyTorch and diffusers, None without one."""
    packages = {
        name: importlib.util.find_spec(name) and importlib.metadata.version(name)
        for name in ("torch", "diffusers")
    }
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "device": f"{os.cpu_count()} CPU cores" if first.platform == "cpu" else first.device_kind,
        "count": jax.device_count(),
        "jax": jax.__version__,
        **packages,
    }


def load_config(name, size):
    """Returns the config file of that name, or the config of the transformer without a preset."""
    if name == "dit":
        return dit_config(size)
    if name == "latents":  # Stable Diffusion 1.5.
        file = ROOT / "benchmarks" / "latents.py"
        return load_file(file).get_config("smoke" if size == "smoke" else "sd15")
    return load_file(ROOT / "configs" / f"{name}.py").get_config(size)


def dit_config(size):
    """Returns the config of a transformer teacher, in bfloat16 at full size."""
    (width, blocks, heads, patch), side, classes = DIT[size]
    config, dtype = base(), "bfloat16" if size == "full" else "float32"
    config.data = {"name": "noise", "size": side, "num_classes": classes, "count": 2}
    config.model.update(name="dit", width=width, blocks=blocks, heads=heads, patch=patch)
    config.model.dtype = dtype
    config.stages = pipeline(stage("teacher", "diffusion", steps=1000, learning_rate=1e-4))
    return config


def planned(config, stage, size, batch):
    """Returns the run up to a stage, such as "s01", and that stage, at a batch size."""
    config = load_config(config, size)
    config.batch_size = batch
    names = [name for name in sorted(config.stages) if name[:3] <= stage]
    config.stages = ConfigDict({name: config.stages[name] for name in names})
    run = plan.make(config, "/tmp/never_made")
    return run, run.stages[-1]


def filled(tree, seed=0):
    """Returns random weights for a tree of shapes; none is zero, and activations keep their size.

    A network as it is initialised has layers of zeros, and chips are faster on zeros.
    """
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        x = rng.standard_normal(leaf.shape, np.float32)
        if leaf.ndim > 1:
            x /= np.sqrt(np.prod(leaf.shape[:-1]))
        else:
            x = 0.1 * x + (path[-1].key == "scale")
        return x.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, tree)


def on_devices(like, tree):
    """Places arrays by the shardings of their shapes, in JAX's own memory, which can be donated."""
    place = functools.partial(jax.device_put, may_alias=False)
    return jax.tree.map(lambda at, x: place(x, at.sharding), like, tree)


def arguments(run, stage):
    """Returns the arguments of the update: the state, the frozen networks and a batch."""
    _, _, state, frozen, _ = costs.arguments(run, stage)
    params, layout = filled(state.params), run.layout
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state.opt)
    state = state._replace(
        step=jax.device_put(jnp.zeros((), jnp.int32), state.step.sharding),
        params=on_devices(state.params, params),
        opt=on_devices(state.opt, zeros),
        ema=on_devices(state.ema, params["student"]),
        key=jax.device_put(jax.random.key(0), state.key.sharding),
    )
    null = layout.replicate(dict(run.dataset.null))
    batch = Batch(*layout.shard_batch(rows_of(run)), null)
    return state, on_devices(frozen, filled(frozen, 1)), batch


def rows_of(run):
    """Returns the indices, images or latents, and conditions of a batch."""
    rng, size = np.random.default_rng(1), run.config.batch_size
    if "latents" in run.config.data.name:
        rows = next(run.dataset.batches(1, 0, size))
        return rows.index, rows.x, dict(rows.cond)
    x = rng.integers(256, size=(size, *run.dataset.shape), dtype=np.uint8)  # Images are bytes,
    x = normalise(x) if run.config.data.name == "digits" else x  # except digits, in float32.
    label = rng.integers(run.dataset.num_classes, size=size, dtype=np.int32)
    return np.arange(size), x, {"label": label}


def pace(update, wait, seconds):
    """Returns (median seconds of an update, number of timed updates), after one to warm up.

    Five rounds of as many updates as fit into a fifth of `seconds`, of one at least, and fewer
    rounds where even those take longer; the device is waited for at the end of each.
    """

    def timed(count):
        began = time.perf_counter()
        for _ in range(count):
            update()
        wait()
        return (time.perf_counter() - began) / count

    timed(1)
    began, paces = time.perf_counter(), [timed(1)]
    count = max(1, int(seconds / 5 / paces[0]))
    if count > 1:
        paces = [timed(count)]
    while len(paces) < 5 and time.perf_counter() - began < seconds:
        paces.append(timed(count))
    return statistics.median(paces), count * len(paces)


def peak_memory():
    """Returns (peak bytes, kind) of a device, or of this process if devices do not report it."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats):
        return max(each["peak_bytes_in_use"] for each in stats), "device"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "process"


def peak_of(kind):
    """Returns the TFLOP/s of a device of this name in bfloat16; None if unknown."""
    return next((peak for peak, name in devices.DEVICES.values() if re.match(name, kind)), None)


def speeds(run, stage, seconds, kind, count):
    """Returns the rates of an update that takes so many seconds on `count` devices of a kind."""
    (flop,) = costs.measure(dataclasses.replace(run, stages=(stage,)))[stage.name].flops
    return rates(stage, run.config.batch_size, flop, seconds, kind, count)


def rates(stage, batch, flop, seconds, kind, count):
    """Returns the rates of a program of so many FLOPs, on a batch, that takes so many seconds."""
    peak, dtype = peak_of(kind), stage.model.get("dtype", "float32")
    known = peak is not None and dtype == "bfloat16"
    params = jax.tree.leaves(stage.shapes["student"])
    return {
        "parameters": sum(leaf.size for leaf in params),
        "dtype": dtype,
        "flop": flop,
        "updates_per_second": 1 / seconds,
        "batch": batch,
        "images_per_second": batch / seconds,
        "mfu": flop / seconds / (count * peak * 1e12) if known else None,
    }


def update(config, stage, size, batch, seconds):
    """Returns the row of a stage's update, timed for `seconds`."""
    run, stage = planned(config, stage, size, batch)
    (phase,) = stage.method.phases
    function = make_update((phase,), 0, stage.roles, stage.tx, run.layout)
    state, frozen, batch = arguments(run, stage)
    numbers = jax.device_put((stage.method, stage.rates), run.layout.replicated)
    began = time.perf_counter()
    with matmul_precision(run.config.matmul_precision):
        compiled = function.lower(*numbers, state, frozen, batch, 0).compile()
    compile_seconds = time.perf_counter() - began

    def one():
        nonlocal state
        state, _ = compiled(*numbers, state, frozen, batch, 0)

    each, timed = pace(one, lambda: jax.block_until_ready(state), seconds)
    memory, kind = peak_memory()
    where = jax.devices()[0].device_kind, jax.device_count()
    row = {"compile_seconds": compile_seconds, "timed": timed, **speeds(run, stage, each, *where)}
    return {**row, "peak_bytes": memory, "peak_of": kind}
