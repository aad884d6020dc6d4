"""EDM's DDPM++ in PyTorch, with the names of its released files, for benchmarks only.

Written from appendix F.2 and Table 7 of Karras et al. (2022, arXiv:2206.00364) in PyTorch's style:
NCHW images in channels-last memory and fused attention. Weights reach our network by import,
teachers.edm.convert.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its common name.

from benchmarks.torch_twin import doubled, halved, levels, sinusoid, unchanged

EPSILON = 1e-6


def norm(width):
    return nn.GroupNorm(min(32, width // 4), width, EPSILON)


class Block(nn.Module):
    """A residual block of two convolutions, maybe with resampling, maybe with attention."""

    def __init__(self, before, after, resample=unchanged, attention=False, **options):
        super().__init__()
        self.resample, self.dropout = resample, nn.Dropout(options["dropout"])
        self.norm0, self.conv0 = norm(before), nn.Conv2d(before, after, 3, padding=1)
        self.affine = nn.Linear(options["embedding"], after)
        self.norm1, self.conv1 = norm(after), nn.Conv2d(after, after, 3, padding=1)
        other = before != after or resample is not unchanged
        self.skip = nn.Conv2d(before, after, 1) if other else nn.Identity()
        if attention:
            self.norm2 = norm(after)
            self.qkv, self.proj = nn.Conv2d(after, 3 * after, 1), nn.Conv2d(after, after, 1)

    def forward(self, x, emb):
        h = self.conv0(self.resample(F.silu(self.norm0(x))))
        h = F.silu(self.norm1(h + self.affine(emb)[:, :, None, None]))
        h = self.conv1(self.dropout(h))
        h = (self.skip(self.resample(x)) + h) * math.sqrt(0.5)
        return (h + self._attended(h)) * math.sqrt(0.5) if hasattr(self, "qkv") else h

    def _attended(self, h):
        """Returns attention of one head over the pixels."""
        tokens = self.qkv(self.norm2(h)).flatten(2).unflatten(1, (-1, 3)).permute(2, 0, 3, 1)
        q, k, v = (part[:, None] for part in tokens)
        found = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return self.proj(found.transpose(1, 2).unflatten(2, h.shape[2:]))


class SongUNet(nn.Module):
    """DDPM++ of EDM's `kwargs`, called with (z, t, label) for the cosine schedule."""

    def __init__(self, kwargs):
        super().__init__()
        width, self.classes = kwargs["model_channels"], kwargs["label_dim"]
        side, channels = kwargs["img_resolution"], kwargs["img_channels"]
        embedding, self.width = 4 * width, width
        self.map_label = nn.Linear(self.classes, width)
        self.map_layer0, self.map_layer1 = (
            nn.Linear(width, embedding),
            nn.Linear(embedding, embedding),
        )
        self.options = {"dropout": kwargs["dropout"], "embedding": embedding}
        self.enc, self.dec, skips = nn.ModuleDict(), nn.ModuleDict(), [width]
        self.enc[f"{side}x{side}_conv"] = nn.Conv2d(channels, width, 3, padding=1)
        widths = [width * factor for factor in kwargs["channel_mult"]]
        sides = [side >> level for level in range(len(widths))]
        attends = [each in kwargs["attn_resolutions"] for each in sides]
        for level, (side, after) in enumerate(zip(sides, widths, strict=True)):
            if level:
                self.enc[f"{side}x{side}_down"] = self._block(width, width, halved)
                skips.append(width)
            for i in range(kwargs["num_blocks"]):
                block = self._block(width, after, attention=attends[level])
                self.enc[f"{side}x{side}_block{i}"], width = block, after
                skips.append(width)
        self.dec[f"{side}x{side}_in0"] = self._block(width, width, attention=True)
        self.dec[f"{side}x{side}_in1"] = self._block(width, width)
        for level in reversed(range(len(widths))):
            side, after = sides[level], widths[level]
            if level < len(widths) - 1:
                self.dec[f"{side}x{side}_up"] = self._block(width, width, doubled)
            for i in range(kwargs["num_blocks"] + 1):
                last = attends[level] and i == kwargs["num_blocks"]
                block = self._block(width + skips.pop(), after, attention=last)
                self.dec[f"{side}x{side}_block{i}"], width = block, after
        self.dec[f"{side}x{side}_aux_norm"] = norm(width)
        self.dec[f"{side}x{side}_aux_conv"] = nn.Conv2d(width, channels, 3, padding=1)

    def _block(self, before, after, resample=unchanged, attention=False):
        return Block(before, after, resample, attention, **self.options)

    def forward(self, z, t, label):
        """(b, c, h, w), (b,), (b,) -> (b, c, h, w)."""
        one_hot = F.one_hot(label, self.classes + 1)[:, : self.classes].to(z.dtype)
        emb = sinusoid(levels(t)[2].clamp(-20, 20) / -8000, self.width)
        emb = emb + self.map_label(one_hot * math.sqrt(self.classes))
        emb = F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
        h, skips = z, []
        for name, block in self.enc.items():
            h = block(h) if name.endswith("conv") else block(h, emb)
            skips.append(h)
        for name, block in self.dec.items():
            if "aux" in name:
                h = F.silu(block(h)) if name.endswith("norm") else block(h)
                continue
            h = block(torch.cat([h, skips.pop()], dim=1) if "block" in name else h, emb)
        return h
