"""What a pruning took from each layer, and what that cost: channels, parameters, multiply-accumulates, importance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.ir import Graph, Node, Value, node_macs
from compiler.ir.cost import COST_RULES, is_parameter
from passes.coupling.contractions import contractions
from passes.coupling.groups import Groups
from passes.coupling.readers import VIEWS, readers

Change = tuple[int, int]
"""Before and after."""


@dataclass(frozen=True)
class GroupChange:
    """Width of one group before and after, in units.

    importance: the share of its units' scores that went; after several stages, of what each stage found. None where a
    share has no meaning, because scores are negative or all zero.
    """

    name: str
    before: int
    after: int
    importance: float | None = None


@dataclass(frozen=True)
class LayerChange:
    """One node with parameters or multiply-accumulates, before and after.

    name: with the bodies that it is in before it. inputs, outputs: channels (features) of its data and of its result,
    None where it has none or they are symbolic. params: constants that several layers read count for the first. macs:
    symbolic extents count as 1. groups: those it lost units of. error: where it was mended, the norm of what its
    outputs differ by from the original's, on the calibration data and over the original's norm, with its weights as
    they were and solved anew; of the last stage.
    """

    name: str
    op: str
    inputs: Change | None
    outputs: Change | None
    params: Change
    macs: Change
    groups: tuple[GroupChange, ...] = ()
    error: tuple[float, float] | None = None


@dataclass(frozen=True)
class Removal:
    """What one stage removed: from these groups, the units whose flag is off; scores: of every unit, NaN for none."""

    groups: Groups
    keep: np.ndarray
    scores: np.ndarray


def lost_importance(removals: Sequence[Removal]) -> dict[str, float | None]:
    """For each group, the share of its importance that went."""
    kept: dict[str, float | None] = {}
    for removal in removals:
        for group in removal.groups:
            units = np.concatenate(group.blocks)
            share, before = _kept_share(removal.scores[units], removal.keep[units]), kept.get(group.name, 1.0)
            kept[group.name] = None if share is None or before is None else before * share
    return {name: None if share is None else 1 - share for name, share in kept.items()}


def _kept_share(scores: np.ndarray, keep: np.ndarray) -> float | None:
    if keep.all():
        return 1.0
    total = scores.sum()
    return float(scores[keep].sum() / total) if total > 0 and scores.min() >= 0 else None


def layer_changes(
    before: Graph,
    after: Graph,
    removals: Sequence[Removal],
    groups: Sequence[GroupChange],
    errors: Mapping[str, tuple[float, float]],
) -> tuple[LayerChange, ...]:
    """One entry for each layer of either graph, in order; parameters and MACs sum up to those of the graphs.

    groups: as they changed. errors: by the name of a layer's first result, as `Mended.errors`.
    """
    old, new = _Layers(before), _Layers(after)
    lost = [_lost(removal) for removal in removals]
    changes = {group.name: group for group in groups}
    found = []
    for key in dict.fromkeys((*old.nodes, *new.nodes, *old.params, *new.params)):
        params, macs = (old.params.get(key, 0), new.params.get(key, 0)), (old.macs(key), new.macs(key))
        if not (any(params) or any(macs) or key in old.readers):
            continue
        node = old.nodes.get(key) or new.nodes.get(key)
        names = dict.fromkeys(name for stage in lost for name in stage.get(key, ()))
        inputs, outputs = (_pair(a, b) for a, b in zip(old.channels(key), new.channels(key), strict=True))
        found.append(
            LayerChange(
                "/".join((*key[:-1], node.name if node is not None else key[-1])),
                node.qualified_op if node is not None else "Constant",
                inputs,
                outputs,
                params,
                macs,
                tuple(changes[name] for name in names if name in changes),
                errors.get(key[0]) if len(key) == 1 else None,
            )
        )
    return tuple(found)


_Key = tuple[str, ...]
"""Bodies, outermost first, and the name of a node's first result: the same before and after."""


