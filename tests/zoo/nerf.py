"""NeRF (Mildenhall et al., 2020): sines and cosines of coordinates, a skip by concatenation, density before colour."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.entry import Entry, exported


class NeRF(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("octaves", 2.0 ** torch.arange(3))
        encoded = 3 + 3 * 3 * 2
        self.first = nn.ModuleList([nn.Linear(encoded, 24), nn.Linear(24, 26)])
        self.second = nn.ModuleList([nn.Linear(26 + encoded, 28), nn.Linear(28, 30)])
        self.density, self.feature = nn.Linear(30, 1), nn.Linear(30, 20)
        self.view, self.colour = nn.Linear(20 + encoded, 16), nn.Linear(16, 3)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        angles = (x[..., None] * self.octaves).flatten(-2)
        return torch.cat([x, angles.sin(), angles.cos()], -1)

    def forward(self, position: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        encoded = x = self.encode(position)
        for layer in self.first:
            x = torch.relu(layer(x))
        x = torch.cat([encoded, x], -1)
        for layer in self.second:
            x = torch.relu(layer(x))
        y = torch.relu(self.view(torch.cat([self.feature(x), self.encode(direction)], -1)))
        return torch.cat([torch.sigmoid(self.colour(y)), torch.relu(self.density(x))], -1)


NETWORKS = {
    # An octave is a unit, too: the sines and cosines of all three coordinates, of positions and of directions.
    "nerf": Entry(exported(NeRF, (5, 3), (5, 3)), ("24", "26", "28", "30", "20", "16", "3")),
}
