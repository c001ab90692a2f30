"""The runtime's attention: projected by one weight, on separate operands, or with grouped queries and a cache.

Operands are seen as [batch, heads, positions, dims], as for the standard operator. Forms that the runtime's CPU
provider does not run (packed 5-D operands, normalised queries) could not be certified, and are refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from compiler.ir import Node, Value
from compiler.ir.contrib import CONTRIB_DOMAIN, PROJECTIONS, grouped_depth, projection_sizes
from passes.coupling.extents import Kept, extent_rule
from passes.coupling.partition import Points
from passes.coupling.rules.attention import (
    ScoreOperand,
    attention_extents,
    linear_attention,
    scores_of,
    tie_pairs,
    turn,
)
from passes.coupling.rules.heads import (
    DIM,
    HEAD,
    POSITION,
    ROW,
    Heads,
    balance_heads,
    dims_left,
    heads_left,
    joined,
    mark_heads,
    open_heads,
    packed_heads,
    pin_axes,
    spell_scale,
    spread,
    tie_cache,
    tie_heads,
    tie_mask,
)
from passes.coupling.solver import Coupling, Labels, Layout, coupling_rule

_TOLD_APART = "attention tells these positions apart"


def _parts(sizes: Sequence[int]) -> list[slice]:
    """Where queries, keys and values lie on one axis."""
    ends = np.cumsum([0, *sizes]).tolist()
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


def _attend(
    c: Coupling, node: Node, sides: Sequence[Heads], bias: Value | None, fixed: Sequence[Value | None], keys: object
) -> Layout:
    """Softmax over positions of q k', then a product with v; returns the layout of the scores.

    bias: what is added to the scores. fixed: masks and lengths, which tell samples and positions apart.
    """
    q, k, v = sides
    for value in fixed:
        if value is not None:
            c.pin_value(value, node, _TOLD_APART)
    if any(value is not None for value in fixed):
        pin_axes(c, node, [ROW, POSITION], sides, _TOLD_APART)
    tie_heads(c, node, q, k, (ROW, HEAD, DIM))
    tie_heads(c, node, q, v, (ROW, HEAD))
    balance_heads(c, node, sides)
    mark_heads(c, sides)
    positions = c.tie(k.layout[POSITION], v.layout[POSITION], node)
    scores: Layout = [*q.layout[:DIM], None if positions is None else positions.swapaxes(POSITION, DIM)]
    if bias is not None:
        scores = tie_mask(c, node, bias, scores, keys)
    y = node.outputs[0]
    c.set(y, joined(y, [*scores[:DIM], spread(v.layout[DIM], q.count)], q.count))
    return scores


def _equally_deep(c: Coupling, node: Node, sides: Sequence[Heads]) -> None:
    """Heads of all these operands lose equally many dims."""
    labels = [side.layout[DIM] for side in sides]
    known = [t for t in labels if t is not None]
    if len(known) < len(labels):
        for side in sides:
            c.pin(side.layout[DIM], node, "another operand's depth, which is as large, is fixed")
        return
    rows = [
        np.broadcast_to(t, (1, side.count, 1, t.shape[DIM])).reshape(side.count, -1)
        for side, t in zip(sides, known, strict=True)
    ]
    flat = np.concatenate(rows)
    c.balance(flat.ravel(), np.repeat(np.arange(len(flat)), flat.shape[1]), node)


@coupling_rule(*PROJECTIONS, domain=CONTRIB_DOMAIN)
def projected_attention(c: Coupling, node: Node) -> None:
    """x[B, S, D] times one weight [D, Hq + Hk + Hv] gives queries, keys and values; the cache is [2, B, N, P, H/N]."""
    x, weight, bias, sizes = node.inputs[0], node.inputs[1], node.input(2), projection_sizes(node)
    heads = int(node.attribute("num_heads"))
    assert x is not None and weight is not None
    if sizes is None or any(n % heads for n in sizes) or node.attribute("do_rotary", 0):
        c.refuse(node, f"{node.op} whose numbers of heads are not known, or that turns its queries")
        return
    c.decondition(x, 2)
    c.set_plain(weight, 0, c.plain(x, 2), node)
    flat = c.plain(weight, 1)
    quantized = node.op == "QAttention"
    columns = [bias, node.input(4), node.input(7)] if quantized else [bias]
    for value in columns:
        if value is not None and value.rank and value.shape != (1,):
            c.set_plain(value, 0, flat, node)
    sides = [packed_heads(c, node, x, None if flat is None else flat[part], heads) for part in _parts(sizes)]
    past = node.input(PROJECTIONS[node.op])
    fixed = [node.input(5 if quantized else 3), None if quantized else node.input(6), past]
    if node.attribute("unidirectional", 0) or past is not None:
        pin_axes(c, node, [POSITION], sides, _TOLD_APART)
    added = None if quantized else node.input(5)
    stateful = past is not None or len(node.outputs) > 1
    if stateful or quantized:  # whose one weight holds three equal parts
        _equally_deep(c, node, sides[1:])
    _attend(c, node, sides, added, [v for v in fixed if v is not past], (x.shape or (None,) * 3)[1])
    if not stateful:
        return
    _, k, v = sides
    state: Layout = [None, _batch_of_state(k), _heads_of_state(k), None, _dims_of_state(c, node, k, v)]
    if past is not None:
        for axis, labels in enumerate(state):
            c.define(past, axis, labels, node)
    for value in node.outputs[1:]:
        c.set(value, state)


def _batch_of_state(side: Heads) -> Labels | None:
    rows = side.layout[ROW]
    return None if rows is None else rows.reshape(1, -1, 1, 1, 1)


def _heads_of_state(side: Heads) -> Labels | None:
    heads = side.layout[HEAD]
    return None if heads is None else heads.reshape(1, 1, -1, 1, 1)


def _dims_of_state(c: Coupling, node: Node, k: Heads, v: Heads) -> Labels | None:
    """The dims of keys and of values, which lie one after the other on the first axis of the cache."""
    keys, values = k.layout[DIM], v.layout[DIM]
    if keys is None or values is None:
        return None
    shape = (1, k.count, 1, max(keys.shape[DIM], values.shape[DIM]))
    return np.stack([np.broadcast_to(keys, shape), np.broadcast_to(values, shape)])


@extent_rule(*PROJECTIONS, domain=CONTRIB_DOMAIN)
def projected_extents(new: Node, old: Node, kept: Kept) -> None:
    """The number of heads, the widths of the three parts, and the scale that a head's depth implies."""
    weight, sizes = old.inputs[1], projection_sizes(old)
    if weight is None or sizes is None or kept.labels(weight, 1) is None:
        return
    heads, parts = int(old.attribute("num_heads")), _parts(sizes)
    left = [dims_left(weight, 1, kept, part) for part in parts]
    new.attributes["num_heads"] = heads_left(weight, heads, kept, 1, parts[0])
    if old.op == "Attention" and (old.attribute("qkv_hidden_sizes") or len(set(left)) > 1):
        new.attributes["qkv_hidden_sizes"] = left
    spell_scale(new, old, sizes[0] // heads, left[0] // new.attributes["num_heads"])


@coupling_rule("MultiHeadAttention", domain=CONTRIB_DOMAIN)
def multi_head_attention(c: Coupling, node: Node) -> None:
    """q[B, S, H], k[B, L, H] or [B, N, L, D], v alike, and one bias [Hq + Hk + Hv] of all three."""
    q, k, v, bias = (node.input(i) for i in range(4))
    heads = int(node.attribute("num_heads"))
    if q is None or k is None or v is None or q.rank != 3 or k.rank not in (3, 4) or v.rank != k.rank:
        c.refuse(node, "MultiHeadAttention on packed operands, which the runtime's CPU provider does not run")
        return
    if node.input(8) is not None or node.input(9) is not None or (bias is not None and k.rank == 4):
        c.refuse(node, "MultiHeadAttention on a shared cache")
        return
    if bias is not None:
        c.set_plain(bias, 0, _one_after_another(c, node, [q, k, v]), node)
    sides = [open_heads(c, node, value, heads) for value in (q, k, v)]
    known = [side for side in sides if side is not None]
    if len(known) < len(sides):
        c.refuse(node, "MultiHeadAttention whose numbers of heads are not known")
        return
    past = [node.input(6), node.input(7)]
    if node.attribute("unidirectional", 0) or any(value is not None for value in past):
        pin_axes(c, node, [POSITION], known, _TOLD_APART)
    if k.rank == 4 or any(value is not None for value in past):
        _equally_deep(c, node, known[1:])
    keys = (k.shape or ())[-2]
    scores = _attend(c, node, known, node.input(5), [node.input(4)], keys)
    _caches(c, node, known[1:], past, node.outputs[1:3])
    for value in node.outputs[3:]:
        c.set(value, scores)


def _one_after_another(c: Coupling, node: Node, values: Sequence[Value]) -> Points | None:
    """The labels of the last axes of several operands, one after the other; what is fixed gets pinned ones."""
    parts = []
    for value in values:
        flat, extent = c.plain(value, (value.rank or 1) - 1), (value.shape or (None,))[-1]
        if flat is None:
            if not isinstance(extent, int):
                return None
            flat = c.partition.fresh(extent)
            c.pin(flat, node, f"{value.name!r} is fixed")
        parts.append(flat)
    return np.concatenate(parts)


def _caches(
    c: Coupling, node: Node, sides: Sequence[Heads], past: Sequence[Value | None], present: Sequence[Value]
) -> None:
    """Caches [batch, heads, positions, dims] of keys and values, before and after."""
    for value, side in zip(past, sides, strict=True):
        if value is not None:
            tie_cache(c, node, value, side.layout)
    for value, side in zip(present, sides, strict=False):
        c.set(value, [side.layout[ROW], side.layout[HEAD], None, side.layout[DIM]])


@extent_rule("MultiHeadAttention", domain=CONTRIB_DOMAIN)
def multi_head_extents(new: Node, old: Node, kept: Kept) -> None:
    """The number of heads, and the scale that a head's depth implies."""
    q, heads = old.inputs[0], int(old.attribute("num_heads"))
    if q is None or q.rank != 3 or kept.labels(q, 2) is None:
        return
    new.attributes["num_heads"] = heads_left(q, heads, kept)
    assert q.shape is not None and isinstance(q.shape[2], int)
    spell_scale(new, old, q.shape[2] // heads, kept.count(q, 2) // new.attributes["num_heads"])


_RUN, _ROTARY_RUN = 8, 16
"""The runtime wants the depth of a head of GroupQueryAttention to be a multiple of this."""


@coupling_rule("GroupQueryAttention", domain=CONTRIB_DOMAIN)
def grouped_query_attention(c: Coupling, node: Node) -> None:
    """q[B, S, N D], k and v [B, S, M D], or all three in one operand; each key-value head serves N / M query heads.

    Dims go in runs that keep the depth of a head a multiple of what the runtime wants; where queries and keys are
    turned, in runs of as many pairs.
    """
    q, k, v = (node.input(i) for i in range(3))
    assert q is not None
    heads, shared, depth = int(node.attribute("num_heads")), int(node.attribute("kv_num_heads")), grouped_depth(node)
    unusual = ("k_scale", "v_scale", "q_norm_weight", "k_norm_weight", "query_seqlens")
    if any(node.input(12 + i) is not None for i in range(len(unusual))) or node.attribute("sliding_window_cache", 0):
        c.refuse(node, f"GroupQueryAttention with one of {', '.join(unusual)}, or a cache of a window")
        return
    if not isinstance(depth, int) or heads % shared or q.rank != 3 or (k is None) != (v is None):
        c.refuse(node, "GroupQueryAttention whose numbers of heads are not known")
        return
    flats: list[Points | None]
    if k is None or v is None:
        flat = c.plain(q, 2)
        flats = [None if flat is None else flat[p] for p in _parts([heads * depth, shared * depth, shared * depth])]
        operands = [q, q, q]
    else:
        operands = [q, k, v]
        flats = [c.plain(value, 2) for value in operands]
    counts = (heads, shared, shared)
    sides = [packed_heads(c, node, value, own, n) for value, own, n in zip(operands, flats, counts, strict=True)]
    pin_axes(c, node, [ROW, POSITION], sides, _TOLD_APART)
    for index in (5, 6, 9):
        value = node.input(index)
        if value is not None:
            c.pin_value(value, node, _TOLD_APART)
    tie_heads(c, node, sides[0], sides[1], (DIM,))
    _runs(c, node, sides)
    _equally_deep(c, node, sides[1:])
    scores = _attend(c, node, sides, node.input(10), [], (q.shape or (None,) * 3)[1])
    sink, whole = node.input(11), sides[0].layout[HEAD]
    if sink is not None:
        c.set_plain(sink, 0, None if whole is None else whole.ravel(), node)
    _caches(c, node, sides[1:], [node.input(3), node.input(4)], node.outputs[1:3])
    for value in node.outputs[3:]:
        c.set(value, scores)


def _runs(c: Coupling, node: Node, sides: Sequence[Heads]) -> None:
    """Unite runs of neighbouring dims, which go together; where queries and keys turn, runs of pairs."""
    tables = [v for v in (node.input(7), node.input(8)) if v is not None]
    rotary = bool(node.attribute("do_rotary", 0))
    turning = 0
    if rotary and tables:
        turning = 2 * int((tables[0].static_shape or (0, 0))[1])
        tie_pairs(c, node, sides[:2], tables, turning, bool(node.attribute("rotary_interleaved", 0)))
        angles = c.plain(tables[0], 1)
        if angles is not None:
            _unite_runs(c, angles, _RUN)
    for side, start in zip(sides, (turning, turning, 0), strict=True):
        dims = side.layout[DIM]
        if dims is not None and start < dims.shape[DIM]:
            for row in np.broadcast_to(dims, (1, side.count, 1, dims.shape[DIM])).reshape(side.count, -1):
                _unite_runs(c, row[start:], _ROTARY_RUN if rotary else _RUN)


def _unite_runs(c: Coupling, points: Points, run: int) -> None:
    runs = points[: len(points) // run * run].reshape(-1, run)
    c.partition.union(runs[:, :1], runs)


@extent_rule("GroupQueryAttention", domain=CONTRIB_DOMAIN)
def grouped_query_extents(new: Node, old: Node, kept: Kept) -> None:
    """Numbers of heads, and the scale that a head's depth implies."""
    q, k, depth = old.inputs[0], old.input(1), grouped_depth(old)
    heads, shared = int(old.attribute("num_heads")), int(old.attribute("kv_num_heads"))
    if q is None or not isinstance(depth, int) or kept.labels(q, 2) is None:
        return
    queries, keys, _ = _parts([heads * depth, shared * depth, shared * depth])
    new.attributes["num_heads"] = heads_left(q, heads, kept, 2, queries)
    place = (q, keys) if k is None else (k, slice(None))
    new.attributes["kv_num_heads"] = heads_left(place[0], shared, kept, 2, place[1])
    left = dims_left(q, 2, kept, queries) // new.attributes["num_heads"]
    spell_scale(new, old, depth, left)


@coupling_rule("RotaryEmbedding", domain=CONTRIB_DOMAIN)
def rotary_embedding(c: Coupling, node: Node) -> None:
    """As the standard operator; where the number of heads is not given, all dims turn, two an angle."""
    x, positions, cosines, sines = node.inputs[:4]
    assert x is not None and cosines is not None and sines is not None
    heads = int(node.attribute("num_heads", 0))
    if not heads and cosines.static_shape is not None and x.rank == 3 and x.shape is not None:
        width = x.shape[2]
        heads = width // (2 * cosines.static_shape[1]) if isinstance(width, int) else 0
    if node.attribute("is_packed_batching", 0):
        c.refuse(node, "RotaryEmbedding on samples of different lengths")
        return
    turn(c, node, x, [cosines, sines], positions, heads)


@extent_rule("RotaryEmbedding", domain=CONTRIB_DOMAIN)
def rotary_extents(new: Node, old: Node, kept: Kept) -> None:
    """The number of dims that turn is twice that of the angles; that of heads follows where it is given."""
    x, table = old.inputs[0], old.inputs[2]
    assert x is not None and table is not None
    if x.rank == 3 and old.attribute("num_heads", 0):
        new.attributes["num_heads"] = heads_left(x, int(old.attribute("num_heads")), kept)
    if old.attribute("rotary_embedding_dim", 0) and kept.touches(table):
        new.attributes["rotary_embedding_dim"] = 2 * kept.count(table, 1)


@coupling_rule("LinearAttention", domain=CONTRIB_DOMAIN)
def contrib_linear_attention(c: Coupling, node: Node) -> None:
    """As the standard operator, but for a window of states and for more key-value heads than query heads."""
    if node.attribute("state_window", 0) or node.attribute("q_num_heads") < node.attribute("kv_num_heads"):
        c.refuse(node, "LinearAttention with a window of states, or with fewer heads of queries than of keys")
        return
    linear_attention(c, node)


extent_rule("LinearAttention", domain=CONTRIB_DOMAIN)(attention_extents)


@scores_of(*PROJECTIONS, domain=CONTRIB_DOMAIN)
def _projected_scores(node: Node) -> Iterator[ScoreOperand]:
    weight, sizes = node.inputs[1], projection_sizes(node)
    for part in _parts(sizes)[:2] if sizes is not None else ():
        assert weight is not None
        yield weight, 1, part, int(node.attribute("num_heads"))


@scores_of("MultiHeadAttention", domain=CONTRIB_DOMAIN)
def _multi_head_scores(node: Node) -> Iterator[ScoreOperand]:
    for value in (node.input(0), node.input(1)):
        if value is not None:
            heads = int(node.attribute("num_heads")) if value.rank == 3 else None
            yield value, (value.rank or 1) - 1, slice(None), heads


@scores_of("GroupQueryAttention", domain=CONTRIB_DOMAIN)
def _grouped_scores(node: Node) -> Iterator[ScoreOperand]:
    q, k, depth = node.inputs[0], node.input(1), grouped_depth(node)
    heads, shared = int(node.attribute("num_heads")), int(node.attribute("kv_num_heads"))
    assert q is not None
    if k is not None:
        yield q, 2, slice(None), heads
        yield k, 2, slice(None), shared
    elif isinstance(depth, int):
        for part, count in zip(_parts([heads * depth, shared * depth]), (heads, shared), strict=True):
            yield q, 2, part, count
