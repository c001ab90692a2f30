"""Shapes in terms of the inputs' symbols, where onnx's own inference makes up a name or gives up.

One rule an operator: given a node whose operands have shapes, and what is known of its small integer operands, the
shape of each result. An extent that a rule cannot name is None; what a rule names is equal in every run that succeeds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

from compiler.ir.graph import Dim, Node, Value
from compiler.ir.shape_values import ShapeValues
from compiler.ir.symbols import Extent, agreement, exact_quotients, number, product

Shape = tuple[Dim, ...]
SymbolicRule = Callable[[Node, ShapeValues], "list[Shape | None]"]

SYMBOLIC_RULES: dict[str, SymbolicRule] = {}

_END = 2**31 - 1
"""An `end` this large means "to the end" in every exporter."""


def symbolic_rule(*ops: str) -> Callable[[SymbolicRule], SymbolicRule]:
    """Register the symbolic shapes of standard operators."""

    def register(rule: SymbolicRule) -> SymbolicRule:
        SYMBOLIC_RULES.update(dict.fromkeys(ops, rule))
        return rule

    return register


def _shape(value: Value | None) -> Shape:
    return value.shape or () if value is not None else ()


def _items(values: ShapeValues, value: Value | None) -> Shape | None:
    known = values.of(value)
    return None if known is None else known.items


@symbolic_rule("Reshape")
def _reshape(node: Node, values: ShapeValues) -> list[Shape | None]:
    before, wanted = _shape(node.inputs[0]), _items(values, node.inputs[1])
    if wanted is None:
        return [None]
    copies = not node.attribute("allowzero", 0)
    after = [before[a] if item == 0 and copies and a < len(before) else item for a, item in enumerate(wanted)]
    open_axes = [a for a, item in enumerate(after) if item == -1]
    unknown = [a for a, item in enumerate(after) if item is None]
    after = [None if item == -1 else item for item in after]
    if len(open_axes) + len(unknown) == 1:  # what the others leave over, whether the target says so or not
        axis = (open_axes + unknown)[0]
        after[axis] = left_over(before, [item for a, item in enumerate(after) if a != axis], values.facts)
    return [tuple(after)]


def left_over(before: Shape, known: list[Dim], facts: dict[str, Extent]) -> Dim:
    """The one extent of a Reshape's result that makes its product equal; None when that cannot be known."""
    left, right = [Extent.of(d) for d in before], [Extent.of(d) for d in known]
    if None in before or None in known:
        return None
    for exact in ({}, exact_quotients(right, left), facts):
        whole, rest = (product(e.substitute(exact) for e in side) for side in (left, right))
        quotient = whole.divided_by(rest)
        if quotient is not None:
            return quotient.dim
        # H in pairs: that H is even, a run that succeeds has shown.
        numerator = whole.divided_by(Extent(tuple((atoms, 1) for atoms, _ in rest.terms)))
        if numerator is not None and len(rest.terms) == 1 and rest.content > 1:
            return numerator.floor_divided(rest.content).dim
    return None


def learn(node: Node, values: ShapeValues) -> None:
    """Add to the facts what a Reshape of known shapes shows of the extents: windows divide the space that they cut."""
    x, y = node.inputs[0], node.outputs[0]
    if x is not None and x.shape is not None and y.shape is not None and None not in (*x.shape, *y.shape):
        agreement([Extent.of(d) for d in x.shape], [Extent.of(d) for d in y.shape], values.facts)


@symbolic_rule("Flatten")
def _flatten(node: Node, values: ShapeValues) -> list[Shape | None]:
    before = _shape(node.inputs[0])
    axis = int(node.attribute("axis", 1))
    axis += len(before) if axis < 0 else 0
    return [(product(map(Extent.of, before[:axis])).dim, product(map(Extent.of, before[axis:])).dim)]


