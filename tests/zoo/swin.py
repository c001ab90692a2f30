"""Swin (Liu et al., 2021): windows, rolled by half a window in every other block, relative-position bias, merging."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.entry import Entry, exported


def relative_index(side: int) -> torch.Tensor:
    """[side², side²]: which row of the bias table each pair of a window's positions reads."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    y, x = y.flatten(), x.flatten()
    return (y[:, None] - y + side - 1) * (2 * side - 1) + (x[:, None] - x + side - 1)


def windows(x: torch.Tensor, side: int) -> torch.Tensor:
    """[1, H, W, C] -> [H·W / side², side², C]."""
    _, height, width, channels = x.shape
    x = x.view(1, height // side, side, width // side, side, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, side * side, channels)


def unwindow(x: torch.Tensor, side: int, height: int, width: int) -> torch.Tensor:
    """The inverse of `windows`."""
    x = x.view(1, height // side, width // side, side, side, -1)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(1, height, width, -1)


class WindowAttention(nn.Module):
    """Attention inside windows of [count, side², C]."""

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn((2 * side - 1) ** 2, heads))
        self.register_buffer("index", relative_index(side))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        count, tokens, width = x.shape
        qkv = self.qkv(x).reshape(count, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        bias = self.table[self.index.view(-1)].view(tokens, tokens, self.heads).permute(2, 0, 1)
        scores = (q * self.scale) @ k.transpose(-2, -1) + bias.unsqueeze(0)
        if mask is not None:
            scores = scores + mask.unsqueeze(1)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(count, tokens, width))


class SwinBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, size: int, side: int, shift: int) -> None:
        super().__init__()
        self.side, self.shift = side, shift
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads, side)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.register_buffer("mask", self._mask(size) if shift else None)

    def _mask(self, size: int) -> torch.Tensor:
        """Rolled windows hold pieces that are no neighbours; those do not see each other."""
        piece = torch.zeros(1, size, size, 1)
        cuts = (slice(0, -self.side), slice(-self.side, -self.shift), slice(-self.shift, None))
        for i, rows in enumerate(cuts):
            for j, columns in enumerate(cuts):
                piece[:, rows, columns] = 3 * i + j
        parts = windows(piece, self.side).squeeze(-1)
        return (parts[:, None] != parts[:, :, None]).float() * -100

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, height, width, _ = x.shape
        y = self.norm1(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = unwindow(self.attention(windows(y, self.side), self.mask), self.side, height, width)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        return x + self.mlp(self.norm2(x))


class Merging(nn.Module):
    """Four neighbours become one token, normalised and projected."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * inputs), nn.Linear(4 * inputs, outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class Swin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 16, 2, 2), nn.LayerNorm(16)
        self.stages = nn.Sequential(
            *(SwinBlock(16, 2, 40, 8, 4, 0), SwinBlock(16, 2, 44, 8, 4, 2), Merging(16, 24)),
            SwinBlock(24, 3, 48, 4, 4, 0),
        )
        self.last, self.head = nn.LayerNorm(24), nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.patches(x).permute(0, 2, 3, 1))
        return self.head(self.last(self.stages(x)).mean((1, 2)))


NETWORKS = {
    # Of each block: queries with keys and values, equally deep in all heads, and the hidden layer.
    "swin": Entry(
        exported(Swin, (1, 3, 16, 16)),
        ("16", "24", *["32 in 4 blocks"] * 2, "48 in 6 blocks", "40", "44", "48"),
        heads=("2", "2", "3"),
        one_batch=True,
        closed="its masks of shifted windows are made for one size",
    )
}
