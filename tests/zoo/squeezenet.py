"""SqueezeNet (Iandola et al., 2016): fire modules; the last convolution is the classifier."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.zoo.entry import Entry, exported


class Fire(nn.Module):
    def __init__(self, inputs: int, squeezed: int, one: int, three: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.one = nn.Conv2d(squeezed, one, 1)
        self.three = nn.Conv2d(squeezed, three, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.squeeze(x))
        return torch.cat([functional.relu(self.one(x)), functional.relu(self.three(x))], 1)


def squeezenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 12, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)),
        *(Fire(12, 4, 8, 9), Fire(17, 5, 10, 11), nn.MaxPool2d(2), nn.Dropout()),
        *(nn.Conv2d(21, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


NETWORKS = {"squeezenet": Entry(exported(squeezenet, (1, 3, 32, 32)), ("12", "4", "8", "9", "5", "10", "11"))}
