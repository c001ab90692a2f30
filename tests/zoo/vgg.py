"""VGG (Simonyan and Zisserman, 2015), plain and with BatchNorm."""

from __future__ import annotations

from torch import nn

from tests.zoo.blocks import conv_bn
from tests.zoo.entry import Entry, exported

_WIDTHS = (8, 10, 0, 16, 18, 0, 24)


def vgg(batch_norm: bool) -> nn.Module:
    """Convolutions of the widths above; 0 is a pooling."""
    layers: list[nn.Module] = []
    inputs = 3
    for width in _WIDTHS:
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        plain = nn.Sequential(nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True))
        layers.append(conv_bn(inputs, width) if batch_norm else plain)
        inputs = width
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24 * 4, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10)]
    return nn.Sequential(*layers, *head)


_EXPECTED = ("8", "10", "16", "18", "24", "32")

NETWORKS = {
    "vgg": Entry(
        exported(lambda: vgg(False), (1, 3, 16, 16)),
        _EXPECTED,
        closed="the exporter has to know what AdaptiveAvgPool2d averages",
    ),
    "vgg_bn": Entry(
        exported(lambda: vgg(True), (2, 3, 16, 16)),
        _EXPECTED,
        closed="the exporter has to know what AdaptiveAvgPool2d averages",
    ),
}
