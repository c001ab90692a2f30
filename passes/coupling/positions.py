"""Positions as data: integers that name positions of an axis (what TopK and ArgMax found), and where they go.

A router picks experts by number. When experts move or go, TopK gives other numbers; every table that those
numbers index must have its axis moved alike. Wherever such numbers go otherwise, the axis may not move.
"""

from __future__ import annotations

import numpy as np

from compiler.ir import Node, Value
from passes.coupling.partition import Points

_CARRIERS = {
    *("Cast", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile"),
    *("Transpose", "Unsqueeze"),
}
"""Operators that hand on the elements of their first operand."""

_READERS = {
    *(("Gather", 1), ("GatherElements", 1), ("ScatterElements", 1), ("OneHot", 0)),
    *(("Equal", 0), ("Equal", 1), ("Shape", 0), ("Size", 0)),
}
"""(operator, operand) whose coupling rules account for the positions that they read, or that read no element."""


class Positions:
    """The integer tensors whose elements are positions, and the points of the axis that they are positions of."""

    def __init__(self) -> None:
        self._known: dict[Value, Points] = {}

    def of(self, value: Value | None) -> Points | None:
        """The points [extent] that the elements of a tensor index; None when they are anything else."""
        return None if value is None else self._known.get(value)

    def set(self, value: Value, points: Points) -> None:
        """Say that a tensor's elements are positions of an axis."""
        self._known[value] = points

    def follow(self, node: Node) -> list[Points]:
        """Hand positions on through a node; returns those of axes that it reads as plain numbers."""
        read = [(i, self._known[v]) for i, v in enumerate(node.inputs) if v is not None and v in self._known]
        if not read or node.domain:
            return [points for _, points in read]
        if node.op in _CARRIERS and read[0][0] == 0:
            for value in node.outputs:
                self._known[value] = read[0][1]
            read = read[1:]
        return [points for i, points in read if (node.op, i) not in _READERS]


def counted_axis(value: Value | None) -> int | None:
    """The axis along which a constant counts 0, 1, 2, … and is otherwise of extent 1, if it does."""
    if value is None or not value.is_constant or value.data is None or value.data.dtype.kind not in "iu":
        return None
    shape = value.data.shape
    wide = [axis for axis, extent in enumerate(shape) if extent > 1]
    if len(wide) != 1 or not np.array_equal(value.numpy().ravel(), np.arange(shape[wide[0]])):
        return None
    return wide[0]
