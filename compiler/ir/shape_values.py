"""Partial evaluation of shape arithmetic: what is known of small integer tensors, element by element.

An element is a number, an extent's text (see `symbols`; then it equals that extent in every run), or None. Truth
values are 1 and 0. One rule an operator, in `RULES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from compiler.ir.graph import Dim, Node, Value
from compiler.ir.symbols import Extent, number, product

_MAX_ELEMENTS = 64
_DTYPES = (np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.bool_))


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
    """What is known of every small integer tensor of a graph, evaluated in order of the nodes.

    facts: what atoms of extents are, since Reshapes succeed (see `symbols.agreement`).
    """

    known: dict[Value, ShapeValue] = field(default_factory=dict)
    facts: dict[str, Extent] = field(default_factory=dict)

    def of(self, value: Value | None) -> ShapeValue | None:
        """What is known of `value`, None when nothing is."""
        if value is None:
            return None
        if value.data is None:
            return self.known.get(value)
        if value.data.dtype not in _DTYPES or len(value.shape or ()) > 1 or value.data.size > _MAX_ELEMENTS:
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
    if x is None or x.shape is None or None in x.shape:
        return None
    return ShapeValue((product(Extent.of(d) for d in x.shape).dim,), scalar=True)


@shape_value_rule("Identity")
def _identity(node: Node, inputs: list[ShapeValue | None]) -> ShapeValue | None:
    return inputs[0]


@shape_value_rule("Cast")
def _cast(node: Node, inputs: list[ShapeValue | None]) -> ShapeValue | None:
    """Between integer types, since extents fit into either; of truth values."""
    x, dtype = inputs[0], node.outputs[0].dtype
    if x is None or dtype is None:
        return None
    if dtype == np.bool_:
        return x if set(x.items) <= {0, 1, None} else None
    return x if dtype in _DTYPES else None


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


@shape_value_rule("ConstantOfShape")
def _constant_of_shape(node: Node, inputs: list[ShapeValue | None]) -> ShapeValue | None:
    shape, fill = inputs[0], node.attribute("value")
    if shape is None or len(shape.items) > 1 or fill is None or fill.dtype not in _DTYPES:
        return None
    count = shape.items[0] if shape.items else 1
    if not isinstance(count, int) or not 0 <= count <= _MAX_ELEMENTS:
        return None
    return ShapeValue((int(fill.reshape(-1)[0]),) * count, scalar=not shape.items)


@shape_value_rule("Expand")
def _expand(node: Node, inputs: list[ShapeValue | None]) -> ShapeValue | None:
    x, shape = inputs[0], node.outputs[0].static_shape
    if x is None or shape is None or len(shape) > 1:
        return None
    return ShapeValue(x.items * shape[0] if shape and len(x.items) == 1 else x.items, scalar=not shape)


@shape_value_rule("ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin")
def _reduce(node: Node, inputs: list[ShapeValue | None]) -> ShapeValue | None:
    x, rank = inputs[0], node.outputs[0].rank
    if x is None or rank not in (0, 1) or not x.items or node.attribute("noop_with_empty_axes", 0):
        return None
    total = x.items[0]
    for item in x.items[1:]:
        total = _COMBINE[{"Prod": "Mul", "Sum": "Add", "Max": "Max", "Min": "Min"}[node.op[6:]]](total, item)
    return ShapeValue((total,), scalar=rank == 0)


@shape_value_rule("Neg")
def _negative(node: Node, inputs: list[ShapeValue | None]) -> ShapeValue | None:
    x = inputs[0]
    return None if x is None else ShapeValue(tuple(_subtract(0, item) for item in x.items), x.scalar)


@shape_value_rule("Not")
def _not(node: Node, inputs: list[ShapeValue | None]) -> ShapeValue | None:
    x = inputs[0]
    return None if x is None else ShapeValue(tuple(_not_item(i) for i in x.items), x.scalar)


@shape_value_rule(
    *("Add", "Sub", "Mul", "Div", "Mod", "Min", "Max"),
    *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor"),
)
def _binary(node: Node, inputs: list[ShapeValue | None]) -> ShapeValue | None:
    if len(inputs) != 2 or (node.op == "Mod" and node.attribute("fmod", 0)):
        return None
    rows = _broadcast(inputs)
    if rows is None:
        return None
    items = tuple(_COMBINE[node.op](x, y) for x, y in zip(*rows, strict=True))
    return ShapeValue(items, all(i is not None and i.scalar for i in inputs))


@shape_value_rule("Where")
def _where(node: Node, inputs: list[ShapeValue | None]) -> ShapeValue | None:
    rows = _broadcast(inputs)
    if rows is None:
        return None
    chosen = [y if c == 1 or y == n else n if c == 0 else None for c, y, n in zip(*rows, strict=True)]
    return ShapeValue(tuple(chosen), all(i is not None and i.scalar for i in inputs))


def _broadcast(inputs: list[ShapeValue | None]) -> list[tuple[Dim, ...]] | None:
    known = [i for i in inputs if i is not None and i.items]
    count = max((len(i.items) for i in known), default=0)
    if len(known) != len(inputs) or any(len(i.items) not in (1, count) for i in known):
        return None
    return [i.items * (count // len(i.items)) for i in known]


def _combined(combine: Callable[[Extent, Extent], Extent | None]) -> Callable[[Dim, Dim], Dim]:
    """Arithmetic on elements from that on extents; a large number is no shape, and may wrap around."""

    def run(x: Dim, y: Dim) -> Dim:
        if x is None or y is None:
            return None
        result = combine(Extent.of(x), Extent.of(y))
        if result is None or (result.number is not None and abs(result.number) >= 2**31):
            return None
        return result.dim

    return run


def _divide(x: Extent, y: Extent) -> Extent | None:
    """ONNX divides integers towards zero."""
    if y == number(0):
        return None
    exact = x.divided_by(y)
    if exact is not None:
        return exact
    if x.number is not None and y.number is not None:
        return number((abs(x.number) // abs(y.number)) * (1 if (x.number < 0) == (y.number < 0) else -1))
    return x.floor_divided(y.number) if y.number is not None and y.number > 0 and x.at_least(0) else None


def _remainder(x: Extent, y: Extent) -> Extent | None:
    """The result has the divisor's sign."""
    if y.number is None or y.number <= 0:
        return None
    return x.minus(x.floor_divided(y.number).times(y))


