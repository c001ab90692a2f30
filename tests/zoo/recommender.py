"""Recommenders: two towers that meet in a product, and DeepFM (Covington et al., 2016; Guo et al., 2017)."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn import functional

from tests.zoo.entry import Entry, exported, ids


def tower(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-2])


class TwoTower(nn.Module):
    """The user's history is a mean of embeddings; cosine similarity with every item."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.users = nn.Embedding(20, 14), nn.Embedding(20, 10)
        self.user, self.item = tower(24, 30, 16), tower(14, 26, 16)

    def forward(self, user: torch.Tensor, history: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        seen = self.items(history).mean(1)
        left = self.user(torch.cat([self.users(user), seen], -1))
        right = self.item(self.items(item))
        return functional.normalize(left, dim=-1) @ functional.normalize(right, dim=-1).T


class DeepFM(nn.Module):
    """First-order weights, products of pairs by the square of the sum, and a deep part over all fields."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Embedding(12, 1) for _ in range(4))
        self.second = nn.ModuleList(nn.Embedding(12, 9) for _ in range(4))
        self.deep = nn.Sequential(nn.Linear(36, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 1))

    def forward(self, fields: torch.Tensor) -> torch.Tensor:
        linear = sum(table(fields[:, i]) for i, table in enumerate(self.first))
        found = torch.stack([table(fields[:, i]) for i, table in enumerate(self.second)], 1)
        pairs = 0.5 * (found.sum(1).pow(2) - found.pow(2).sum(1)).sum(1, keepdim=True)
        return torch.sigmoid(linear + pairs + self.deep(found.flatten(1)))


NETWORKS = {
    # Item embeddings serve both towers; the towers' ends meet.
    "two_tower": Entry(
        exported(TwoTower, ids(3), ids(3, 5), ids(4)),
        ("14", "10", "30", "26", "16"),
    ),
    "deepfm": Entry(exported(DeepFM, ids(3, 4)), ("9", "30", "20")),
}
