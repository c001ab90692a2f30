"""Arithmetic, comparison, logic and rounding, element by element with broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from compiler.exporters.torch.differentiable.dtypes import torch_dtype
from compiler.exporters.torch.differentiable.rules import Operation, torch_rule
from compiler.ir import Node

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Identity": lambda x: x,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
}

_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}

_VARIADIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Sum": torch.add,
}


@torch_rule(*_UNARY)
def _unary(op: Operation, x: Any) -> Any:
    return _UNARY[op.node.op](x)


@torch_rule(*_BINARY)
def _binary(op: Operation, a: Tensor, b: Tensor) -> Tensor:
    return _BINARY[op.node.op](a, b)


@torch_rule(*_VARIADIC)
def _variadic(op: Operation, *operands: Tensor) -> Tensor:
    return reduce(_VARIADIC[op.node.op], operands)


@torch_rule("Mean")
def _mean(op: Operation, *operands: Tensor) -> Tensor:
    return reduce(torch.add, operands) / len(operands)


@torch_rule("Div")
def _div(op: Operation, a: Tensor, b: Tensor) -> Tensor:
    """Integers are divided towards zero."""
    floating = a.is_floating_point() or b.is_floating_point()
    return torch.div(a, b) if floating else torch.div(a, b, rounding_mode="trunc")


@torch_rule("Mod")
def _mod(op: Operation, a: Tensor, b: Tensor) -> Tensor:
    """The sign, of a zero too, is the divisor's, or with fmod the dividend's."""
    if op.attribute("fmod", 0):
        return torch.fmod(a, b)
    rest = torch.remainder(a, b)
    return torch.where(rest == 0, torch.copysign(rest, b), rest) if rest.is_floating_point() else rest


@torch_rule("Pow")
def _pow(op: Operation, base: Tensor, exponent: Tensor) -> Tensor:
    return torch.pow(base, exponent).to(base.dtype)


@torch_rule("BitShift")
def _bit_shift(op: Operation, x: Tensor, by: Tensor) -> Tensor:
    """Over int64, since torch shifts few unsigned types; what is shifted out of the type is dropped."""
    shift = torch.bitwise_left_shift if op.attribute("direction") == "LEFT" else torch.bitwise_right_shift
    return shift(x.long(), by.long()).to(x.dtype)


@torch_rule("IsInf")
def _is_inf(op: Operation, x: Tensor) -> Tensor:
    found = torch.zeros_like(x, dtype=torch.bool)
    if op.attribute("detect_positive", 1):
        found = found | torch.isposinf(x)
    if op.attribute("detect_negative", 1):
        found = found | torch.isneginf(x)
    return found


@torch_rule("Clip")
def _clip(op: Operation, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if low is None and high is None:
        return x
    return torch.clamp(x, low, high)


@torch_rule("Where")
def _where(op: Operation, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


def _torch_types(node: Node) -> str | None:
    """Strings, and floats of 8 and 4 bits with a power of two as their scale, are refused."""
    kinds = [v.dtype for v in (*node.inputs, *node.outputs) if v is not None and v.dtype is not None]
    unknown = next((k for k in kinds if k.kind in "OUS" or torch_dtype(k) is None), None)
    return None if unknown is None else f"on {unknown}"


@torch_rule("Cast", check=_torch_types)
def _cast(op: Operation, x: Tensor) -> Tensor:
    """Floats of 8 bits saturate unless the node says otherwise."""
    dtype = op.dtype(int(op.attribute("to")))
    if dtype.itemsize == 1 and dtype.is_floating_point and op.attribute("saturate", 1):
        bound = torch.finfo(dtype).max
        x = x.clamp(-bound, bound)
    return x.to(dtype)


@torch_rule("CastLike", check=_torch_types)
def _cast_like(op: Operation, x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)
