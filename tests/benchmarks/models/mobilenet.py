"""MobileNets and EfficientNet: networks of depthwise and 1x1 convolutions."""

from __future__ import annotations

import onnx

from tests.benchmarks.models.builder import NetworkBuilder

_INVERTED = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""MobileNetV2's stages: expansion, width, blocks, stride of the first."""
_SQUEEZED = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
"""EfficientNet-B0's stages: the same, and the depthwise kernel."""


def mobilenet_v1(size: int = 224) -> onnx.ModelProto:
    """MobileNet (Howard et al. 2017), width 1."""
    b = NetworkBuilder()
    x = b.node("Relu", b.conv(b.input("input", (1, 3, size, size)), 3, 32, 3, 2))
    channels = 32
    stages = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
    for width, stride in stages:
        x = b.node("Relu", b.conv(x, channels, channels, 3, stride, groups=channels))
        x = b.node("Relu", b.conv(x, channels, width, 1))
        channels = width
    return b.model("mobilenet_v1", {b.classifier(x, channels): (1, 1000)})


def mobilenet_v2(size: int = 224) -> onnx.ModelProto:
    """MobileNetV2 (Sandler et al. 2018), width 1."""
    b = NetworkBuilder()
    low, high = b.scalar(0), b.scalar(6)

    def relu6(x: str) -> str:
        return b.node("Clip", x, low, high)

    x = relu6(b.conv(b.input("input", (1, 3, size, size)), 3, 32, 3, 2))
    channels = 32
    for expand, width, count, first in _INVERTED:
        for stride in (first, *(1,) * (count - 1)):
            inner = channels * expand
            y = relu6(b.conv(x, channels, inner, 1)) if expand > 1 else x
            y = relu6(b.conv(y, inner, inner, 3, stride, groups=inner))
            y = b.conv(y, inner, width, 1)
            x = b.node("Add", x, y) if stride == 1 and channels == width else y
            channels = width
    return b.model("mobilenet_v2", {b.classifier(relu6(b.conv(x, channels, 1280, 1)), 1280): (1, 1000)})


def efficientnet_b0(size: int = 224) -> onnx.ModelProto:
    """EfficientNet-B0 (Tan and Le 2019): inverted residuals with squeeze-and-excitation and swish."""
    b = NetworkBuilder()
    x = _swish(b, b.conv(b.input("input", (1, 3, size, size)), 3, 32, 3, 2))
    channels = 32
    for expand, width, count, first, kernel in _SQUEEZED:
        for stride in (first, *(1,) * (count - 1)):
            inner = channels * expand
            y = _swish(b, b.conv(x, channels, inner, 1)) if expand > 1 else x
            y = _swish(b, b.conv(y, inner, inner, kernel, stride, groups=inner))
            y = b.conv(_excite(b, y, inner, channels // 4), inner, width, 1)
            x = b.node("Add", y, x) if stride == 1 and channels == width else y
            channels = width
    x = _swish(b, b.conv(x, channels, 1280, 1))
    return b.model("efficientnet_b0", {b.classifier(x, 1280): (1, 1000)})


def _swish(b: NetworkBuilder, x: str) -> str:
    return b.node("Mul", x, b.node("Sigmoid", x))


def _excite(b: NetworkBuilder, x: str, channels: int, squeezed: int) -> str:
    """Squeeze-and-excitation (Hu et al. 2018): each channel scaled by what two 1x1 convolutions make of the means."""
    y = _swish(b, b.conv(b.node("GlobalAveragePool", x), channels, squeezed, 1, norm=False))
    return b.node("Mul", b.node("Sigmoid", b.conv(y, squeezed, channels, 1, norm=False)), x)
