"""The exact check of a pruning: it equals the original whose removed units are silenced.

Silencing zeroes, in every weight that sums over them, the rows of the removed units; the network then
computes what the pruned one computes. It holds wherever nothing else mixes the units of a pruned axis
(a normalisation across channels sees that they are gone), which `silence` finds out first.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from compiler.ir import ArrayConstant, Graph, Node, Value
from compiler.ir.execute import execute, random_inputs, relative_difference
from passes.coupling.groups import Groups

_MIXING = {
    *("Softmax", "LogSoftmax", "Hardmax", "LayerNormalization", "RMSNormalization", "GroupNormalization"),
    *("LpNormalization", "InstanceNormalization", "LRN"),
}


def contractions(node: Node) -> Iterator[tuple[Value, int, Value, int]]:
    """The (data, axis, weight, axis) over which a node with a constant operand sums products."""
    x, weight = node.input(0), node.input(1)
    if x is None or weight is None:
        return
    if node.op == "Conv" and not (x.shape and x.shape[1] == node.attribute("group", 1) != 1):
        yield x, 1, weight, 1
    elif node.op == "ConvTranspose" and not (x.shape and x.shape[1] == node.attribute("group", 1) != 1):
        yield x, 1, weight, 0
    elif node.op == "Gemm":
        pair = (x, 0 if node.attribute("transA", 0) else 1), (weight, 1 if node.attribute("transB", 0) else 0)
        yield from _with_constant(*pair)
    elif node.op == "MatMul":
        pair = (x, (x.rank or 1) - 1), (weight, max(0, (weight.rank or 0) - 2))
        yield from _with_constant(*pair)


def _with_constant(a: tuple[Value, int], b: tuple[Value, int]) -> Iterator[tuple[Value, int, Value, int]]:
    if b[0].is_constant:
        yield (*a, *b)
    elif a[0].is_constant:
        yield (*b, *a)


def silence(groups: Groups, keep: np.ndarray) -> Graph | None:
    """The unpruned graph with the removed units silenced; None when some node mixes them otherwise."""
    flags = np.append(keep, True)
    masks: dict[Value, dict[int, np.ndarray]] = {}
    for node in groups.graph.nodes:
        silenced: set[tuple[Value, int]] = set()
        for x, axis, weight, weight_axis in contractions(node):
            silenced.add((x, axis))
            layout = groups.layouts.get(weight)
            labels = None if layout is None else layout[weight_axis]
            if labels is not None:
                masks.setdefault(weight, {})[weight_axis] = flags[labels]
        if _mixes(node, groups, flags, silenced):
            return None
    graph = groups.graph.copy()
    for old, new in zip(groups.graph.constants(), graph.constants(), strict=True):
        if old in masks:
            array = np.array(old.numpy())
            for mask in masks[old].values():
                array = array * mask.astype(array.dtype)
            new.data = ArrayConstant(array)
    return graph


def _mixes(node: Node, groups: Groups, flags: np.ndarray, silenced: set[tuple[Value, int]]) -> bool:
    """True when removed units meet others in a sum that no weight of this node silences."""
    outputs = {u for v in node.outputs for u in _removed(v, groups, flags)}
    for value in (v for v in node.inputs if v is not None and not v.is_constant):
        layout = groups.layouts.get(value) or []
        for axis, labels in enumerate(layout):
            if labels is None or (value, axis) in silenced or flags[labels].all():
                continue
            gone = set(labels[~flags[labels]].tolist())
            if (
                node.op in _MIXING
                and (node.op != "InstanceNormalization" or axis != 1)
                and _own_axis(node, axis, len(layout))
            ):
                return True
            if node.op not in ("Shape", "Size", "Split", "Slice", "Gather") and not gone <= outputs:
                return True
    return False


def _own_axis(node: Node, axis: int, rank: int) -> bool:
    first = int(node.attribute("axis", -1)) % rank
    if node.op in ("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"):
        return axis == first
    if node.op in ("LayerNormalization", "RMSNormalization"):
        return axis >= first
    return True


def _removed(value: Value, groups: Groups, flags: np.ndarray) -> set[int]:
    return {
        u for t in groups.layouts.get(value, ()) if t is not None and not flags[t].all() for u in t[~flags[t]].tolist()
    }


def pruning_error(groups: Groups, keep: np.ndarray, pruned: Graph, seed: int = 0) -> float | None:
    """Relative difference between the pruned graph and the silenced original on noise; None where not exact."""
    silenced = silence(groups, keep)
    if silenced is None:
        return None
    data = random_inputs(groups.graph, seed)
    return relative_difference(execute(pruned, data), execute(silenced, data))
