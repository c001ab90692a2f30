"""MobileNet V1, V2, V3 (Howard et al., 2017, 2019; Sandler et al., 2018): depthwise and inverted residual blocks."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.blocks import Classifier, SqueezeExcite, conv_bn
from tests.zoo.entry import Entry, exported


def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Depthwise 3x3, then pointwise."""
    return nn.Sequential(conv_bn(inputs, inputs, 3, stride, inputs, nn.ReLU6), conv_bn(inputs, outputs, 1))


class InvertedResidual(nn.Module):
    def __init__(
        self,
        inputs: int,
        expanded: int,
        outputs: int,
        stride: int = 1,
        squeezed: int = 0,
        activation: type[nn.Module] = nn.ReLU6,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if expanded != inputs:
            layers.append(conv_bn(inputs, expanded, 1, activation=activation))
        layers.append(conv_bn(expanded, expanded, 3, stride, expanded, activation))
        if squeezed:
            layers.append(SqueezeExcite(expanded, squeezed, nn.Hardsigmoid))
        layers.append(conv_bn(expanded, outputs, 1, activation=None))
        self.branch = nn.Sequential(*layers)
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x) if self.residual else self.branch(x)


def mobilenet_v1() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8, 3, 2), separable(8, 16), separable(16, 24, 2), separable(24, 32), Classifier(32))


def mobilenet_v2() -> nn.Module:
    return nn.Sequential(
        *(conv_bn(3, 8, 3, 2, activation=nn.ReLU6), InvertedResidual(8, 8, 6)),
        *(InvertedResidual(6, 18, 6), InvertedResidual(6, 20, 10, 2)),
        *(conv_bn(10, 24, 1, activation=nn.ReLU6), Classifier(24)),
    )


def mobilenet_v3() -> nn.Module:
    swish = nn.Hardswish
    return nn.Sequential(
        *(conv_bn(3, 8, 3, 2, activation=swish), InvertedResidual(8, 24, 8, 1, 6, nn.ReLU)),
        *(InvertedResidual(8, 20, 12, 2), InvertedResidual(12, 32, 12, 1, 7, swish)),
        *(conv_bn(12, 40, 1, activation=swish), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Linear(40, 48), swish(), nn.Dropout(), nn.Linear(48, 10)),
    )


NETWORKS = {
    "v1": Entry(exported(mobilenet_v1, (1, 3, 16, 16)), ("8", "16", "24", "32")),
    "v2": Entry(exported(mobilenet_v2, (1, 3, 16, 16)), ("8", "6", "18", "20", "10", "24")),
    "v3": Entry(exported(mobilenet_v3, (1, 3, 16, 16)), ("8", "24", "6", "20", "12", "32", "7", "40", "48")),
}
