"""BERT (Devlin et al., 2019): three embeddings summed, post-normalised layers, a mask, a pooled first token."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.entry import Entry, exported, ids


class BertLayer(nn.Module):
    def __init__(self, width: int, heads: int, depth: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.depth = heads, depth
        self.query, self.key, self.value = (nn.Linear(width, heads * depth) for _ in range(3))
        self.out, self.norm1 = nn.Linear(heads * depth, width), nn.LayerNorm(width)
        self.enter, self.leave, self.norm2 = nn.Linear(width, hidden), nn.Linear(hidden, width), nn.LayerNorm(width)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:-1], self.heads, self.depth).permute(0, 2, 1, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = torch.matmul(q, k.transpose(-1, -2)) / self.depth**0.5 + mask
        mixed = torch.matmul(scores.softmax(-1), v).permute(0, 2, 1, 3).contiguous()
        x = self.norm1(x + self.out(mixed.view(*x.shape[:-1], self.heads * self.depth)))
        return self.norm2(x + self.leave(nn.functional.gelu(self.enter(x))))


class Bert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width, tokens = 16, 8
        self.words, self.kinds = nn.Embedding(30, width), nn.Embedding(2, width)
        self.places = nn.Embedding(tokens, width)
        self.register_buffer("order", torch.arange(tokens).unsqueeze(0))
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList([BertLayer(width, 2, 8, 40), BertLayer(width, 2, 10, 44)])
        self.pooler, self.classifier = nn.Linear(width, 18), nn.Linear(18, 3)

    def forward(self, tokens: torch.Tensor, kinds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.words(tokens) + self.kinds(kinds) + self.places(self.order))
        bias = (1.0 - mask[:, None, None, :]) * -10.0
        for layer in self.layers:
            x = layer(x, bias)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


NETWORKS = {
    "bert": Entry(
        exported(Bert, ids(1, 8), ids(1, 8), (1, 8)),
        ("16", *["16 in 2 blocks"] * 2, "40", *["20 in 2 blocks"] * 2, "44", "18"),
        heads=("2",) * 2,
        axes=({1: "tokens"},) * 3,
    )
}
