"""Attention operators: the dims of queries meet those of keys, the dims of values pass to the result.

Both forms are seen as [batch, heads, positions, dims]. In the packed form either the dims move within their head,
equally many in each, or (when whole heads are asked for) the heads; in the 4-D form whichever axis has labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compiler.ir import Node, Value
from passes.coupling.extents import Kept, extent_rule
from passes.coupling.kinds import HEAD, HEAD_DIM
from passes.coupling.solver import Coupling, Labels, Layout, coupling_rule

_ROW, _HEAD, _POSITION, _DIM = range(4)


@dataclass
class _Heads:
    """An operand of `count` heads as [batch, heads, positions, dims]; only the dims are conditional, on the head."""

    value: Value
    count: int
    layout: Layout


def _open(c: Coupling, node: Node, value: Value, heads: int | None) -> _Heads | None:
    """The operand's labels per head; None when its extents are not known."""
    shape = value.shape or ()
    if value.rank == 4:
        count = shape[_HEAD]
        if not isinstance(count, int):
            return None
        for axis in (_ROW, _POSITION):
            c.decondition(value, axis)
        layout = [_along(c, value, axis, axis) for axis in (_ROW, _HEAD, _POSITION)]
        return _Heads(value, count, [*layout, c.decondition(value, _DIM)[_DIM]])
    if value.rank != 3 or not heads or not isinstance(shape[2], int) or shape[2] % heads:
        return None
    rows, positions, flat = _along(c, value, 0, _ROW), _along(c, value, 1, _POSITION), c.plain(value, 2)
    layout = [rows, None, positions, None]
    if flat is None:
        return _Heads(value, heads, layout)
    dims = flat.reshape(1, heads, 1, -1)
    if c.heads:
        c.partition.union(dims[..., :1], dims)
        layout[_HEAD] = dims[..., :1]
    else:
        layout[_DIM] = dims
    axis = _HEAD if c.heads else _DIM
    if dims.shape[axis] == 1:
        c.pin(flat, node, "all heads share one" if c.heads else "each head has a single dim")
        layout[axis] = None
    return _Heads(value, heads, layout)


def _balance(c: Coupling, node: Node, sides: Sequence[_Heads]) -> None:
    """Packed heads lose equally many dims; dims that all heads share do so anyway."""
    for side in sides:
        labels = side.layout[_DIM]
        if side.value.rank != 3 or labels is None:
            continue
        dims = np.broadcast_to(labels, (1, side.count, 1, labels.shape[_DIM])).reshape(side.count, -1)
        roots = c.partition.find(dims)
        own = dims[:, (roots != roots[:1]).any(axis=0)]
        if own.size:
            c.balance(own.ravel(), np.repeat(np.arange(side.count), own.shape[1]), node)


def _along(c: Coupling, value: Value, axis: int, place: int, rank: int = 4) -> Labels | None:
    points = c.plain(value, axis)
    return None if points is None else points.reshape([-1 if a == place else 1 for a in range(rank)])


def _tie(c: Coupling, node: Node, a: _Heads, b: _Heads, axes: Sequence[int]) -> None:
    """Unite axes of two operands, of which `b` may have fewer heads, each read by a run of `a`'s."""
    for axis in axes:
        if axis == _HEAD and b.count == 1:  # all heads of `a` read the only one
            continue
        a.layout[axis] = c.tie(a.layout[axis], _spread(b.layout[axis], a.count), node)


