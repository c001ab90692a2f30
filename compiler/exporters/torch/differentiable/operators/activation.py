"""Activations, the softmax family and Dropout."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from compiler.exporters.torch.differentiable.rules import Operation, torch_rule

_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "HardSwish": functional.hardswish,
    "Mish": functional.mish,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Tanh": torch.tanh,
}


@torch_rule(*_PLAIN)
def _plain(op: Operation, x: Tensor) -> Tensor:
    return _PLAIN[op.node.op](x)


@torch_rule("LeakyRelu")
def _leaky_relu(op: Operation, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, op.attribute("alpha", 0.01))


@torch_rule("PRelu")
def _prelu(op: Operation, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


@torch_rule("Elu")
def _elu(op: Operation, x: Tensor) -> Tensor:
    return functional.elu(x, op.attribute("alpha", 1.0))


@torch_rule("Celu")
def _celu(op: Operation, x: Tensor) -> Tensor:
    return functional.celu(x, op.attribute("alpha", 1.0))


@torch_rule("Selu")
def _selu(op: Operation, x: Tensor) -> Tensor:
    alpha, gamma = op.attribute("alpha", 1.6732632423543772), op.attribute("gamma", 1.0507009873554805)
    return gamma * functional.elu(x, alpha)


@torch_rule("ThresholdedRelu")
def _thresholded_relu(op: Operation, x: Tensor) -> Tensor:
    return torch.where(x > op.attribute("alpha", 1.0), x, torch.zeros_like(x))


@torch_rule("HardSigmoid")
def _hard_sigmoid(op: Operation, x: Tensor) -> Tensor:
    return torch.clamp(op.attribute("alpha", 0.2) * x + op.attribute("beta", 0.5), 0, 1)


@torch_rule("Shrink")
def _shrink(op: Operation, x: Tensor) -> Tensor:
    bound, bias = op.attribute("lambd", 0.5), op.attribute("bias", 0.0)
    zero = torch.zeros_like(x)
    return torch.where(x < -bound, x + bias, torch.where(x > bound, x - bias, zero)).to(x.dtype)


@torch_rule("Gelu")
def _gelu(op: Operation, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=op.attribute("approximate", "none"))


@torch_rule("Swish")
def _swish(op: Operation, x: Tensor) -> Tensor:
    return x * torch.sigmoid(op.attribute("alpha", 1.0) * x)


@torch_rule("SwiGLU")
def _swiglu(op: Operation, gate: Tensor, value: Tensor) -> Tensor:
    return _swish(op, gate) * value


@torch_rule("Softmax")
def _softmax(op: Operation, x: Tensor) -> Tensor:
    return torch.softmax(x, op.attribute("axis", -1))


@torch_rule("LogSoftmax")
def _log_softmax(op: Operation, x: Tensor) -> Tensor:
    return torch.log_softmax(x, op.attribute("axis", -1))


@torch_rule("Hardmax")
def _hardmax(op: Operation, x: Tensor) -> Tensor:
    axis = op.attribute("axis", -1)
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)


@torch_rule("Dropout", host=(1, 2))
def _dropout(
    op: Operation, x: Tensor, ratio: float | None = None, training: bool | None = None
) -> tuple[Tensor, Tensor]:
    """Drops where the module trains, and where the node itself says so; scales what stays."""
    ratio = 0.5 if ratio is None else ratio
    if not (op.training or training) or ratio == 0:
        return x, torch.ones_like(x, dtype=torch.bool)
    mask = torch.rand(x.shape, device=x.device) >= ratio
    return torch.where(mask, x / (1 - ratio), torch.zeros_like(x)), mask
