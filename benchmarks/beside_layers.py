"""Layers of UNets and transformers, the workloads of beside_torch.py --network=layers.

A workload is a layer on arrays as large as those of the DDPM++ or the DiT, or its gradient in all
arrays. The layers are called by names that older checkouts have too.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.models.layers import attention
from distill_jax.models.sd_blocks import group_norm

GROUPS, EPSILON = 32, 1e-6
SIZES = {"full": (32, 128, 256, 64), "smoke": (8, 32, 16, 8)}  # Side, width, tokens, head_dim.
HEADS = 6


def normalised(x, scale, bias):
    layer = group_norm(GROUPS, EPSILON, jnp.dtype("float32"), None)
    return nn.swish(layer.apply({"params": {"scale": scale, "bias": bias}}, x))


def convolved(x, kernel):
    return nn.Conv(kernel.shape[-1], (3, 3), use_bias=False).apply(
        {"params": {"kernel": kernel}}, x
    )


def attended(q, k, v):
    return attention(q, k, v, "auto")


def layers(size, batch):
    """Returns by name the layer, its arguments, and an array like its output, in JAX's layout."""
    rng, (side, width, tokens, head_dim) = np.random.default_rng(0), SIZES[size]

    def normal(*shape):
        return rng.standard_normal(shape, np.float32)

    def image(side):
        return normal(batch, side, side, width)

    def heads():
        return normal(batch, tokens, HEADS, head_dim)

    vectors, kernel, half = (normal(width), normal(width)), normal(3, 3, width, width), side // 2
    return {
        f"group norm, swish, side {side}": (normalised, (image(side), *vectors), image(side)),
        f"3x3 convolution, side {side}": (convolved, (image(side), kernel), image(side)),
        f"3x3 convolution, side {half}": (convolved, (image(half), kernel), image(half)),
        f"attention, {tokens} tokens": (attended, (heads(), heads(), heads()), heads()),
    }


def workloads(size, batch):
    """Returns functions by workload; the output of a gradient is that in the first array."""
    found = {}
    for name, (layer, given, change) in layers(size, batch).items():
        given, change = jax.device_put((given, change))
        call = jax.jit(layer)
        gradient = jax.jit(lambda given, change, f=layer: jax.vjp(f, *given)[1](change))
        found[name] = lambda f=call, given=given: np.asarray(f(*given))
        found[f"{name}, gradient"] = lambda f=gradient, given=given, change=change: np.asarray(
            jax.block_until_ready(f(given, change))[0]
        )
    return found
