"""Operands of attention, packed or not, seen as [batch, heads, positions, dims]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compiler.ir import Node, Value
from passes.coupling import kinds
from passes.coupling.extents import Kept
from passes.coupling.partition import Points
from passes.coupling.solver import Coupling, Labels, Layout

ROW, HEAD, POSITION, DIM = range(4)


@dataclass
class Heads:
    """An operand of `count` heads as [batch, heads, positions, dims]; only the dims are conditional, on the head.

    packed: heads and dims lie on one axis.
    """

    value: Value
    count: int
    layout: Layout
    packed: bool = True


def open_heads(c: Coupling, node: Node, value: Value, heads: int | None) -> Heads | None:
    """The operand's labels per head; None when its extents are not known."""
    shape = value.shape or ()
    if value.rank == 4:
        count = shape[HEAD]
        if not isinstance(count, int):
            return None
        for axis in (ROW, POSITION):
            c.decondition(value, axis)
        layout = [along(c, value, axis, axis) for axis in (ROW, HEAD, POSITION)]
        return Heads(value, count, [*layout, c.decondition(value, DIM)[DIM]], packed=False)
    if value.rank != 3 or not heads or not isinstance(shape[2], int) or shape[2] % heads:
        return None
    return packed_heads(c, node, value, c.plain(value, 2), heads)


def packed_heads(c: Coupling, node: Node, value: Value, flat: Points | None, heads: int) -> Heads:
    """Heads whose dims lie on one axis with the labels `flat`; `value` [batch, positions, ...] has the other axes."""
    layout = [along(c, value, 0, ROW), None, along(c, value, 1, POSITION), None]
    if flat is None:
        return Heads(value, heads, layout)
    dims = flat.reshape(1, heads, 1, -1)
    if c.heads:
        c.partition.union(dims[..., :1], dims)
        layout[HEAD] = dims[..., :1]
    else:
        layout[DIM] = dims
    axis = HEAD if c.heads else DIM
    if dims.shape[axis] == 1:
        c.pin(flat, node, "all heads share one" if c.heads else "each head has a single dim")
        layout[axis] = None
    return Heads(value, heads, layout)


def balance_heads(c: Coupling, node: Node, sides: Sequence[Heads]) -> None:
    """Packed heads lose equally many dims; dims that all heads share do so anyway."""
    for side in sides:
        labels = side.layout[DIM]
        if not side.packed or labels is None:
            continue
        dims = np.broadcast_to(labels, (1, side.count, 1, labels.shape[DIM])).reshape(side.count, -1)
        roots = c.partition.find(dims)
        own = dims[:, (roots != roots[:1]).any(axis=0)]
        if own.size:
            c.balance(own.ravel(), np.repeat(np.arange(side.count), own.shape[1]), node)


def along(c: Coupling, value: Value, axis: int, place: int, rank: int = 4) -> Labels | None:
    """Unconditional labels of one axis of a value, as those of axis `place` in a tensor of `rank`."""
    points = c.plain(value, axis)
    return None if points is None else points.reshape([-1 if a == place else 1 for a in range(rank)])


def tie_heads(c: Coupling, node: Node, a: Heads, b: Heads, axes: Sequence[int]) -> None:
    """Unite axes of two operands, of which `b` may have fewer heads, each read by a run of `a`'s."""
    for axis in axes:
        if axis == HEAD and b.count == 1:  # all heads of `a` read the only one
            continue
        a.layout[axis] = c.tie(a.layout[axis], spread(b.layout[axis], a.count), node)


def spread(labels: Labels | None, heads: int) -> Labels | None:
    """Labels of key or value heads, each repeated for the query heads that read it."""
    if labels is None or labels.shape[HEAD] == 1:
        return labels
    return labels.repeat(heads // labels.shape[HEAD], axis=HEAD)


def pin_axes(c: Coupling, node: Node, axes: Sequence[int], sides: Sequence[Heads], why: str) -> None:
    """Pin axes of operands, which the others then meet as fixed ones."""
    for side in sides:
        for axis in axes:
            c.pin(side.layout[axis], node, why)
            side.layout[axis] = None


def joined(y: Value, layout: Layout, heads: int) -> Layout:
    """The labels of a result in its own form."""
    if y.rank == 4:
        return layout
    rows, whole, positions, dims = layout
    flat = whole if dims is None else dims
    if flat is not None:
        assert y.shape is not None and isinstance(y.shape[2], int)
        flat = np.broadcast_to(flat, (1, heads, 1, y.shape[2] // heads)).reshape(1, 1, -1)
    return [
        None if rows is None else rows.reshape(-1, 1, 1),
        None if positions is None else positions.reshape(1, -1, 1),
        flat,
    ]


def mark_heads(c: Coupling, sides: Sequence[Heads]) -> None:
    """Say what moves: heads, or dims within them."""
    for side in sides:
        c.mark(side.layout[HEAD], HEAD, kinds.HEAD)
        c.mark(side.layout[DIM], DIM, kinds.HEAD_DIM)


def tie_cache(c: Coupling, node: Node, past: Value, layout: Layout) -> None:
    """A cache [batch, heads, positions, dims] goes before the operand's positions."""
    c.pin_axis(past, POSITION, node, "Attention tells these positions apart")
    for axis in (ROW, HEAD, DIM):
        c.define(past, axis, layout[axis], node)


def tie_mask(c: Coupling, node: Node, mask: Value, scores: Layout, keys: object) -> Layout:
    """The mask broadcasts to [batch, heads, queries, keys]."""
    found, rank = list(scores), mask.rank or 0
    assert mask.shape is not None
    for own in range(rank):
        if mask.shape[own] == 1:
            continue
        axis = own - rank + 4
        labels = along(c, mask, own, axis)
        if axis == DIM and mask.shape[own] != keys:
            c.pin(labels, node, "the mask covers other positions than the keys")
            labels = None
        found[axis] = c.tie(found[axis], labels, node)
    return found


def dims_left(value: Value, axis: int, kept: Kept, part: slice = slice(None)) -> int:
    """How many positions stay in a part of an axis whose extent is known."""
    mask = kept.mask(value, axis)
    if mask is None:
        extent = value.shape[axis] if value.shape is not None else None
        assert isinstance(extent, int)
        return len(range(extent)[part])
    return int(mask[part].sum())


def heads_left(value: Value, heads: int, kept: Kept, axis: int = 2, part: slice = slice(None)) -> int:
    """How many heads of (a part of) a packed axis stay: fewer only where each moves as a whole."""
    labels = kept.labels(value, axis)
    if labels is None:
        return heads
    own = labels.reshape(-1)[part]
    return dims_left(value, axis, kept, part) // (own.size // heads) if whole_heads(own, heads) else heads


def whole_heads(labels: np.ndarray, heads: int) -> bool:
    """True when all dims of each head of a packed operand carry one label."""
    rows = labels.reshape(heads, -1)
    return bool((rows == rows[:, :1]).all())


def spell_scale(new: Node, old: Node, depth: int, left: int) -> None:
    """Spell out the scale that a head's depth implies, when the depth changes."""
    if not old.attribute("scale", 0.0) and left != depth:
        new.attributes["scale"] = 1 / math.sqrt(depth)
