"""Residual networks (He et al. 2015)."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from tests.benchmarks.models.builder import NetworkBuilder

_Branch = Callable[[NetworkBuilder, str, int, int, int], str]
"""The residual branch of a block: (builder, input, its channels, width, stride) -> output."""


def resnet18(size: int = 224) -> onnx.ModelProto:
    """ResNet-18."""
    return _resnet("resnet18", (2, 2, 2, 2), _basic, 1, size)


def resnet50(size: int = 224) -> onnx.ModelProto:
    """ResNet-50 with the stride in the 3x3 convolutions, as every framework has it ("version 1.5")."""
    return _resnet("resnet50", (3, 4, 6, 3), _bottleneck, 4, size)


def _basic(b: NetworkBuilder, x: str, channels: int, width: int, stride: int) -> str:
    return b.conv(b.node("Relu", b.conv(x, channels, width, 3, stride)), width, width, 3)


def _bottleneck(b: NetworkBuilder, x: str, channels: int, width: int, stride: int) -> str:
    y = b.node("Relu", b.conv(x, channels, width, 1))
    return b.conv(b.node("Relu", b.conv(y, width, width, 3, stride)), width, 4 * width, 1)


def _resnet(name: str, depths: tuple[int, ...], branch: _Branch, expansion: int, size: int) -> onnx.ModelProto:
    b = NetworkBuilder()
    x = b.node("Relu", b.conv(b.input("input", (1, 3, size, size)), 3, 64, 7, 2))
    x = b.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for stage, depth in enumerate(depths):
        width, first = 64 << stage, 2 if stage else 1
        for stride in (first, *(1,) * (depth - 1)):
            y = branch(b, x, channels, width, stride)
            same = stride == 1 and channels == width * expansion
            x = b.node("Relu", b.node("Add", y, x if same else b.conv(x, channels, width * expansion, 1, stride)))
            channels = width * expansion
    return b.model(name, {b.classifier(x, channels): (1, 1000)})
