"""T5 (Raffel et al., 2020): encoder and decoder share an embedding; positions are a bias looked up by distance."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.entry import Entry, exported, ids
from tests.zoo.llama import RMSNorm


class T5Attention(nn.Module):
    """Unscaled attention whose inner width is not the stream's."""

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.heads, self.depth = heads, depth
        self.q, self.k, self.v = (nn.Linear(width, heads * depth, bias=False) for _ in range(3))
        self.o = nn.Linear(heads * depth, width, bias=False)

    def forward(self, x: torch.Tensor, memory: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        q, k, v = (
            m(t).view(t.shape[0], -1, self.heads, self.depth).transpose(1, 2)
            for m, t in ((self.q, x), (self.k, memory), (self.v, memory))
        )
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k)
        weights = (scores if bias is None else scores + bias).softmax(-1)
        mixed = torch.einsum("bhqk,bhkd->bqhd", weights, v)
        return self.o(mixed.reshape(x.shape[0], -1, self.heads * self.depth))


class T5Layer(nn.Module):
    def __init__(self, width: int, depths: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(T5Attention(width, 2, d) for d in depths)
        self.norms = nn.ModuleList(RMSNorm(width) for _ in range(len(depths) + 1))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor, memory: torch.Tensor | None, bias: torch.Tensor) -> torch.Tensor:
        y = self.norms[0](x)
        x = x + self.attentions[0](y, y, bias)
        if memory is not None:
            x = x + self.attentions[1](self.norms[1](x), memory, None)
        y = self.norms[-1](x)
        return x + self.down(nn.functional.gelu(self.gate(y), approximate="tanh") * self.up(y))


class T5(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width, tokens = 16, 6
        self.words = nn.Embedding(32, width)
        distance = torch.arange(tokens)[None, :] - torch.arange(tokens)[:, None]
        self.register_buffer("near", (distance.clamp(-3, 3) + 3))
        self.register_buffer("past", (-distance).clamp(0, 3))
        self.register_buffer("mask", torch.full((tokens, tokens), -1e4).triu(1))
        self.encoder_bias, self.decoder_bias = nn.Embedding(7, 2), nn.Embedding(4, 2)
        self.encoder = nn.ModuleList([T5Layer(width, (9,), 40), T5Layer(width, (10,), 44)])
        self.decoder = nn.ModuleList([T5Layer(width, (11, 12), 48), T5Layer(width, (13, 14), 52)])
        self.norms = nn.ModuleList([RMSNorm(width), RMSNorm(width)])

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        x, y = self.words(source), self.words(target)
        bias = self.encoder_bias(self.near).permute(2, 0, 1).unsqueeze(0)
        for layer in self.encoder:
            x = layer(x, None, bias)
        x = self.norms[0](x)
        bias = self.decoder_bias(self.past).permute(2, 0, 1).unsqueeze(0) + self.mask
        for layer in self.decoder:
            y = layer(y, x, bias)
        return nn.functional.linear(self.norms[1](y) * 0.25, self.words.weight)


NETWORKS = {
    # One stream, since both sides read the same embedding; six attentions of two heads each; four hidden layers.
    "t5": Entry(
        exported(T5, ids(1, 6), ids(1, 6)),
        (
            *("16", "40", "44", "48", "52"),
            *(f"{2 * depth} in 2 blocks" for depth in (9, 10, 11, 12, 13, 14) for _ in range(2)),
        ),
        heads=("2",) * 4,
        axes=({1: "words"}, {1: "answer"}),
    )
}
