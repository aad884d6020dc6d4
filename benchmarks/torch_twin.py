"""The project's pixel UNet and transformer in PyTorch, with the same weights, for benchmarks only.

They are written in PyTorch's style: NCHW images in channels-last memory, fused attention, and mixed
precision by autocast. They are only for teachers, which do not take w.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its common name.

from distill_jax.models.dit import centres
from distill_jax.models.layers import position_embedding
from distill_jax.runtime.trees import by_name, is_stacked, layers_of

GROUPS, EPSILON = 32, 1e-6  # Defaults of Flax's normalisations.


def sinusoid(u, dim):
    """Returns the embedding of distill_jax.models.layers.sinusoid."""
    half = dim // 2
    steps = torch.arange(half, device=u.device, dtype=torch.float32)
    angle = 1000 * u[:, None] * torch.exp(-math.log(10000) * steps / (half - 1))
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def levels(t):
    """Returns alpha, sigma and logsnr of the cosine schedule, see schedule.Cosine."""
    low, high = (math.atan(math.exp(sign * 10)) for sign in (-1, 1))
    logsnr = -2 * torch.log(torch.tan(low + (high - low) * t))
    return logsnr.sigmoid().sqrt(), (-logsnr).sigmoid().sqrt(), logsnr


def unchanged(h):
    return h


def halved(h):
    return F.avg_pool2d(h, 2)


def doubled(h):
    return F.interpolate(h, scale_factor=2, mode="nearest")


class ResBlock(nn.Module):
    """The PyTorch twin of distill_jax.models.unet.ResBlock."""

    def __init__(self, before, after, arch, resample=unchanged):
        super().__init__()
        self.resample, self.dropout = resample, nn.Dropout(arch.dropout)
        self.norm1 = nn.GroupNorm(GROUPS, before, EPSILON)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.temb_proj = nn.Linear(arch.embedding, 2 * after)
        self.norm2 = nn.GroupNorm(GROUPS, after, EPSILON)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(before, after, 1) if before != after else None

    def forward(self, x, emb):
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        scale, shift = self.temb_proj(F.silu(emb))[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.norm2(h) * (1 + scale) + shift)
        h = self.conv2(self.dropout(h))
        x = self.resample(x)
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class Attention(nn.Module):
    """The PyTorch twin of distill_jax.models.unet.Attention; it does not use emb."""

    def __init__(self, channels, arch):
        super().__init__()
        self.heads = arch.heads or channels // arch.head_dim
        self.norm = nn.GroupNorm(GROUPS, channels, EPSILON)
        self.q, self.k, self.v = (nn.Linear(channels, channels) for _ in range(3))
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x, emb):
        h = self.norm(x).flatten(2).transpose(1, 2)
        split = (layer(h).unflatten(-1, (self.heads, -1)) for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in split))
        h = self.proj_out(h.transpose(1, 2).flatten(2))
        return x + h.transpose(1, 2).unflatten(-1, x.shape[2:])


class UNet(nn.Module):
    """The PyTorch twin of distill_jax.models.unet.UNet, with its Architecture `arch`.

    A name of a Flax module may have dots; here colons stand for them.
    """

    def __init__(self, arch):
        super().__init__()
        if not arch.resblock_resample and len(arch.multipliers) > 1:
            raise ValueError("the twin changes the resolution only in residual blocks")
        self.arch, self.parts, self.order = arch, nn.ModuleDict(), []
        self.parts["dense0"] = nn.Linear(arch.channels, arch.embedding)
        self.parts["dense1"] = nn.Linear(arch.embedding, arch.embedding)
        self.parts["class_emb"] = nn.Linear(arch.spec.classes("label"), arch.embedding)
        self.parts["conv_in"] = nn.Conv2d(arch.spec.shape[-1], arch.channels, 3, padding=1)
        self._build()
        self.parts["norm_out"] = nn.GroupNorm(GROUPS, arch.channels, EPSILON)
        self.parts["conv_out"] = nn.Conv2d(arch.channels, arch.spec.channels_out, 3, padding=1)

    def _build(self):
        """Builds the blocks in calling order; "keep" and "join" are the skip connections."""
        arch, last = self.arch, len(self.arch.multipliers) - 1
        widths = [arch.channels * multiplier for multiplier in arch.multipliers]
        width, skips = arch.channels, [arch.channels]
        self.order.append("keep")
        for level, after in enumerate(widths):
            for block in range(arch.blocks):
                width = self._blocks(width, after, level, f"down_{level}", block)
                self.order.append("keep")
                skips.append(width)
            if level < last:
                self._add(f"down_{level}:downsample", ResBlock(width, width, arch, halved))
                self.order.append("keep")
                skips.append(width)
        self._add("mid:block_1", ResBlock(width, width, arch))
        self._add("mid:attn_1", Attention(width, arch))
        self._add("mid:block_2", ResBlock(width, width, arch))
        for level, after in reversed(list(enumerate(widths))):
            for block in range(arch.blocks + 1):
                self.order.append("join")
                width = self._blocks(width + skips.pop(), after, level, f"up_{level}", block)
            if level > 0:
                self._add(f"up_{level}:upsample", ResBlock(width, width, arch, doubled))

    def _blocks(self, before, after, level, name, block):
        self._add(f"{name}:block_{block}", ResBlock(before, after, self.arch))
        if self.arch.sides[level] in self.arch.attention:
            self._add(f"{name}:attn_{block}", Attention(after, self.arch))
        return after

    def _add(self, name, module):
        self.parts[name] = module
        self.order.append(name)

    def _embed(self, t, label):
        """Embeds the rescaled angle of the cosine schedule."""
        limits = (math.atan(math.exp(sign * 10)) for sign in (-1, 1))
        low, high = limits
        emb = sinusoid((low + (high - low) * t) / (math.pi / 2), self.arch.channels)
        emb = self.parts["dense1"](F.silu(self.parts["dense0"](emb)))
        classes = self.arch.spec.classes("label")
        one_hot = F.one_hot(label, classes + 1)[:, :classes].to(emb.dtype)
        return emb + self.parts["class_emb"](one_hot)

    def forward(self, z, t, label):
        """(b, c, h, w), (b,), (b,) -> (b, c, h, w), in float32."""
        emb, skips = self._embed(t, label), []
        h = self.parts["conv_in"](z)
        for name in self.order:
            if name == "keep":
                skips.append(h)
            elif name == "join":
                h = torch.cat([h, skips.pop()], dim=1)
            else:
                h = self.parts[name](h, emb)
        h = F.silu(self.parts["norm_out"](h))
        with torch.autocast(z.device.type, enabled=False):
            return self.parts["conv_out"](h.float())


class Block(nn.Module):
    """The PyTorch twin of distill_jax.models.dit.Block."""

    def __init__(self, arch):
        super().__init__()
        width, self.heads = arch.width, arch.heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = (
            nn.Linear(width, arch.expand * width),
            nn.Linear(arch.expand * width, width),
        )

    def forward(self, h, emb):
        parts = self.modulation(emb)[:, None].chunk(6, dim=-1)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = parts
        y = F.layer_norm(h, h.shape[-1:], eps=EPSILON) * (1 + scale_1) + shift_1
        q, k, v = self.qkv(y).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        h = h + gate_1 * self.proj(y.transpose(1, 2).flatten(2))
        y = F.layer_norm(h, h.shape[-1:], eps=EPSILON) * (1 + scale_2) + shift_2
        return h + gate_2 * self.down(F.gelu(self.up(y), approximate="tanh"))


class DiT(nn.Module):
    """The PyTorch twin of distill_jax.models.dit.DiT, with its Architecture `arch`."""

    def __init__(self, arch):
        super().__init__()
        width, (side, _, channels) = arch.width, arch.spec.shape
        self.arch, self.conditioning = arch, nn.ModuleDict()
        for name in ("t_embed_0", "t_embed_1"):
            self.conditioning[name] = nn.Linear(width, width)
        self.conditioning["label_embed"] = nn.Embedding(arch.spec.classes("label") + 1, width)
        self.input = nn.Linear(channels * arch.patch**2, width)
        rows = centres(side // arch.patch, side // arch.patch)
        places = torch.from_numpy(position_embedding(rows, rows, width))
        self.register_buffer("places", places, persistent=False)
        for block in range(arch.blocks):
            self.add_module(f"block_{block}", Block(arch))
        self.modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, arch.spec.channels_out * arch.patch**2)

    def forward(self, z, t, label):
        """(b, c, h, w), (b,), (b,) -> (b, c, h, w), in float32."""
        arch, layers = self.arch, self.conditioning
        emb = layers["t_embed_1"](F.silu(layers["t_embed_0"](sinusoid(t, arch.width))))
        emb = F.silu(emb + layers["label_embed"](label))
        count = z.shape[-1] // arch.patch
        tiles = z.permute(0, 2, 3, 1).unflatten(2, (count, -1)).unflatten(1, (count, -1))
        h = self.input(tiles.transpose(2, 3).flatten(3).flatten(1, 2)) + self.places
        for block in range(arch.blocks):
            h = getattr(self, f"block_{block}")(h, emb)
        shift, scale = self.modulation(emb)[:, None].chunk(2, dim=-1)
        h = F.layer_norm(h, h.shape[-1:], eps=EPSILON) * (1 + scale) + shift
        with torch.autocast(z.device.type, enabled=False):
            h = self.output(h.float()).unflatten(1, (count, count))
        h = h.unflatten(-1, (arch.patch, arch.patch, -1)).transpose(2, 3)
        return h.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


# Name of a parameter in PyTorch, and its possible names in Flax.
LEAVES = {"bias": ("bias",), "weight": ("kernel", "scale", "embedding")}


def load(model, params):
    """Copies Flax parameters into a twin; every array of both must find its place.

    Raises:
      ValueError: where one does not.
    """
    left = dict(flat(params))
    with torch.no_grad():
        for name, mine in model.named_parameters():
            *path, kind = name.removeprefix("parts.").split(".")
            where = "/".join(path).replace(":", ".")
            leaf = next((leaf for leaf in LEAVES[kind] if f"{where}/{leaf}" in left), None)
            if leaf is None:
                raise ValueError(f"there are no parameters for {name} of the twin")
            array = np.array(left.pop(f"{where}/{leaf}"), np.float32)
            mine.copy_(torch.from_numpy(in_order(array, tuple(mine.shape), leaf)))
    if left:
        raise ValueError(f"the twin has no place for {', '.join(left)}")
    return model


def flat(tree):
    """Yields (name, array) of the leaves of a tree, and of every layer of stacked leaves."""
    for name, leaf in by_name(tree).items():
        yield from zip(layers_of(name), leaf if is_stacked(name) else [leaf], strict=True)


def in_order(array, shape, leaf):
    """Returns a Flax array in PyTorch's shape.

    Kernels are (h, w, in, out), (in, out), (in, heads, size) or (heads, size, out) in Flax,
    and (out, in, h, w) or (out, in) in PyTorch.
    """
    if leaf == "kernel" and len(shape) == array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
    elif leaf == "kernel":
        array = array.reshape(shape[1], shape[0]).T
    return np.ascontiguousarray(array.reshape(shape))
