"""MViT (Fan et al., 2021): queries, keys and values are pooled by depthwise convolutions that all heads share."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.entry import Entry, exported


class Pooling(nn.Module):
    """Depthwise convolution over the image of each head, then a LayerNorm over its depth."""

    def __init__(self, depth: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(depth, depth, 3, stride, 1, groups=depth, bias=False)
        self.norm = nn.LayerNorm(depth)

    def forward(self, x: torch.Tensor, side: int) -> torch.Tensor:
        batch, heads, _, depth = x.shape
        image = x.reshape(batch * heads, side, side, depth).permute(0, 3, 1, 2)
        pooled = self.conv(image).reshape(batch, heads, depth, -1).transpose(2, 3)
        return self.norm(pooled)


class PoolingAttention(nn.Module):
    def __init__(self, inputs: int, outputs: int, heads: int, strides: tuple[int, int], residual: bool) -> None:
        super().__init__()
        self.heads, self.residual = heads, residual
        self.q, self.k, self.v = (nn.Linear(inputs, outputs) for _ in range(3))
        depth = outputs // heads
        self.pool_q, self.pool_k, self.pool_v = (Pooling(depth, s) for s in (strides[0], strides[1], strides[1]))
        self.out = nn.Linear(outputs, outputs)

    def forward(self, x: torch.Tensor, side: int) -> torch.Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (m(x).view(batch, tokens, self.heads, -1).transpose(1, 2) for m in (self.q, self.k, self.v))
        q, k, v = self.pool_q(q, side), self.pool_k(k, side), self.pool_v(v, side)
        mixed = (q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5).softmax(-1) @ v
        if self.residual:
            mixed = mixed + q
        return self.out(mixed.transpose(1, 2).flatten(2))


class MViTBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, heads: int, hidden: int, stride: int, residual: bool) -> None:
        super().__init__()
        self.stride = stride
        self.norm1, self.norm2 = nn.LayerNorm(inputs), nn.LayerNorm(outputs)
        self.attention = PoolingAttention(inputs, outputs, heads, (stride, 2), residual)
        self.project = nn.Linear(inputs, outputs) if inputs != outputs else nn.Identity()
        self.mlp = nn.Sequential(nn.Linear(outputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))

    def forward(self, x: torch.Tensor, side: int) -> torch.Tensor:
        y = self.norm1(x)
        shortcut = x if isinstance(self.project, nn.Identity) else self.project(y)
        if self.stride > 1:
            image = shortcut.transpose(1, 2).reshape(x.shape[0], -1, side, side)
            shortcut = nn.functional.max_pool2d(image, 3, self.stride, 1).flatten(2).transpose(1, 2)
        x = shortcut + self.attention(y, side)
        return x + self.mlp(self.norm2(x))


class MViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 7, 2, 3)
        self.positions = nn.Parameter(torch.randn(1, 64, 16) * 0.1)
        self.first, self.second = MViTBlock(16, 16, 2, 40, 1, False), MViTBlock(16, 24, 2, 48, 2, True)
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.second(self.first(x, 8), 8)).mean(1))


NETWORKS = {
    # A depth is one unit in both heads, for their pooling is shared: 8 of queries and keys, 8 of values; in the second
    # block the queries are added to the result, so that 12 of all three move together.
    "mvit": Entry(
        exported(MViT, (1, 3, 16, 16)),
        ("16", "24", "8", "8", "12", "40", "48"),
        heads=("2",) * 2,
    )
}
