"""The workloads of beside_torch.py in JAX: the network's own programs, as a run compiles them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import beside_layers
from benchmarks.accelerator_update import arguments, filled, on_devices
from distill_jax.config import base, halvings, pipeline, stage
from distill_jax.diffusion.trained import Ddim
from distill_jax.run import plan
from distill_jax.sampling.drawing import run_sampler
from distill_jax.storage.weights import of_array
from distill_jax.teachers import edm
from distill_jax.training.update import make_update

CLASSES, STEPS, W = 10, 4, 1.5  # Steps of the student of the halving; w of the guided samples.
# DDPM++ as EDM's files describe CIFAR-10's, with half the channels and one block a level;
# DiT-S with half the blocks, on 256 tokens.
DDPMPP = {
    "full": {"img_resolution": 32, "model_channels": 64, "channel_mult": (2, 2, 2)},
    "smoke": {"img_resolution": 8, "model_channels": 8, "channel_mult": (1, 2)},
}
DIT = {
    "full": {"width": 384, "blocks": 6, "heads": 6, "patch": 2},
    "smoke": {"width": 32, "blocks": 2, "heads": 2, "patch": 4},
}
SIDES = {"full": 32, "smoke": 8}


def description(size):
    """Returns the arguments of EDM's network."""
    given = {"img_channels": 3, "label_dim": CLASSES, "model_type": "SongUNet", "dropout": 0.0}
    given.update(num_blocks=1, attn_resolutions=(SIDES[size] // 2,))
    return {**edm.SONG_DEFAULTS, **given, **DDPMPP[size]}


def released(size):
    """Returns random arrays of a file of EDM by name."""
    rng, found = np.random.default_rng(0), {}
    for _, leaf in edm.leaves(description(size)):
        x = rng.standard_normal(leaf.shape, np.float32)
        kernel = len(leaf.shape) > 1
        x *= 1 / np.sqrt(np.prod(leaf.shape[1:])) if kernel else 0.1
        found[leaf.name] = x + (not kernel and leaf.name.endswith("weight"))
    return found


@functools.cache
def planned(network, size, batch):
    """Returns a run of a teacher and a halving of it, for both sides, and the teacher's weights."""
    config = base()
    config.data = {"name": "noise", "size": SIDES[size], "num_classes": CLASSES, "count": 2}
    imported = None
    if network == "ddpmpp":
        state = {name: of_array(array) for name, array in released(size).items()}
        imported = edm.convert("EDMPrecond", description(size), state)
    config.model = ConfigDict(imported.model if imported else {"name": "dit", **DIT[size]})
    config.batch_size = batch
    rates = {"learning_rate": 1e-4, "ema_decay": 0.999}
    config.stages = pipeline(
        stage("teacher", "diffusion", steps=1000, **rates),
        *halvings(STEPS, STEPS, steps=1000, **rates),
    )
    run = plan.make(config, "/tmp/never_made")
    if imported:
        return run, jax.tree.map(lambda leaf: leaf.read(()), imported.params)
    return run, filled(run.stages[0].shapes["student"])


def example(size, batch):
    """Returns the same z, t and label for both sides; the last label is the null label."""
    rng = np.random.default_rng(1)
    z = rng.standard_normal((batch, SIDES[size], SIDES[size], 3), np.float32)
    label = np.append(np.arange(batch - 1, dtype=np.int32) % CLASSES, np.int32(CLASSES))
    return z, np.linspace(0.1, 0.9, batch, dtype=np.float32), label


def workloads(network, size, batch):
    """Returns functions by workload; each returns NumPy arrays, or None for updates."""
    if network == "layers":
        return beside_layers.workloads(size, batch)
    run, weights = planned(network, size, batch)
    teacher, student = run.stages
    spec = teacher.roles.student
    z, t, label = jax.device_put(example(size, batch))
    params, cond = jax.device_put(weights), {"label": label}
    apply = jax.jit(spec.network.apply)

    def sample(steps, guiding=None):
        given = (params, guiding), (jax.random.key(0), 0, z), cond
        return np.asarray(run_sampler(spec, run.layout, Ddim(steps), *given))

    guiding = jnp.full(batch, W), dict(run.dataset.null)
    return {
        "forward": lambda: np.asarray(apply(params, z, t, cond)),
        "training update": update(run, teacher, params),
        "PD update": update(run, student, params),
        "1-step sampling": lambda: sample(1),
        "4-step guided sampling": lambda: sample(4, guiding),
        "32-step sampling": lambda: sample(32),
    }


def update(run, stage, params):
    """Returns a function that makes one update of a stage that starts from these weights."""
    function = make_update(stage.method.phases, 0, stage.roles, stage.tx, run.layout)
    state, frozen, batch = arguments(run, stage)
    placed = {"student": on_devices(state.params["student"], params)}
    state = state._replace(params=placed, ema=on_devices(state.ema, params))
    frozen = {role: on_devices(tree, params) for role, tree in frozen.items()}
    numbers = jax.device_put((stage.method, stage.rates), run.layout.replicated)
    compiled = None

    def one():
        nonlocal state, compiled
        if compiled is None:
            compiled = function.lower(*numbers, state, frozen, batch, 0).compile()
        state, _ = compiled(*numbers, state, frozen, batch, 0)
        jax.block_until_ready(state)

    return one
