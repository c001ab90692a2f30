"""Rain removal by dilated convolutions in stages that share weights (Yang et al., 2017; Ren et al., 2019)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.zoo.entry import Entry, exported


class Dilated(nn.Module):
    """Three dilations in parallel, added."""

    def __init__(self, channels: int, middle: int) -> None:
        super().__init__()
        self.paths = nn.ModuleList(
            nn.Sequential(
                *(nn.Conv2d(channels, middle, 3, padding=d, dilation=d), nn.LeakyReLU(0.2)),
                nn.Conv2d(middle, channels, 3, padding=d, dilation=d),
            )
            for d in (1, 2, 3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.leaky_relu(x + sum(path(x) for path in self.paths), 0.2)


class Derain(nn.Module):
    """Each stage reads the image and the estimate so far; a convolutional gated unit carries a state between stages."""

    def __init__(self, stages: int = 2) -> None:
        super().__init__()
        self.stages = stages
        self.enter = nn.Conv2d(6, 16, 3, padding=1)
        self.gates, self.candidate = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 16, 3, padding=1)
        self.body = nn.Sequential(Dilated(16, 9), Dilated(16, 11))
        self.streaks, self.mask = nn.Conv2d(16, 3, 3, padding=1), nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        estimate, state = x, None
        for _ in range(self.stages):
            y = functional.relu(self.enter(torch.cat([x, estimate], 1)))
            if state is None:
                state = torch.zeros_like(y)
            update, reset = torch.sigmoid(self.gates(torch.cat([y, state], 1))).chunk(2, 1)
            candidate = torch.tanh(self.candidate(torch.cat([y, reset * state], 1)))
            state = (1 - update) * state + update * candidate
            z = self.body(state)
            estimate = x - self.streaks(z) * torch.sigmoid(self.mask(z))
        return estimate


NETWORKS = {
    # What enters a stage; the state with its gates, the candidate and the body's stream; three paths in each block.
    "derain": Entry(
        exported(Derain, (1, 3, 12, 12)),
        ("16", "16", *["9"] * 3, *["11"] * 3),
    )
}
