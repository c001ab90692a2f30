"""RAFT (Teed and Deng, 2020): correlation of all pairs, sampled around the flow; recurrent updates; upsampling."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.zoo.entry import Entry, exported


class ConvGRU(nn.Module):
    def __init__(self, hidden: int, inputs: int) -> None:
        super().__init__()
        self.update, self.reset, self.new = (nn.Conv2d(hidden + inputs, hidden, 3, padding=1) for _ in range(3))

    def forward(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat([h, x], 1)
        z, r = torch.sigmoid(self.update(both)), torch.sigmoid(self.reset(both))
        q = torch.tanh(self.new(torch.cat([r * h, x], 1)))
        return (1 - z) * h + z * q


def encoder(middle: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, middle, 3, 2, 1), nn.InstanceNorm2d(middle), nn.ReLU()),
        nn.Conv2d(middle, outputs, 3, 2, 1),
    )


class RAFT(nn.Module):
    """radius 1: nine samples of the correlation around where the flow points."""

    def __init__(self, rounds: int = 2) -> None:
        super().__init__()
        self.rounds = rounds
        self.features, self.context = encoder(8, 14), encoder(9, 12 + 10)
        self.correlations, self.flows = nn.Conv2d(9, 11, 1), nn.Conv2d(2, 7, 3, padding=1)
        self.motion = nn.Conv2d(18, 13, 3, padding=1)
        self.gru = ConvGRU(12, 10 + 13 + 2)
        self.head = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 3, padding=1))
        self.mask = nn.Sequential(nn.Conv2d(12, 15, 3, padding=1), nn.ReLU(), nn.Conv2d(15, 4 * 9, 1))
        y, x = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
        self.register_buffer("places", torch.stack([x, y])[None])
        y, x = torch.meshgrid(torch.arange(-1.0, 2), torch.arange(-1.0, 2), indexing="ij")
        self.register_buffer("around", torch.stack([x, y], -1).view(1, 3, 3, 2))

    def sample(self, volume: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
        centres = (self.places + flow).permute(0, 2, 3, 1).reshape(16, 1, 1, 2)
        grid = (centres + self.around) * (2 / 3) - 1
        return functional.grid_sample(volume, grid, align_corners=True).view(1, 4, 4, 9).permute(0, 3, 1, 2)

    def upsample(self, flow: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        weights = mask.view(1, 1, 9, 2, 2, 4, 4).softmax(2)
        padded = functional.pad(flow, (1, 1, 1, 1))
        near = torch.stack([padded[:, :, i : i + 4, j : j + 4] for i in range(3) for j in range(3)], 2)
        fine = (weights * near.view(1, 2, 9, 1, 1, 4, 4)).sum(2)
        return fine.permute(0, 1, 4, 2, 5, 3).reshape(1, 2, 8, 8)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        left, right = self.features(first).flatten(2), self.features(second).flatten(2)
        volume = (left.transpose(1, 2) @ right / 14**0.5).view(16, 1, 4, 4)
        h, inputs = self.context(first).split((12, 10), 1)
        h, inputs = torch.tanh(h), torch.relu(inputs)
        flow = torch.zeros_like(self.places)
        for _ in range(self.rounds):
            correlation = torch.relu(self.correlations(self.sample(volume, flow)))
            motion = torch.relu(self.motion(torch.cat([correlation, torch.relu(self.flows(flow))], 1)))
            h = self.gru(h, torch.cat([inputs, motion, flow], 1))
            flow = flow + self.head(h)
        return self.upsample(flow, self.mask(h) * 0.25)


NETWORKS = {
    # Encoders (8 and 14; 9, then the state of 12 and the inputs of 10), correlation, flow, motion, the two heads;
    # and the three rows of the neighbourhood that is sampled.
    "raft": Entry(
        exported(RAFT, (1, 3, 16, 16), (1, 3, 16, 16)),
        ("8", "14", "9", "12", "10", "11", "7", "13", "16", "15", "3"),
        one_batch=True,
    )
}