def _maximum(x: Extent, y: Extent) -> Extent | None:
    return x.plus(y).minus(x.minimum(y))


def _less(x: Extent, y: Extent) -> Extent | None:
    if y.minus(x).at_least(1):
        return number(1)
    return number(0) if x.minus(y).at_least(0) else None


def _equal(x: Extent, y: Extent) -> Extent | None:
    """Extents are never negative, which is how torch asks whether to keep one (-1)."""
    if x == y:
        return number(1)
    return number(0) if x.minus(y).at_least(1) or y.minus(x).at_least(1) else None


def _not_item(x: Dim) -> Dim:
    return int(x == 0) if isinstance(x, int) else None


def _and(x: Dim, y: Dim) -> Dim:
    return 0 if x == 0 or y == 0 else 1 if x == 1 and y == 1 else None


def _or(x: Dim, y: Dim) -> Dim:
    return 1 if x == 1 or y == 1 else 0 if x == 0 and y == 0 else None


def _xor(x: Dim, y: Dim) -> Dim:
    return int(x != y) if isinstance(x, int) and isinstance(y, int) else None


_subtract = _combined(Extent.minus)

_COMBINE: dict[str, Callable[[Dim, Dim], Dim]] = {
    "Add": _combined(Extent.plus),
    "Sub": _subtract,
    "Mul": _combined(Extent.times),
    "Div": _combined(_divide),
    "Mod": _combined(_remainder),
    "Min": _combined(Extent.minimum),
    "Max": _combined(_maximum),
    "Equal": _combined(_equal),
    "Less": _combined(_less),
    "Greater": _combined(lambda x, y: _less(y, x)),
    "LessOrEqual": _combined(lambda x, y: _complement(_less(y, x))),
    "GreaterOrEqual": _combined(lambda x, y: _complement(_less(x, y))),
    "And": _and,
    "Or": _or,
    "Xor": _xor,
}


def _complement(x: Extent | None) -> Extent | None:
    return None if x is None else number(1).minus(x)
