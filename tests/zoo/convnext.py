"""ConvNeXt (Liu et al., 2022): depthwise 7x7, channels-last LayerNorm and hidden layer, layer scale."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.blocks import Classifier
from tests.zoo.entry import Entry, exported


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [N, C, H, W]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.gamma * self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        return x + y.permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 12, 2, 2), ChannelNorm(12), ConvNeXtBlock(12, 44), ConvNeXtBlock(12, 48)),
        *(ChannelNorm(12), nn.Conv2d(12, 20, 2, 2), ConvNeXtBlock(20, 64), Classifier(20)),
    )


NETWORKS = {"convnext": Entry(exported(convnext, (1, 3, 16, 16)), ("12", "44", "48", "20", "64"))}
