"""U-Net (Ronneberger et al., 2015) and U-Nets of dense blocks in two and three dimensions (Li et al., 2018)."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.blocks import conv_bn
from tests.zoo.entry import Entry, exported


def double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv_bn(inputs, outputs), conv_bn(outputs, outputs))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.bottom = double(3, 8), double(8, 14), double(14, 20)
        self.up_second, self.up_first = nn.ConvTranspose2d(20, 12, 2, 2), nn.ConvTranspose2d(16, 6, 2, 2)
        self.back_second, self.back_first = double(14 + 12, 16), double(8 + 6, 10)
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(10, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.first(x)
        second = self.second(self.pool(first))
        x = self.up_second(self.bottom(self.pool(second)))
        x = self.back_second(torch.cat([second, x], 1))
        x = self.back_first(torch.cat([first, self.up_first(x)], 1))
        return self.head(x)


class DenseUNet(nn.Module):
    """`dimensions` 2 or 3; each dense layer normalises, convolves and appends `growth` channels."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        volume = dimensions == 3
        self.conv, self.norm = (nn.Conv3d, nn.BatchNorm3d) if volume else (nn.Conv2d, nn.BatchNorm2d)
        self.stem = self.conv(1, 8, 3, padding=1)
        self.encoder = nn.ModuleList([self.layer(8, 4, 3), self.layer(12, 5, 3)])
        self.transition = nn.Sequential(self.layer(17, 12, 1), nn.AvgPool3d(2) if volume else nn.AvgPool2d(2))
        self.bottom = nn.ModuleList([self.layer(12, 6, 3), self.layer(18, 7, 3)])
        up = nn.ConvTranspose3d if volume else nn.ConvTranspose2d
        self.up = up(25, 10, 2, 2)
        self.decoder = self.layer(17 + 10, 9, 3)
        self.head = self.conv(36, 2, 1)

    def layer(self, inputs: int, outputs: int, kernel: int) -> nn.Sequential:
        return nn.Sequential(self.norm(inputs), nn.ReLU(), self.conv(inputs, outputs, kernel, padding=kernel // 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.encoder:
            x = torch.cat([x, layer(x)], 1)
        skip, x = x, self.transition(x)
        for layer in self.bottom:
            x = torch.cat([x, layer(x)], 1)
        x = torch.cat([skip, self.up(x)], 1)
        return self.head(torch.cat([x, self.decoder(x)], 1))


_DENSE = ("8", "4", "5", "12", "6", "7", "10", "9")

NETWORKS = {
    "unet": Entry(
        exported(UNet, (1, 3, 16, 16)),
        (*["8"] * 2, *["14"] * 2, *["20"] * 2, "12", *["16"] * 2, "6", *["10"] * 2),
    ),
    "dense_2d": Entry(exported(lambda: DenseUNet(2), (1, 1, 16, 16)), _DENSE),
    "dense_3d": Entry(exported(lambda: DenseUNet(3), (1, 1, 8, 8, 8)), _DENSE),
}
