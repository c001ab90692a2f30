"""Res2Net (Gao et al., 2019): a split into scales, each convolved after the one before it was added."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.zoo.blocks import Classifier, conv_bn
from tests.zoo.entry import Entry, exported


class ScaleBlock(nn.Module):
    def __init__(self, channels: int, width: int, scales: int = 4) -> None:
        super().__init__()
        self.width = width
        self.enter = conv_bn(channels, width * scales, 1)
        self.convs = nn.ModuleList(conv_bn(width, width) for _ in range(scales - 1))
        self.leave = conv_bn(width * scales, channels, 1, activation=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *rest = torch.split(self.enter(x), self.width, 1)
        done = [first]
        for i, (conv, part) in enumerate(zip(self.convs, rest, strict=True)):
            done.append(conv(part if i == 0 else part + done[-1]))
        return functional.relu(x + self.leave(torch.cat(done, 1)))


def res2net() -> nn.Module:
    return nn.Sequential(conv_bn(3, 12), ScaleBlock(12, 4), ScaleBlock(12, 6), Classifier(12))


NETWORKS = {
    # Of each block: the first two parts alone, the next two with the convolution that is added, the last convolution.
    "res2net": Entry(exported(res2net, (1, 3, 16, 16)), ("12", *["4"] * 5, *["6"] * 5))
}
