"""Element-wise operators with broadcasting: operands that meet at an axis share its labels."""

from __future__ import annotations

import numpy as np

from compiler.ir import Node, Value
from passes.coupling.extents import Kept, constant_operand, extent_rule
from passes.coupling.solver import Coupling, Labels, Layout, coupling_rule

UNARY = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Clip", "Cos"),
    *("Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf"),
    *("IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid"),
    *("Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "BitCast"),
)
NARY = (
    *("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Greater", "GreaterOrEqual"),
    *("Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "SwiGLU"),
    *("Where", "Xor"),
)


@coupling_rule(*UNARY, *NARY)
def elementwise(c: Coupling, node: Node) -> None:
    """Unary operators and broadcasting ones alike; scalar operands (Clip's bounds) constrain nothing."""
    layout = broadcast(c, node, [v for v in node.inputs if v is not None], node.outputs[0].rank or 0)
    for value in node.outputs:
        c.set(value, layout)


def broadcast(c: Coupling, node: Node, operands: list[Value], rank: int) -> Layout:
    """The layout of the broadcast result; an operand of extent 1 along an axis does not constrain that axis."""
    out: Layout = []
    for axis in range(rank):
        meeting = [v for v in operands if (own := axis - rank + (v.rank or 0)) >= 0 and (v.shape or ())[own] != 1]
        # Constants that nothing is known of take the labels of the others, conditions included.
        meeting.sort(key=lambda v: c.is_open(v, axis - rank + (v.rank or 0)))
        labels: Labels | None = None
        for place, value in enumerate(meeting):
            own = axis - rank + (value.rank or 0)
            if labels is not None and c.is_open(value, own):
                extents = [1] * (rank - (value.rank or 0)) + list(value.shape or ())
                labels = c.narrow(labels, extents)
                c.define(value, own, labels.reshape(labels.shape[rank - (value.rank or 0) :]), node)
                continue
            found = c.axis(value, own)
            if found is not None:
                found = found.reshape((1,) * (rank - found.ndim) + found.shape)
            labels = c.tie(labels, found, node, _why(value, operands)) if place else found
        out.append(labels)
    return out


def _why(value: Value, operands: list[Value]) -> str:
    others = ", ".join(repr(v.name) for v in operands if v is not value)
    return f"{value.name!r} meets {others}, one of which is fixed"


@coupling_rule("CastLike")
def cast_like(c: Coupling, node: Node) -> None:
    """Of the second operand only the type is read."""
    x = node.inputs[0]
    assert x is not None
    c.set(node.outputs[0], c.layout(x))


@coupling_rule("Softmax", "LogSoftmax")
def softmax(c: Coupling, node: Node) -> None:
    """Equivariant along its own axis; other axes may not be conditional on it, since it mixes its positions."""
    x = node.inputs[0]
    assert x is not None
    axis = int(node.attribute("axis", -1)) % max(1, x.rank or 1)
    c.set(node.outputs[0], c.decondition(x, axis))


@coupling_rule("Resize", "Upsample")
def resize(c: Coupling, node: Node) -> None:
    """Axes that keep their extent pass; axes that are resampled are fixed."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None and x.shape is not None and y.shape is not None
    axes = {int(a) % len(x.shape) for a in node.attribute("axes", range(len(x.shape)))}
    sizes = node.input(3)
    if sizes is not None and not sizes.is_constant:
        c.refuse(node, "Resize to sizes that are computed at run time")
        return
    stretched = node.attribute("keep_aspect_ratio_policy", "stretch") == "stretch"
    for axis in range(len(x.shape)):
        unchanged = axis not in axes or (stretched and x.shape[axis] == y.shape[axis] and not _scaled(node, axis))
        if not unchanged:
            c.pin_axis(x, axis, node, "Resize resamples this axis")
            c.decondition(x, axis)
    layout = c.layout(x)
    c.set(y, [labels if x.shape[a] == y.shape[a] else None for a, labels in enumerate(layout)])


def _scaled(node: Node, axis: int) -> bool:
    """True when a constant scale other than 1 applies to `axis`."""
    scales = node.input(2)
    if scales is None or not scales.is_constant or scales.data is None or scales.data.size == 0:
        return False
    values = np.asarray(scales.numpy())
    axes = node.attribute("axes")
    x = node.inputs[0]
    rank = (x.rank if x is not None else None) or 1
    index = axis if axes is None else next((i for i, a in enumerate(axes) if a % rank == axis), None)
    return index is not None and index < len(values) and float(values[index]) != 1.0


@extent_rule("Resize")
def resize_extents(new: Node, old: Node, kept: Kept) -> None:
    """Explicit sizes name the channels too."""
    y, sizes = old.outputs[0], old.input(3)
    if sizes is None or not sizes.is_constant or not kept.touches(y):
        return
    axes = [int(a) % (y.rank or 1) for a in old.attribute("axes", range(y.rank or 0))]
    wanted = [
        kept.count(y, a) if kept.mask(y, a) is not None else int(n) for a, n in zip(axes, sizes.numpy(), strict=True)
    ]
    new.inputs[3] = constant_operand(sizes, wanted)
