"""What the networks are built with: layers as exporters write them, appended to an ONNX graph, random weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8
"""The first opset with LayerNormalization; old enough for every peer (DeepSparse 1.8 reads up to IR version 9)."""


class NetworkBuilder:
    """Appends layers to an ONNX graph; weights are scaled so that activations neither vanish nor explode."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: Sequence[int], dtype: int = TensorProto.FLOAT) -> str:
        """An input of the model; its name."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def constant(self, array: np.ndarray, dtype: type = np.float32) -> str:
        """A constant of the model; its name."""
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def indices(self, *values: int) -> str:
        """An int64 vector: a shape, axes, bounds."""
        return self.constant(np.array(values), np.int64)

    def scalar(self, value: float) -> str:
        """A float scalar."""
        return self.constant(np.array(value))

    def normal(self, *shape: int, scale: float) -> str:
        """A weight of normal numbers."""
        numbers = self._random.standard_normal(shape, np.float32)
        numbers *= np.float32(scale)
        return self.constant(numbers)

    def around(self, value: float, size: int) -> str:
        """A vector of numbers around `value`: biases, scales, statistics."""
        return self.constant(value + self._random.uniform(-0.2, 0.2, size))

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        """A node with one output; its name."""
        return self.nodes(op, 1, *inputs, **attributes)[0]

    def nodes(self, op: str, outputs: int, *inputs: str, **attributes: object) -> list[str]:
        """A node with several outputs; their names."""
        name = f"{op.lower()}{len(self._nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(op, list(inputs), names, name=name, **attributes))
        return names

    def conv(
        self, x: str, cin: int, cout: int, kernel: int, stride: int = 1, *, groups: int = 1, norm: bool = True
    ) -> str:
        """Convolution with "same" padding; then BatchNormalization (norm), or else a bias."""
        fan = cin // groups * kernel * kernel
        weights = [self.normal(cout, cin // groups, kernel, kernel, scale=(2 / fan) ** 0.5)]
        weights += [] if norm else [self.around(0, cout)]
        pads, shape = [kernel // 2] * 4, [kernel] * 2
        y = self.node("Conv", x, *weights, strides=[stride] * 2, pads=pads, group=groups, kernel_shape=shape)
        return self.batch_norm(y, cout) if norm else y

    def batch_norm(self, x: str, channels: int) -> str:
        """BatchNormalization for inference: scale, shift, mean, variance."""
        return self.node("BatchNormalization", x, *(self.around(value, channels) for value in (1, 0, 0, 1)))

    def layer_norm(self, x: str, width: int, epsilon: float) -> str:
        """LayerNormalization over the last axis."""
        return self.node(
            "LayerNormalization", x, self.around(1, width), self.around(0, width), axis=-1, epsilon=epsilon
        )

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        """A fully connected layer over the last axis, as exporters write it for more than two axes."""
        product = self.node("MatMul", x, self.normal(inputs, outputs, scale=inputs**-0.5))
        return self.node("Add", self.around(0, outputs), product)

    def gemm(self, x: str, inputs: int, outputs: int) -> str:
        """A fully connected layer on a matrix."""
        weight = self.normal(outputs, inputs, scale=inputs**-0.5)
        return self.node("Gemm", x, weight, self.around(0, outputs), transB=1)

    def gelu(self, x: str) -> str:
        """x (1 + erf(x / sqrt 2)) / 2, as PyTorch's exporter writes it."""
        erf = self.node("Erf", self.node("Div", x, self.scalar(2**0.5)))
        return self.node("Mul", self.node("Mul", x, self.node("Add", erf, self.scalar(1))), self.scalar(0.5))

    def reshape(self, x: str, *shape: int) -> str:
        """Reshape to a constant shape."""
        return self.node("Reshape", x, self.indices(*shape))

    def transpose(self, x: str, *order: int) -> str:
        """Transpose; order: the axes."""
        return self.node("Transpose", x, perm=order)

    def classifier(self, x: str, channels: int, classes: int = 1000) -> str:
        """Global average, flatten, fully connected."""
        return self.gemm(self.node("Flatten", self.node("GlobalAveragePool", x)), channels, classes)

    def model(self, name: str, outputs: dict[str, Sequence[int]]) -> onnx.ModelProto:
        """The finished model; outputs: shapes by name."""
        results = [helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in outputs.items()]
        graph = helper.make_graph(self._nodes, name, self._inputs, results, self._weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
