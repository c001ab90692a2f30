"""DenseNet (Huang et al., 2017): every layer reads the concatenation of all before it, after a BatchNorm of its own."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.blocks import Classifier
from tests.zoo.entry import Entry, exported


def norm_conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """BatchNorm, ReLU, convolution, in this order."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), conv)


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, bottleneck: int, growth: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(norm_conv(inputs, bottleneck, 1), norm_conv(bottleneck, growth, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.branch(x)], 1)


def densenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        *(DenseLayer(8 + 4 * i, 16, 4) for i in range(3)),
        *(norm_conv(20, 10, 1), nn.AvgPool2d(2)),
        *(DenseLayer(10 + 6 * i, 18, 6) for i in range(2)),
        *(nn.BatchNorm2d(22), nn.ReLU(), Classifier(22)),
    )


NETWORKS = {
    "densenet": Entry(exported(densenet, (1, 3, 16, 16)), ("8", *["16"] * 3, *["4"] * 3, "10", *["18"] * 2, *["6"] * 2))
}
