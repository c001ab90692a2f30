"""Whole networks for timing, from their papers, with random weights: the shapes and the operators are the point."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class NetworkBuilder:
    """Appends layers to an ONNX graph; weights are scaled so that activations neither vanish nor explode."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def constant(self, array: np.ndarray) -> str:
        """A weight of the model."""
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        """A node with one output; its name."""
        name = f"{op.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def conv(self, x: str, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> str:
        """Convolution without bias, then BatchNormalization."""
        fan = cin // groups * kernel * kernel
        shape = (cout, cin // groups, kernel, kernel)
        weight = self.constant(self._random.standard_normal(shape) * (2 / fan) ** 0.5)
        y = self.node(
            "Conv", x, weight, strides=[stride] * 2, pads=[kernel // 2] * 4, group=groups, kernel_shape=[kernel] * 2
        )
        statistics = (
            self._random.uniform(0.8, 1.2, cout),
            self._random.normal(0, 0.1, cout),
            self._random.normal(0, 0.1, cout),
            self._random.uniform(0.8, 1.2, cout),
        )
        return self.node("BatchNormalization", y, *(self.constant(s) for s in statistics))

    def classifier(self, x: str, channels: int, classes: int) -> str:
        """Global average, flatten, fully connected."""
        flat = self.node("Flatten", self.node("GlobalAveragePool", x))
        weight = self.constant(self._random.standard_normal((classes, channels)) * channels**-0.5)
        return self.node("Gemm", flat, weight, self.constant(np.zeros(classes)), transB=1)

    def model(self, output: str, size: int, classes: int, name: str) -> onnx.ModelProto:
        """The finished model with input `input` of [1, 3, size, size]."""
        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, size, size])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, classes])],
            self._weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def mobilenet_v2(size: int = 224, classes: int = 1000) -> onnx.ModelProto:
    """MobileNetV2 (Sandler et al. 2018), width 1."""
    b = NetworkBuilder()
    low, high = b.constant(np.array(0.0)), b.constant(np.array(6.0))

    def relu6(x: str) -> str:
        return b.node("Clip", x, low, high)

    x = relu6(b.conv("input", 3, 32, 3, 2))
    channels = 32
    for expand, width, count, first in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for index in range(count):
            stride = first if index == 0 else 1
            inner = channels * expand
            y = relu6(b.conv(x, channels, inner, 1)) if expand > 1 else x
            y = relu6(b.conv(y, inner, inner, 3, stride, groups=inner))
            y = b.conv(y, inner, width, 1)
            x = b.node("Add", x, y) if stride == 1 and channels == width else y
            channels = width
    x = relu6(b.conv(x, channels, 1280, 1))
    return b.model(b.classifier(x, 1280, classes), size, classes, "mobilenet_v2")


def resnet18(size: int = 224, classes: int = 1000) -> onnx.ModelProto:
    """ResNet-18 (He et al. 2015)."""
    b = NetworkBuilder()
    x = b.node("Relu", b.conv("input", 3, 64, 7, 2))
    x = b.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for width, first in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for stride in (first, 1):
            y = b.node("Relu", b.conv(x, channels, width, 3, stride))
            y = b.conv(y, width, width, 3)
            shortcut = x if stride == 1 and channels == width else b.conv(x, channels, width, 1, stride)
            x = b.node("Relu", b.node("Add", y, shortcut))
            channels = width
    return b.model(b.classifier(x, 512, classes), size, classes, "resnet18")
