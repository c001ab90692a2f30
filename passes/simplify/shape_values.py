"""Partial evaluation of shape arithmetic: what is known of small integer tensors, element by element.

An element is a number, the name of a symbolic dimension (then it equals that extent), or None. One
rule an operator, in `RULES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from compiler.ir import Dim, Node, Value

_MAX_ELEMENTS = 64


@dataclass(frozen=True)
class ShapeValue:
    """The elements of a tensor of rank 0 (`scalar`) or 1."""

    items: tuple[Dim, ...]
    scalar: bool = False

    @property
    def static(self) -> np.ndarray | None:
        """The tensor when every element is a number."""
        numbers = [i for i in self.items if isinstance(i, int)]
        if len(numbers) != len(self.items):
            return None
        return np.array(numbers[0] if self.scalar else numbers, np.int64)


ShapeRule = Callable[[Node, list[ShapeValue | None]], ShapeValue | None]

RULES: dict[str, ShapeRule] = {}


def shape_value_rule(*ops: str) -> Callable[[ShapeRule], ShapeRule]:
    """Register what operators do to shape values; inputs that are not known come as None."""

    def register(rule: ShapeRule) -> ShapeRule:
        RULES.update(dict.fromkeys(ops, rule))
        return rule

    return register


@dataclass
class ShapeValues:
    """What is known of every small integer tensor of a graph, evaluated in order of the nodes."""

    known: dict[Value, ShapeValue] = field(default_factory=dict)

    def of(self, value: Value | None) -> ShapeValue | None:
        """What is known of `value`, None when nothing is."""
        if value is None:
            return None
        if value.data is None:
            return self.known.get(value)
        if (
            value.data.dtype not in (np.int64, np.int32)
            or len(value.shape or ()) > 1
            or value.data.size > _MAX_ELEMENTS
        ):
            return None
        return ShapeValue(tuple(int(i) for i in value.numpy().reshape(-1)), not value.shape)

    def evaluate(self, node: Node) -> ShapeValue | None:
        """Evaluate the node's first result and remember it."""
        if node.domain or node.op not in RULES or len(node.outputs) != 1:
            return None
        result = RULES[node.op](node, [self.of(v) for v in node.inputs])
        if result is None or len(result.items) > _MAX_ELEMENTS:
            return None
        self.known[node.outputs[0]] = result
        return result


@shape_value_rule("Shape")
def _shape(node: Node, inputs: list[ShapeValue | None]) -> ShapeValue | None:
    x = node.inputs[0]
    if x is None or x.shape is None:
        return None
    return ShapeValue(x.shape[slice(node.attribute("start", 0), node.attribute("end"))])


@shape_value_rule("Size")
def _size(node: Node, inputs: list[ShapeValue | None]) -> ShapeValue | None:
    x = node.inputs[0]
    return None if x is None or x.static_shape is None else ShapeValue((math.prod(x.static_shape),), scalar=True)


@shape_value_rule("Identity")
def _identity(node: Node, inputs: list[ShapeValue | None]) -> ShapeValue | None:
    return inputs[0]


@shape_value_rule("Cast")
def _cast(node: Node, inputs: list[ShapeValue | None]) -> ShapeValue | None:
    # A cast between integer types; extents fit into either.
    return inputs[0] if node.outputs[0].dtype in (np.dtype(np.int64), np.dtype(np.int32)) else None


@shape_value_rule("Squeeze", "Unsqueeze", "Reshape", "Flatten")
def _reshape(node: Node, inputs: list[ShapeValue | None]) -> ShapeValue | None:
    rank = node.outputs[0].rank
    return ShapeValue(inputs[0].items, scalar=rank == 0) if inputs[0] is not None and rank in (0, 1) else None


@shape_value_rule("Concat")
def _concat(node: Node, inputs: list[ShapeValue | None]) -> ShapeValue | None:
    parts = []
    for value, part in zip(node.inputs, inputs, strict=True):
        if part is None:
            extent = value.shape[0] if value is not None and value.shape is not None and len(value.shape) == 1 else None
            if not isinstance(extent, int) or extent > _MAX_ELEMENTS:
                return None
            part = ShapeValue((None,) * extent)
        parts.append(part)
    return ShapeValue(tuple(item for part in parts for item in part.items))


