"""What one unit of a group carries: the parameters and multiply-accumulates that go with it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from compiler.ir import Node, Value, node_macs, subgraphs
from compiler.ir.cost import is_parameter, numeric_shape
from passes.coupling.groups import Groups

_Shapes = dict[Value, tuple[int, ...]]


@dataclass(frozen=True)
class Carried:
    """What the first step of pruning removes, divided by the number of units in it."""

    params: float
    macs: float


def carried(groups: Groups, symbol: int = 1) -> list[Carried]:
    """What one unit of each group carries, in the order of the groups.

    It is the difference that the first step makes to the cost of the graph, so that what lies between two axes of
    a group counts once, and what the group shares with another one counts in both. Where two axes of one tensor
    belong to a group, later steps remove less. symbol: what symbolic extents count as. Cost is linear in the graph.
    """
    using: dict[Value, list[Node]] = {}
    for node in groups.graph.nodes:
        for value in dict.fromkeys(_values(node)):
            using.setdefault(value, []).append(node)
    found = []
    owned = groups.owned()
    for group, smaller in zip(groups, _after_first_step(groups, symbol), strict=True):
        params = sum(v.data.size - math.prod(s) for v, s in smaller.items() if v.data is not None and is_parameter(v))
        nodes = dict.fromkeys(n for v in smaller for n in using.get(v, ()))
        macs = sum(node_macs(n, None, symbol) - node_macs(n, smaller, symbol) for n in nodes)
        first = {int(u) for block, count in zip(group.blocks, group.step, strict=True) for u in block[:count]}
        whole = [x for x, unit in owned.items() if unit in first]
        params += sum(x.data.size for x in whole if isinstance(x, Value) and x.data is not None and is_parameter(x))
        macs += sum(node_macs(x, None, symbol) for x in whole if isinstance(x, Node))
        found.append(Carried(params / sum(group.step), macs / sum(group.step)))
    return found


def _values(node: Node) -> Iterator[Value]:
    """Everything that a node and its bodies read and write."""
    yield from (v for v in (*node.inputs, *node.outputs) if v is not None)
    for body in subgraphs(node):
        for inner in body.nodes:
            yield from _values(inner)


def _after_first_step(groups: Groups, symbol: int) -> list[_Shapes]:
    """For each group, the shapes of the tensors that its first step makes smaller."""
    group_of = np.full(groups.unit_count, -1, np.int64)
    """The group in whose first step a unit goes."""
    for index, group in enumerate(groups):
        for block, count in zip(group.blocks, group.step, strict=True):
            group_of[block[:count]] = index
    shapes: list[_Shapes] = [{} for _ in groups]
    for value, layout in groups.layouts.items():
        for axis, units in enumerate(layout):
            for index, lost in _lost(group_of, units, axis):
                shape = shapes[index].get(value) or numeric_shape(value, symbol)
                shapes[index][value] = (*shape[:axis], shape[axis] - lost, *shape[axis + 1 :])
    return shapes


def _lost(group_of: np.ndarray, units: np.ndarray | None, axis: int) -> Iterator[tuple[int, int]]:
    """(group, positions that its first step takes from an axis): what every row loses that stays whole."""
    if units is None:
        return
    rows = np.moveaxis(units, axis, -1).reshape(-1, units.shape[axis])
    groups = np.where(rows >= 0, group_of[rows], -1)
    row, position = np.nonzero(groups >= 0)
    cells, counts = np.unique(groups[row, position] * len(rows) + row, return_counts=True)
    found, first, present = np.unique(cells // len(rows), return_index=True, return_counts=True)
    for group, start, number in zip(found.tolist(), first.tolist(), present.tolist(), strict=True):
        if number == len(rows):
            yield group, int(counts[start : start + number].min())
