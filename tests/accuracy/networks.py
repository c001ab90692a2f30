"""Four small image classifiers, one a family: residual with channel padding, inverted residual, plain, transformer.

Each takes normalised images `[N, 1, 28, 28]` and gives logits `[N, 10]`, with a few million multiply-accumulates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv_bn(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution that keeps the spatial size but for its stride, and batch normalisation."""
    return [nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(cout)]


class PaddedBlock(nn.Module):
    """Two 3x3 convolutions; a shortcut that changes shape drops pixels and pads channels (option A)."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_bn(cin, cout, 3, stride), nn.ReLU(), *conv_bn(cout, cout, 3))
        self.stride, self.padding = stride, (cout - cin) // 2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.padding:
            shortcut = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return torch.relu(self.body(x) + shortcut)


class ResNet(nn.Module):
    """ResNet-20 for small images, with shortcuts of option A (He et al. 2015, https://arxiv.org/abs/1512.03385)."""

    def __init__(self, width: int = 12, blocks: int = 3) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        layers: list[nn.Module] = [*conv_bn(1, width, 3, stride=2), nn.ReLU()]
        for cin, cout in zip([width, *widths], widths, strict=False):
            layers += [PaddedBlock(cin, cout, 1 if cin == cout else 2)]
            layers += [PaddedBlock(cout, cout, 1) for _ in range(blocks - 1)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1 projection."""

    def __init__(self, cin: int, cout: int, stride: int, expand: int = 6) -> None:
        super().__init__()
        hidden = cin * expand
        self.body = nn.Sequential(
            *conv_bn(cin, hidden, 1),
            nn.ReLU6(),
            *conv_bn(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU6(),
            *conv_bn(hidden, cout, 1),
        )
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class MobileNetV2(nn.Module):
    """Inverted residuals (Sandler et al. 2018, https://arxiv.org/abs/1801.04381), three stages of them."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [*conv_bn(1, 16, 3, stride=2), nn.ReLU6()]
        for cin, cout, stride in ((16, 24, 2), (24, 24, 1), (24, 24, 1), (24, 40, 2), (40, 40, 1)):
            layers.append(InvertedResidual(cin, cout, stride))
        self.features = nn.Sequential(*layers, *conv_bn(40, 160, 1), nn.ReLU6())
        self.head = nn.Linear(160, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class VGG(nn.Module):
    """3x3 convolutions and max pooling, and a hidden layer (Simonyan and Zisserman, https://arxiv.org/abs/1409.1556)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        cin = 1
        for cout in (12, 0, 24, 24, 0, 48, 48, 0, 96):
            layers += [*conv_bn(cin, cout, 3), nn.ReLU()] if cout else [nn.MaxPool2d(2)]
            cin = cout or cin
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Linear(96 * 9, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.features(x).flatten(1))))


class Block(nn.Module):
    """Attention and a hidden layer, each normalised before and added after."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Patches of 7x7 pixels through attention blocks (Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929)."""

    def __init__(self, width: int = 48, depth: int = 4, heads: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 7, 7)
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(1))


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "resnet20": ResNet,
    "mobilenetv2": MobileNetV2,
    "vgg": VGG,
    "vit": ViT,
}
