"""Llama (Touvron et al., 2023): RMSNorm, rotary positions, grouped-query attention, SwiGLU; interleaved pairs."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.entry import Entry, exported, ids


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rotated_halves(x: torch.Tensor) -> torch.Tensor:
    """Position i pairs with i + depth / 2."""
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def rotated_pairs(x: torch.Tensor) -> torch.Tensor:
    """Position 2 i pairs with 2 i + 1 (GPT-J)."""
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


def angles(tokens: int, depth: int, interleaved: bool) -> torch.Tensor:
    """[tokens, depth], the same angle for both positions of a pair."""
    one = torch.arange(tokens)[:, None] * 100.0 ** (-torch.arange(depth // 2) * 2 / depth)
    return one.repeat_interleave(2, 1) if interleaved else torch.cat([one, one], 1)


class GroupedQueryAttention(nn.Module):
    """Each of `shared` key-value heads serves several query heads."""

    def __init__(self, width: int, heads: int, shared: int, depth: int, interleaved: bool = False) -> None:
        super().__init__()
        self.heads, self.shared, self.depth = heads, shared, depth
        self.q = nn.Linear(width, heads * depth, bias=False)
        self.k, self.v = (nn.Linear(width, shared * depth, bias=False) for _ in range(2))
        self.out = nn.Linear(heads * depth, width, bias=False)
        self.rotate = rotated_pairs if interleaved else rotated_halves

    def repeat(self, x: torch.Tensor) -> torch.Tensor:
        """[N, shared, T, D] -> [N, heads, T, D]."""
        batch, shared, tokens, depth = x.shape
        times = self.heads // shared
        wide = x[:, :, None].expand(batch, shared, times, tokens, depth)
        return wide.reshape(batch, self.heads, tokens, depth)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, self.heads, self.depth).transpose(1, 2)
        k, v = (m(x).view(batch, tokens, self.shared, self.depth).transpose(1, 2) for m in (self.k, self.v))
        q, k = q * cos + self.rotate(q) * sin, k * cos + self.rotate(k) * sin
        scores = q @ self.repeat(k).transpose(2, 3) * self.depth**-0.5 + mask
        mixed = scores.softmax(-1) @ self.repeat(v)
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class DecoderLayer(nn.Module):
    def __init__(self, width: int, attention: nn.Module, feed: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.attention, self.feed = attention, feed

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x), cos, sin, mask)
        return x + self.feed(self.norm2(x))


class RotaryDecoder(nn.Module):
    """A decoder whose layers share one table of angles, for up to 16 tokens."""

    def __init__(self, width: int, depth: int, layers: list[nn.Module], interleaved: bool = False) -> None:
        super().__init__()
        tokens = 16
        self.words = nn.Embedding(32, width)
        self.layers, self.norm = nn.ModuleList(layers), RMSNorm(width)
        self.head = nn.Linear(width, 32, bias=False)
        table = angles(tokens, depth, interleaved)
        self.register_buffer("cos", table.cos())
        self.register_buffer("sin", table.sin())
        self.register_buffer("mask", torch.full((tokens, tokens), -1e4).triu(1))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens)
        count = tokens.shape[1]
        for layer in self.layers:
            x = layer(x, self.cos[:count], self.sin[:count], self.mask[:count, :count])
        return self.head(self.norm(x))


def llama(interleaved: bool) -> nn.Module:
    layers = [
        DecoderLayer(16, GroupedQueryAttention(16, 4, 2, 8, interleaved), SwiGLU(16, hidden)) for hidden in (40, 44)
    ]
    return RotaryDecoder(16, 8, layers, interleaved)


# The stream; hidden layers; values, one unit for all query heads that a key-value head serves; and 4 rotary pairs,
# which the table of angles holds together over all heads and layers.
_EXPECTED = ("16", "40", "44", *["16 in 2 blocks"] * 2, "4")

NETWORKS = {
    "llama": Entry(
        exported(lambda: llama(False), ids(1, 8)),
        _EXPECTED,
        heads=("2",) * 2,
        axes=({1: "tokens"},),
    ),
    "interleaved": Entry(
        exported(lambda: llama(True), ids(1, 8)),
        _EXPECTED,
        heads=("2",) * 2,
        axes=({1: "tokens"},),
    ),
}
