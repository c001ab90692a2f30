"""The U-Net of latent diffusion (Rombach et al., 2022): GroupNorm, time embedding, cross-attention, GEGLU."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.zoo.entry import Entry, exported


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of four channels each, so that the groups of concatenated parts line up."""
    return nn.GroupNorm(channels // 4, channels)


class TimedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, time: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(group_norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(time, outputs))
        self.leave = nn.Sequential(group_norm(outputs), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        y = self.enter(x) + self.time(time)[:, :, None, None]
        return self.shortcut(x) + self.leave(y)


class CrossAttention(nn.Module):
    """Queries from x; keys and values from `context`."""

    def __init__(self, width: int, context: int, heads: int, depth: int) -> None:
        super().__init__()
        self.heads, inner = heads, heads * depth
        self.q = nn.Linear(width, inner, bias=False)
        self.k, self.v = (nn.Linear(context, inner, bias=False) for _ in range(2))
        self.out = nn.Linear(inner, width)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            m(t).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for m, t in ((self.q, x), (self.k, context), (self.v, context))
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class SpatialTransformer(nn.Module):
    def __init__(self, channels: int, width: int, context: int) -> None:
        super().__init__()
        self.norm, self.enter = group_norm(channels), nn.Conv2d(channels, width, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.self_attention = CrossAttention(width, width, 2, 5)
        self.cross_attention = CrossAttention(width, context, 2, 6)
        self.gated, self.ungated = nn.Linear(width, 2 * 36), nn.Linear(36, width)
        self.leave = nn.Conv2d(width, channels, 1)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = x.shape
        y = self.enter(self.norm(x)).flatten(2).transpose(1, 2)
        z = self.norms[0](y)
        y = y + self.self_attention(z, z)
        y = y + self.cross_attention(self.norms[1](y), context)
        hidden, gate = self.gated(self.norms[2](y)).chunk(2, -1)
        y = y + self.ungated(hidden * functional.gelu(gate))
        return x + self.leave(y.transpose(1, 2).reshape(batch, -1, height, width))


class LatentUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, 28), nn.SiLU(), nn.Linear(28, 22))
        self.enter = nn.Conv2d(4, 16, 3, padding=1)
        self.first = TimedResidual(16, 16, 22)
        self.down = nn.Conv2d(16, 20, 3, 2, 1)
        self.second, self.attention = TimedResidual(20, 20, 22), SpatialTransformer(20, 18, 12)
        self.up = nn.Conv2d(20, 24, 3, padding=1)
        self.third = TimedResidual(40, 32, 22)
        self.leave = nn.Sequential(group_norm(32), nn.SiLU(), nn.Conv2d(32, 4, 3, padding=1))

    def forward(self, x: torch.Tensor, time: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        t = self.time(time)
        skip = self.first(self.enter(x), t)
        x = self.attention(self.second(self.down(skip), t), context)
        x = self.up(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.leave(self.third(torch.cat([x, skip], 1), t))


NETWORKS = {
    "latent_unet": Entry(
        exported(LatentUNet, (1, 4, 8, 8), (1, 8), (1, 6, 12)),
        (
            *("28", "22"),  # the time's hidden layer and embedding
            *("16 in 4 blocks", *["20 in 5 blocks"] * 2, *["32 in 8 blocks"] * 2),  # inside, streams
            "40 in 10 blocks",  # up (24) and skip (16) share one GroupNorm
            *("18", "36", *["10 in 2 blocks"] * 2, *["12 in 2 blocks"] * 2),  # the transformer
        ),
        heads=("2", "2"),
        space_fault="GroupNorm, exported as a Reshape that joins channels with symbolic space, pins its channels",
    )
}