def _spread(labels: Labels | None, heads: int) -> Labels | None:
    """Labels of key or value heads, each repeated for the query heads that read it."""
    if labels is None or labels.shape[_HEAD] == 1:
        return labels
    return labels.repeat(heads // labels.shape[_HEAD], axis=_HEAD)


def _pin_axes(c: Coupling, node: Node, axes: Sequence[int], sides: Sequence[_Heads], why: str) -> None:
    for side in sides:
        for axis in axes:
            c.pin(side.layout[axis], node, why)
            side.layout[axis] = None


def _result(y: Value, layout: Layout, heads: int) -> Layout:
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


def _mark(c: Coupling, sides: Sequence[_Heads]) -> None:
    for side in sides:
        c.mark(side.layout[_HEAD], _HEAD, HEAD)
        c.mark(side.layout[_DIM], _DIM, HEAD_DIM)


@coupling_rule("Attention")
def attention(c: Coupling, node: Node) -> None:
    """Softmax over positions of q k', then a product with v; several query heads may share a key and value head."""
    sides = _operands(c, node)
    if sides is None:
        c.refuse(node, "Attention whose numbers of heads are not known")
        return
    q, k, v = sides
    mask, lengths, past = node.input(3), node.input(6), [node.input(4), node.input(5)]
    windows = [node.attribute(f"{side}_window_size", -1) for side in ("left", "right")]
    if node.attribute("is_causal", 0) or max(windows) >= 0 or any(x is not None for x in (*past, lengths)):
        _pin_axes(c, node, [_POSITION], sides, "Attention tells these positions apart")
    if lengths is not None:
        c.pin_axis(lengths, 0, node, "each sample has a length of its own")
        _pin_axes(c, node, [_ROW], sides, "each sample has a length of its own")
    _tie(c, node, q, k, (_ROW, _HEAD, _DIM))
    _tie(c, node, q, v, (_ROW, _HEAD))
    _balance(c, node, sides)
    _mark(c, sides)
    keys = c.tie(k.layout[_POSITION], v.layout[_POSITION], node)
    for value, side in zip(past, (k, v), strict=True):
        if value is not None:
            _cache(c, node, value, side.layout)
    scores: Layout = [*q.layout[:_DIM], None if keys is None else keys.swapaxes(_POSITION, _DIM)]
    if mask is not None:
        scores = _mask(c, node, mask, scores, (k.value.shape or ())[-2])
    c.set(node.outputs[0], _result(node.outputs[0], [*scores[:_DIM], _spread(v.layout[_DIM], q.count)], q.count))
    for value, side in zip(node.outputs[1:3], (k, v), strict=False):
        c.set(value, [side.layout[_ROW], side.layout[_HEAD], None, side.layout[_DIM]])
    for value in node.outputs[3:]:
        c.set(value, scores)


def _operands(c: Coupling, node: Node) -> tuple[_Heads, _Heads, _Heads] | None:
    """Queries, keys and values; None when heads do not divide, or are not known."""
    counts = [node.attribute(name) for name in ("q_num_heads", "kv_num_heads", "kv_num_heads")]
    sides = []
    for value, heads in zip(node.inputs[:3], counts, strict=True):
        assert value is not None
        side = _open(c, node, value, heads)
        if side is None:
            return None
        sides.append(side)
    q, k, v = sides
    return None if q.count % k.count or k.count != v.count else (q, k, v)


def _cache(c: Coupling, node: Node, past: Value, layout: Layout) -> None:
    """A cache [batch, heads, positions, dims] goes before the operand's positions."""
    c.pin_axis(past, _POSITION, node, "Attention tells these positions apart")
    for axis in (_ROW, _HEAD, _DIM):
        c.define(past, axis, layout[axis], node)


def _mask(c: Coupling, node: Node, mask: Value, scores: Layout, keys: object) -> Layout:
    """The mask broadcasts to [batch, heads, queries, keys]."""
    found, rank = list(scores), mask.rank or 0
    assert mask.shape is not None
    for own in range(rank):
        if mask.shape[own] == 1:
            continue
        axis = own - rank + 4
        labels = _along(c, mask, own, axis)
        if axis == _DIM and mask.shape[own] != keys:
            c.pin(labels, node, "the mask covers other positions than the keys")
            labels = None
        found[axis] = c.tie(found[axis], labels, node)
    return found


@coupling_rule("LinearAttention")
def linear_attention(c: Coupling, node: Node) -> None:
    """A state [keys' dims x values' dims] per head, written by keys and values and read by queries."""
    sides = _operands(c, node)
    if sides is None:
        c.refuse(node, "LinearAttention whose numbers of heads are not known")
        return
    q, k, v = sides
    _pin_axes(c, node, [_POSITION], sides, "LinearAttention reads this axis in order")
    _tie(c, node, q, k, (_ROW, _HEAD, _DIM))
    _tie(c, node, q, v, (_ROW, _HEAD))
    _balance(c, node, sides)
    _mark(c, sides)
    past, keys, values = node.input(3), k.layout[_DIM], v.layout[_DIM]
    columns = None if keys is None else keys.swapaxes(2, 3)
    state = [q.layout[_ROW], k.layout[_HEAD], columns, values]
    if past is not None:
        for axis, labels in enumerate(state):
            c.define(past, axis, labels, node)
    for value in node.inputs[4:6]:
        if value is not None:
            _gate(c, node, value, k)
    c.set(node.outputs[0], _result(node.outputs[0], [*q.layout[:_DIM], _spread(values, q.count)], q.count))
    for value in node.outputs[1:]:
        c.set(value, state)


def _gate(c: Coupling, node: Node, value: Value, keys: _Heads) -> None:
    """A decay or update rate [batch, positions, heads], or one for each dim of the keys."""
    rows = keys.layout[_ROW]
    c.set_plain(value, 0, None if rows is None else rows.ravel(), node)
    c.pin_axis(value, 1, node, "LinearAttention reads this axis in order")
    flat, own = c.plain(value, 2), keys.layout[_HEAD]
    if value.shape is not None and keys.value.shape is not None and value.shape[2] == keys.value.shape[2]:
        own = keys.layout[_DIM] if own is None else own
        if own is not None:
            own = np.broadcast_to(own, (1, keys.count, 1, int(value.shape[2] or 0) // keys.count))
    if flat is not None and len(flat) > 1:
        c.tie(flat, None if own is None else own.reshape(-1), node, "the heads are fixed")


@extent_rule("Attention", "LinearAttention")
def attention_extents(new: Node, old: Node, kept: Kept) -> None:
    """Numbers of heads follow; the scale that a head's depth implies is spelt out when the depth changes."""
    q, k = old.inputs[0], old.inputs[1]
    assert q is not None and k is not None and q.shape is not None
    depth = q.shape[-1]
    if len(q.shape) == 3:
        depth = int(depth or 0) // int(old.attribute("q_num_heads"))
        for name, value in (("q_num_heads", q), ("kv_num_heads", k)):
            new.attributes[name] = _heads_left(value, int(old.attribute(name)), kept)
        left = kept.count(q, 2) // new.attributes["q_num_heads"]
    else:
        left = kept.count(q, 3)
    if not old.attribute("scale", 0.0) and isinstance(depth, int) and left != depth:
        new.attributes["scale"] = 1 / math.sqrt(depth)


def _heads_left(value: Value, heads: int, kept: Kept) -> int:
    """How many heads of a packed operand stay: fewer only where each moves as a whole."""
    labels = kept.labels(value, 2)
    if labels is None:
        return heads
    return kept.count(value, 2) // (labels.size // heads) if whole_heads(labels, heads) else heads


def whole_heads(labels: np.ndarray, heads: int) -> bool:
    """True when all dims of each head of a packed operand carry one label."""
    rows = labels.reshape(heads, -1)
    return bool((rows == rows[:, :1]).all())


@coupling_rule("RotaryEmbedding")
def rotary_embedding(c: Coupling, node: Node) -> None:
    """Dims turn in pairs, by one angle in all heads; the dims beyond `rotary_embedding_dim` pass."""
    x, cosines, sines, positions = node.inputs[0], node.inputs[1], node.inputs[2], node.input(3)
    assert x is not None and cosines is not None and sines is not None
    side = _open(c, node, x, node.attribute("num_heads"))
    if side is None:
        c.refuse(node, "RotaryEmbedding whose number of heads is not known")
        return
    _pin_axes(c, node, [_ROW, _POSITION], [side], "each position turns by angles of its own")
    if positions is not None:
        c.pin_value(positions, node, "each position turns by angles of its own")
    angles = []
    for table in (cosines, sines):
        for axis in range((table.rank or 1) - 1):
            c.define(table, axis, None, node)
        angles.append(_along(c, table, (table.rank or 1) - 1, _DIM))
    dims = side.layout[_DIM]
    if dims is not None:
        turned = int(node.attribute("rotary_embedding_dim", 0)) or dims.shape[_DIM]
        order = np.arange(turned)
        pairs = order.reshape(-1, 2).T if node.attribute("interleaved", 0) else order.reshape(2, -1)
        for member in pairs:
            angles.append(dims.take(member, axis=_DIM))
    else:
        angles.append(None)
    _mark(c, [side])
    first, *others = angles
    for other in others:
        first = c.tie(first, other, node, "the other member of the pair, or its angle, is fixed")
    _balance(c, node, [side])
    c.set(node.outputs[0], c.layout(x))


@extent_rule("RotaryEmbedding")
def rotary_extents(new: Node, old: Node, kept: Kept) -> None:
    """The number of dims that turn is twice that of the angles; that of heads follows."""
    x, table = old.inputs[0], old.inputs[1]
    assert x is not None and table is not None
    if x.rank == 3:
        new.attributes["num_heads"] = _heads_left(x, int(old.attribute("num_heads")), kept)
    if old.attribute("rotary_embedding_dim", 0) and kept.touches(table):
        new.attributes["rotary_embedding_dim"] = 2 * kept.count(table, (table.rank or 1) - 1)
