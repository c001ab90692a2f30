"""Attention operators: the dims of queries meet those of keys, the dims of values pass to the result.

Both forms are seen as [batch, heads, positions, dims]. In the packed form either the dims move within their head,
equally many in each, or (when whole heads are asked for) the heads; in the 4-D form whichever axis has labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from compiler.ir import Node, Value
from passes.coupling.extents import Kept, extent_rule
from passes.coupling.rules.heads import (
    DIM,
    HEAD,
    POSITION,
    ROW,
    Heads,
    along,
    balance_heads,
    heads_left,
    joined,
    mark_heads,
    open_heads,
    pin_axes,
    spell_scale,
    spread,
    tie_cache,
    tie_heads,
    tie_mask,
)
from passes.coupling.solver import Coupling, Layout, coupling_rule


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
        pin_axes(c, node, [POSITION], sides, "Attention tells these positions apart")
    if lengths is not None:
        c.pin_axis(lengths, 0, node, "each sample has a length of its own")
        pin_axes(c, node, [ROW], sides, "each sample has a length of its own")
    tie_heads(c, node, q, k, (ROW, HEAD, DIM))
    tie_heads(c, node, q, v, (ROW, HEAD))
    balance_heads(c, node, sides)
    mark_heads(c, sides)
    keys = c.tie(k.layout[POSITION], v.layout[POSITION], node)
    for value, side in zip(past, (k, v), strict=True):
        if value is not None:
            tie_cache(c, node, value, side.layout)
    scores: Layout = [*q.layout[:DIM], None if keys is None else keys.swapaxes(POSITION, DIM)]
    if mask is not None:
        scores = tie_mask(c, node, mask, scores, (k.value.shape or ())[-2])
    c.set(node.outputs[0], joined(node.outputs[0], [*scores[:DIM], spread(v.layout[DIM], q.count)], q.count))
    for value, side in zip(node.outputs[1:3], (k, v), strict=False):
        c.set(value, [side.layout[ROW], side.layout[HEAD], None, side.layout[DIM]])
    for value in node.outputs[3:]:
        c.set(value, scores)


def _operands(c: Coupling, node: Node) -> tuple[Heads, Heads, Heads] | None:
    """Queries, keys and values; None when heads do not divide, or are not known."""
    counts = [node.attribute(name) for name in ("q_num_heads", "kv_num_heads", "kv_num_heads")]
    sides = []
    for value, heads in zip(node.inputs[:3], counts, strict=True):
        assert value is not None
        side = open_heads(c, node, value, heads)
        if side is None:
            return None
        sides.append(side)
    q, k, v = sides
    return None if q.count % k.count or k.count != v.count else (q, k, v)


@coupling_rule("LinearAttention")
def linear_attention(c: Coupling, node: Node) -> None:
    """A state [keys' dims x values' dims] per head, written by keys and values and read by queries."""
    sides = _operands(c, node)
    if sides is None:
        c.refuse(node, "LinearAttention whose numbers of heads are not known")
        return
    q, k, v = sides
    pin_axes(c, node, [POSITION], sides, "LinearAttention reads this axis in order")
    tie_heads(c, node, q, k, (ROW, HEAD, DIM))
    tie_heads(c, node, q, v, (ROW, HEAD))
    balance_heads(c, node, sides)
    mark_heads(c, sides)
    past, keys, values = node.input(3), k.layout[DIM], v.layout[DIM]
    columns = None if keys is None else keys.swapaxes(2, 3)
    state = [q.layout[ROW], k.layout[HEAD], columns, values]
    if past is not None:
        for axis, labels in enumerate(state):
            c.define(past, axis, labels, node)
    for value in node.inputs[4:6]:
        if value is not None:
            _gate(c, node, value, k)
    c.set(node.outputs[0], joined(node.outputs[0], [*q.layout[:DIM], spread(values, q.count)], q.count))
    for value in node.outputs[1:]:
        c.set(value, state)


def _gate(c: Coupling, node: Node, value: Value, keys: Heads) -> None:
    """A decay or update rate [batch, positions, heads], or one for each dim of the keys."""
    rows = keys.layout[ROW]
    c.set_plain(value, 0, None if rows is None else rows.ravel(), node)
    c.pin_axis(value, 1, node, "LinearAttention reads this axis in order")
    flat, own = c.plain(value, 2), keys.layout[HEAD]
    if value.shape is not None and keys.value.shape is not None and value.shape[2] == keys.value.shape[2]:
        own = keys.layout[DIM] if own is None else own
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
            new.attributes[name] = heads_left(value, int(old.attribute(name)), kept)
        left = kept.count(q, 2) // new.attributes["q_num_heads"]
    else:
        left = kept.count(q, 3)
    if isinstance(depth, int):
        spell_scale(new, old, depth, left)


ScoreOperand = tuple[Value, int, slice, int | None]
"""Value, axis, the part of it that holds queries or keys, and its number of heads; None for an axis of dims alone."""

_SCORES: dict[tuple[str, str], Callable[[Node], Iterator[ScoreOperand]]] = {}


def scores_of(
    *ops: str, domain: str = ""
) -> Callable[[Callable[[Node], Iterator[ScoreOperand]]], Callable[[Node], Iterator[ScoreOperand]]]:
    """Register where the queries and keys of attention operators are."""

    def register(places: Callable[[Node], Iterator[ScoreOperand]]) -> Callable[[Node], Iterator[ScoreOperand]]:
        _SCORES.update({(domain, op): places for op in ops})
        return places

    return register


def score_operands(node: Node) -> Iterator[ScoreOperand]:
    """Where the dims lie that an attention operator sums over to score positions; nothing for other operators."""
    places = _SCORES.get((node.domain, node.op))
    return iter(()) if places is None else places(node)


@scores_of("Attention", "LinearAttention")
@scores_of("LinearAttention", domain="com.microsoft")
def _scores(node: Node) -> Iterator[ScoreOperand]:
    for value, name in zip(node.inputs[:2], ("q_num_heads", "kv_num_heads"), strict=True):
        assert value is not None
        last = (value.rank or 1) - 1
        yield value, last, slice(None), int(node.attribute(name)) if value.rank == 3 else None


@coupling_rule("RotaryEmbedding")
def rotary_embedding(c: Coupling, node: Node) -> None:
    """Dims turn in pairs, by one angle in all heads; the dims beyond `rotary_embedding_dim` pass."""
    x, cosines, sines, positions = node.inputs[0], node.inputs[1], node.inputs[2], node.input(3)
    assert x is not None and cosines is not None and sines is not None
    turn(c, node, x, [cosines, sines], positions, node.attribute("num_heads"))


def turn(
    c: Coupling, node: Node, x: Value, tables: Sequence[Value], positions: Value | None, heads: int | None
) -> None:
    """The couplings of a rotary embedding of x by the angles of `tables`, of which the node's result has the layout."""
    side = open_heads(c, node, x, heads)
    if side is None:
        c.refuse(node, "RotaryEmbedding whose number of heads is not known")
        return
    pin_axes(c, node, [ROW, POSITION], [side], "each position turns by angles of its own")
    if positions is not None:
        c.pin_value(positions, node, "each position turns by angles of its own")
    dims = int(node.attribute("rotary_embedding_dim", 0))
    tie_pairs(c, node, [side], tables, dims, bool(node.attribute("interleaved", 0)))
    mark_heads(c, [side])
    balance_heads(c, node, [side])
    c.set(node.outputs[0], c.layout(x))


