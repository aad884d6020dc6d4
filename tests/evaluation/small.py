"""Random weights of feature networks, and a network that is small enough for tests of scores."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from distill_jax.evaluation.feature_networks import KINDS, Kind
from distill_jax.models.efficientnet import Features
from distill_jax.models.pretrained import LEAVES
from distill_jax.runtime.trees import by_name
from tests.metrics.recorded import random_weights


class Small(nn.Module):
    """A random convolutional network with 32 features."""

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Conv(24, (5, 5), (2, 2), name="first")(x))
        h = nn.relu(nn.Conv(32, (3, 3), (2, 2), name="second")(h))
        return Features(h.mean((1, 2)), h.max((1, 2)))


SMALL = Kind(Small, 24, "bicubic", 128.0, ("small.npz",), "take another")


@functools.cache
def state_of(name):
    """Returns random weights of a network by their names in PyTorch."""
    kind, found = KINDS[name], {}
    one = jnp.zeros((1, kind.side, kind.side, 3))
    tree = jax.eval_shape(kind.module().init, jax.random.key(0), one)
    for path, leaf in by_name(tree).items():
        *modules, last = path.split("/")[1:]
        shape = leaf.shape
        if last == "kernel":
            shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
        key = ".".join((*modules, LEAVES.get(last, last)))
        found[key] = random_weights(key, shape)
    return found
