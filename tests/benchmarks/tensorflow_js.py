"""A network as TensorFlow.js core operators: what `web/tensorflow.mjs` builds beside our package and ONNX Runtime Web.

It starts from the fused graph, so that TensorFlow.js is given its fused operators (bias and activation inside
convolutions, batch normalization folded), in its own layout: images [n, h, w, c], kernels [h, w, in, out].
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from backends.lowering.convolution import window_of
from backends.lowering.fusion import fuse
from backends.lowering.layout import shape_of
from backends.lowering.pairs import PAIR
from backends.lowering.prepare import prepare
from backends.schedules.epilogue import Epilogue
from compiler.ir.graph import Graph, Node, Value

_ACTIVATIONS = {(None, None, None): "linear", ("relu", None, None): "relu", ("clip", 0.0, 6.0): "relu6"}


class Unsupported(Exception):
    """An operator that is not written with those of TensorFlow.js here."""


def export(graph: Graph, folder: Path) -> None:
    """tensorflow.json and tensorflow.bin in a folder. Raises Unsupported, before anything is written."""
    network = _Network()
    for node in _nodes(fuse(prepare(graph))):
        network.add(node)
    source, result = graph.inputs[0], graph.outputs[0]
    n, c, h, w = shape_of(source)
    content = {
        "input": {"name": source.name, "shape": [n, h, w, c]},
        "output": result.name,
        "tensors": [list(array.shape) for array in network.tensors],
        "steps": network.steps,
    }
    (folder / "tensorflow.json").write_text(json.dumps(content))
    (folder / "tensorflow.bin").write_bytes(b"".join(array.tobytes() for array in network.tensors))


def _nodes(graph: Graph) -> Iterator[Node]:
    """The nodes, pairs of them one by one."""
    for node in graph.nodes:
        yield from (node.attribute("first"), node.attribute("second")) if node.op == PAIR else (node,)


class _Network:
    """Steps in order, and the constants that they name by number."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.tensors: list[np.ndarray] = []
        self._pooled: set[Value] = set()

    def add(self, node: Node) -> None:
        """Append a node."""
        rule = getattr(self, f"_{node.op.lower()}", None)
        if rule is None:
            raise Unsupported(node.op)
        rule(node)

    def _tensor(self, array: np.ndarray) -> int:
        self.tensors.append(np.ascontiguousarray(array, np.float32))
        return len(self.tensors) - 1

    def _step(self, op: str, node: Node, **more: Any) -> None:
        x = node.input(0)
        assert x is not None
        self.steps.append({"op": op, "x": x.name, "y": node.outputs[0].name, **more})

    def _ending(self, node: Node) -> dict[str, Any]:
        """Bias, residual and activation of a product."""
        epilogue: Epilogue = node.attribute("epilogue") or Epilogue(bias=node.input(2) is not None)
        activation = _ACTIVATIONS.get((epilogue.activation, epilogue.alpha, epilogue.beta))
        bias, residual = node.input(2) if epilogue.bias else None, node.inputs[-1] if epilogue.residual else None
        if activation is None:
            raise Unsupported(f"{node.op} with {epilogue.activation}")
        return {
            "bias": None if bias is None else self._tensor(bias.numpy().reshape(-1)),
            "residual": None if residual is None else residual.name,
            "activation": activation,
        }

    def _conv(self, node: Node) -> None:
        x, w, y = shape_of(node.input(0)), shape_of(node.input(1)), shape_of(node.outputs[0])
        weight, groups = node.input(1), node.attribute("group", 1)
        assert weight is not None
        window = window_of(node, w[2:], x[2:], y[2:])
        if len(w) != 4 or groups not in (1, x[1]):
            raise Unsupported(f"Conv with {groups} groups")
        grouped = weight.numpy().reshape(groups, w[0] // groups, w[1], *w[2:])
        kernel = grouped[0].transpose(2, 3, 1, 0) if groups == 1 else grouped[:, :, 0].transpose(2, 3, 0, 1)
        more = {"filter": self._tensor(kernel), "strides": window.strides, "dilations": window.dilations}
        op = "conv2d" if groups == 1 else "depthwiseConv2d"
        self._step(op, node, pad=_pads(window.pads), **more, **self._ending(node))

    def _maxpool(self, node: Node) -> None:
        kernel = tuple(node.attribute("kernel_shape"))
        window = window_of(node, kernel, shape_of(node.input(0))[2:], shape_of(node.outputs[0])[2:])
        if set(window.dilations) != {1} or node.attribute("ceil_mode", 0):
            raise Unsupported("MaxPool with dilations or ceil_mode")
        self._step("maxPool", node, size=kernel, strides=window.strides, pad=_pads(window.pads))

    def _globalaveragepool(self, node: Node) -> None:
        """To [n, c]."""
        self._pooled.add(node.outputs[0])
        self._step("mean", node)

    def _flatten(self, node: Node) -> None:
        if node.input(0) not in self._pooled:
            raise Unsupported("Flatten of an image")
        self._step("same", node)

    def _gemm(self, node: Node) -> None:
        weight = node.input(1)
        if weight is None or not weight.is_constant or node.attribute("transA", 0):
            raise Unsupported("Gemm of two activations")
        if (node.attribute("alpha", 1.0), node.attribute("beta", 1.0)) != (1.0, 1.0):
            raise Unsupported("Gemm with factors")
        matrix = weight.numpy().T if node.attribute("transB", 0) else weight.numpy()
        self._step("matMul", node, filter=self._tensor(matrix), **self._ending(node))


def _pads(pads: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    return [(0, 0), *pads, (0, 0)]
