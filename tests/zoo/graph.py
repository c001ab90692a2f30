"""Graph convolution and graph attention as products with an adjacency matrix (Kipf and Welling, 2017; GAT, 2018)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.zoo.entry import Entry, exported


class GraphConvolution(nn.Module):
    """Nodes' features, averaged over neighbours; the whole graph is read out by mean and maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 20), nn.Linear(20, 24), nn.Linear(24, 24)])
        self.head = nn.Sequential(nn.Linear(48, 18), nn.ReLU(), nn.Linear(18, 4))

    def forward(self, x: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        mean = adjacency.abs() / adjacency.abs().sum(-1, keepdim=True)
        x = functional.relu(mean @ self.layers[0](x))
        x = functional.relu(mean @ self.layers[1](x))
        x = x + functional.relu(mean @ self.layers[2](x))
        return self.head(torch.cat([x.mean(1), x.max(1).values], -1))


class GraphAttention(nn.Module):
    """Additive scores: one number of the sender plus one of the receiver, in each of three heads."""

    def __init__(self, heads: int = 3, depth: int = 7) -> None:
        super().__init__()
        self.heads, self.depth = heads, depth
        self.project = nn.Linear(6, heads * depth, bias=False)
        self.sender, self.receiver = (nn.Parameter(torch.randn(heads, depth)) for _ in range(2))
        self.out = nn.Sequential(nn.Linear(heads * depth, 30), nn.ReLU(), nn.Linear(30, 4))

    def forward(self, x: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        h = self.project(x).view(x.shape[0], -1, self.heads, self.depth)
        scores = (h * self.sender).sum(-1).unsqueeze(1) + (h * self.receiver).sum(-1).unsqueeze(2)
        scores = functional.leaky_relu(scores, 0.2) + adjacency.unsqueeze(-1)
        mixed = torch.einsum("bijh,bjhd->bihd", scores.softmax(2), h)
        return self.out(functional.elu(mixed.flatten(2)))


NETWORKS = {
    "gcn": Entry(
        exported(GraphConvolution, (1, 7, 6), (1, 7, 7)),
        ("20", "24", "18"),
        axes=({1: "nodes"}, {1: "nodes", 2: "nodes"}),
    ),
    # A head's depths are its own: sender and receiver hold a vector for each head.
    "gat": Entry(
        exported(GraphAttention, (1, 7, 6), (1, 7, 7)),
        ("21 in 3 blocks", "30"),
        heads=("3",),
        axes=({1: "nodes"}, {1: "nodes", 2: "nodes"}),
    ),
}