def _nodes(graph: Graph, path: _Key = ()) -> Iterator[tuple[_Key, Node]]:
    for node in graph.nodes:
        yield (*path, node.outputs[0].name), node
        for name, item in node.attributes.items():
            for body in item if isinstance(item, list) else [item]:
                if isinstance(body, Graph):
                    yield from _nodes(body, (*path, f"{node.name}.{name}"))


class _Layers:
    """The nodes of a graph by key, and what each of them costs."""

    def __init__(self, graph: Graph) -> None:
        self.nodes = dict(_nodes(graph))
        keys = {node: key for key, node in self.nodes.items()}
        self.params: dict[_Key, int] = {}
        self.readers: set[_Key] = set()
        uses = readers(graph)
        for constant in filter(is_parameter, graph.all_constants()):
            own = [keys[node] for node, _ in uses.get(constant, ())]
            layers = [k for k in own if self.nodes[k].op not in VIEWS or self.nodes[k].domain] or own
            self.readers.update(layers)
            key = layers[0] if layers else (constant.name,)  # an output of the graph that nothing else reads
            self.params[key] = self.params.get(key, 0) + math.prod(constant.static_shape or ())

    def macs(self, key: _Key) -> int:
        """Of the node itself, without those of its bodies, which have entries of their own."""
        node = self.nodes.get(key)
        return node_macs(node) if node is not None and (node.domain, node.op) in COST_RULES else 0

    def channels(self, key: _Key) -> tuple[int | None, int | None]:
        """How many channels its data and its result have; (0, 0) for a node that is not there."""
        node = self.nodes.get(key)
        if node is None:
            return 0, 0
        if key not in self.readers:
            return None, None
        return _extent(_data(node)), _extent((node.outputs[0], _channel_axis(node)))


def _pair(before: int | None, after: int | None) -> Change | None:
    return None if before is None or after is None else (before, after)


def _lost(removal: Removal) -> dict[_Key, list[str]]:
    """For each node, the groups that it lost units of."""
    group_of = np.full(removal.groups.unit_count + 1, -1, np.int64)
    for index, group in enumerate(removal.groups):
        for block in group.blocks:
            group_of[block] = index
    group_of[np.flatnonzero(removal.keep)] = -1
    names = [group.name for group in removal.groups]
    of_value: dict[Value, list[int]] = {}
    for value, layout in removal.groups.layouts.items():
        labels = [group_of[axis] for axis in layout if axis is not None]
        of_value[value] = sorted({int(i) for axis in labels for i in np.unique(axis) if i >= 0})
    return {
        key: list(dict.fromkeys(names[i] for v in (*node.inputs, *node.outputs) if v for i in of_value.get(v, ())))
        for key, node in _nodes(removal.groups.graph)
    }


_SECOND = frozenset(
    (
        *("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "DeformConv", "FusedConv", "CausalConvWithState"),
        *("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN", "PRelu"),
    )
)
"""Operators whose channels are axis 1."""


def _data(node: Node) -> tuple[Value, int | None] | None:
    """The data that a layer reads and the axis of its channels."""
    found = next(contractions(node), None)
    if found is not None:
        return found[0], found[1]
    if node.op.startswith("Gather") or "Embed" in node.op:  # its data are numbers of rows
        return None
    value = next((v for v in node.inputs if v is not None and not v.is_constant), None)
    return None if value is None else (value, _channel_axis(node))


def _channel_axis(node: Node) -> int | None:
    """The axis of a layer's result that its channels are: of an elementwise one, where its constant varies most."""
    if node.op in _SECOND:
        return -1 if node.attribute("channels_last", 0) else 1
    if node.op in ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Where"):
        shapes = [v.static_shape or () for v in node.inputs if v is not None and v.is_constant]
        shape = max(shapes, key=math.prod, default=())
        return int(np.argmax(shape)) - len(shape) if shape else None
    first = node.input(0)
    return -2 if node.op == "MatMul" and first is not None and first.is_constant else -1


def _extent(place: tuple[Value, int | None] | None) -> int | None:
    if place is None or place[0].shape is None or place[1] is None or not -len(place[0].shape) <= place[1]:
        return None
    value, axis = place
    extent = (value.shape or ())[axis] if axis is not None and axis < len(value.shape or ()) else None
    return extent if isinstance(extent, int) else None
