"""ONNX Runtime's attention: projected by one weight, on separate operands, with grouped queries; rotary positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compiler.exporters.torch.differentiable.operators.attention import (
    masked_softmax,
    merge_heads,
    rotate,
    split_heads,
)
from compiler.exporters.torch.differentiable.rules import Operation, torch_rule
from compiler.ir import Node
from compiler.ir.contrib import CONTRIB_DOMAIN, projection_sizes


def attend(
    op: Operation, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, *, causal: bool
) -> tuple[Tensor, Tensor]:
    """[batch, heads, positions, dims] each; the merged heads, and the shares.

    mask: nothing but zeros and ones, [batch, keys] or [batch, queries, keys]; a zero adds the node's filter value.
    """
    scale = op.attribute("scale") or 1 / math.sqrt(q.shape[-1])
    scores = (q @ k.transpose(2, 3)) * scale
    if mask is not None:
        spread = mask[:, None, None] if mask.dim() == 2 else mask[:, None]
        scores = scores + (1 - spread.to(scores.dtype)) * op.attribute("mask_filter_value", -10000.0)
    scores = scores if bias is None else scores + bias
    if causal:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device)
        scores = scores.masked_fill(ahead.triu(scores.shape[-1] - scores.shape[-2] + 1), -math.inf)
    shares = masked_softmax(scores)
    return merge_heads(shares @ v), shares


def _whole_mask(node: Node, index: int) -> str | None:
    mask = node.input(index)
    return "with a mask of lengths" if mask is not None and mask.rank not in (2, 3) else None


def refused_projection(node: Node, mask: int, length: int) -> str | None:
    """Why an operator that projects by one weight cannot be computed."""
    if node.attribute("do_rotary", 0) or node.attribute("past_present_share_buffer", 0) or node.input(length):
        return "that turns its queries or shares its cache"
    if projection_sizes(node) is None:
        return "of unknown widths"
    return _whole_mask(node, mask)


def attend_projected(
    op: Operation,
    projected: Tensor,
    mask: Tensor | None,
    past: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Queries, keys and values side by side in [batch, length, widths]; the result, and the cache [2, batch, ...]."""
    sizes = projection_sizes(op.node)
    assert sizes is not None
    q, k, v = (split_heads(x, op.attribute("num_heads")) for x in projected.split(list(sizes), -1))
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    y, _ = attend(op, q, k, v, mask, bias, causal=bool(op.attribute("unidirectional", 0)))
    return y, torch.stack([k, v]) if op.wants(1) else y


@torch_rule("Attention", domain=CONTRIB_DOMAIN, check=lambda node: refused_projection(node, 3, 6))
def _attention(
    op: Operation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    past: Tensor | None = None,
    scores: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    projected = x @ weight
    return attend_projected(op, projected if bias is None else projected + bias, mask, past, scores)


def _separate(node: Node) -> str | None:
    q, k, v = (node.input(i) for i in range(3))
    if k is None or v is None or any(x is not None and x.rank not in (3, 4) for x in (q, k, v)):
        return "on packed operands"
    if node.input(8) is not None or node.input(9) is not None:
        return "that shares its cache"
    return _whole_mask(node, 4)


@torch_rule("MultiHeadAttention", domain=CONTRIB_DOMAIN, check=_separate)
def _multi_head_attention(
    op: Operation,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    scores: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
) -> tuple[Tensor, ...]:
    heads = op.attribute("num_heads")
    if bias is not None:
        parts = bias.split([q.shape[-1], q.shape[-1], bias.shape[0] - 2 * q.shape[-1]])
        q, k, v = (x + b if x.dim() == 3 else x for x, b in zip((q, k, v), parts, strict=True))
    q, k, v = (split_heads(x, heads) if x.dim() == 3 else x for x in (q, k, v))
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    y, shares = attend(op, q, k, v, mask, scores, causal=bool(op.attribute("unidirectional", 0)))
    return y, k, v, shares


def _prompt(node: Node) -> str | None:
    if node.input(3) is not None or node.input(4) is not None:
        return "with a cache"
    if any(node.input(i) is not None for i in range(11, len(node.inputs))) or node.attribute("smooth_softmax", 0):
        return "with sinks, normalised queries, padded chunks or quantised caches"
    return "without a causal mask" if not node.attribute("causal", 1) else None


@torch_rule("GroupQueryAttention", domain=CONTRIB_DOMAIN, host=(5, 6), check=_prompt)
def _group_query_attention(
    op: Operation,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    past_key: None,
    past_value: None,
    lengths: list[int],
    total: int,
    cosine: Tensor | None = None,
    sine: Tensor | None = None,
    positions: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Of a prompt: every query sees the keys up to its own, or the last few of them."""
    heads, shared = op.attribute("num_heads"), op.attribute("kv_num_heads")
    if k is None or v is None:
        size = q.shape[-1] // (heads + 2 * shared)
        q, k, v = q.split([heads * size, shared * size, shared * size], -1)
    q, k, v = split_heads(q, heads), split_heads(k, shared), split_heads(v, shared)
    if op.attribute("do_rotary", 0) and cosine is not None and sine is not None:
        places = torch.arange(q.shape[2], device=q.device) if positions is None else positions.long().unsqueeze(1)
        turned = bool(op.attribute("rotary_interleaved", 0))
        q, k = (rotate(x, cosine[places], sine[places], 2 * cosine.shape[-1], turned) for x in (q, k))
    present = k, v
    k, v = (x.repeat_interleave(heads // shared, 1) for x in (k, v))
    scores = (q @ k.transpose(2, 3)) * (op.attribute("scale") or 1 / math.sqrt(q.shape[-1]))
    cap = op.attribute("softcap", 0.0)
    scores = torch.tanh(scores / cap) * cap if cap else scores
    scores = scores if bias is None else scores + bias
    places = torch.arange(q.shape[2], device=q.device)
    behind = places.unsqueeze(1) - places
    window = op.attribute("local_window_size", -1)
    hidden = (behind < 0) | (behind >= window) if window > 0 else behind < 0
    shares = masked_softmax(scores.masked_fill(hidden, -math.inf))
    return merge_heads(shares @ v), *present


def _one_batch(node: Node) -> str | None:
    return "on ragged batches" if node.attribute("is_packed_batching", 0) else None


@torch_rule("RotaryEmbedding", domain=CONTRIB_DOMAIN, check=_one_batch)
def _rotary_embedding(op: Operation, x: Tensor, positions: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """One position is that of the first token of every example."""
    size = op.attribute("rotary_embedding_dim", 0) or 2 * cosine.shape[-1]
    packed = x.dim() == 3
    heads = op.attribute("num_heads", 0) or (x.shape[-1] // size if packed else 0)
    y = split_heads(x, heads) if packed else x
    positions = positions.long()
    if positions.numel() == 1:
        positions = positions.reshape(1, 1) + torch.arange(y.shape[2], device=x.device)
    places = positions.unsqueeze(1)
    y = rotate(y, cosine[places], sine[places], size, bool(op.attribute("interleaved", 0)))
    return merge_heads(y) if packed else y
