"""Super-resolution: ESPCN, EDSR, SwinIR and its densely connected kin, with both directions of pixel shuffle.

Shi et al., 2016; Lim et al., 2017; Liang et al., 2021; Hsu et al., 2024 (DRCT).
"""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.entry import Entry, exported
from tests.zoo.swin import SwinBlock


def espcn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 24, 5, padding=2), nn.Tanh(), nn.Conv2d(24, 16, 3, padding=1), nn.Tanh()),
        *(nn.Conv2d(16, 9, 3, padding=1), nn.PixelShuffle(3)),
    )


class Skip(nn.Module):
    """x + scale · branch(x)."""

    def __init__(self, *layers: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.branch, self.scale = nn.Sequential(*layers), scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x) * self.scale


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def edsr(unshuffled: bool = False) -> nn.Module:
    """unshuffled: the image is first folded into channels, and unfolded after the first convolution."""
    head = [conv(3, 12)]
    if unshuffled:
        head = [nn.PixelUnshuffle(2), conv(12, 24), nn.PixelShuffle(2), conv(6, 10), nn.PixelUnshuffle(2), conv(40, 12)]
    blocks = [Skip(conv(12, 14), nn.ReLU(), conv(14, 12), scale=0.1), Skip(conv(12, 16), nn.ReLU(), conv(16, 12))]
    return nn.Sequential(*head, Skip(*blocks, conv(12, 12)), conv(12, 4 * 13), nn.PixelShuffle(2), conv(13, 3))


class ResidualWindows(nn.Module):
    """Window attention over an image, a convolution, and the image added. dense: layers append to what they read."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.growth = growth
        self.first = SwinBlock(width, 2, 28, 8, 4, 0)
        self.second = SwinBlock(width + growth, 2, 30, 8, 4, 2)
        self.adapt = nn.Conv2d(width, growth, 1) if growth else None
        self.conv = conv(width + growth, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.adapt is not None:
            y = torch.cat([x, nn.functional.leaky_relu(self.adapt(y), 0.2)], 1)
        return x + self.conv(self.second(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def swin_ir(growth: int) -> nn.Module:
    return nn.Sequential(
        *(conv(3, 16), Skip(ResidualWindows(16, growth), conv(16, 16))),
        *(conv(16, 20), nn.LeakyReLU(), conv(20, 4 * 11), nn.PixelShuffle(2), conv(11, 3)),
    )


NETWORKS = {
    "espcn": Entry(exported(espcn, (1, 1, 12, 12)), ("24", "16")),
    # The stream, the insides of two blocks, and 13 units of four channels that become one pixel each.
    "edsr": Entry(exported(edsr, (1, 3, 12, 12)), ("12", "14", "16", "13")),
    "edsr_unshuffled": Entry(exported(lambda: edsr(True), (1, 3, 12, 12)), ("6", "10", "12", "14", "16", "13")),
    "swinir": Entry(
        exported(lambda: swin_ir(0), (1, 3, 8, 8)),
        ("16", *["32 in 4 blocks"] * 2, "28", "30", "20", "11"),
        heads=("2",) * 2,
        one_batch=True,
        closed="its masks of shifted windows are made for one size",
    ),
    "drct": Entry(
        exported(lambda: swin_ir(8), (1, 3, 8, 8)),
        # the second block runs over 16 of the stream and 8 that the first appended
        ("16", "8", "32 in 4 blocks", "48 in 4 blocks", "28", "30", "20", "11"),
        heads=("2",) * 2,
        one_batch=True,
        closed="its masks of shifted windows are made for one size",
    ),
}
