"""ONNX Runtime's own fused activations and normalisations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from compiler.exporters.torch.differentiable.operators.normalization import rms_norm
from compiler.exporters.torch.differentiable.rules import Operation, torch_rule
from compiler.ir.contrib import CONTRIB_DOMAIN


@torch_rule("Gelu", "BiasGelu", domain=CONTRIB_DOMAIN)
def _gelu(op: Operation, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.gelu(x if bias is None else x + bias)


@torch_rule("FastGelu", domain=CONTRIB_DOMAIN)
def _fast_gelu(op: Operation, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


@torch_rule("QuickGelu", domain=CONTRIB_DOMAIN)
def _quick_gelu(op: Operation, x: Tensor) -> Tensor:
    return x * torch.sigmoid(op.attribute("alpha", 1.702) * x)


@torch_rule("SkipLayerNormalization", domain=CONTRIB_DOMAIN)
def _skip_layer_norm(
    op: Operation, x: Tensor, skip: Tensor, scale: Tensor, shift: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    total = x + skip if bias is None else x + skip + bias
    mean = total.mean(-1, keepdim=True)
    centred = total - mean
    inverse = torch.rsqrt(centred.square().mean(-1, keepdim=True) + op.attribute("epsilon", 1e-12))
    y = centred * inverse * scale
    return y if shift is None else y + shift, mean, inverse, total


@torch_rule("SkipSimplifiedLayerNormalization", domain=CONTRIB_DOMAIN)
def _skip_simplified_layer_norm(
    op: Operation, x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    total = x + skip if bias is None else x + skip + bias
    y, inverse = rms_norm(total, (total.dim() - 1,), op.attribute("epsilon", 1e-12))
    return y * scale, torch.zeros_like(inverse), inverse, total
