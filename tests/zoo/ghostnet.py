"""GhostNet (Han et al., 2020): half of the channels are depthwise copies of the other half."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.blocks import Classifier, SqueezeExcite, conv_bn
from tests.zoo.entry import Entry, exported


class Ghost(nn.Module):
    def __init__(self, inputs: int, outputs: int, activation: type[nn.Module] | None = nn.ReLU) -> None:
        super().__init__()
        half = outputs // 2
        self.primary = conv_bn(inputs, half, 1, activation=activation)
        self.cheap = conv_bn(half, half, 3, groups=half, activation=activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        primary = self.primary(x)
        return torch.cat([primary, self.cheap(primary)], 1)


class GhostBottleneck(nn.Module):
    def __init__(self, inputs: int, middle: int, outputs: int, stride: int = 1, squeezed: int = 0) -> None:
        super().__init__()
        layers: list[nn.Module] = [Ghost(inputs, middle)]
        if stride > 1:
            layers.append(conv_bn(middle, middle, 3, stride, middle, None))
        if squeezed:
            layers.append(SqueezeExcite(middle, squeezed))
        self.branch = nn.Sequential(*layers, Ghost(middle, outputs, None))
        same = inputs == outputs and stride == 1
        down = [conv_bn(inputs, inputs, 3, stride, inputs, None), conv_bn(inputs, outputs, 1, activation=None)]
        self.shortcut = nn.Identity() if same else nn.Sequential(*down)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.branch(x) + self.shortcut(x)


def ghostnet() -> nn.Module:
    return nn.Sequential(
        *(conv_bn(3, 8), GhostBottleneck(8, 24, 8), GhostBottleneck(8, 32, 20, 2, 7), conv_bn(20, 28, 1)),
        Classifier(28),
    )


NETWORKS = {
    # A unit is a primary channel and its ghost; where the stream of 8 meets them, its channels i and i + 4 pair up too.
    "ghostnet": Entry(exported(ghostnet, (1, 3, 16, 16)), ("4", "12", "16", "7", "10", "28"))
}
