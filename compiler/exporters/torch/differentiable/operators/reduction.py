"""Reductions over axes, positions of extrema, cumulative sums, sorting."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from compiler.exporters.torch.differentiable.rules import Operation, torch_rule


def _sum(x: Tensor, axes: list[int]) -> Tensor:
    return torch.sum(x, axes, keepdim=True, dtype=x.dtype)


def _mean(x: Tensor, axes: list[int]) -> Tensor:
    if x.is_floating_point():
        return torch.mean(x, axes, keepdim=True)
    return torch.div(_sum(x, axes), math.prod(x.shape[a] for a in axes), rounding_mode="trunc")


def _prod(x: Tensor, axes: list[int]) -> Tensor:
    for axis in axes:
        x = torch.prod(x, axis, keepdim=True, dtype=x.dtype)
    return x


def _extremum(x: Tensor, axes: list[int], largest: bool) -> Tensor:
    if math.prod(x.shape[a] for a in axes) == 0:
        shape = [1 if a in axes else n for a, n in enumerate(x.shape)]
        return torch.full(shape, least(x.dtype) if largest else greatest(x.dtype), dtype=x.dtype, device=x.device)
    if x.dtype == torch.bool:
        return (x.any if largest else x.all)(tuple(axes), keepdim=True)
    return (torch.amax if largest else torch.amin)(x, axes, keepdim=True)


def least(dtype: torch.dtype) -> float | int | bool:
    """The smallest number of a type: minus infinity where there is one."""
    if dtype == torch.bool:
        return False
    return -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min


def greatest(dtype: torch.dtype) -> float | int | bool:
    """The largest number of a type: infinity where there is one."""
    if dtype == torch.bool:
        return True
    return math.inf if dtype.is_floating_point else torch.iinfo(dtype).max


def _l2(x: Tensor, axes: list[int]) -> Tensor:
    """The Euclidean norm, whose gradient at zero is zero."""
    if not x.is_floating_point():
        return torch.sqrt(_sum(x * x, axes).double()).to(x.dtype)
    return torch.linalg.vector_norm(x, 2, axes, keepdim=True)


def _log_sum(x: Tensor, axes: list[int]) -> Tensor:
    return torch.log(_sum(x, axes).to(_floating(x))).to(x.dtype)


def _log_sum_exp(x: Tensor, axes: list[int]) -> Tensor:
    return torch.logsumexp(x.to(_floating(x)), axes, keepdim=True).to(x.dtype)


def _floating(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else torch.float64


_REDUCTIONS: dict[str, Callable[[Tensor, list[int]], Tensor]] = {
    "ReduceL1": lambda x, axes: _sum(x.abs(), axes),
    "ReduceL2": _l2,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": lambda x, axes: _extremum(x, axes, True),
    "ReduceMean": _mean,
    "ReduceMin": lambda x, axes: _extremum(x, axes, False),
    "ReduceProd": _prod,
    "ReduceSum": _sum,
    "ReduceSumSquare": lambda x, axes: _sum(x * x, axes),
}


@torch_rule(*_REDUCTIONS, host=(1,))
def _reduce(op: Operation, x: Tensor, axes: list[int] | None = None) -> Tensor:
    """Without axes all are reduced, or, with `noop_with_empty_axes`, each element is its own reduction."""
    axes = op.attribute("axes") if axes is None else axes
    reduce = _REDUCTIONS[op.node.op]
    if not axes and op.attribute("noop_with_empty_axes", 0):
        return reduce(x.unsqueeze(-1), [x.dim()]).squeeze(-1)
    axes = sorted(a % max(1, x.dim()) for a in axes) if axes else list(range(x.dim()))
    result = reduce(x, axes) if axes else reduce(x.unsqueeze(0), [0]).squeeze(0)
    if op.attribute("keepdims", 1):
        return result
    return result.reshape([n for a, n in enumerate(result.shape) if a not in axes])


@torch_rule("ArgMax", "ArgMin")
def _arg(op: Operation, x: Tensor) -> Tensor:
    axis = op.attribute("axis", 0) % x.dim()
    last = bool(op.attribute("select_last_index", 0))
    seen = torch.flip(x, [axis]) if last else x
    values = seen.detach()
    found = (torch.argmax if op.node.op == "ArgMax" else torch.argmin)(values, axis, keepdim=True)
    found = x.shape[axis] - 1 - found if last else found
    return found if op.attribute("keepdims", 1) else found.squeeze(axis)


@torch_rule("TopK", host=(1,))
def _top_k(op: Operation, x: Tensor, k: list[int]) -> tuple[Tensor, Tensor]:
    """Of equal elements the first comes first, which torch.topk does not promise."""
    axis = op.attribute("axis", -1)
    values, order = torch.sort(x, dim=axis, descending=bool(op.attribute("largest", 1)), stable=True)
    return values.narrow(axis, 0, k[0]), order.narrow(axis, 0, k[0])


@torch_rule("CumSum", "CumProd", host=(1,))
def _cumulate(op: Operation, x: Tensor, axis: int | list[int]) -> Tensor:
    (axis,) = axis if isinstance(axis, list) else (axis,)
    reverse = bool(op.attribute("reverse", 0))
    is_sum = op.node.op == "CumSum"
    y = torch.flip(x, [axis]) if reverse else x
    if op.attribute("exclusive", 0):
        first = y.narrow(axis, 0, min(1, y.shape[axis]))
        start = torch.zeros_like(first) if is_sum else torch.ones_like(first)
        y = torch.cat([start, y.narrow(axis, 0, max(0, y.shape[axis] - 1))], axis)
    y = (torch.cumsum if is_sum else torch.cumprod)(y, axis, dtype=x.dtype)
    return torch.flip(y, [axis]) if reverse else y
