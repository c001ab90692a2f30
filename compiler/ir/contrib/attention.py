"""Shapes and costs of the runtime's attention operators."""

from __future__ import annotations

import math

from compiler.ir.contrib.domain import (
    CONTRIB_DOMAIN,
    FLOAT,
    Type,
    contrib_shape,
    dtype_of,
    extent,
    operand,
    padded,
    total,
)
from compiler.ir.cost import Shape as Extents
from compiler.ir.cost import cost_rule
from compiler.ir.graph import Dim, Node, Value

PROJECTIONS = {"Attention": 4, "QAttention": 8}
"""Operators that project queries, keys and values by one weight, and which operand is their cache."""


def projection_sizes(node: Node) -> tuple[int, int, int] | None:
    """The widths of queries, keys and values in the second axis of the weight of Attention and QAttention."""
    listed = node.attribute("qkv_hidden_sizes")
    width = extent(node.input(1), 1)
    if listed:
        q, k, v = (int(n) for n in listed)
        return q, k, v
    return (width // 3,) * 3 if isinstance(width, int) and width % 3 == 0 else None


@contrib_shape(*PROJECTIONS)
def _projected(node: Node) -> list[Type]:
    x, sizes = operand(node, 0), projection_sizes(node)
    past = node.input(PROJECTIONS[node.op])
    dtype = x.dtype if node.op == "Attention" else operand(node, 3).dtype
    if x.shape is None or sizes is None:
        return padded(node, (dtype, None))
    heads = int(node.attribute("num_heads"))
    batch, length, _ = x.shape
    positions = extent(past, 3) if node.attribute("past_present_share_buffer", 0) else _after(past, 3, length)
    return padded(node, (dtype, (batch, length, sizes[2])), (dtype, (2, batch, heads, positions, sizes[0] // heads)))


def _after(past: Value | None, axis: int, length: Dim) -> Dim:
    """How many positions a cache holds after `length` more."""
    return length if past is None else total(extent(past, axis), length)


def _depth(width: Dim, heads: int) -> Dim:
    return width // heads if isinstance(width, int) and heads else None


@contrib_shape("MultiHeadAttention", "DecoderMaskedMultiHeadAttention")
def _multi_head(node: Node) -> list[Type]:
    """Queries [B, S, H] or packed [B, S, N, 3, D]; keys and values [B, L, H], as one, or [B, N, L, D]."""
    q, k, v = operand(node, 0), node.input(1), node.input(2)
    if any(x is not None and x.shape is None for x in (q, k, v)) or q.shape is None:
        return padded(node, (q.dtype, None))
    heads = int(node.attribute("num_heads"))
    batch, length = q.shape[:2]
    past = node.input(6 if node.op == "MultiHeadAttention" else 5)
    if k is None:
        packed = len(q.shape) == 5
        depth = value_depth = q.shape[4] if packed else _depth(q.shape[2], 3 * heads)
        keys = length
    else:
        depth = _depth(q.shape[2], heads)
        keys = extent(k, 2 if k.rank == 4 else 1)
        last = extent(k if v is None else v, -1)
        value_depth = _depth(last, heads) if v is not None and v.rank == 3 else last
    after = extent(past, 2) if node.attribute("past_present_share_buffer", 0) else _after(past, 2, keys)
    width = value_depth * heads if isinstance(value_depth, int) else None
    return padded(
        node,
        (q.dtype, (batch, length, width)),
        (q.dtype, (batch, heads, after, depth)),
        (q.dtype, (batch, heads, after, value_depth)),
        (q.dtype, (batch, heads, length, after)),
    )


def grouped_depth(node: Node) -> Dim:
    """The depth of a head of GroupQueryAttention, whose queries may hold keys and values too."""
    heads, shared = int(node.attribute("num_heads")), int(node.attribute("kv_num_heads"))
    return _depth(extent(node.input(0), 2), heads if node.input(1) is not None else heads + 2 * shared)


@contrib_shape("GroupQueryAttention", "SparseAttention")
def _grouped(node: Node) -> list[Type]:
    q, past = operand(node, 0), node.input(3)
    if q.shape is None:
        return padded(node, (q.dtype, None))
    heads, shared, depth = int(node.attribute("num_heads")), int(node.attribute("kv_num_heads")), grouped_depth(node)
    batch, length = q.shape[:2]
    limit = node.input(6) if node.op == "GroupQueryAttention" else None
    after: Dim = length if past is None else None
    if past is not None and limit is not None and limit.is_constant and isinstance(extent(past, 2), int):
        after = max(int(limit.numpy().reshape(-1)[0]), int(past.shape[2] or 0) if past.shape else 0)
    width = heads * depth if isinstance(depth, int) else None
    cache = dtype_of(past, q.dtype), (batch, shared, after, depth)
    return padded(node, (q.dtype, (batch, length, width)), cache, cache, (q.dtype, (batch, heads, length, after)))


@contrib_shape("RotaryEmbedding", "MRotaryEmbedding")
def _rotary(node: Node) -> list[Type]:
    x = operand(node, 0)
    return [(x.dtype, x.shape)]


@contrib_shape("LinearAttention")
def _linear(node: Node) -> list[Type]:
    q, k, v, past = operand(node, 0), operand(node, 1), operand(node, 2), node.input(3)
    readers, writers = int(node.attribute("q_num_heads")), int(node.attribute("kv_num_heads"))
    if q.shape is None:
        return padded(node, (q.dtype, None))
    depth = _depth(extent(v, 2), writers)
    width = max(readers, writers) * depth if isinstance(depth, int) else None
    window = int(node.attribute("state_window", 0))
    state = (*([window] if window else []), q.shape[0], writers, _depth(extent(k, 2), writers), depth)
    return padded(node, (q.dtype, (*q.shape[:2], width)), (dtype_of(past, FLOAT), state))


@cost_rule(*PROJECTIONS, domain=CONTRIB_DOMAIN)
def _projected_macs(node: Node, inputs: list[Extents | None], outputs: list[Extents]) -> int:
    x, weight = inputs[0], inputs[1]
    assert x is not None and weight is not None
    past = inputs[PROJECTIONS[node.op]] if len(inputs) > PROJECTIONS[node.op] else None
    positions = x[1] + (past[3] if past is not None else 0)
    values = outputs[0][2]
    queries = (weight[1] - values) // 2
    return x[0] * x[1] * (math.prod(weight) + positions * (queries + values))


@cost_rule("MultiHeadAttention", "DecoderMaskedMultiHeadAttention", domain=CONTRIB_DOMAIN)
def _multi_head_macs(node: Node, inputs: list[Extents | None], outputs: list[Extents]) -> int:
    q, k = inputs[0], inputs[1] if len(inputs) > 1 else None
    assert q is not None
    index = 6 if node.op == "MultiHeadAttention" else 5
    past = inputs[index] if len(inputs) > index else None
    keys = q[1] if k is None else k[2 if len(k) == 4 else 1]
    width = q[2] if k is not None else math.prod(q[2:]) // 3
    return q[0] * q[1] * (keys + (past[2] if past is not None else 0)) * (width + outputs[0][2])


@cost_rule("GroupQueryAttention", domain=CONTRIB_DOMAIN)
def _grouped_macs(node: Node, inputs: list[Extents | None], outputs: list[Extents]) -> int:
    q, past = inputs[0], inputs[3] if len(inputs) > 3 else None
    assert q is not None
    positions = q[1] + (past[2] if past is not None else 0)
    return 2 * positions * math.prod(outputs[0])


@cost_rule("LinearAttention", domain=CONTRIB_DOMAIN)
def _linear_macs(node: Node, inputs: list[Extents | None], outputs: list[Extents]) -> int:
    """As for the standard operator: each position writes k v' to the state and reads it with q."""
    k, v = inputs[1], inputs[2]
    assert k is not None and v is not None
    heads = int(node.attribute("kv_num_heads"))
    writes = 2 if "delta" in node.attribute("update_rule", "gated_delta") else 1
    return writes * math.prod(k) * (v[2] // heads) + math.prod(outputs[0]) * (k[2] // heads)
