"""What a node costs: multiply-accumulates, parameters, bytes moved. One rule per operator, by decorator.

MACs count one multiply and one add as one; operators without a rule count no MACs (they move bytes).
Symbolic extents count as `symbol`, 1 unless told otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from compiler.errors import SecateurError
from compiler.ir.graph import Graph, Node, Value, subgraphs

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Cost:
    """macs: multiply-accumulates. params: elements of float and 8-bit constants. bytes_moved: read plus written."""

    macs: int = 0
    params: int = 0
    bytes_moved: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.macs + other.macs, self.params + other.params, self.bytes_moved + other.bytes_moved)


CostRule = Callable[[Node, list[Shape | None], list[Shape]], int]
"""(node, input shapes, output shapes) -> MACs. The shape of a result after the first that is not known is ()."""

COST_RULES: dict[tuple[str, str], CostRule] = {}


def cost_rule(*ops: str, domain: str = "") -> Callable[[CostRule], CostRule]:
    """Register the MAC count of operators."""

    def register(rule: CostRule) -> CostRule:
        for op in ops:
            COST_RULES[domain, op] = rule
        return rule

    return register


def numeric_shape(value: Value, symbol: int = 1) -> Shape:
    """The shape with symbolic extents replaced by `symbol`; E_SHAPE when the rank is unknown."""
    if value.shape is None:
        raise SecateurError(
            "E_SHAPE",
            f"the shape of {value.name!r} is unknown, so its cost is too",
            where=value.producer.describe() if value.producer else value.name,
            hint="bind the model's symbolic dimensions with --shape NAME=1x3x224x224",
        )
    return tuple(d if isinstance(d, int) else symbol for d in value.shape)


def node_macs(node: Node, shapes: Mapping[Value, Shape] | None = None, symbol: int = 1) -> int:
    """Multiply-accumulates of one node; `shapes` overrides the recorded shapes (a plan not yet applied)."""
    rule = COST_RULES.get((node.domain, node.op))
    if rule is None:
        return sum(node_macs(n, shapes, symbol) for body in subgraphs(node) for n in body.nodes)

    def shape(value: Value) -> Shape:
        if shapes is not None and value in shapes:
            return shapes[value]
        return numeric_shape(value, symbol)

    first, *others = node.outputs
    outputs = [shape(first), *(() if v.shape is None else shape(v) for v in others)]
    return rule(node, [None if v is None else shape(v) for v in node.inputs], outputs)


def is_parameter(value: Value) -> bool:
    """True for the constants that count as parameters: floating point or 8-bit, more than a scalar."""
    if value.data is None or not value.data.shape:
        return False
    dtype = value.data.dtype
    return dtype.kind in "fVc" or (dtype.kind in "iu" and dtype.itemsize == 1)


def graph_cost(graph: Graph, symbol: int = 1) -> Cost:
    """The whole graph's cost; a constant that several nodes share counts once among the parameters."""
    macs = sum(node_macs(n, None, symbol) for n in graph.nodes)
    params = sum(c.data.size for c in graph.all_constants() if c.data is not None and is_parameter(c))
    moved = sum(_bytes(v, symbol) for n in graph.nodes for v in (*n.inputs, *n.outputs) if v is not None)
    return Cost(macs, params, moved)


def node_cost(node: Node, symbol: int = 1) -> Cost:
    """One node's cost, with that of its bodies save for what they move."""
    read = [v for v in node.inputs if v is not None]
    read += [c for body in subgraphs(node) for c in body.all_constants()]
    params = sum(v.data.size for v in dict.fromkeys(read) if v.data is not None and is_parameter(v))
    moved = sum(_bytes(v, symbol) for v in (*node.inputs, *node.outputs) if v is not None)
    return Cost(node_macs(node, None, symbol), params, moved)


def _bytes(value: Value, symbol: int) -> int:
    if value.dtype is None or value.shape is None:
        return 0
    return math.prod(numeric_shape(value, symbol)) * value.dtype.itemsize


@cost_rule("Conv", "ConvInteger", "QLinearConv", "DeformConv")
def _conv(node: Node, inputs: list[Shape | None], outputs: list[Shape]) -> int:
    weight = inputs[3] if node.op == "QLinearConv" else inputs[1]
    assert weight is not None
    return math.prod(outputs[0]) * math.prod(weight[1:])


@cost_rule("ConvTranspose")
def _conv_transpose(node: Node, inputs: list[Shape | None], outputs: list[Shape]) -> int:
    x, weight = inputs[0], inputs[1]
    assert x is not None and weight is not None
    return math.prod(x) * math.prod(weight[1:])


@cost_rule("Gemm")
def _gemm(node: Node, inputs: list[Shape | None], outputs: list[Shape]) -> int:
    a = inputs[0]
    assert a is not None
    return math.prod(outputs[0]) * (a[0] if node.attribute("transA", 0) else a[1])


@cost_rule("MatMul", "MatMulInteger", "QLinearMatMul")
def _matmul(node: Node, inputs: list[Shape | None], outputs: list[Shape]) -> int:
    a = inputs[0]
    assert a is not None
    return math.prod(outputs[0]) * a[-1]


@cost_rule("CausalConvWithState")
def _causal_conv(node: Node, inputs: list[Shape | None], outputs: list[Shape]) -> int:
    weight = inputs[1]
    assert weight is not None
    return math.prod(outputs[0]) * weight[-1]


@cost_rule("LSTM", "GRU", "RNN")
def _recurrent(node: Node, inputs: list[Shape | None], outputs: list[Shape]) -> int:
    """Every step of every direction multiplies by W and by R."""
    x, w, r = inputs[:3]
    assert x is not None and w is not None and r is not None
    return x[0] * x[1] * (math.prod(w) + math.prod(r))


@cost_rule("Attention")
def _attention(node: Node, inputs: list[Shape | None], outputs: list[Shape]) -> int:
    """Queries times keys, and scores times values; masked positions count."""
    q, k, v, past = inputs[0], inputs[1], inputs[2], inputs[4] if len(inputs) > 4 else None
    assert q is not None and k is not None and v is not None
    positions = k[-2] + (past[-2] if past is not None else 0)
    return positions * (math.prod(q) + math.prod(outputs[0]))


@cost_rule("LinearAttention")
def _linear_attention(node: Node, inputs: list[Shape | None], outputs: list[Shape]) -> int:
    """Each position adds k v' to the state and reads it with q; the delta rule reads it with k as well."""
    k, v = inputs[1], inputs[2]
    assert k is not None and v is not None
    heads = int(node.attribute("kv_num_heads"))
    writes = 2 if "delta" in node.attribute("update_rule", "gated_delta") else 1
    return writes * math.prod(k) * (v[2] // heads) + math.prod(outputs[0]) * (k[2] // heads)


@cost_rule("Einsum")
def _einsum(node: Node, inputs: list[Shape | None], outputs: list[Shape]) -> int:
    """The product of all letters' extents for each product after the first operand."""
    terms = str(node.attribute("equation")).replace(" ", "").partition("->")[0].split(",")
    extents: dict[str, int] = {}
    for term, shape in zip(terms, inputs, strict=True):
        assert shape is not None
        head, dots, tail = term.partition("...")
        extra = len(shape) - len(head) - len(tail)
        letters = [*head, *(f"-{k}" for k in range(extra, 0, -1)), *tail] if dots else list(term)
        for letter, extent in zip(letters, shape, strict=True):
            extents[letter] = max(extents.get(letter, 1), extent)
    return math.prod(extents.values()) * (len(terms) - 1)
