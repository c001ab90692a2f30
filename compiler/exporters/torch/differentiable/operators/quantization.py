"""Quantisation with a straight-through gradient (Bengio et al. 2013, https://arxiv.org/abs/1308.3432).

A quantised tensor travels as floats that hold integers, since torch has no gradients of integers; the module gives
out integers in the end. Rounding passes the gradient on, saturation stops it.
"""

from __future__ import annotations

import numpy as np
import torch
from onnx import helper
from torch import Tensor

from compiler.exporters.torch.differentiable.dtypes import torch_dtype
from compiler.exporters.torch.differentiable.operators.convolution import conv
from compiler.exporters.torch.differentiable.rules import Operation, torch_rule
from compiler.ir import Node

_BITS = {"int2": (-2, 1), "uint2": (0, 3), "int4": (-8, 7), "uint4": (0, 15)}


def straight_through(rounded: Tensor, x: Tensor) -> Tensor:
    """The value of `rounded` with the gradient of `x`."""
    return x + (rounded - x).detach()


def limits(dtype: np.dtype) -> tuple[int, int]:
    """The least and the greatest integer of a type, also of those of few bits."""
    if dtype.name in _BITS:
        return _BITS[dtype.name]
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def spread(op: Operation, x: Tensor, parameter: Tensor) -> Tensor:
    """A scale or zero point, one for all, for each position of an axis, or for each block along it, like `x`."""
    if parameter.numel() == 1 and parameter.dim() <= 1:
        return parameter.reshape(())
    axis = op.attribute("axis", 1) % x.dim()
    if parameter.dim() == 1:
        return parameter.reshape(-1, *[1] * (x.dim() - axis - 1))
    block = op.attribute("block_size", 0)
    whole = parameter.repeat_interleave(block, axis) if block else parameter
    return whole.narrow(axis, 0, x.shape[axis]) if block else whole


def quantize(x: Tensor, scale: Tensor, zero: Tensor | float, dtype: np.dtype) -> Tensor:
    """Integers of `dtype`, as floats."""
    scaled = x / scale
    low, high = limits(dtype)
    return torch.clamp(straight_through(torch.round(scaled), scaled) + zero, low, high)


def _result(node: Node) -> np.dtype:
    """The type that a QuantizeLinear gives: the zero point's, else the attribute's, else uint8."""
    zero = node.input(2)
    if zero is not None and zero.dtype is not None:
        return zero.dtype
    kind = int(node.attribute("output_dtype", 0))
    return np.dtype(helper.tensor_dtype_to_np_dtype(kind)) if kind else np.dtype(np.uint8)


def _integers_or_float8(node: Node) -> str | None:
    name = _result(node).name
    known = name in _BITS or name.startswith(("int", "uint", "float8"))
    return None if known and torch_dtype(_result(node)) is not None else f"to {name}"


@torch_rule("QuantizeLinear", check=_integers_or_float8)
def quantize_linear(op: Operation, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """QuantizeLinear, whose result is integers or floats of 8 bits."""
    dtype = _result(op.node)
    x = x if x.is_floating_point() else x.to(scale.dtype)
    scale = spread(op, x, scale).to(x.dtype)
    if dtype.name.startswith("float8"):
        scaled = x / scale
        bound = torch.finfo(op.dtype(dtype)).max
        return straight_through(scaled.detach().clamp(-bound, bound).to(op.dtype(dtype)).to(x.dtype), scaled)
    return quantize(x, scale, 0 if zero is None else spread(op, x, zero).to(x.dtype), dtype)


@torch_rule("DequantizeLinear")
def dequantize_linear(op: Operation, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """The numbers that integers stand for."""
    kind = op.attribute("output_dtype", 0)
    dtype = op.dtype(int(kind)) if kind else scale.dtype
    x = x.to(scale.dtype)
    shifted = x if zero is None else x - spread(op, x, zero.to(scale.dtype))
    return (shifted * spread(op, x, scale)).to(dtype)


@torch_rule("DynamicQuantizeLinear")
def dynamic_quantize_linear(op: Operation, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """To uint8, by the range of the data, which always has zero in it."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.clamp(torch.round(-low / safe), 0, 255).detach()
    return quantize(x, safe, zero, np.dtype(np.uint8)), scale, zero.to(torch.uint8)


def centred(x: Tensor, zero: Tensor | None, dtype: torch.dtype, row_wise: bool = False) -> Tensor:
    """Integers less their zero point, which may be one of each row, in a floating-point type."""
    x = x.to(dtype)
    if zero is None:
        return x
    zero = zero.to(dtype)
    return x - (zero.unsqueeze(-1) if row_wise and zero.dim() == 1 and zero.numel() > 1 else zero)


def _wide(*tensors: Tensor) -> torch.dtype:
    """A type that holds the products' sums exactly; the module's own where a gradient may come through."""
    return next((t.dtype for t in tensors if t.requires_grad), torch.float64)


@torch_rule("MatMulInteger")
def _matmul_integer(
    op: Operation, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    dtype = _wide(a, b)
    return centred(a, a_zero, dtype, row_wise=True) @ centred(b, b_zero, dtype)


def per_filter(parameter: Tensor, rank: int) -> Tensor:
    """A scale or zero point of each filter, ready to broadcast along the first of `rank` axes."""
    return parameter if parameter.numel() == 1 else parameter.reshape(-1, *[1] * (rank - 1))


@torch_rule("ConvInteger")
def _conv_integer(
    op: Operation, x: Tensor, weight: Tensor, x_zero: Tensor | None = None, weight_zero: Tensor | None = None
) -> Tensor:
    dtype = _wide(x, weight)
    weight_zero = None if weight_zero is None else per_filter(weight_zero, weight.dim())
    return conv(op, centred(x, x_zero, dtype), centred(weight, weight_zero, dtype))


def operand_dtype(node: Node, index: int) -> np.dtype:
    """The element type that the graph states for an operand."""
    value = node.input(index)
    assert value is not None and value.dtype is not None
    return value.dtype


@torch_rule("QLinearMatMul")
def _qlinear_matmul(
    op: Operation,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    dtype = y_scale.dtype
    if a_scale.numel() > 1:
        a_scale = a_scale.unsqueeze(-1)
    y = (centred(a, a_zero, dtype, row_wise=True) @ centred(b, b_zero, dtype)) * (a_scale * b_scale).to(dtype)
    return quantize(y, y_scale, y_zero.to(dtype), operand_dtype(op.node, 7))


@torch_rule("QLinearConv")
def _qlinear_conv(
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
    dtype = y_scale.dtype
    filters = centred(weight, per_filter(weight_zero, weight.dim()), dtype)
    y = conv(op, centred(x, x_zero, dtype), filters, None if bias is None else bias.to(dtype))
    y = y * (x_scale * per_filter(weight_scale, weight.dim() - 1)).to(dtype)
    return quantize(y, y_scale, y_zero.to(dtype), operand_dtype(op.node, 7))
