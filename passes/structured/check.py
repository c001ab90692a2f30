"""The exact check of a pruning: it equals the original whose removed units are silenced.

Silencing zeroes, in every weight that sums over them, the rows of the removed units; the network then
computes what the pruned one computes. It holds wherever nothing else mixes the units of a pruned axis
(a normalisation across channels sees that they are gone), which `silence` finds out first.
"""

from __future__ import annotations

import numpy as np

from compiler.ir import ArrayConstant, CheckFailed, Graph, Node, Value
from compiler.ir.bodies import runs
from compiler.ir.execute import random_inputs, relative_difference
from passes.coupling.contractions import contractions
from passes.coupling.groups import Groups
from passes.coupling.rules.attention import score_operands
from passes.coupling.rules.heads import whole_heads
from passes.coupling.terms import detach

_MIXING = {
    *("Softmax", "LogSoftmax", "Hardmax", "LayerNormalization", "RMSNormalization", "GroupNormalization"),
    *("LpNormalization", "InstanceNormalization", "LRN", "MeanVarianceNormalization", "DynamicQuantizeLinear"),
    *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "SimplifiedLayerNormalization", "GatedRMSNorm"),
    *("QLinearSoftmax", "DynamicQuantizeMatMul"),
}

_EMBEDDINGS = ("EmbedLayerNormalization", "QEmbedLayerNormalization")
"""Normalisations of what constants hold."""


def silence(groups: Groups, keep: np.ndarray) -> Graph | None:
    """The unpruned graph with the removed units silenced; None when some node mixes them otherwise."""
    flags = np.append(keep, True)
    masks: dict[Value, dict[int, np.ndarray]] = {}
    for node in groups.graph.all_nodes():
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
    for old, new in zip(groups.graph.all_constants(), graph.all_constants(), strict=True):
        if old in masks:
            array = np.array(old.numpy())
            for mask in masks[old].values():
                array = array * mask.astype(array.dtype)
            new.data = ArrayConstant(array)
    gone = [term for term in groups.terms if not flags[groups.unit_of(term)]]
    detach(graph, gone, dict(zip(groups.graph.nodes, graph.nodes, strict=True)))
    return graph


def _mixes(node: Node, groups: Groups, flags: np.ndarray, silenced: set[tuple[Value, int]]) -> bool:
    """True when removed units meet others in a sum that no weight of this node silences."""
    outputs = {u for v in node.outputs for u in _removed(v, groups, flags)}
    if _changes_scores(node, groups, flags) or (outputs and node.op in _EMBEDDINGS):
        return True
    for value in (v for v in node.inputs if v is not None and not (v.is_constant or _is_dequantised(v))):
        layout = groups.layouts.get(value) or []
        for axis, labels in enumerate(layout):
            if labels is None or (value, axis) in silenced or flags[labels].all():
                continue
            gone = set(labels[~flags[labels]].tolist())
            if node.op in _MIXING and _own_axis(node, axis, len(layout)):
                return True
            if node.op not in ("Shape", "Size", "Split", "Slice", "Gather") and not gone <= outputs:
                return True
    return False


def _changes_scores(node: Node, groups: Groups, flags: np.ndarray) -> bool:
    """True when queries or keys of attention lose dims, unless they lose all of a head."""
    for value, axis, part, heads in score_operands(node):
        layout = groups.layouts.get(value)
        labels = None if layout is None else layout[axis]
        if labels is None:
            continue
        own = labels if heads is None else labels.ravel()[part]
        if not flags[own].all() and (heads is None or not whole_heads(own, heads)):
            return True
    return False


def _is_dequantised(value: Value) -> bool:
    """True for a constant that is stored as integers."""
    node = value.producer
    return node is not None and node.op == "DequantizeLinear" and all(v is None or v.is_constant for v in node.inputs)


def _own_axis(node: Node, axis: int, rank: int) -> bool:
    """True when a normalisation takes its statistics along an axis."""
    first = int(node.attribute("axis", -1)) % rank
    if node.op in ("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"):
        return axis == first
    if node.op in ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "QLinearSoftmax"):
        return axis >= first
    if node.op in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "GatedRMSNorm"):
        return axis == rank - 1
    if node.op == "MeanVarianceNormalization":
        return axis in {int(a) % rank for a in node.attribute("axes", (0, 2, 3))}
    if node.op == "GroupNormalization":
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        return axis != 1 or shape is None or shape[1] != node.attribute("num_groups")
    return node.op != "InstanceNormalization" or axis != 1


def _removed(value: Value, groups: Groups, flags: np.ndarray) -> set[int]:
    return {
        u for t in groups.layouts.get(value, ()) if t is not None and not flags[t].all() for u in t[~flags[t]].tolist()
    }


def pruning_error(groups: Groups, keep: np.ndarray, pruned: Graph, seed: int = 0) -> float | None:
    """Relative difference between the pruned graph and the silenced original on noise; None where not exact.

    Bodies that hold what can be pruned are compared one by one too; None where one cannot be run alone.
    """
    silenced = silence(groups, keep)
    if silenced is None:
        return None
    moving = groups.moving()
    twins = zip(groups.graph.all_constants(), silenced.all_constants(), strict=True)
    try:
        found = runs(silenced, random_inputs(groups.graph, seed), {new for old, new in twins if old in moving})
        found = [run for run in found if run.body(pruned) is not None]
        expected = [run.execute(silenced) for run in found]
    except CheckFailed as failure:
        if failure.code != "E_BODY":
            raise
        return None
    return max(relative_difference(run.execute(pruned), e) for run, e in zip(found, expected, strict=True))
