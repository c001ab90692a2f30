"""Inception (Szegedy et al., 2015, 2016): parallel branches concatenated, factorised convolutions, nested Concat."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.blocks import Classifier, conv_bn
from tests.zoo.entry import Entry, exported


class Branches(nn.Module):
    """Branches side by side, concatenated."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def inception() -> nn.Module:
    first = Branches(
        conv_bn(8, 6, 1),
        nn.Sequential(conv_bn(8, 4, 1), conv_bn(4, 10)),
        nn.Sequential(conv_bn(8, 3, 1), conv_bn(3, 5, 5)),
        nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(8, 7, 1)),
    )
    # 6 + 10 + 5 + 7 = 28 channels; the last branch forks again, so its concatenation is nested
    second = Branches(
        conv_bn(28, 9, 1),
        nn.Sequential(conv_bn(28, 8, 1), conv_bn(8, 8, (1, 5)), conv_bn(8, 11, (5, 1))),
        nn.Sequential(conv_bn(28, 12, 1), Branches(conv_bn(12, 13, (1, 3)), conv_bn(12, 14, (3, 1)))),
        nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), conv_bn(28, 4, 1)),
    )
    return nn.Sequential(conv_bn(3, 8), first, nn.MaxPool2d(2), second, Classifier(51))


NETWORKS = {
    "inception": Entry(
        exported(inception, (1, 3, 16, 16)),
        ("8", "6", "4", "10", "3", "5", "7", "9", "8", "8", "11", "12", "13", "14", "4"),
    )
}
