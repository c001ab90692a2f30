"""ONNX Runtime's operators on integers, computed on the numbers that these stand for; gradients go straight through."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from compiler.exporters.torch.differentiable.operators.contrib.attention import attend_projected, refused_projection
from compiler.exporters.torch.differentiable.operators.convolution import conv
from compiler.exporters.torch.differentiable.operators.pooling import average_pool, max_pool
from compiler.exporters.torch.differentiable.operators.quantization import (
    centred,
    dequantize_linear,
    dynamic_quantize_linear,
    operand_dtype,
    per_filter,
    quantize,
    quantize_linear,
)
from compiler.exporters.torch.differentiable.rules import Operation, torch_rule
from compiler.ir import Node
from compiler.ir.contrib import CONTRIB_DOMAIN

torch_rule("QuantizeLinear", domain=CONTRIB_DOMAIN)(quantize_linear)
torch_rule("DequantizeLinear", domain=CONTRIB_DOMAIN)(dequantize_linear)


def _numbers(x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    return centred(x, zero, scale.dtype) * scale


def _integers(op: Operation, y: Tensor, scale: Tensor, zero: Tensor | None, like: int = 0) -> Tensor:
    """Integers of the type of the operand `like`."""
    return quantize(y, scale, 0 if zero is None else zero.to(y.dtype), operand_dtype(op.node, like))


@torch_rule("QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", domain=CONTRIB_DOMAIN)
def _unary(
    op: Operation, x: Tensor, scale: Tensor, zero: Tensor | None, y_scale: Tensor, y_zero: Tensor | None = None
) -> Tensor:
    y = _numbers(x, scale, zero)
    if op.node.op == "QLinearLeakyRelu":
        y = functional.leaky_relu(y, op.attribute("alpha", 0.01))
    else:
        y = torch.sigmoid(y) if op.node.op == "QLinearSigmoid" else torch.softmax(y, op.attribute("axis", -1))
    return _integers(op, y, y_scale, y_zero)


@torch_rule("QLinearAdd", "QLinearMul", domain=CONTRIB_DOMAIN)
def _binary(
    op: Operation,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None = None,
) -> Tensor:
    a, b = _numbers(a, a_scale, a_zero), _numbers(b, b_scale, b_zero)
    return _integers(op, a + b if op.node.op == "QLinearAdd" else a * b, y_scale, y_zero)


@torch_rule("QLinearWhere", domain=CONTRIB_DOMAIN)
def _where(
    op: Operation,
    condition: Tensor,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    chosen = torch.where(condition, _numbers(a, a_scale, a_zero), _numbers(b, b_scale, b_zero))
    return _integers(op, chosen, y_scale, y_zero, 1)


@torch_rule("QLinearConcat", domain=CONTRIB_DOMAIN)
def _concat(op: Operation, y_scale: Tensor, y_zero: Tensor, *parts: Tensor) -> Tensor:
    pieces = [_numbers(*parts[i : i + 3]) for i in range(0, len(parts), 3)]
    return _integers(op, torch.cat(pieces, op.attribute("axis")), y_scale, y_zero, 1)


@torch_rule("QLinearAveragePool", "QLinearGlobalAveragePool", domain=CONTRIB_DOMAIN)
def _average(
    op: Operation, x: Tensor, scale: Tensor, zero: Tensor | None, y_scale: Tensor, y_zero: Tensor | None = None
) -> Tensor:
    last = bool(op.attribute("channels_last", 0))
    y = _numbers(x.movedim(-1, 1) if last else x, scale, zero)
    whole = op.node.op == "QLinearGlobalAveragePool"
    y = y.mean(tuple(range(2, y.dim())), keepdim=True) if whole else average_pool(op, y)
    return _integers(op, y.movedim(1, -1) if last else y, y_scale, y_zero)


@torch_rule("NhwcMaxPool", domain=CONTRIB_DOMAIN)
def _max_pool(op: Operation, x: Tensor) -> Tensor:
    y = max_pool(op, x.movedim(-1, 1))
    assert isinstance(y, Tensor)
    return y.movedim(1, -1)


@torch_rule("QLinearConv", domain=CONTRIB_DOMAIN)
def _conv(
    op: Operation,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    last, dtype = bool(op.attribute("channels_last", 0)), y_scale.dtype
    filters = centred(weight, per_filter(weight_zero, weight.dim()), dtype)
    x = centred(x.movedim(-1, 1) if last else x, x_zero, dtype)
    y = conv(op, x, filters, None if bias is None else bias.to(dtype))
    y = y * (x_scale * per_filter(weight_scale, weight.dim() - 1))
    return _integers(op, y.movedim(1, -1) if last else y, y_scale, y_zero, 7)


@torch_rule("MatMulIntegerToFloat", domain=CONTRIB_DOMAIN)
def _matmul_to_float(
    op: Operation,
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    y = (centred(a, a_zero, a_scale.dtype) @ centred(b, b_zero, a_scale.dtype)) * (a_scale * b_scale)
    return y if bias is None else y + bias


@torch_rule("DynamicQuantizeMatMul", domain=CONTRIB_DOMAIN)
def _dynamic_matmul(
    op: Operation, a: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    levels, scale, zero = dynamic_quantize_linear(op, a)
    return _matmul_to_float(op, levels, b, scale, b_scale, zero, b_zero, bias)


@torch_rule("QGemm", domain=CONTRIB_DOMAIN)
def _gemm(
    op: Operation,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    c: Tensor | None = None,
    y_scale: Tensor | None = None,
    y_zero: Tensor | None = None,
) -> Tensor:
    """The addend is of the product's scale; without a scale of its own the result is of numbers."""
    dtype = a_scale.dtype
    a, b = centred(a, a_zero, dtype), b.to(dtype)
    a = a.T if op.attribute("transA", 0) else a
    if op.attribute("transB", 0):
        b = b.T
    product = op.attribute("alpha", 1.0) * (a @ (b - b_zero.to(dtype)))
    y = (product if c is None else product + c.to(dtype)) * (a_scale * b_scale)
    return y if y_scale is None else _integers(op, y, y_scale, y_zero)


