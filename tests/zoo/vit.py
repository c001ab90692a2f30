"""ViT and DeiT (Dosovitskiy et al., 2021; Touvron et al., 2021): class tokens, fused and chunked query-key-value."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.entry import Entry, exported


class FusedAttention(nn.Module):
    """One projection, viewed as [tokens, 3, heads, depth]: queries, keys and values stay equally deep."""

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.heads, self.depth = heads, depth
        self.qkv, self.out = nn.Linear(width, 3 * heads * depth), nn.Linear(heads * depth, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.depth).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        scores = (q * self.depth**-0.5) @ k.transpose(-2, -1)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, self.heads * self.depth))


class ChunkedAttention(FusedAttention):
    """One projection, cut in three before the heads are told apart: values are free of queries and keys."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (t.view(batch, tokens, self.heads, self.depth).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, self.heads * self.depth))


class Block(nn.Module):
    """attention, then a hidden layer, each after a LayerNorm and added to what it read."""

    def __init__(self, width: int, attention: nn.Module, hidden: int) -> None:
        super().__init__()
        self.attention = attention
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """distilled: a second token with a classifier of its own, the two averaged (DeiT)."""

    def __init__(self, distilled: bool) -> None:
        super().__init__()
        width, count = 24, 2 if distilled else 1
        attention = ChunkedAttention if distilled else FusedAttention
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.tokens = nn.Parameter(torch.randn(1, count, width))
        self.positions = nn.Parameter(torch.randn(1, 16 + count, width) * 0.1)
        self.blocks = nn.Sequential(*(Block(width, attention(width, 2, d), h) for d, h in ((10, 48), (12, 40))))
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, 10) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.tokens.expand(x.shape[0], -1, -1), x], 1) + self.positions
        x = self.norm(self.blocks(x))
        return sum(head(x[:, i]) for i, head in enumerate(self.heads)) / len(self.heads)


NETWORKS = {
    # Fused: queries with keys 2 x 10 and values 2 x 10, equally deep in both heads.
    "vit": Entry(
        exported(lambda: ViT(False), (1, 3, 16, 16)),
        ("24", "40 in 4 blocks", "48 in 4 blocks", "48", "40"),
        heads=("2",) * 2,
    ),
    "deit": Entry(
        exported(lambda: ViT(True), (1, 3, 16, 16)),
        ("24", *["20 in 2 blocks"] * 2, *["24 in 2 blocks"] * 2, "48", "40"),
        heads=("2",) * 2,
    ),
}
