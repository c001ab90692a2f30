"""ShuffleNet V1 and V2 (Zhang et al., 2018; Ma et al., 2018): channel shuffle, grouped 1x1 layers, channel split."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.zoo.blocks import Classifier, conv_bn
from tests.zoo.entry import Entry, exported


def shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Deal the channels of each group out over all groups."""
    batch, channels, height, width = x.shape
    dealt = x.view(batch, groups, channels // groups, height, width).transpose(1, 2).contiguous()
    return dealt.view(batch, channels, height, width)


class UnitV1(nn.Module):
    """stride 2 halves the image and doubles the channels by concatenation with the pooled input."""

    def __init__(self, channels: int, middle: int, stride: int, groups: int = 3) -> None:
        super().__init__()
        self.groups, self.stride = groups, stride
        self.enter = conv_bn(channels, middle, 1, groups=groups)
        self.depthwise = conv_bn(middle, middle, 3, stride, middle, None)
        self.leave = conv_bn(middle, channels, 1, groups=groups, activation=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.leave(self.depthwise(shuffle(self.enter(x), self.groups)))
        if self.stride == 1:
            return functional.relu(x + y)
        return functional.relu(torch.cat([functional.avg_pool2d(x, 3, 2, 1), y], 1))


class UnitV2(nn.Module):
    def __init__(self, half: int, middle: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *(conv_bn(half, middle, 1), conv_bn(middle, middle, 3, 1, middle, None), conv_bn(middle, half, 1)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, taken = x.chunk(2, dim=1)
        return shuffle(torch.cat([kept, self.branch(taken)], 1), 2)


class DownV2(nn.Module):
    def __init__(self, inputs: int, middle: int, half: int) -> None:
        super().__init__()
        self.left = nn.Sequential(conv_bn(inputs, inputs, 3, 2, inputs, None), conv_bn(inputs, half, 1))
        self.right = nn.Sequential(
            *(conv_bn(inputs, middle, 1), conv_bn(middle, middle, 3, 2, middle, None), conv_bn(middle, half, 1)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return shuffle(torch.cat([self.left(x), self.right(x)], 1), 2)


def shufflenet_v1() -> nn.Module:
    return nn.Sequential(conv_bn(3, 24), UnitV1(24, 18, 1), UnitV1(24, 18, 2), UnitV1(48, 36, 1), Classifier(48))


def shufflenet_v2() -> nn.Module:
    return nn.Sequential(conv_bn(3, 16), DownV2(16, 10, 12), UnitV2(12, 14), conv_bn(24, 32, 1), Classifier(32))


NETWORKS = {
    # Shuffled bottlenecks: 3 groups that write by 3 that read. The stream: 24 stay balanced in 3 blocks of 8, and so do
    # the 24 concatenated to them; the last unit's 3 groups of 16 tie all 6 blocks together.
    "v1": Entry(
        exported(shufflenet_v1, (1, 3, 16, 16)),
        ("48 in 6 blocks", "18 in 9 blocks", "18 in 9 blocks", "36 in 9 blocks"),
    ),
    # left and right branch (12 + 12) must match, dealt out to halves of 6 + 6; the unit's branch matches a half.
    "v2": Entry(exported(shufflenet_v2, (1, 3, 16, 16)), ("16", "10", "14", "36 in 5 blocks", "32")),
}
