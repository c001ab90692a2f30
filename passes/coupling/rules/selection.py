"""Operators that pick, order or place single positions: those axes are told apart, the others pass."""

from __future__ import annotations

import numpy as np

from compiler.ir import Node, Value
from passes.coupling.extents import Kept, constant_operand, extent_rule
from passes.coupling.positions import counted_axis
from passes.coupling.rules.elementwise import broadcast
from passes.coupling.rules.indexing import indexed, pinned_positions
from passes.coupling.solver import Coupling, Labels, Layout, along, coupling_rule


@coupling_rule("TopK")
def top_k(c: Coupling, node: Node) -> None:
    """The largest along one axis, in order, and where they were: whichever positions they come from may move.

    Equal values come in the order of their positions, which a permutation changes.
    """
    x, number = node.inputs[0], node.inputs[1]
    assert x is not None and number is not None
    axis = int(node.attribute("axis", -1)) % max(1, x.rank or 1)
    points = c.plain(x, axis)
    layout = [None if a == axis else labels for a, labels in enumerate(c.decondition(x, axis))]
    if not number.is_constant:
        c.pin(points, node, "TopK picks as many positions as are asked for at run time")
    elif points is not None and number.numpy().ravel()[0] >= len(points):
        c.pin(points, node, "TopK picks all positions")
    elif points is not None:
        c.keep_at_least(points, int(number.numpy().ravel()[0]), node)
        c.positions.set(node.outputs[1], points)
    for value in node.outputs:
        c.set(value, layout)


@coupling_rule("Hardmax")
def hard_max(c: Coupling, node: Node) -> None:
    """One for the first of the largest along an axis: equals are told apart by their order."""
    x = node.inputs[0]
    assert x is not None
    c.set(node.outputs[0], pinned_positions(c, node, x, int(node.attribute("axis", -1))))


@coupling_rule("ArgMax", "ArgMin")
def arg_max(c: Coupling, node: Node) -> None:
    """Where the largest along one axis is."""
    x = node.inputs[0]
    assert x is not None
    axis = int(node.attribute("axis", 0)) % max(1, x.rank or 1)
    points = c.plain(x, axis)
    layout = [None if a == axis else labels for a, labels in enumerate(c.decondition(x, axis))]
    if points is not None:
        c.positions.set(node.outputs[0], points)
    if not node.attribute("keepdims", 1):
        layout = [None if t is None else t.squeeze(axis) for a, t in enumerate(layout) if a != axis]
    c.set(node.outputs[0], layout)


@coupling_rule("Equal")
def equal(c: Coupling, node: Node) -> None:
    """Element-wise; positions that are compared with 0, 1, 2, … along an axis make that axis theirs."""
    a, b = node.inputs
    assert a is not None and b is not None
    rank = node.outputs[0].rank or 0
    for value, other in ((a, b), (b, a)):
        points = c.positions.of(value)
        if points is None:
            continue
        counted = counted_axis(other)
        axis = rank - (other.rank or 0) + (counted or 0)
        own = axis - rank + (value.rank or 0)
        across = own >= 0 and value.shape is not None and value.shape[own] != 1
        if counted is None or other.static_shape is None or other.static_shape[counted] != len(points) or across:
            c.pin(points, node, "its positions are used as numbers")
            continue
        layout = broadcast(c, node, [value], rank)
        layout[axis] = along(points, axis, rank)
        c.set(node.outputs[0], layout)
        return
    c.set(node.outputs[0], broadcast(c, node, [a, b], rank))


@extent_rule("Equal")
def equal_extents(new: Node, old: Node, kept: Kept) -> None:
    """What counts positions counts fewer."""
    y = old.outputs[0]
    for index, value in enumerate(old.inputs):
        counted = counted_axis(value)
        if value is None or counted is None or kept.labels(value, counted) is not None:
            continue
        axis = counted - (value.rank or 0) + (y.rank or 0)
        if kept.labels(y, axis) is not None:
            shape = [-1 if a == counted else 1 for a in range(value.rank or 0)]
            new.inputs[index] = constant_operand(value, np.arange(kept.count(y, axis)).reshape(shape))


