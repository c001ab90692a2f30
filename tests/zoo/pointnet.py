"""PointNet (Qi et al., 2017): shared layers over points, a learnt 3x3 transform, a maximum over all points."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from tests.zoo.entry import Entry, exported


def shared(*widths: int) -> nn.Sequential:
    """Layers applied to every point."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Conv1d(inputs, outputs, 1), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class Transform(nn.Module):
    """A k x k matrix, near the identity, computed from all points."""

    def __init__(self, k: int, *widths: int) -> None:
        super().__init__()
        self.k, self.points = k, shared(k, *widths)
        self.hidden, self.out = nn.Linear(widths[-1], 14), nn.Linear(14, k * k)
        self.register_buffer("identity", torch.eye(k).flatten())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.out(torch.relu(self.hidden(self.points(x).max(2).values)))
        return (y + self.identity).view(-1, self.k, self.k)


class PointNet(nn.Module):
    """Segmentation: the global feature is repeated for every point and concatenated to the local one."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = Transform(3, 10, 12)
        self.local, self.whole = shared(3, 16), shared(16, 18, 24)
        self.head = nn.Sequential(shared(40, 20), nn.Conv1d(20, 5, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.bmm(x.transpose(1, 2), self.turn(x)).transpose(1, 2)
        local = self.local(x)
        whole = torch.max(self.whole(local), 2, keepdim=True).values.repeat(1, 1, x.shape[2])
        return self.head(torch.cat([local, whole], 1))


NETWORKS = {
    # The columns of the learnt matrix are 3 channels, which the next layer reads.
    "pointnet": Entry(
        exported(PointNet, (1, 3, 12)),
        ("10", "12", "14", "3", "16", "18", "24", "20"),
        axes=({2: "points"},),
    )
}
