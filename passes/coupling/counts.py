"""Extents as data: where the numbers go that a Shape node reads off.

After pruning, Shape gives fewer channels. Wherever such a number goes, either it meets an axis with the same
labels (ConstantOfShape, Expand and Reshape say so in their rules), or what it counts may not move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from compiler.ir import Node, Value

_MAX_ITEMS = 64


@dataclass(frozen=True)
class Count:
    """The extent of one axis of a tensor."""

    value: Value
    axis: int


Item = int | Count | None
"""One element of a small integer tensor: a number, an extent, or unknown."""

Items = tuple[Item, ...]

SINKS = {("ConstantOfShape", 0), ("Expand", 1), ("Reshape", 1)}
"""(operator, operand) whose coupling rules account for the counts that they read."""


class Counts:
    """What is known of the small integer tensors of a graph that depend on extents."""

    def __init__(self) -> None:
        self._known: dict[Value, Items] = {}

    def of(self, value: Value | None) -> Items | None:
        """The elements of a tensor of rank 0 or 1, None when nothing is known of it."""
        if value is None:
            return None
        if value.data is not None:
            small = value.data.dtype.kind in "iu" and len(value.data.shape) <= 1 and value.data.size <= _MAX_ITEMS
            return tuple(int(n) for n in np.atleast_1d(value.numpy())) if small else None
        return self._known.get(value)

    def follow(self, node: Node) -> list[Count]:
        """Evaluate a node; returns the counts that it uses as numbers, in ways that no rule accounts for."""
        if node.op == "Shape" and not node.domain:
            x = node.inputs[0]
            axes = range(x.rank or 0) if x is not None else range(0)
            part = slice(node.attribute("start", 0), node.attribute("end", None))
            self._known[node.outputs[0]] = tuple(Count(x, a) for a in axes[part]) if x is not None else ()
            return []
        if node.op == "Size" and not node.domain:
            x = node.inputs[0]
            return [Count(x, a) for a in range(x.rank or 0)] if x is not None else []
        read = [(i, self._known[v]) for i, v in enumerate(node.inputs) if v is not None and v in self._known]
        if not read:
            return []
        carry = _CARRIES.get(node.op) if not node.domain else None
        result = carry(node, self) if carry is not None else None
        if result is not None:
            self._known[node.outputs[0]] = result
            return []
        return [c for i, items in read if (node.op, i) not in SINKS for c in items if isinstance(c, Count)]


_CARRIES: dict[str, Callable[[Node, Counts], Items | None]] = {}


def _carries(*ops: str) -> Callable[[Callable[[Node, Counts], Items | None]], Callable[[Node, Counts], Items | None]]:
    def register(rule: Callable[[Node, Counts], Items | None]) -> Callable[[Node, Counts], Items | None]:
        _CARRIES.update(dict.fromkeys(ops, rule))
        return rule

    return register


@_carries("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape")
def _same(node: Node, counts: Counts) -> Items | None:
    return counts.of(node.inputs[0]) if (node.outputs[0].rank or 0) <= 1 else None


@_carries("Gather")
def _gather(node: Node, counts: Counts) -> Items | None:
    items, index = counts.of(node.inputs[0]), node.inputs[1]
    if items is None or index is None or not index.is_constant or (index.rank or 0) > 1:
        return None
    return tuple(items[int(i)] for i in np.atleast_1d(index.numpy()))


@_carries("Slice")
def _slice(node: Node, counts: Counts) -> Items | None:
    items = counts.of(node.inputs[0])
    bounds = [counts.of(v) for v in node.inputs[1:]]
    if items is None or any(b is None or len(b) != 1 or not isinstance(b[0], int) for b in bounds):
        return None
    start, end, _, step = [b[0] for b in bounds if b is not None] + [1] * (4 - len(bounds))
    if not (isinstance(start, int) and isinstance(end, int) and isinstance(step, int)) or step < 1:
        return None
    return items[start:end:step]


@_carries("Concat")
def _concat(node: Node, counts: Counts) -> Items | None:
    found: list[Item] = []
    for value in node.inputs:
        items = counts.of(value)
        if items is None:
            extent = value.shape[0] if value is not None and value.shape is not None and value.rank == 1 else None
            if not isinstance(extent, int):
                return None
            items = (None,) * extent
        found += items
    return tuple(found)