@coupling_rule("CumSum", "CumProd")
def cumulative(c: Coupling, node: Node) -> None:
    """Runs along one axis in order; the others pass."""
    x, axis = node.inputs[0], node.inputs[1]
    assert x is not None and axis is not None
    if not axis.is_constant:
        c.refuse(node, f"{node.op} along an axis that is computed at run time")
        return
    c.set(node.outputs[0], pinned_positions(c, node, x, int(axis.numpy().ravel()[0])))


@coupling_rule("Trilu")
def triangle(c: Coupling, node: Node) -> None:
    """A triangle of the last two axes."""
    x = node.inputs[0]
    assert x is not None
    pinned_positions(c, node, x, -1)
    c.set(node.outputs[0], [*pinned_positions(c, node, x, -2)[:-1], None])


@coupling_rule("OneHot")
def one_hot(c: Coupling, node: Node) -> None:
    """A new axis that the numbers index; the axes of the numbers pass."""
    x, depth, y = node.inputs[0], node.inputs[1], node.outputs[0]
    assert x is not None and depth is not None and y.shape is not None
    for value in node.inputs[1:]:
        if value is not None:
            c.pin_value(value, node, "OneHot tells on from off")
    rank = (x.rank or 0) + 1
    axis = int(node.attribute("axis", -1)) % rank
    points = c.positions.of(x)
    if points is not None and not (depth.is_constant and y.shape[axis] == len(points)):
        c.pin(points, node, "OneHot has another depth than the axis whose positions it reads")
        points = None
    layout: Layout = [None if t is None else np.expand_dims(t, axis) for t in c.layout(x)]
    layout.insert(axis, None if points is None else along(points, axis, rank))
    c.set(y, layout)


@extent_rule("OneHot")
def one_hot_extents(new: Node, old: Node, kept: Kept) -> None:
    """The depth follows the axis whose positions are read."""
    depth, y = old.inputs[1], old.outputs[0]
    axis = int(old.attribute("axis", -1)) % (y.rank or 1)
    if depth is not None and kept.labels(y, axis) is not None:
        new.inputs[1] = constant_operand(depth, np.full(depth.numpy().shape, kept.count(y, axis)))


@coupling_rule("GatherElements")
def gather_elements(c: Coupling, node: Node) -> None:
    """y[i][j] = x[index[i][j]][j]: along the other axes x and its indices meet."""
    x, index = node.inputs[0], node.inputs[1]
    assert x is not None and index is not None
    axis = int(node.attribute("axis", 0)) % max(1, x.rank or 1)
    data, _ = indexed(c, node, x, axis, index)
    c.set(node.outputs[0], _meet(c, node, x, data, index, axis, c.layout(index)[axis]))


def _meet(c: Coupling, node: Node, x: Value, data: Layout, other: Value, axis: int, own: Labels | None) -> Layout:
    """Tie two operands along every axis but one, where labels are `own`; axes of other extents are fixed."""
    assert x.shape is not None and other.shape is not None
    out: Layout = []
    for a, labels in enumerate(data):
        if a == axis:
            out.append(own)
        elif x.shape[a] != other.shape[a]:
            c.pin(labels, node, f"{node.op} reads a part of this axis")
            c.pin_axis(other, a, node, f"{node.op} reads a part of this axis")
            out.append(None)
        else:
            out.append(c.tie(labels, c.axis(other, a), node))
    return out


@coupling_rule("ScatterElements")
def scatter_elements(c: Coupling, node: Node) -> None:
    """y = x, but y[index[i][j]][j] = update[i][j]."""
    x, index, update = node.inputs[0], node.inputs[1], node.inputs[2]
    assert x is not None and index is not None and update is not None
    axis = int(node.attribute("axis", 0)) % max(1, x.rank or 1)
    layout, own = indexed(c, node, x, axis, index)
    for value in (index, update):
        pinned_positions(c, node, value, axis)
        layout = _meet(c, node, x, layout, value, axis, own)
    c.set(node.outputs[0], layout)


