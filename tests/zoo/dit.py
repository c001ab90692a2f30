"""Diffusion transformer with adaLN (Peebles and Xie, 2023): a condition, cut in six, shifts, scales and gates."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.entry import Entry, exported, ids
from tests.zoo.vit import FusedAttention


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class DiTBlock(nn.Module):
    def __init__(self, width: int, conditions: int, depth: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.attention = FusedAttention(width, 2, depth)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(conditions, 6 * width))

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, 1)
        x = x + gate1.unsqueeze(1) * self.attention(modulate(self.norm1(x), shift1, scale1))
        return x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift2, scale2))


class DiT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width, conditions = 16, 20
        self.patches = nn.Conv2d(4, width, 2, 2)
        self.register_buffer("positions", torch.randn(1, 16, width))
        self.register_buffer("frequencies", torch.exp(-torch.arange(6) / 2.0).reshape(1, 6))
        self.time = nn.Sequential(nn.Linear(12, 18), nn.SiLU(), nn.Linear(18, conditions))
        self.labels = nn.Embedding(10, conditions)
        self.blocks = nn.ModuleList([DiTBlock(width, conditions, 8, 40), DiTBlock(width, conditions, 10, 48)])
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(conditions, 2 * width))
        self.out = nn.Linear(width, 4 * 4)

    def forward(self, x: torch.Tensor, time: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        angles = time[:, None] * self.frequencies
        c = self.time(torch.cat([angles.cos(), angles.sin()], -1)) + self.labels(label)
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.modulation(c).chunk(2, 1)
        x = self.out(modulate(self.norm(x), shift, scale)).view(-1, 4, 4, 2, 2, 4)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(-1, 4, 8, 8)


NETWORKS = {
    # The stream with all that modulates it (6 x 16 and 2 x 16); the condition; the time's hidden layer. A frequency has
    # a cosine and a sine: 6 pairs.
    "dit": Entry(
        exported(DiT, (1, 4, 8, 8), (1,), ids(1)),
        ("16", "20", "18", "6", "32 in 4 blocks", "40", "40 in 4 blocks", "48"),
        heads=("2",) * 2,
    )
}
