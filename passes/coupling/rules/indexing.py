"""What operators that read places of an axis share."""

from __future__ import annotations

from compiler.ir import Node, Value
from passes.coupling.solver import Coupling, Labels, Layout


def pinned_positions(c: Coupling, node: Node, value: Value, axis: int) -> Layout:
    """The layout of an operand of which the node tells the positions of one axis apart."""
    axis %= max(1, value.rank or 1)
    c.pin_axis(value, axis, node, f"{node.op} tells the positions of this axis apart")
    layout = c.decondition(value, axis)
    return [None if a == axis else labels for a, labels in enumerate(layout)]


def indexed(c: Coupling, node: Node, x: Value, axis: int, index: Value) -> tuple[Layout, Labels | None]:
    """The layout of an operand whose axis is read at places from data, and that axis's labels where it may move.

    It may where the places are positions of an axis that moves: then the two move together.
    """
    points, own = c.positions.of(index), c.plain(x, axis)
    if points is None or own is None or len(points) != len(own):
        c.pin(points, node, f"{node.op} reads its positions in a table that is fixed")
        return pinned_positions(c, node, x, axis), None
    c.partition.union(points, own)
    layout = c.decondition(x, axis)
    return [None if a == axis else labels for a, labels in enumerate(layout)], layout[axis]
