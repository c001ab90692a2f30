"""Extents as data: where the numbers go that a Shape node reads off.

After pruning, Shape gives fewer channels. Wherever such a number goes, either it meets an axis with the same
labels (ConstantOfShape, Expand and Reshape say so in their rules), or what it counts may not move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from compiler.ir import Dim, Node, Value
from compiler.ir.shape_values import ShapeValues


@dataclass(frozen=True)
class Count:
    """The extent of one axis of a tensor."""

    value: Value
    axis: int


@dataclass(frozen=True)
class Number:
    """A number that stands at `position` of a constant operand of a Concat, where it can be rewritten."""

    number: int
    node: Node
    operand: int
    position: int


Item = int | Number | Count | None
"""One element of a small integer tensor: a number, an extent, or unknown."""


def number_of(item: Item) -> int | None:
    """The number that an element is, if it is one."""
    return item.number if isinstance(item, Number) else item if isinstance(item, int) else None


Items = tuple[Item, ...]

SINKS = {("ConstantOfShape", 0), ("Expand", 1), ("Reshape", 1)}
"""(operator, operand) whose coupling rules account for the counts that they read."""


class Counts:
    """What is known of the small integer tensors of a graph that depend on extents."""

    def __init__(self) -> None:
        self._known: dict[Value, Items] = {}
        self._values = ShapeValues()

    def of(self, value: Value | None) -> Items | None:
        """The elements of a tensor of rank 0 or 1, None when nothing is known of it."""
        if value is None:
            return None
        if value.data is not None:
            known = self._values.of(value)
            return None if known is None else _numbers(known.items)
        return self._known.get(value)

    def follow(self, node: Node) -> list[Count | Number]:
        """Evaluate a node; returns what it uses in ways that no rule accounts for."""
        values = self._values.evaluate(node)
        if node.op == "Shape" and not node.domain:
            x = node.inputs[0]
            if x is not None and x.rank is not None:  # what has no known rank has no labels
                axes = range(x.rank)[slice(node.attribute("start", 0), node.attribute("end", None))]
                self._known[node.outputs[0]] = tuple(Count(x, a) for a in axes)
            return []
        if node.op == "Size" and not node.domain:
            x = node.inputs[0]
            return [Count(x, a) for a in range(x.rank or 0)] if x is not None else []
        read = [(i, self._known[v]) for i, v in enumerate(node.inputs) if v is not None and v in self._known]
        carry = _CARRIES.get(node.op) if not node.domain else None
        if read and carry is not None:
            result = carry(node, self)
            if result is not None:
                self._known[node.outputs[0]], used = result
                return used
        if read and values is not None:  # arithmetic whose result is known all the same
            self._known[node.outputs[0]] = _numbers(values.items)
        return [c for i, items in read if (node.op, i) not in SINKS for c in items if isinstance(c, Count | Number)]

    def knows(self, value: Value) -> bool:
        """True for the results of shape arithmetic: they are numbers, not data that channels run through."""
        return value in self._known

    def truth(self, value: Value | None) -> list[bool | None]:
        """What is known of a condition, whatever the extents become."""
        return [None if (n := number_of(item)) is None else bool(n) for item in self.of(value) or ()]


def _numbers(items: tuple[Dim, ...]) -> Items:
    return tuple(item if isinstance(item, int) else None for item in items)


Carried = tuple[Items, list["Count | Number"]]
"""The elements of a result, and what it took from the operands in ways that no rule accounts for."""

_CARRIES: dict[str, Callable[[Node, Counts], Carried | None]] = {}


def _carries(
    *ops: str,
) -> Callable[[Callable[[Node, Counts], Carried | None]], Callable[[Node, Counts], Carried | None]]:
    def register(rule: Callable[[Node, Counts], Carried | None]) -> Callable[[Node, Counts], Carried | None]:
        _CARRIES.update(dict.fromkeys(ops, rule))
        return rule

    return register


@_carries("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape")
def _same(node: Node, counts: Counts) -> Carried | None:
    items = counts.of(node.inputs[0])
    return (items, []) if items is not None and (node.outputs[0].rank or 0) <= 1 else None


@_carries("Gather")
def _gather(node: Node, counts: Counts) -> Carried | None:
    items, index = counts.of(node.inputs[0]), node.inputs[1]
    if items is None or index is None or not index.is_constant or (index.rank or 0) > 1:
        return None
    return tuple(items[int(i)] for i in np.atleast_1d(index.numpy())), []


@_carries("Slice")
def _slice(node: Node, counts: Counts) -> Carried | None:
    items = counts.of(node.inputs[0])
    bounds = [counts.of(v) for v in node.inputs[1:]]
    if items is None or any(b is None or len(b) != 1 for b in bounds):
        return None
    start, end, _, step = [number_of(b[0]) for b in bounds if b is not None] + [1] * (4 - len(bounds))
    if start is None or end is None or step is None or step < 1:
        return None
    return items[start:end:step], []


@_carries("Concat")
def _concat(node: Node, counts: Counts) -> Carried | None:
    found: list[Item] = []
    for operand, value in enumerate(node.inputs):
        items = counts.of(value)
        if items is not None and value is not None and value.is_constant:
            items = tuple(Number(n, node, operand, i) if isinstance(n, int) else n for i, n in enumerate(items))
        if items is None:
            extent = value.shape[0] if value is not None and value.shape is not None and value.rank == 1 else None
            if not isinstance(extent, int):
                return None
            items = (None,) * extent
        found += items
    return tuple(found), []


@_carries("Equal")
def _equal(node: Node, counts: Counts) -> Carried | None:
    """1 or 0 each; an extent is never negative, which is how torch asks whether to keep one (-1)."""
    a, b = (counts.of(v) for v in node.inputs)
    if a is None or b is None or len(a) != len(b):
        return None
    found: list[Item] = []
    used: list[Count | Number] = []
    for x, y in zip(a, b, strict=True):
        m, n = number_of(x), number_of(y)
        if m is not None and n is not None:
            found.append(int(m == n))
        elif any(isinstance(side, Count) for side in (x, y)) and min(m or 0, n or 0) < 0:
            found.append(0)
        else:
            found.append(None)
            used += [side for side in (x, y) if isinstance(side, Count | Number)]
    return tuple(found), used


@_carries("Where")
def _where(node: Node, counts: Counts) -> Carried | None:
    condition, yes, no = counts.truth(node.inputs[0]), counts.of(node.inputs[1]), counts.of(node.inputs[2])
    if yes is None or no is None or not len(condition) == len(yes) == len(no):
        return None
    found: list[Item] = []
    used: list[Count | Number] = []
    for chosen, y, n in zip(condition, yes, no, strict=True):
        found.append(None if chosen is None else y if chosen else n)
        used += [side for side in (y, n) if chosen is None and isinstance(side, Count | Number)]
    return tuple(found), used
