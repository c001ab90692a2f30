"""Whisper (Radford et al., 2023): convolutions over a spectrogram, a pre-normalised encoder and decoder."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.zoo.entry import Entry, exported, ids


class WhisperAttention(nn.Module):
    """Keys have no bias; both sides of the product are scaled."""

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, depth**-0.25
        self.query, self.key = nn.Linear(width, heads * depth), nn.Linear(width, heads * depth, bias=False)
        self.value, self.out = nn.Linear(width, heads * depth), nn.Linear(heads * depth, width)

    def forward(self, x: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        q, k, v = self.query(x), self.key(memory), self.value(memory)
        q = q.view(*q.shape[:2], self.heads, -1).permute(0, 2, 1, 3) * self.scale
        k = k.view(*k.shape[:2], self.heads, -1).permute(0, 2, 3, 1) * self.scale
        v = v.view(*v.shape[:2], self.heads, -1).permute(0, 2, 1, 3)
        scores = q @ k if mask is None else q @ k + mask
        return self.out((scores.softmax(-1) @ v).permute(0, 2, 1, 3).flatten(start_dim=2))


class WhisperBlock(nn.Module):
    def __init__(self, width: int, depths: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(WhisperAttention(width, 2, d) for d in depths)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(len(depths) + 1))
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(
        self, x: torch.Tensor, memory: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        y = self.norms[0](x)
        x = x + self.attentions[0](y, y, mask)
        if memory is not None:
            x = x + self.attentions[1](self.norms[1](x), memory)
        return x + self.mlp(self.norms[-1](x))


class Whisper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(8, 14, 3, padding=1), nn.Conv1d(14, 16, 3, 2, 1)
        self.register_buffer("places", torch.randn(8, 16))
        self.encoder = nn.ModuleList([WhisperBlock(16, (9,), 40), WhisperBlock(16, (10,), 42)])
        self.norm = nn.LayerNorm(16)
        self.words, self.positions = nn.Embedding(32, 16), nn.Parameter(torch.randn(6, 16) * 0.1)
        self.register_buffer("mask", torch.full((6, 6), -1e4).triu(1))
        self.decoder = nn.ModuleList([WhisperBlock(16, (11, 12), 44), WhisperBlock(16, (13, 14), 46)])
        self.last = nn.LayerNorm(16)

    def forward(self, mel: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        x = functional.gelu(self.conv2(functional.gelu(self.conv1(mel)))).permute(0, 2, 1) + self.places
        for block in self.encoder:
            x = block(x)
        x = self.norm(x)
        y = self.words(tokens) + self.positions[: tokens.shape[-1]]
        for block in self.decoder:
            y = block(y, x, self.mask)
        return self.last(y) @ self.words.weight.transpose(0, 1)


NETWORKS = {
    # Unlike T5's, the encoder's stream is apart from the decoder's.
    "whisper": Entry(
        exported(Whisper, (1, 8, 16), ids(1, 6)),
        (
            *("14", "16", "16", "40", "42", "44", "46"),
            *(f"{2 * depth} in 2 blocks" for depth in (9, 10, 11, 12, 13, 14) for _ in range(2)),
        ),
        heads=("2",) * 6,
        axes=({2: "time"}, {1: "tokens"}),
    )
}