@torch_rule("QAttention", domain=CONTRIB_DOMAIN, check=lambda node: refused_projection(node, 5, 9))
def _attention(
    op: Operation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_scale: Tensor,
    weight_scale: Tensor,
    mask: Tensor | None = None,
    x_zero: Tensor | None = None,
    weight_zero: Tensor | None = None,
    past: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    projected = _matmul_to_float(op, x, weight, x_scale, weight_scale, x_zero, weight_zero, bias)
    return attend_projected(op, projected, mask, past, None)


def _few_bits(node: Node) -> str | None:
    zero = node.input(3)
    if node.input(4) is not None:
        return "with an order of its rows"
    if zero is not None and zero.dtype != np.uint8:
        return "with zero points that are no integers"
    return None if node.attribute("bits", 4) in (2, 4, 8) else f"of {node.attribute('bits')} bits"


@torch_rule("MatMulNBits", domain=CONTRIB_DOMAIN, check=_few_bits)
def _matmul_bits(
    op: Operation,
    a: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    order: None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The weight is [N, blocks, block * bits / 8] bytes, the lowest bits first; each block has a scale."""
    rows, depth, bits = op.attribute("N"), op.attribute("K"), op.attribute("bits", 4)
    levels = _unpack(packed, bits).reshape(rows, -1, op.attribute("block_size")).to(scales.dtype)
    scales = scales.reshape(rows, -1)
    middle: Tensor | float = float(1 << (bits - 1))
    if zeros is not None:
        middle = _unpack(zeros.reshape(rows, -1), bits)[:, : scales.shape[1], None].to(scales.dtype)
    weight = ((levels - middle) * scales.unsqueeze(-1)).reshape(rows, -1)[:, :depth]
    y = a @ weight.to(a.dtype).T
    return y if bias is None else y + bias


def _unpack(data: Tensor, bits: int) -> Tensor:
    """The numbers of a few bits in the bytes of the last axis."""
    shifts = torch.arange(0, 8, bits, device=data.device, dtype=torch.uint8)
    return ((data.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).flatten(-2)