@symbolic_rule("Expand")
def _expand(node: Node, values: ShapeValues) -> list[Shape | None]:
    wanted = _items(values, node.inputs[1])
    return [None if wanted is None else broadcast([_shape(node.inputs[0]), wanted])]


@symbolic_rule("ConstantOfShape")
def _constant_of_shape(node: Node, values: ShapeValues) -> list[Shape | None]:
    return [_items(values, node.inputs[0])]


@symbolic_rule("Range")
def _range(node: Node, values: ShapeValues) -> list[Shape | None]:
    bounds = [_items(values, v) for v in node.inputs]
    if any(b is None or len(b) != 1 or b[0] is None for b in bounds):
        return [None]
    start, limit, delta = (Extent.of(b[0]) for b in bounds if b is not None)
    count = limit.minus(start)
    if delta.number is None or delta.number < 1 or not count.at_least(0):
        return [(None,)]
    return [(count.plus(number(delta.number - 1)).floor_divided(delta.number).dim,)]


@symbolic_rule("Slice")
def _slice(node: Node, values: ShapeValues) -> list[Shape | None]:
    shape = list(_shape(node.inputs[0]))
    starts, ends = _items(values, node.inputs[1]), _items(values, node.inputs[2])
    axes, steps = (_items(values, node.input(i)) for i in (3, 4))
    if node.input(3) is None:
        count = len(starts or ends or ())
        axes = tuple(range(count)) if count else None
    if axes is None or any(not isinstance(a, int) for a in axes):
        return [None]
    whole = (None,) * len(axes)
    steps = (1,) * len(axes) if node.input(4) is None else steps or whole
    for axis, start, end, step in zip(axes, starts or whole, ends or whole, steps, strict=True):
        assert isinstance(axis, int)
        extent = _slice_extent(shape[axis], start, end)
        if isinstance(step, int) and step > 1 and extent is not None:
            extent = Extent.of(extent).plus(number(step - 1)).floor_divided(step).dim
        shape[axis] = extent if isinstance(step, int) and step > 0 else None
    return [tuple(shape)]


def _slice_extent(dim: Dim, start: Dim, end: Dim) -> Dim:
    """The exact extent of dim[start:end], out-of-range bounds included."""
    extent = Extent.of(dim)
    if dim is None or start is None or end is None:
        return None
    first, last = _place(extent, start), _place(extent, end)
    if first is None or last is None:
        return None
    count = last.minus(first)
    if last == extent or count.at_least(0):  # no start lies behind the end
        return count.dim
    return 0 if first.minus(last).at_least(0) else None


def _place(extent: Extent, bound: Dim) -> Extent | None:
    """Where a bound falls, from 0 to the extent."""
    if isinstance(bound, int) and bound >= _END:
        return extent
    place = Extent.of(bound)
    if place.at_least(0):
        return place.minimum(extent)
    if number(0).minus(place).at_least(1):  # counted from the end
        return extent.minus(number(0).minus(place).minimum(extent))
    return None


@symbolic_rule("Concat")
def _concat(node: Node, values: ShapeValues) -> list[Shape | None]:
    shapes = [_shape(v) for v in node.inputs]
    axis = int(node.attribute("axis")) % len(shapes[0])
    met = [one_extent([s[a] for s in shapes]) for a in range(len(shapes[0]))]
    parts = [s[axis] for s in shapes]
    met[axis] = None if None in parts else reduce(Extent.plus, map(Extent.of, parts)).dim
    return [tuple(met)]


def one_extent(dims: list[Dim]) -> Dim:
    """Of extents that must be equal, the one that says most: a number before a symbol."""
    return next((d for kind in (int, str) for d in dims if isinstance(d, kind)), None)


