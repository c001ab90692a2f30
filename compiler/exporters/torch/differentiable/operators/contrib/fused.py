"""Fused activations, normalisations, products, convolutions and experts of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from compiler.exporters.torch.differentiable.operators.convolution import conv
from compiler.exporters.torch.differentiable.operators.linear import gemm
from compiler.exporters.torch.differentiable.operators.normalization import rms_norm
from compiler.exporters.torch.differentiable.rules import Operation, torch_rule
from compiler.ir import Node
from compiler.ir.contrib import CONTRIB_DOMAIN
from compiler.ir.contrib.fused import matrix_order

_ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "": lambda x: x,
    "Clip": lambda x, low, high: x.clamp(low, high),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: (alpha * x + beta).clamp(0, 1),
    "LeakyRelu": lambda x, alpha=0.01: functional.leaky_relu(x, alpha),
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
}


def _known_activation(node: Node) -> str | None:
    name = node.attribute("activation", "")
    return None if name in _ACTIVATIONS else f"with the activation {name}"


def _activated(op: Operation, x: Tensor, parameters: Sequence[float]) -> Tensor:
    return _ACTIVATIONS[op.attribute("activation", "")](x, *parameters)


@torch_rule("Gelu", "BiasGelu", domain=CONTRIB_DOMAIN)
def _gelu(op: Operation, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.gelu(x if bias is None else x + bias)


@torch_rule("FastGelu", domain=CONTRIB_DOMAIN)
def _fast_gelu(op: Operation, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


@torch_rule("QuickGelu", domain=CONTRIB_DOMAIN)
def _quick_gelu(op: Operation, x: Tensor) -> Tensor:
    return x * torch.sigmoid(op.attribute("alpha", 1.702) * x)


@torch_rule("ScaledSiLU", domain=CONTRIB_DOMAIN)
def _scaled_silu(op: Operation, x: Tensor, scale: Tensor | None = None) -> Tensor:
    return functional.silu(x * (op.attribute("alpha", 1.0) if scale is None else scale))


def _plain_gate(node: Node) -> str | None:
    return "whose gate is projected" if node.input(3) is not None else None


@torch_rule("GatedAdd", domain=CONTRIB_DOMAIN, check=_plain_gate)
def _gated_add(op: Operation, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return x + y * gate


@torch_rule("GatedRMSNorm", domain=CONTRIB_DOMAIN)
def _gated_rms_norm(op: Operation, x: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
    """Over each run of as many elements as the scale has."""
    runs = x.reshape(*x.shape[:-1], -1, scale.shape[0])
    y = (rms_norm(runs, (x.dim(),), op.attribute("epsilon", 1e-5))[0] * scale).reshape(x.shape)
    return y * (torch.sigmoid(gate) if op.attribute("activation", "silu") == "sigmoid" else functional.silu(gate))


@torch_rule("FusedConv", domain=CONTRIB_DOMAIN, check=_known_activation)
def _fused_conv(
    op: Operation, x: Tensor, weight: Tensor, bias: Tensor | None = None, addend: Tensor | None = None
) -> Tensor:
    y = conv(op, x, weight, bias)
    return _activated(op, y if addend is None else y + addend, op.attribute("activation_params") or [])


@torch_rule("FusedGemm", domain=CONTRIB_DOMAIN, check=_known_activation)
def _fused_gemm(op: Operation, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    given = [op.attribute(f"activation_{name}") for name in ("alpha", "beta", "gamma")]
    return _activated(op, gemm(op, a, b, c), [n for n in given if n is not None])


@torch_rule("FusedMatMul", "TransposeMatMul", domain=CONTRIB_DOMAIN)
def _fused_matmul(op: Operation, a: Tensor, b: Tensor) -> Tensor:
    a, b = (
        x.permute(matrix_order(x.dim(), bool(op.attribute(f"trans{s}", 0)), bool(op.attribute(f"transBatch{s}", 0))))
        for s, x in zip("AB", (a, b), strict=True)
    )
    return op.attribute("alpha", 1.0) * torch.matmul(a, b)


def _layer_norm(x: Tensor, scale: Tensor, shift: Tensor | None, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Over the last axis; and the mean and the inverse deviation."""
    mean = x.mean(-1, keepdim=True)
    centred = x - mean
    inverse = torch.rsqrt(centred.square().mean(-1, keepdim=True) + epsilon)
    y = centred * inverse * scale
    return y if shift is None else y + shift, mean, inverse


