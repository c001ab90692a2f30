"""Normalisations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from compiler.exporters.torch.differentiable.rules import Operation, torch_rule
from compiler.ir import Node


def _inference_form(node: Node) -> str | None:
    return "gives the statistics of the batch out" if node.attribute("training_mode", 0) else None


@torch_rule("BatchNormalization", state=(3, 4), check=_inference_form)
def _batch_norm(op: Operation, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """While the module trains: by the batch's mean and biased variance, and the statistics move.

    As in torch, they move to the unbiased variance, by 1 - momentum of the node, whose convention is the other one.
    Statistics that the network also reads as parameters stay.
    """
    epsilon, momentum = op.attribute("epsilon", 1e-5), 1 - op.attribute("momentum", 0.9)
    if op.training and (mean.requires_grad or variance.requires_grad):
        return functional.batch_norm(x, None, None, scale, bias, True, momentum, epsilon)
    return functional.batch_norm(x, mean, variance, scale, bias, op.training, momentum, epsilon)


def per_channel(vector: Tensor, like: Tensor) -> Tensor:
    """A vector over channels, ready to broadcast along axis 1."""
    return vector.reshape(-1, *[1] * (like.dim() - 2))


@torch_rule("InstanceNormalization")
def _instance_norm(op: Operation, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    axes = tuple(range(2, x.dim()))
    centred = x - x.mean(axes, keepdim=True)
    normal = centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + op.attribute("epsilon", 1e-5))
    return normal * per_channel(scale, x) + per_channel(bias, x)


@torch_rule("GroupNormalization")
def _group_norm(op: Operation, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Until opset 20 there is one scale a group, from 21 on one a channel."""
    groups = op.attribute("num_groups")
    if op.opset < 21:
        scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
    normal = functional.group_norm(x, groups, None, None, op.attribute("epsilon", 1e-5))
    return normal * per_channel(scale, x) + per_channel(bias, x)


@torch_rule("LayerNormalization")
def _layer_norm(op: Operation, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
    first = op.attribute("axis", -1) % x.dim()
    axes = tuple(range(first, x.dim()))
    epsilon = op.attribute("epsilon", 1e-5)
    if not op.wants(1):
        normal = functional.layer_norm(x, x.shape[first:], None, None, epsilon) * scale
        return (normal if bias is None else normal + bias,)
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    inverse = torch.rsqrt(centred.square().mean(axes, keepdim=True) + epsilon)
    normal = centred * inverse * scale
    return normal if bias is None else normal + bias, mean, inverse


def rms_norm(x: Tensor, axes: tuple[int, ...], epsilon: float) -> tuple[Tensor, Tensor]:
    """x over its root mean square, and the inverse of that (Zhang and Sennrich 2019, arXiv:1910.07467)."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    inverse = torch.rsqrt(wide.square().mean(axes, keepdim=True) + epsilon)
    return (wide * inverse).to(x.dtype), inverse


@torch_rule("RMSNormalization")
def _rms_norm(op: Operation, x: Tensor, scale: Tensor) -> Tensor:
    first = op.attribute("axis", -1) % x.dim()
    return rms_norm(x, tuple(range(first, x.dim())), op.attribute("epsilon", 1e-5))[0] * scale


@torch_rule("LpNormalization")
def _lp_norm(op: Operation, x: Tensor) -> Tensor:
    """A vector of norm zero stays zero."""
    norm = torch.linalg.vector_norm(x, op.attribute("p", 2), op.attribute("axis", -1), keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, torch.ones_like(norm), norm))


@torch_rule("MeanVarianceNormalization")
def _mean_variance_norm(op: Operation, x: Tensor) -> Tensor:
    axes = op.attribute("axes") or [0, 2, 3]
    centred = x - x.mean(axes, keepdim=True)
    return centred / (torch.sqrt(centred.square().mean(axes, keepdim=True)) + 1e-9)


@torch_rule("LRN")
def _local_response_norm(op: Operation, x: Tensor) -> Tensor:
    size, alpha, beta = op.attribute("size"), op.attribute("alpha", 1e-4), op.attribute("beta", 0.75)
    before = (size - 1) // 2
    squares = functional.pad(x.square().flatten(2).transpose(1, 2), (before, size - 1 - before))
    total = functional.avg_pool1d(squares, size, 1).transpose(1, 2).reshape(x.shape) * size
    return x / (op.attribute("bias", 1.0) + alpha / size * total) ** beta


__all__ = ["per_channel", "rms_norm"]
