"""ResNet (He et al., 2016): basic and bottleneck blocks, the zero-padded shortcut of CIFAR (option A), ResNeXt."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.zoo.blocks import Classifier, conv_bn
from tests.zoo.entry import Entry, exported


class Residual(nn.Module):
    """A residual branch, and a projected shortcut where shapes change."""

    def __init__(self, branch: nn.Sequential, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = branch
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride, activation=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.branch(x) + self.shortcut(x))


def basic(inputs: int, outputs: int, stride: int = 1) -> Residual:
    """Two 3x3 convolutions."""
    branch = nn.Sequential(conv_bn(inputs, outputs, 3, stride), conv_bn(outputs, outputs, activation=None))
    return Residual(branch, inputs, outputs, stride)


def bottleneck(inputs: int, middle: int, outputs: int, stride: int = 1, groups: int = 1) -> Residual:
    """1x1, 3x3 (in groups for ResNeXt), 1x1."""
    branch = nn.Sequential(
        conv_bn(inputs, middle, 1),
        conv_bn(middle, middle, 3, stride, groups),
        conv_bn(middle, outputs, 1, activation=None),
    )
    return Residual(branch, inputs, outputs, stride)


class OptionA(nn.Module):
    """A basic block whose shortcut takes every other pixel and pads channels with zeros on both sides."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv_bn(inputs, outputs, 3, 2), conv_bn(outputs, outputs, activation=None))
        self.extra = (outputs - inputs) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))
        return functional.relu(self.branch(x) + shortcut)


def resnet_basic() -> nn.Module:
    return nn.Sequential(
        *(conv_bn(3, 8), nn.MaxPool2d(3, 2, 1), basic(8, 8), basic(8, 8)),
        *(basic(8, 16, 2), basic(16, 16), Classifier(16)),
    )


def resnet_bottleneck() -> nn.Module:
    return nn.Sequential(
        *(conv_bn(3, 8), bottleneck(8, 6, 16), bottleneck(16, 6, 16)),
        *(bottleneck(16, 12, 24, 2), bottleneck(24, 12, 24), Classifier(24)),
    )


def resnet_option_a() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), basic(8, 8), OptionA(8, 16), basic(16, 16), Classifier(16))


def resnext() -> nn.Module:
    return nn.Sequential(
        *(conv_bn(3, 8), bottleneck(8, 16, 24, 1, 4), bottleneck(24, 16, 24, 1, 4)),
        *(bottleneck(24, 24, 32, 2, 4), Classifier(32)),
    )


NETWORKS = {
    # A stage's residual stream is one group; each block adds the width between its two convolutions.
    "basic": Entry(exported(resnet_basic, (1, 3, 16, 16)), ("8", "8", "8", "16", "16", "16")),
    "bottleneck": Entry(exported(resnet_bottleneck, (1, 3, 16, 16)), ("8", "16", "24", *["6"] * 4, *["12"] * 4)),
    # The 8 channels of the first stage run on through the middle of the second stage's 16;
    # the 8 that meet zeros are interchangeable.
    "option_a": Entry(exported(resnet_option_a, (1, 3, 16, 16)), ("8", "8", "8", "16", "16")),
    "resnext": Entry(
        exported(resnext, (1, 3, 16, 16)),
        ("8", "24", "32", *["16 in 4 blocks"] * 4, *["24 in 4 blocks"] * 2),
    ),
}
