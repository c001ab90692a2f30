"""EfficientNet (Tan and Le, 2019, 2021): MBConv and Fused-MBConv blocks with SiLU."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.blocks import Classifier, SqueezeExcite, conv_bn
from tests.zoo.entry import Entry, exported


class MBConv(nn.Module):
    """fused: one full 3x3 takes the place of the 1x1 and the depthwise convolution."""

    def __init__(self, inputs: int, expanded: int, outputs: int, squeezed: int = 0, stride: int = 1) -> None:
        super().__init__()
        fused = squeezed == 0
        layers: list[nn.Module] = []
        if fused:
            layers.append(conv_bn(inputs, expanded, 3, stride, activation=nn.SiLU))
        else:
            if expanded != inputs:
                layers.append(conv_bn(inputs, expanded, 1, activation=nn.SiLU))
            layers.append(conv_bn(expanded, expanded, 5, stride, expanded, nn.SiLU))
            layers.append(SqueezeExcite(expanded, squeezed))
        layers.append(conv_bn(expanded, outputs, 1, activation=None))
        self.branch = nn.Sequential(*layers)
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x) if self.residual else self.branch(x)


def efficientnet_b() -> nn.Module:
    return nn.Sequential(
        *(conv_bn(3, 8, 3, 2, activation=nn.SiLU), MBConv(8, 8, 6, 2), MBConv(6, 24, 6, 3), MBConv(6, 28, 10, 4, 2)),
        *(conv_bn(10, 32, 1, activation=nn.SiLU), Classifier(32)),
    )


def efficientnet_v2() -> nn.Module:
    return nn.Sequential(
        *(conv_bn(3, 8, 3, 2, activation=nn.SiLU), MBConv(8, 16, 8), MBConv(8, 20, 12, stride=2)),
        *(MBConv(12, 36, 12, 3), conv_bn(12, 32, 1, activation=nn.SiLU), Classifier(32)),
    )


NETWORKS = {
    "b": Entry(exported(efficientnet_b, (1, 3, 16, 16)), ("8", "2", "6", "24", "3", "28", "4", "10", "32")),
    "v2": Entry(exported(efficientnet_v2, (1, 3, 16, 16)), ("8", "16", "20", "12", "36", "3", "32")),
}