@symbolic_rule("Split")
def _split(node: Node, values: ShapeValues) -> list[Shape | None]:
    shape = _shape(node.inputs[0])
    axis, count = int(node.attribute("axis", 0)) % len(shape), len(node.outputs)
    sizes = _items(values, node.input(1)) if node.input(1) is not None else None
    if sizes is None:
        part = Extent.of(shape[axis]).divided_by(number(count)) if node.input(1) is None else None
        sizes = (None if part is None or shape[axis] is None else part.dim,) * count
    return [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]


@symbolic_rule("Tile")
def _tile(node: Node, values: ShapeValues) -> list[Shape | None]:
    shape, repeats = _shape(node.inputs[0]), _items(values, node.inputs[1])
    if repeats is None:
        return [None]
    return [tuple(None if None in (d, r) else _product(d, r) for d, r in zip(shape, repeats, strict=True))]


def _product(*dims: Dim) -> Dim:
    return product(map(Extent.of, dims)).dim


@symbolic_rule("Pad")
def _pad(node: Node, values: ShapeValues) -> list[Shape | None]:
    shape, pads = list(_shape(node.inputs[0])), _items(values, node.inputs[1])
    axes = _items(values, node.input(3)) if node.input(3) is not None else tuple(range(len(shape)))
    if pads is None or axes is None or len(pads) != 2 * len(axes):
        return [None]
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        if not isinstance(axis, int):
            return [None]
        parts = (shape[axis], before, after)
        shape[axis] = None if None in parts else reduce(Extent.plus, map(Extent.of, parts)).dim
    return [tuple(shape)]


@symbolic_rule("Conv", "MaxPool", "AveragePool", "LpPool")
def _windows(node: Node, values: ShapeValues) -> list[Shape | None]:
    shape = _shape(node.inputs[0])
    channels = _shape(node.inputs[1])[0] if node.op == "Conv" else shape[1]
    kernel = node.attribute("kernel_shape") or [*_shape(node.inputs[1])[2:]]
    space: list[Dim] = [None] * len(kernel)
    ones = [1] * len(kernel)
    mode, pads = node.attribute("auto_pad", "NOTSET"), node.attribute("pads", [0] * (2 * len(kernel)))
    for i, (window, stride, dilation) in enumerate(
        zip(kernel, node.attribute("strides", ones), node.attribute("dilations", ones), strict=True)
    ):
        extent = shape[2 + i]
        if not isinstance(window, int) or extent is None:
            continue
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            space[i] = Extent.of(extent).plus(number(stride - 1)).floor_divided(stride).dim
        elif stride == 1 or not node.attribute("ceil_mode", 0):
            padding = pads[i] + pads[len(kernel) + i] if mode == "NOTSET" else 0
            room = Extent.of(extent).plus(number(padding - dilation * (window - 1) - 1))
            space[i] = room.floor_divided(stride).plus(number(1)).dim
    result = (shape[0], channels, *space)
    return [result] * len(node.outputs)


