"""The Inception network of FID, in its 2015-12-05 version; modules are named as in pytorch-fid.

Szegedy et al. (2015, arXiv:1512.00567). The published weights of 2015-12-05 differ from the paper:
average pools do not count padding, the last block has a max pool, and there are 1008 classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

SIDE = 299  # The side of the images.
POOLED, CLASSES = 2048, 1008


class Conv(NamedTuple):
    """A convolution of a branch: its name, number of channels, and kernel (height, width)."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)


Branch = tuple["Conv | tuple[Conv, ...]", ...]  # Convolutions in a row; a tuple of them forks.


class Features(NamedTuple):
    """The outputs of the network.

    Attributes:
      pooled: means over the last block, float32 (b, 2048); the features of FID.
      spatial: first seven channels of the first branch of Mixed_6d, float32 (b, 2023), in the
        order (row, column, channel); the features of sFID (Nash et al. 2021, arXiv:2103.03841),
        if ADM's layer mixed_6/conv is this branch after its ReLU.
      logits: logits of the classes without bias, float32 (b, 1008), as Inception Score needs them.
    """

    pooled: jax.Array
    spatial: jax.Array
    logits: jax.Array


class Inception(nn.Module):
    """Inception V3 as FID uses it.

    The input is float32 (b, 299, 299, 3), (pixel - 128) / 128 for pixels from 0 to 255. The
    variables are `params` and `batch_stats`; see evaluation.feature_networks for published
    files.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> Features:
        x = ConvNorm(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = ConvNorm(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = ConvNorm(64, (3, 3), name="Conv2d_2b_3x3")(x)
        x = _halve(x)
        x = ConvNorm(80, name="Conv2d_3b_1x1")(x)
        x = ConvNorm(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x)
        x = _halve(x)
        for name, width in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = Mixed(_small(width), name=name)(x)
        x = Mixed(HALVE_35, 2, name="Mixed_6a")(x)
        for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160)):
            x = Mixed(_crossed(width), name=name)(x)
        spatial = x[..., :7].reshape(len(x), -1)  # The first branch's channels come first.
        x = Mixed(_crossed(192), name="Mixed_6e")(x)
        x = Mixed(HALVE_17, 2, name="Mixed_7a")(x)
        x = Mixed(FORKED, name="Mixed_7b")(x)
        x = Mixed(FORKED, max_pool=True, name="Mixed_7c")(x)
        pooled = x.mean((1, 2))
        logits = nn.Dense(CLASSES, name="fc")
        unbiased = logits(pooled) - logits.variables["params"]["bias"]
        return Features(pooled, spatial, unbiased)


class Mixed(nn.Module):
    """Parallel branches whose results are joined along the channels.

    Attributes:
      branches: the branches; the last one follows a pool, and () is a pool without a convolution.
      strides: strides of the last convolution of each branch, and of the pool; 2 has no padding.
      max_pool: whether the pool takes maxima; with strides 2 it always does.
    """

    branches: Sequence[Branch]
    strides: int = 1
    max_pool: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.strides == 2:
            pooled = _halve(x)
        elif self.max_pool:
            pooled = nn.max_pool(x, (3, 3), padding="SAME")
        else:
            pooled = nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
        starts = [x] * (len(self.branches) - 1) + [pooled]
        found = [self._branch(*pair) for pair in zip(self.branches, starts, strict=True)]
        return jnp.concatenate(found, -1)

    def _branch(self, branch: Branch, x: jax.Array) -> jax.Array:
        for i, step in enumerate(branch):
            last = i == len(branch) - 1 and self.strides == 2
            place = (2, "VALID") if last else (1, "SAME")
            forks = (step,) if isinstance(step, Conv) else step
            found = [ConvNorm(c.channels, c.kernel, *place, name=c.name)(x) for c in forks]
            x = jnp.concatenate(found, -1)
        return x


class ConvNorm(nn.Module):
    """A convolution without bias, a batch norm with stored statistics, and a ReLU."""

    channels: int
    kernel: tuple[int, int] = (1, 1)
    strides: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        strides = self.strides, self.strides
        conv = nn.Conv(
            self.channels, self.kernel, strides, self.padding, use_bias=False, name="conv"
        )
        return nn.relu(nn.BatchNorm(True, epsilon=1e-3, name="bn")(conv(x)))


def _halve(x: jax.Array) -> jax.Array:
    """Returns the maxima of 3x3 windows with strides 2, without padding."""
    return nn.max_pool(x, (3, 3), (2, 2))


def _small(pooled: int) -> tuple[Branch, ...]:
    """Returns the branches of a block at 35x35, with `pooled` channels after the pool."""
    return (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        DOUBLE_35,
        (Conv("branch_pool", pooled),),
    )


def _crossed(width: int) -> tuple[Branch, ...]:
    """Returns the branches of a block at 17x17, whose inner convolutions have `width` channels."""
    row, column = (1, 7), (7, 1)
    return (
        (Conv("branch1x1", 192),),
        (
            Conv("branch7x7_1", width),
            Conv("branch7x7_2", width, row),
            Conv("branch7x7_3", 192, column),
        ),
        (
            Conv("branch7x7dbl_1", width),
            Conv("branch7x7dbl_2", width, column),
            Conv("branch7x7dbl_3", width, row),
            Conv("branch7x7dbl_4", width, column),
            Conv("branch7x7dbl_5", 192, row),
        ),
        (Conv("branch_pool", 192),),
    )


DOUBLE_35: Branch = (
    Conv("branch3x3dbl_1", 64),
    Conv("branch3x3dbl_2", 96, (3, 3)),
    Conv("branch3x3dbl_3", 96, (3, 3)),
)
HALVE_35: tuple[Branch, ...] = ((Conv("branch3x3", 384, (3, 3)),), DOUBLE_35, ())
HALVE_17: tuple[Branch, ...] = (
    (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3))),
    (
        Conv("branch7x7x3_1", 192),
        Conv("branch7x7x3_2", 192, (1, 7)),
        Conv("branch7x7x3_3", 192, (7, 1)),
        Conv("branch7x7x3_4", 192, (3, 3)),
    ),
    (),
)
FORKED: tuple[Branch, ...] = (
    (Conv("branch1x1", 320),),
    (
        Conv("branch3x3_1", 384),
        (Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1))),
    ),
    (
        Conv("branch3x3dbl_1", 448),
        Conv("branch3x3dbl_2", 384, (3, 3)),
        (Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1))),
    ),
    (Conv("branch_pool", 192),),
)
