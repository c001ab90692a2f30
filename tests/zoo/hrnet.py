"""HRNet (Wang et al., 2020): two resolutions in parallel that exchange information again and again."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.zoo.blocks import conv_bn
from tests.zoo.entry import Entry, exported


class Exchange(nn.Module):
    """A residual block in each branch, then each branch adds the other, resampled."""

    def __init__(self, high: int, low: int, middles: tuple[int, int]) -> None:
        super().__init__()
        self.high = nn.Sequential(conv_bn(high, middles[0]), conv_bn(middles[0], high, activation=None))
        self.low = nn.Sequential(conv_bn(low, middles[1]), conv_bn(middles[1], low, activation=None))
        self.up = nn.Sequential(conv_bn(low, high, 1, activation=None), nn.Upsample(scale_factor=2, mode="nearest"))
        self.down = conv_bn(high, low, 3, 2, activation=None)

    def forward(self, high: torch.Tensor, low: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        high, low = functional.relu(high + self.high(high)), functional.relu(low + self.low(low))
        return functional.relu(high + self.up(low)), functional.relu(low + self.down(high))


class HRNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 10)
        self.to_high, self.to_low = conv_bn(10, 8), conv_bn(10, 12, 3, 2)
        self.stages = nn.ModuleList([Exchange(8, 12, (7, 9)), Exchange(8, 12, (6, 11))])
        self.head = nn.Sequential(conv_bn(20, 16, 1), nn.Conv2d(16, 5, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        high, low = self.to_high(x), self.to_low(x)
        for stage in self.stages:
            high, low = stage(high, low)
        low = functional.interpolate(low, scale_factor=2, mode="bilinear", align_corners=False)
        return self.head(torch.cat([high, low], 1))


NETWORKS = {"hrnet": Entry(exported(HRNet, (1, 3, 16, 16)), ("10", "8", "12", "7", "9", "6", "11", "16"))}
