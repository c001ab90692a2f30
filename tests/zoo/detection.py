"""Detectors: pyramid with a shared head, SSD, YOLO (Lin et al., 2017; Liu et al., 2016; Redmon et al., 2016)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.zoo.blocks import conv_bn
from tests.zoo.entry import Entry, exported


def flat(x: torch.Tensor, numbers: int) -> torch.Tensor:
    """[N, anchors · numbers, H, W] -> [N, H · W · anchors, numbers]."""
    batch, channels, height, width = x.shape
    x = x.view(batch, channels // numbers, numbers, height, width).permute(0, 3, 4, 1, 2)
    return x.reshape(batch, -1, numbers)


class PyramidDetector(nn.Module):
    """Lateral 1x1 convolutions are added from the top down; one head serves all levels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, 3, 2)
        self.stages = nn.ModuleList([conv_bn(8, 12, 3, 2), conv_bn(12, 16, 3, 2), conv_bn(16, 20, 3, 2)])
        self.laterals = nn.ModuleList(nn.Conv2d(c, 14, 1) for c in (12, 16, 20))
        self.smooth = nn.ModuleList(nn.Conv2d(14, 15, 3, padding=1) for _ in range(3))
        self.classes = nn.Sequential(nn.Conv2d(15, 18, 3, padding=1), nn.ReLU(), nn.Conv2d(18, 2 * 5, 3, padding=1))
        self.boxes = nn.Sequential(nn.Conv2d(15, 13, 3, padding=1), nn.ReLU(), nn.Conv2d(13, 2 * 4, 3, padding=1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, levels = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        levels = [lateral(level) for lateral, level in zip(self.laterals, levels, strict=True)]
        for i in (1, 0):
            levels[i] = levels[i] + functional.interpolate(levels[i + 1], scale_factor=2.0, mode="nearest")
        levels = [smooth(level) for smooth, level in zip(self.smooth, levels, strict=True)]
        classes = torch.cat([flat(self.classes(level), 5) for level in levels], 1)
        return classes.sigmoid(), torch.cat([flat(self.boxes(level), 4) for level in levels], 1)


class SSD(nn.Module):
    """Heads of their own at three scales; boxes decoded from prior ones; the first scale is L2-normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 10, 3, 2, 1), nn.ReLU(), nn.Conv2d(10, 16, 3, padding=1), nn.ReLU())
        self.scale = nn.Parameter(torch.full((16,), 20.0))
        self.second = nn.Sequential(nn.Conv2d(16, 9, 1), nn.ReLU(), nn.Conv2d(9, 18, 3, 2, 1), nn.ReLU())
        self.third = nn.Sequential(nn.Conv2d(18, 11, 1), nn.ReLU(), nn.Conv2d(11, 20, 3, 2, 1), nn.ReLU())
        self.classes = nn.ModuleList(nn.Conv2d(c, 3 * 4, 3, padding=1) for c in (16, 18, 20))
        self.boxes = nn.ModuleList(nn.Conv2d(c, 3 * 4, 3, padding=1) for c in (16, 18, 20))
        self.register_buffer("priors", torch.rand(1, 3 * (64 + 16 + 4), 4) + 0.1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = self.first(x)
        second = self.second(first)
        levels = [functional.normalize(first, dim=1) * self.scale[None, :, None, None], second, self.third(second)]
        classes = torch.cat([flat(m(x), 4) for m, x in zip(self.classes, levels, strict=True)], 1).softmax(-1)
        offsets = torch.cat([flat(m(x), 4) for m, x in zip(self.boxes, levels, strict=True)], 1)
        centres = self.priors[..., :2] + offsets[..., :2] * 0.1 * self.priors[..., 2:]
        sizes = self.priors[..., 2:] * torch.exp(offsets[..., 2:] * 0.2)
        return classes, torch.cat([centres - sizes / 2, centres + sizes / 2], -1)


class CrossStage(nn.Module):
    """One convolution, chunked; residual blocks run on the second half; all parts are concatenated."""

    def __init__(self, inputs: int, half: int, outputs: int, middles: tuple[int, ...]) -> None:
        super().__init__()
        self.enter = conv_bn(inputs, 2 * half, 1, activation=nn.SiLU)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv_bn(half, m, activation=nn.SiLU), conv_bn(m, half, activation=nn.SiLU)) for m in middles
        )
        self.leave = conv_bn((2 + len(middles)) * half, outputs, 1, activation=nn.SiLU)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class PoolingPyramid(nn.Module):
    def __init__(self, channels: int, middle: int) -> None:
        super().__init__()
        self.enter = conv_bn(channels, middle, 1, activation=nn.SiLU)
        self.leave = conv_bn(4 * middle, channels, 1, activation=nn.SiLU)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [self.enter(x)]
        for _ in range(3):
            parts.append(functional.max_pool2d(parts[-1], 5, 1, 2))
        return self.leave(torch.cat(parts, 1))


class YOLO(nn.Module):
    """Path aggregation over two levels; box sides are expectations over four distributions of 4 bins each."""

    def __init__(self) -> None:
        super().__init__()
        silu = nn.SiLU
        self.stem = nn.Sequential(conv_bn(3, 8, 3, 2, activation=silu), conv_bn(8, 12, 3, 2, activation=silu))
        self.first = CrossStage(12, 6, 14, (6, 7))
        self.down, self.second = conv_bn(14, 20, 3, 2, activation=silu), CrossStage(20, 9, 22, (10,))
        self.pyramid = PoolingPyramid(22, 11)
        self.up, self.back = CrossStage(36, 5, 16, ()), conv_bn(16, 17, 3, 2, activation=silu)
        self.top = CrossStage(39, 8, 18, ())
        self.boxes = nn.ModuleList(nn.Sequential(conv_bn(c, 13), nn.Conv2d(13, 16, 1)) for c in (16, 18))
        self.classes = nn.ModuleList(nn.Sequential(conv_bn(c, 15), nn.Conv2d(15, 5, 1)) for c in (16, 18))
        self.bins = nn.Conv2d(4, 1, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.first(self.stem(x))
        deep = self.pyramid(self.second(self.down(first)))
        low = self.up(torch.cat([functional.interpolate(deep, scale_factor=2.0), first], 1))
        high = self.top(torch.cat([self.back(low), deep], 1))
        found = []
        for level, boxes, classes in zip((low, high), self.boxes, self.classes, strict=True):
            found.append(torch.cat([boxes(level), classes(level)], 1).flatten(2))
        boxes, classes = torch.cat(found, 2).split((16, 5), 1)
        batch = x.shape[0]
        sides = self.bins(boxes.view(batch, 4, 4, -1).transpose(1, 2).softmax(1)).view(batch, 4, -1)
        return torch.cat([sides, classes.sigmoid()], 1)


NETWORKS = {
    # Backbone; laterals meet by addition, and what they are smoothed to meets in the shared head.
    "fpn": Entry(exported(PyramidDetector, (1, 3, 32, 32)), ("8", "12", "16", "20", "14", "15", "18", "13")),
    "ssd": Entry(
        exported(SSD, (1, 3, 16, 16)),
        ("10", "16", "9", "18", "11", "20"),
    ),
    "yolo": Entry(
        exported(YOLO, (1, 3, 32, 32)),
        (
            *("8", "12", "6", "6", "6", "7", "14"),  # first stage: the halves of its chunk; the insides of its blocks
            *("20", "9", "9", "10", "22", "11", "22"),  # second stage, pooling pyramid
            *("5", "5", "16", "17", "8", "8", "18", *["13"] * 2, *["15"] * 2),
            "4",  # a bin of all four distributions
        ),
    ),
}
