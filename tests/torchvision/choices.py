"""Detectors choose boxes by rank and threshold, where rounding decides between near ties.

So what they choose from is compared. In a detector of one stage no weight lies behind a choice, and that proves all.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from compiler.ir import Graph, Value
from compiler.ir.execute import execute, random_inputs, relative_difference
from passes import Groups
from passes.coupling.transform import permute, random_permutation

_CHOICES = {"TopK", "NonMaxSuppression", "NonZero", "ArgMax", "ArgMin"}


def scores(graph: Graph, groups: Groups) -> list[str] | None:
    """Names of the floating-point values that choices read; None without any, or where a weight lies behind one."""
    weights = {m.value for group in groups for m in group.members}
    behind: set[Value] = set()
    found: dict[str, None] = {}
    for node in graph.nodes:
        operands = [v for v in node.inputs if v is not None]
        if node.op not in _CHOICES and behind.isdisjoint(operands):
            continue
        behind.update(node.outputs)
        if not weights.isdisjoint(operands):
            return None
        for value in operands:
            if value not in behind and not value.is_constant and value.dtype is not None and value.dtype.kind == "f":
                found[value.name] = None
    return list(found) or None


def watched(names: list[str], graph: Graph) -> Graph:
    """A copy whose outputs are the values of these names."""
    copy = graph.copy()
    values = {v.name: v for v in copy.values()}
    copy.outputs = [values[name] for name in names]
    return copy


def certify_scores(groups: Groups, names: list[str], seed: int = 0) -> float:
    """The largest relative difference of these values under a permutation of all groups; inf if it proves nothing."""
    see, data = partial(watched, names), random_inputs(groups.graph, seed)
    source = random_permutation(groups, np.random.default_rng(seed))
    expected = execute(see(groups.graph), data, optimize=False)

    def difference(graph: Graph) -> float:
        return relative_difference(execute(see(graph), data, optimize=False), expected)

    worst = difference(permute(groups, source))
    broken = difference(permute(groups, source, {g.members[0].value for g in groups if g.members}))
    return worst if broken > max(worst, 1e-7) else math.inf
