"""Mixtures of experts (Shazeer et al., 2017; Jiang et al., 2024): experts as modules, and stacked in one tensor."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.entry import Entry, exported, ids
from tests.zoo.llama import DecoderLayer, GroupedQueryAttention, RotaryDecoder, SwiGLU


class Router(nn.Module):
    """The weights of the two best experts, which sum to one, and zero for the others: [..., experts]."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, experts, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.linear(x).softmax(-1)
        threshold = weights.topk(2, -1).values[..., -1:]
        kept = torch.where(weights >= threshold, weights, torch.zeros_like(weights))
        return kept / kept.sum(-1, keepdim=True)


class ListedExperts(nn.Module):
    def __init__(self, width: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.router = Router(width, len(hidden))
        self.experts = nn.ModuleList(SwiGLU(width, h) for h in hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.router(x)
        return sum(weights[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


class StackedExperts(nn.Module):
    """One product for all experts: weights are [experts, width, hidden] and [experts, hidden, width]."""

    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.router = Router(width, experts)
        self.up = nn.Parameter(torch.randn(experts, width, hidden) * 0.3)
        self.down = nn.Parameter(torch.randn(experts, hidden, width) * 0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.router(x)
        made = torch.relu(x.unsqueeze(-3) @ self.up) @ self.down  # [N, experts, T, width]
        return (made * weights.transpose(-1, -2).unsqueeze(-1)).sum(-3)


def listed() -> nn.Module:
    feeds = [ListedExperts(16, (20, 22, 24)), ListedExperts(16, (26, 28, 30))]
    return RotaryDecoder(16, 8, [DecoderLayer(16, GroupedQueryAttention(16, 2, 1, 8), f) for f in feeds])


def stacked() -> nn.Module:
    feeds = [StackedExperts(16, 20, 4), StackedExperts(16, 24, 4)]
    return RotaryDecoder(16, 8, [DecoderLayer(16, GroupedQueryAttention(16, 2, 2, 8), f) for f in feeds])


NETWORKS = {
    # Multi-query attention: the 8 values of the only head. Whole experts are modules that go with their router columns.
    "listed": Entry(
        exported(listed, ids(1, 8)),
        ("16", *["3"] * 2, "20", "22", "24", "26", "28", "30", *["8"] * 2, "4"),
        heads=("2",) * 2,
        axes=({1: "tokens"},),
    ),
    # The hidden units of an expert move by themselves, and all experts stay equally wide; whole experts move with
    # their router columns.
    "stacked": Entry(
        exported(stacked, ids(1, 8)),
        ("16", "80 in 4 blocks", "96 in 4 blocks", *["4"] * 2, *["16 in 2 blocks"] * 2, "4"),
        heads=("2",) * 2,
        axes=({1: "tokens"},),
    ),
}