@symbolic_rule("ConvTranspose")
def _transposed_windows(node: Node, values: ShapeValues) -> list[Shape | None]:
    shape, weight = _shape(node.inputs[0]), _shape(node.inputs[1])
    channels = _product(weight[1], node.attribute("group", 1))
    kernel = node.attribute("kernel_shape") or [*weight[2:]]
    if node.attribute("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in node.attributes:
        return [(shape[0], channels, *[None] * len(kernel))]
    ones, zeros = [1] * len(kernel), [0] * len(kernel)
    strides, dilations = node.attribute("strides", ones), node.attribute("dilations", ones)
    pads, extra = node.attribute("pads", [*zeros, *zeros]), node.attribute("output_padding", zeros)
    space: list[Dim] = []
    for i, window in enumerate(kernel):
        extent = Extent.of(shape[2 + i])
        reach = dilations[i] * (window - 1) + 1 + extra[i] - pads[i] - pads[len(kernel) + i]
        grown = extent.minus(number(1)).times(number(strides[i])).plus(number(reach))
        space.append(None if shape[2 + i] is None else grown.dim)
    return [(shape[0], channels, *space)]


@symbolic_rule("DepthToSpace", "SpaceToDepth")
def _blocks(node: Node, values: ShapeValues) -> list[Shape | None]:
    batch, channels, *space = _shape(node.inputs[0])
    block = int(node.attribute("blocksize"))
    if node.op == "DepthToSpace":
        depth = Extent.of(channels).divided_by(number(block**2))
        return [(batch, depth.dim if depth else None, *(None if d is None else _product(d, block) for d in space))]
    halves = (None if d is None else Extent.of(d).floor_divided(block).dim for d in space)
    return [(batch, None if channels is None else _product(channels, block**2), *halves)]


@symbolic_rule("Resize", "Upsample")
def _resize(node: Node, values: ShapeValues) -> list[Shape | None]:
    shape = list(_shape(node.inputs[0]))
    if node.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        return [None]
    axes = [int(a) % len(shape) for a in node.attribute("axes", range(len(shape)))]
    sizes = _items(values, node.input(3))
    scales = node.inputs[2] if len(node.inputs) > 2 else None
    if node.input(3) is not None:
        for axis, size in zip(axes, sizes or (None,) * len(axes), strict=True):
            shape[axis] = size
        return [tuple(shape)]
    if scales is None or not scales.is_constant:
        return [None]
    for axis, scale in zip(axes, scales.numpy().ravel().tolist(), strict=True):
        if not isinstance(shape[axis], int):
            shape[axis] = _scaled(shape[axis], float(scale))
    return [tuple(shape)]


def _scaled(dim: Dim, scale: float) -> Dim:
    """The extent times a scale, rounded down, where the scale is a whole number or one part of one."""
    if dim is not None and scale >= 1 and scale == int(scale):
        return _product(dim, int(scale))
    inverse = round(1 / scale) if scale > 0 else 0
    exact = inverse > 0 and inverse & (inverse - 1) == 0 and scale * inverse == 1  # a power of two has no rounding
    return Extent.of(dim).floor_divided(inverse).dim if dim is not None and exact else None


@symbolic_rule("TopK")
def _top_k(node: Node, values: ShapeValues) -> list[Shape | None]:
    shape, count = list(_shape(node.inputs[0])), _items(values, node.inputs[1])
    shape[int(node.attribute("axis", -1))] = count[0] if count else None
    return [tuple(shape)] * len(node.outputs)


@symbolic_rule("MatMul", "MatMulInteger")
def _matmul(node: Node, values: ShapeValues) -> list[Shape | None]:
    a, b = _shape(node.inputs[0]), _shape(node.inputs[1])
    if not a or not b:
        return [None]
    return [(*broadcast([a[:-2], b[:-2]]), *a[-2:-1], *(b[-1:] if len(b) > 1 else ()))]


@symbolic_rule(
    *("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual"),
    *("Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor"),
)
def _elementwise(node: Node, values: ShapeValues) -> list[Shape | None]:
    return [broadcast([_shape(v) for v in node.inputs])]


def broadcast(shapes: list[Shape]) -> Shape:
    """The shape in which operands of these shapes meet."""
    rank = max(len(s) for s in shapes)
    padded = [(1,) * (rank - len(s)) + s for s in shapes]
    return tuple(reduce(_meet, extents) for extents in zip(*padded, strict=True))


def _meet(a: Dim, b: Dim) -> Dim:
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    for x, y in ((a, b), (b, a)):
        if isinstance(x, int):  # the other is as large, or 1
            return x
        # A table of 16 rows cut to S of them: more than 16 would not fit S.
        if x is not None and y is not None and any(x == Extent.of(y).minimum(number(n)).dim for n in _numbers(x)):
            return y
    return None


def _numbers(dim: str) -> list[int]:
    """The number of `min(16,S)`."""
    head = dim.removeprefix("min(").split(",")[0]
    return [int(head)] if dim.startswith("min(") and head.isdigit() and int(head) > 1 else []