@torch_rule("SkipLayerNormalization", domain=CONTRIB_DOMAIN)
def _skip_layer_norm(
    op: Operation, x: Tensor, skip: Tensor, scale: Tensor, shift: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    total = x + skip if bias is None else x + skip + bias
    return *_layer_norm(total, scale, shift, op.attribute("epsilon", 1e-12)), total


@torch_rule("SkipSimplifiedLayerNormalization", domain=CONTRIB_DOMAIN)
def _skip_simplified_layer_norm(
    op: Operation, x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    total = x + skip if bias is None else x + skip + bias
    y, inverse = rms_norm(total, (total.dim() - 1,), op.attribute("epsilon", 1e-12))
    return y * scale, torch.zeros_like(inverse), inverse, total


@torch_rule("SimplifiedLayerNormalization", domain=CONTRIB_DOMAIN)
@torch_rule("SimplifiedLayerNormalization")
def _simplified_layer_norm(op: Operation, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    first = op.attribute("axis", -1) % x.dim()
    y, inverse = rms_norm(x, tuple(range(first, x.dim())), op.attribute("epsilon", 1e-5))
    return y * scale, inverse


@torch_rule("EmbedLayerNormalization", domain=CONTRIB_DOMAIN)
def _embed_layer_norm(
    op: Operation,
    words: Tensor,
    segments: Tensor | None,
    word_table: Tensor,
    position_table: Tensor,
    segment_table: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The embeddings' sum, normalised; the number of words that the mask leaves; the sum."""
    places = torch.arange(words.shape[1], device=words.device) if positions is None else positions.long()
    total = functional.embedding(words.long(), word_table) + functional.embedding(places, position_table)
    if segments is not None and segment_table is not None:
        total = total + functional.embedding(segments.long(), segment_table)
    lengths = words.new_zeros(words.shape[0]) if mask is None else mask.sum(1)
    return _layer_norm(total, scale, shift, op.attribute("epsilon", 1e-12))[0], lengths.to(torch.int32), total


_EXPERTS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "identity": lambda x: x,
    "relu": torch.relu,
    "silu": functional.silu,
}


def _two_products(node: Node) -> str | None:
    kind = node.attribute("activation_type", "relu")
    if node.input(6) is not None or len(node.inputs) > 8 or node.attribute("use_sparse_mixer", 0):
        return "with experts of three products, or a sparse mixer"
    gated = kind == "swiglu" and node.attribute("swiglu_fusion", 0) in (1, 2)
    return None if gated or kind in _EXPERTS else f"with {kind} experts"


def _expert_activation(op: Operation, x: Tensor) -> Tensor:
    kind = op.attribute("activation_type", "relu")
    if kind in _EXPERTS:
        return _EXPERTS[kind](x)
    gate, value = (x[..., 0::2], x[..., 1::2]) if op.attribute("swiglu_fusion") == 1 else x.chunk(2, -1)
    limit = op.attribute("swiglu_limit")
    if limit is not None:
        gate, value = gate.clamp(max=limit), value.clamp(-limit, limit)
    shifted = value + op.attribute("activation_beta", 0.0)
    return gate * torch.sigmoid(op.attribute("activation_alpha", 1.0) * gate) * shifted


@torch_rule("MoE", domain=CONTRIB_DOMAIN, check=_two_products)
def _mixture(
    op: Operation,
    x: Tensor,
    router: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None = None,
) -> Tensor:
    """Each token's best k experts, weighed by the router's softmax; weights are [experts, out, in]."""
    rows = x.reshape(-1, x.shape[-1])
    shares = torch.softmax(router, -1)
    best, chosen = torch.topk(shares, op.attribute("k", 1))
    if op.attribute("normalize_routing_weights", 0):
        best = best / best.sum(-1, keepdim=True)
    weights = torch.zeros_like(shares).scatter(1, chosen, best)
    hidden = torch.einsum("td,eid->eti", rows, up)
    hidden = hidden if up_bias is None else hidden + up_bias.unsqueeze(1)
    hidden = _expert_activation(op, hidden)
    y = torch.einsum("eti,edi->etd", hidden, down)
    y = y if down_bias is None else y + down_bias.unsqueeze(1)
    return torch.einsum("etd,te->td", y, weights).reshape(x.shape)