@coupling_rule("TensorScatter")
def tensor_scatter(c: Coupling, node: Node) -> None:
    """Rows of a cache along one axis are replaced, from each sample's place on."""
    x, update, places = node.inputs[0], node.inputs[1], node.input(2)
    assert x is not None and update is not None
    axis = int(node.attribute("axis", -2)) % max(1, x.rank or 1)
    layout = pinned_positions(c, node, x, axis)
    pinned_positions(c, node, update, axis)
    layout = _meet(c, node, x, layout, update, axis, None)
    if places is not None:
        c.pin_value(places, node, "each sample has a place of its own")
        c.pin(layout[0], node, "each sample has a place of its own")
    c.set(node.outputs[0], layout)


@coupling_rule("GatherND")
def gather_nd(c: Coupling, node: Node) -> None:
    """index[..., k] names a place along k axes of x; the axes after them pass."""
    x, index, y = node.inputs[0], node.inputs[1], node.outputs[0]
    assert x is not None and index is not None and index.shape is not None
    depth, batch, rank = index.shape[-1], int(node.attribute("batch_dims", 0)), x.rank or 0
    if not isinstance(depth, int):
        c.refuse(node, "GatherND of places of unknown depth")
        return
    first = batch + depth
    for axis in range(first):
        pinned_positions(c, node, x, axis)
    c.pin_value(index, node, "GatherND reads places")
    lead = len(index.shape) - 1
    tail = [None if t is None else t.reshape((1,) * lead + t.shape[first:]) for t in c.layout(x)[first:rank]]
    c.set(y, [*[None] * lead, *tail])


@coupling_rule("ScatterND")
def scatter_nd(c: Coupling, node: Node) -> None:
    """y = x, but y[index[i]] = update[i]: the axes beyond those that the index names meet the update's."""
    x, index, update = node.inputs[0], node.inputs[1], node.inputs[2]
    assert x is not None and index is not None and update is not None and index.shape is not None
    depth, rank = index.shape[-1], x.rank or 0
    if not isinstance(depth, int):
        c.refuse(node, "ScatterND to places of unknown depth")
        return
    for axis in range(depth):
        pinned_positions(c, node, x, axis)
    lead = len(index.shape) - 1
    for axis in range(lead):
        pinned_positions(c, node, update, axis)
    c.pin_value(index, node, "ScatterND reads places")
    layout: Layout = [None] * depth
    for axis in range(depth, rank):
        labels, other = c.plain(x, axis), c.plain(update, axis - depth + lead)
        if labels is None or other is None:
            c.pin(labels, node, "the update is fixed")
            c.pin(other, node, "what is updated is fixed")
            layout.append(None)
        else:
            c.partition.union(labels, other)
            layout.append(labels.reshape([-1 if a == axis else 1 for a in range(rank)]))
    c.set(node.outputs[0], layout)


@coupling_rule("DFT", "STFT")
def fourier(c: Coupling, node: Node) -> None:
    """Mixes a signal's positions, and tells the real from the imaginary part; other axes pass in a DFT."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    axis = node.input(2)
    if node.op == "STFT" or (axis is not None and not axis.is_constant):
        c.refuse(node, f"{node.op} orders its signal")
        return
    pinned_positions(c, node, x, -1)
    c.set(y, pinned_positions(c, node, x, -2 if axis is None else int(axis.numpy().ravel()[0])))


@coupling_rule("Compress")
def compress(c: Coupling, node: Node) -> None:
    """A condition that comes from data tells positions apart; for a constant one simplify writes a Gather."""
    x, condition, axis = node.inputs[0], node.inputs[1], node.attribute("axis")
    assert x is not None and x.shape is not None and condition is not None
    if axis is None:
        c.refuse(node, "Compress of a flattened tensor")
        return
    c.pin_value(condition, node, "Compress picks single positions of this axis")
    c.set(node.outputs[0], pinned_positions(c, node, x, int(axis) % len(x.shape)))


@coupling_rule("ReverseSequence")
def reverse_sequence(c: Coupling, node: Node) -> None:
    """Time runs backwards as far as each sample's length; other axes pass."""
    x, lengths = node.inputs[0], node.inputs[1]
    assert x is not None and lengths is not None
    time, batch = int(node.attribute("time_axis", 0)), int(node.attribute("batch_axis", 1))
    pinned_positions(c, node, x, time)
    c.set_plain(lengths, 0, c.plain(x, batch), node)
    c.decondition(x, batch)
    c.set(node.outputs[0], c.layout(x))
