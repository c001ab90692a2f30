"""RegNetY (Radosavovic et al., 2020): grouped bottlenecks of constant group width, with squeeze-and-excitation."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.zoo.blocks import Classifier, SqueezeExcite, conv_bn
from tests.zoo.entry import Entry, exported


class YBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, squeezed: int, stride: int, group_width: int = 8) -> None:
        super().__init__()
        groups = outputs // group_width
        self.branch = nn.Sequential(
            *(conv_bn(inputs, outputs, 1), conv_bn(outputs, outputs, 3, stride, groups)),
            *(SqueezeExcite(outputs, squeezed), conv_bn(outputs, outputs, 1, activation=None)),
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride, activation=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.shortcut(x) + self.branch(x))


def regnet() -> nn.Module:
    return nn.Sequential(
        *(conv_bn(3, 10, 3, 2), YBlock(10, 16, 3, 2), YBlock(16, 16, 4, 1), YBlock(16, 24, 5, 2)),
        Classifier(24),
    )


NETWORKS = {
    "regnet_y": Entry(
        exported(regnet, (1, 3, 32, 32)),
        # stem, two stages; before and after each grouped convolution; squeezed widths
        ("10", "16", "24", *["16 in 2 blocks"] * 4, *["24 in 3 blocks"] * 2, "3", "4", "5"),
    )
}
