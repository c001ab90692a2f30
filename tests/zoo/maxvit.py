"""MaxViT (Tu et al., 2022): an inverted bottleneck, attention inside windows, attention on a dilated grid."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.blocks import SqueezeExcite, conv_bn
from tests.zoo.entry import Entry, exported
from tests.zoo.swin import WindowAttention, unwindow, windows


def grid(x: torch.Tensor, side: int) -> torch.Tensor:
    """[1, H, W, C] -> [H·W / side², side², C], each row `side` x `side` pixels spread over the image."""
    _, height, width, channels = x.shape
    x = x.view(1, side, height // side, side, width // side, channels)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, side * side, channels)


def ungrid(x: torch.Tensor, side: int, height: int, width: int) -> torch.Tensor:
    """The inverse of `grid`."""
    x = x.view(1, height // side, width // side, side, side, -1)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(1, height, width, -1)


class PartitionAttention(nn.Module):
    def __init__(self, width: int, hidden: int, side: int, spread: bool) -> None:
        super().__init__()
        self.side = side
        self.cut, self.join = (grid, ungrid) if spread else (windows, unwindow)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = WindowAttention(width, 2, side)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, height, width, _ = x.shape
        x = x + self.join(self.attention(self.cut(self.norm1(x), self.side)), self.side, height, width)
        return x + self.mlp(self.norm2(x))


class MaxViTBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, hidden: tuple[int, int, int, int]) -> None:
        super().__init__()
        expanded, squeezed, first, second = hidden
        self.branch = nn.Sequential(
            *(nn.BatchNorm2d(inputs), conv_bn(inputs, expanded, 1, activation=nn.GELU)),
            *(conv_bn(expanded, expanded, 3, stride, expanded, nn.GELU), SqueezeExcite(expanded, squeezed)),
            nn.Conv2d(expanded, outputs, 1),
        )
        down = nn.Sequential(nn.AvgPool2d(3, stride, 1), nn.Conv2d(inputs, outputs, 1))
        self.shortcut = down if stride > 1 else nn.Identity()
        self.window = PartitionAttention(outputs, first, 2, False)
        self.grid = PartitionAttention(outputs, second, 2, True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.shortcut(x) + self.branch(x)
        return self.grid(self.window(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class MaxViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 8, 3, 2), nn.Conv2d(8, 12, 3, padding=1))
        self.blocks = nn.Sequential(MaxViTBlock(12, 12, 1, (26, 3, 28, 30)), MaxViTBlock(12, 16, 2, (32, 4, 34, 36)))
        self.norm, self.hidden, self.head = nn.LayerNorm(16), nn.Linear(16, 18), nn.Linear(18, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.stem(x)).mean((2, 3))
        return self.head(torch.tanh(self.hidden(self.norm(x))))


NETWORKS = {
    "maxvit": Entry(
        exported(MaxViT, (1, 3, 16, 16)),
        (
            *("8", "12", "26", "3", "28", "30", *["24 in 4 blocks"] * 2),
            *("16", "32", "4", "34", "36", *["32 in 4 blocks"] * 2, "18"),
        ),
        heads=("2",) * 4,
        one_batch=True,
    )
}