@shape_value_rule("Gather")
def _gather(node: Node, inputs: list[ShapeValue | None]) -> ShapeValue | None:
    data, indices = inputs
    if data is None or indices is None or indices.static is None or node.attribute("axis", 0) not in (0, -1):
        return None
    chosen = indices.static.reshape(-1)
    if any(not -len(data.items) <= i < len(data.items) for i in chosen):
        return None
    return ShapeValue(tuple(data.items[i] for i in chosen), indices.scalar)


@shape_value_rule("Slice")
def _slice(node: Node, inputs: list[ShapeValue | None]) -> ShapeValue | None:
    data = inputs[0]
    bounds = [None if i is None else i.static for i in inputs[1:]]
    if data is None or any(b is None for b, v in zip(bounds, node.inputs[1:], strict=True) if v is not None):
        return None
    start, end = bounds[0], bounds[1]
    step = bounds[3] if len(bounds) > 3 and bounds[3] is not None else np.array([1])
    if start is None or end is None or not len(start) == len(end) == len(step) == 1 or step[0] <= 0:
        return None
    return ShapeValue(data.items[int(start[0]) : int(end[0]) : int(step[0])])


@shape_value_rule("Add", "Sub", "Mul", "Div")
def _arithmetic(node: Node, inputs: list[ShapeValue | None]) -> ShapeValue | None:
    a, b = inputs
    if a is None or b is None:
        return None
    count = max(len(a.items), len(b.items))
    if {len(a.items), len(b.items)} - {1, count}:
        return None
    left, right = a.items * (count // len(a.items)), b.items * (count // len(b.items))
    items = tuple(_combine(node.op, x, y) for x, y in zip(left, right, strict=True))
    return ShapeValue(items, a.scalar and b.scalar)


def _combine(op: str, x: Dim, y: Dim) -> Dim:
    if op in ("Mul", "Div") and y == 1:
        return x
    if op == "Mul" and x == 1:
        return y
    if op in ("Add", "Sub") and y == 0:
        return x
    if op == "Div" and isinstance(x, str) and x == y:
        return None  # 1, unless the extent is 0
    if not isinstance(x, int) or not isinstance(y, int):
        return None
    if op == "Div":  # towards zero, as ONNX divides integers
        return None if y == 0 else (abs(x) // abs(y)) * (1 if (x < 0) == (y < 0) else -1)
    result = {"Add": x + y, "Sub": x - y, "Mul": x * y}[op]
    return result if abs(result) < 2**31 else None  # no shape; it may wrap around


@shape_value_rule("Equal")
def _equal(node: Node, inputs: list[ShapeValue | None]) -> ShapeValue | None:
    """1 or 0 each; an extent is never negative, which is how torch asks whether to keep one (-1)."""
    a, b = inputs
    if a is None or b is None or len(a.items) != len(b.items):
        return None
    return ShapeValue(tuple(_same(x, y) for x, y in zip(a.items, b.items, strict=True)), a.scalar and b.scalar)


def _same(x: Dim, y: Dim) -> Dim:
    if isinstance(x, int) and isinstance(y, int):
        return int(x == y)
    number = x if isinstance(x, int) else y
    return 0 if x is not None and y is not None and isinstance(number, int) and number < 0 else None


@shape_value_rule("Where")
def _where(node: Node, inputs: list[ShapeValue | None]) -> ShapeValue | None:
    condition, yes, no = inputs
    if condition is None or yes is None or no is None:
        return None
    if not len(condition.items) == len(yes.items) == len(no.items):
        return None
    chosen = [
        {1: y, 0: n}.get(c) if isinstance(c, int) else None
        for c, y, n in zip(condition.items, yes.items, no.items, strict=True)
    ]
    return ShapeValue(tuple(chosen), no.scalar)
