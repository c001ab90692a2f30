"""GPT-2 (Radford et al., 2019): one projection split in three, a causal mask, the embedding tied to the output."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.entry import Entry, exported, ids


class GPTBlock(nn.Module):
    def __init__(self, width: int, heads: int, depth: int, hidden: int, tokens: int) -> None:
        super().__init__()
        self.heads, self.depth = heads, depth
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.weight = nn.Parameter(torch.randn(width, 3 * heads * depth) * 0.2)  # input by output, as GPT-2 stores it
        self.bias = nn.Parameter(torch.zeros(3 * heads * depth))
        self.out = nn.Linear(heads * depth, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
        self.register_buffer("causal", torch.tril(torch.ones(tokens, tokens, dtype=torch.bool)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        joint = torch.addmm(self.bias, self.norm1(x).view(-1, x.shape[-1]), self.weight).view(batch, tokens, -1)
        q, k, v = joint.split(self.heads * self.depth, 2)
        q, k, v = (t.view(batch, tokens, self.heads, self.depth).transpose(1, 2) for t in (q, k, v))
        scores = q @ k.transpose(2, 3) * self.depth**-0.5
        scores = torch.where(self.causal[:tokens, :tokens], scores, torch.tensor(-1e4))
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, -1)
        x = x + self.out(mixed)
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width, tokens = 18, 8
        self.words = nn.Embedding(32, width)
        self.places = nn.Parameter(torch.randn(tokens, width) * 0.1)
        self.blocks = nn.Sequential(GPTBlock(width, 3, 6, 48, tokens), GPTBlock(width, 3, 5, 52, tokens))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens) + self.places[: tokens.shape[1]]
        return self.norm(self.blocks(x)) @ self.words.weight.T


NETWORKS = {
    "gpt2": Entry(
        exported(GPT, ids(1, 8)),
        ("18", *["18 in 3 blocks"] * 2, *["15 in 3 blocks"] * 2, "48", "52"),
        heads=("3", "3"),
        axes=({1: "tokens"},),
    )
}