def tie_pairs(
    c: Coupling, node: Node, sides: Sequence[Heads], tables: Sequence[Value], turned: int, interleaved: bool
) -> None:
    """Unite the members of each pair of dims with their angle. turned: how many dims turn, 0 for all."""
    angles = []
    for table in tables:
        for axis in range((table.rank or 1) - 1):
            c.define(table, axis, None, node)
        angles.append(along(c, table, (table.rank or 1) - 1, DIM))
    for side in sides:
        dims = side.layout[DIM]
        if dims is None:
            angles.append(None)
            continue
        order = np.arange(turned or dims.shape[DIM])
        for member in order.reshape(-1, 2).T if interleaved else order.reshape(2, -1):
            angles.append(dims.take(member, axis=DIM))
    first, *others = angles
    for other in others:
        first = c.tie(first, other, node, "the other member of the pair, or its angle, is fixed")


@extent_rule("RotaryEmbedding")
def rotary_extents(new: Node, old: Node, kept: Kept) -> None:
    """The number of dims that turn is twice that of the angles; that of heads follows."""
    x, table = old.inputs[0], old.inputs[1]
    assert x is not None and table is not None
    if x.rank == 3:
        new.attributes["num_heads"] = heads_left(x, int(old.attribute("num_heads")), kept)
    if old.attribute("rotary_embedding_dim", 0) and kept.touches(table):
        new.attributes["rotary_embedding_dim"] = 2 * kept.count(table, (table.rank or 1) - 1)
