"""Half precision: which operators compute in float16, with conversions where float16 and float32 meet.

The rules are those of mixed precision training (Micikevicius et al., 2018) as `torch.autocast` has them: products
always in half, element-wise operators and what only moves elements where all their operands are in half already,
everything else (exponentials, powers, softmax, normalisations, reductions) in float32. Inputs and outputs of the graph
keep their types.
"""

from __future__ import annotations

import numpy as np

from compiler.ir.graph import Graph, Node, Value

_HALF, _FULL = np.dtype(np.float16), np.dtype(np.float32)
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_FOLLOWING = frozenset(
    {
        "Identity",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Concat",
        "Split",
        "Slice",
        "Expand",
        "Tile",
    }
    | {"Gather", "Pad", "DepthToSpace", "SpaceToDepth", "Dropout"}
    | {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
    | {"Add", "Sub", "Mul", "Div", "Neg", "Abs", "Min", "Max", "Sum", "Where", "Clip", "Relu", "PRelu", "LeakyRelu"}
    | {"HardSigmoid", "HardSwish", "Sigmoid", "Tanh", "Elu", "Selu", "Celu", "Gelu", "Mish", "Swish", "Softplus"}
    | {"Softsign", "ThresholdedRelu"}
)
"""Operators that follow their operands. Their activations are computed in float32 inside the kernel where that needs a
polynomial, and averages of whole planes are summed in float32."""


def to_half(graph: Graph) -> None:
    """Let the operators of a graph compute in half precision where that is sound.

    A node with a constant that half precision would lose (beyond 65504, or a scalar that would become 0) stays in
    float32.
    """
    _Converter(graph).run()


class _Converter:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._nodes: list[Node] = []
        self._halves: dict[Value, Value] = {}
        self._full: set[Value] = set()
        """Values that exist in half precision, and those of them that exist in float32 too."""

    def run(self) -> None:
        """Replace the graph's nodes."""
        for node in self._graph.nodes:
            if self._computes_in_half(node):
                self._nodes.append(self._converted(node))
            else:
                for value in node.inputs:
                    self._widen(value)
                self._nodes.append(node)
        for value in self._graph.outputs:
            self._widen(value)
        self._graph.nodes = self._nodes

    def _computes_in_half(self, node: Node) -> bool:
        operands = [v for v in node.inputs if v is not None and v.dtype == _FULL]
        if node.domain or not operands or any(v.dtype == np.float64 for v in (*node.inputs, *node.outputs) if v):
            return False
        if any(_lost(v) for v in operands):
            return False
        if node.op in _PRODUCTS:
            return True
        varying = [v for v in operands if not v.is_constant]
        return node.op in _FOLLOWING and bool(varying) and all(v in self._halves for v in varying)

    def _converted(self, node: Node) -> Node:
        """The node in half precision. Values keep their first producer, as after any fusion."""
        half = Node.__new__(Node)
        half.op, half.domain, half.name, half.origin = node.op, node.domain, node.name, node.origin
        half.attributes = dict(node.attributes)
        half.inputs = [self._half(v) if v is not None and v.dtype == _FULL else v for v in node.inputs]
        half.outputs = []
        for value in node.outputs:
            if value.dtype == _FULL:
                self._halves[value] = Value(value.name, _HALF, value.shape)
            half.outputs.append(self._halves.get(value, value))
        return half

    def _half(self, value: Value) -> Value:
        """A value in half precision, converted where nobody made it so."""
        if value not in self._halves:
            if value.is_constant:
                self._halves[value] = Value(value.name, data=value.numpy().astype(_HALF))
            else:
                self._halves[value] = Value(value.name, _HALF, value.shape)
                self._full.add(value)
                self._nodes.append(_cast(value, self._halves[value]))
        return self._halves[value]

    def _widen(self, value: Value | None) -> None:
        """Let a value exist in float32."""
        if value is None or value.is_constant or value not in self._halves or value in self._full:
            return
        self._full.add(value)
        self._nodes.append(_cast(self._halves[value], value))


def _cast(source: Value, target: Value) -> Node:
    node = Node.__new__(Node)
    node.op, node.domain, node.name, node.origin = "Cast", "", f"{source.name}.{target.dtype}", None
    node.inputs, node.outputs, node.attributes = [source], [target], {}
    return node


def _lost(value: Value) -> bool:
    """Whether a constant means something else in half precision."""
    if value.data is None:
        return False
    array = value.numpy()
    with np.errstate(over="ignore"):
        half = array.astype(_HALF)
    overflows = bool(np.any(np.isinf(half) & np.isfinite(array)))
    return overflows or (array.size == 1 and bool(np.any((half == 0) & (array != 0))))
