"""Attention and rotary positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from compiler.exporters.torch.differentiable.rules import Operation, torch_rule


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[batch, length, heads * size] -> [batch, heads, length, size]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[batch, heads, length, size] -> [batch, length, heads * size]."""
    return x.transpose(1, 2).flatten(2)


def masked_softmax(scores: Tensor) -> Tensor:
    """The softmax over the last axis; a row in which all is masked gives zeros."""
    empty = torch.isneginf(scores).all(-1, keepdim=True)
    shares = torch.softmax(torch.where(empty, torch.zeros_like(scores), scores), -1)
    return torch.where(empty, torch.zeros_like(shares), shares)


@torch_rule("Attention")
def _attention(
    op: Operation,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The standard operator: grouped queries, caches, masks, windows, soft caps."""
    packed = q.dim() == 3
    if packed:
        heads, shared = op.attribute("q_num_heads"), op.attribute("kv_num_heads")
        q, k, v = split_heads(q, heads), split_heads(k, shared), split_heads(v, shared)
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    present = k, v
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scale = op.attribute("scale") or 1 / math.sqrt(q.shape[-1])
    raw = (q * math.sqrt(scale)) @ (k * math.sqrt(scale)).transpose(2, 3)
    cap = op.attribute("softcap", 0.0)
    capped = torch.tanh(raw / cap) * cap if cap else raw
    allowed = _allowed(op, q.shape[2], k.shape[2], 0 if past_key is None else past_key.shape[2], valid, q.device)
    biased = _biased(capped, mask, allowed)
    precision = op.attribute("softmax_precision")
    shares = masked_softmax(biased if precision is None else biased.to(op.dtype(int(precision)))).to(q.dtype)
    y = shares @ v
    seen = (raw, capped, biased, shares)[op.attribute("qk_matmul_output_mode", 0)]
    return merge_heads(y) if packed else y, *present, seen


def _allowed(
    op: Operation, queries: int, keys: int, past: int, valid: Tensor | None, device: torch.device
) -> Tensor | None:
    """Which keys a query may see for its position and the lengths, broadcastable to [batch, heads, queries, keys]."""
    left, right = op.attribute("left_window_size", -1), op.attribute("right_window_size", -1)
    right = 0 if op.attribute("is_causal", 0) else right
    key = torch.arange(keys, device=device)
    allowed = None if valid is None else (key < valid.reshape(-1, 1, 1, 1))
    if left < 0 and right < 0:
        return allowed
    offset = past if valid is None else valid.reshape(-1, 1, 1, 1) - queries
    ahead = key - (torch.arange(queries, device=device).unsqueeze(1) + offset)
    for window in [*([ahead <= right] if right >= 0 else []), *([-ahead <= left] if left >= 0 else [])]:
        allowed = window if allowed is None else allowed & window
    return allowed


def _biased(scores: Tensor, mask: Tensor | None, allowed: Tensor | None) -> Tensor:
    """The scores with the mask added; a boolean one, and a short one's missing end, forbid."""
    if mask is not None:
        missing = scores.shape[-1] - mask.shape[-1]
        if mask.dtype == torch.bool:
            mask = functional.pad(mask.to(torch.uint8), (0, missing)).bool()
            scores = scores.masked_fill(~mask, -math.inf)
        else:
            scores = scores + functional.pad(mask, (0, missing), value=-math.inf)
    return scores if allowed is None else scores.masked_fill(~allowed, -math.inf)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor, size: int, interleaved: bool) -> Tensor:
    """Turn the first `size` channels of [batch, heads, length, channels] by angles [..., length, size / 2]."""
    turned, rest = x[..., :size], x[..., size:]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
    else:
        a, b = turned.chunk(2, -1)
    real, imaginary = cosine * a - sine * b, sine * a + cosine * b
    joined = torch.stack([real, imaginary], -1).flatten(-2) if interleaved else torch.cat([real, imaginary], -1)
    return torch.cat([joined, rest], -1)


@torch_rule("RotaryEmbedding")
def _rotary_embedding(
    op: Operation, x: Tensor, cosine: Tensor, sine: Tensor, positions: Tensor | None = None
) -> Tensor:
    packed = x.dim() == 3
    y = split_heads(x, op.attribute("num_heads")) if packed else x
    if positions is not None:
        cosine, sine = cosine[positions.long()], sine[positions.long()]
    size = op.attribute("rotary_embedding_dim", 0) or y.shape[-1]
    y = rotate(y, cosine.unsqueeze(1), sine.unsqueeze(1), size, bool(op.attribute("interleaved", 0)))
    return merge_heads(y) if packed else y


@torch_rule("LinearAttention")
def _linear_attention(
    op: Operation,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention by a state that each position updates (Yang et al. 2024, https://arxiv.org/abs/2406.06484)."""
    readers, writers = op.attribute("q_num_heads"), op.attribute("kv_num_heads")
    rule = op.attribute("update_rule", "gated_delta")
    q, k, v = split_heads(q, readers), split_heads(k, writers), split_heads(v, writers)
    scale = op.attribute("scale", 0.0) or 1 / math.sqrt(q.shape[-1])
    state = v.new_zeros((*k.shape[:2], k.shape[-1], v.shape[-1])) if past is None else past
    outputs = []
    for t in range(k.shape[2]):
        key, value = k[:, :, t], v[:, :, t]
        if "gated" in rule and decay is not None:
            state = state * torch.exp(decay[:, t].reshape(decay.shape[0], writers, -1, 1))
        if "delta" in rule and beta is not None:
            rate = beta[:, t].reshape(beta.shape[0], -1, 1)
            value = rate * (value - torch.einsum("bhkv,bhk->bhv", state, key))
        state = state + key.unsqueeze(-1) * value.unsqueeze(-2)
        seen = state.repeat_interleave(readers // writers, 1)
        outputs.append(scale * torch.einsum("bhkv,bhk->bhv", seen, q[:, :, t]))
    return merge_heads(torch.stack(outputs, 2)), state
