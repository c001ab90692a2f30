"""Reading and writing at positions that are data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compiler.exporters.torch.differentiable.rules import Operation, torch_rule


def wrapped(index: Tensor, size: int) -> Tensor:
    """Positions as int64, counted from the front."""
    index = index.long()
    return torch.where(index < 0, index + size, index)


@torch_rule("Gather")
def _gather(op: Operation, data: Tensor, index: Tensor) -> Tensor:
    axis = op.attribute("axis", 0) % data.dim()
    taken = data.index_select(axis, wrapped(index, data.shape[axis]).reshape(-1))
    return taken.reshape((*data.shape[:axis], *index.shape, *data.shape[axis + 1 :]))


@torch_rule("GatherElements")
def _gather_elements(op: Operation, data: Tensor, index: Tensor) -> Tensor:
    axis = op.attribute("axis", 0)
    return torch.gather(data, axis, wrapped(index, data.shape[axis]))


@torch_rule("ScatterElements")
def _scatter_elements(op: Operation, data: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    axis = op.attribute("axis", 0)
    return _scatter(op.attribute("reduction", "none"), data, axis, wrapped(index, data.shape[axis]), updates)


_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scatter(reduction: str, data: Tensor, axis: int, index: Tensor, updates: Tensor) -> Tensor:
    if reduction == "none":
        return data.scatter(axis, index, updates)
    return data.scatter_reduce(axis, index, updates, _REDUCE[reduction], include_self=True)


def _rows(index: Tensor, sizes: list[int]) -> Tensor:
    """Tuples of positions, along the last axis, as one position in axes of these sizes flattened."""
    flat = torch.zeros(index.shape[:-1], dtype=torch.int64, device=index.device)
    for place, size in zip(index.unbind(-1), sizes, strict=True):
        flat = flat * size + wrapped(place, size)
    return flat


@torch_rule("GatherND")
def _gather_nd(op: Operation, data: Tensor, index: Tensor) -> Tensor:
    batch = op.attribute("batch_dims", 0)
    depth = index.shape[-1]
    examples = list(data.shape[:batch])
    sizes, rest = list(data.shape[batch : batch + depth]), list(data.shape[batch + depth :])
    rows = _rows(index, sizes).reshape(math.prod(examples), -1)
    start = torch.arange(math.prod(examples), device=rows.device).unsqueeze(1) * math.prod(sizes)
    flat = data.reshape(math.prod(examples) * math.prod(sizes), *rest)
    return flat.index_select(0, (rows + start).reshape(-1)).reshape((*index.shape[:-1], *rest))


@torch_rule("ScatterND")
def _scatter_nd(op: Operation, data: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    depth = index.shape[-1]
    sizes, rest = list(data.shape[:depth]), list(data.shape[depth:])
    rows = _rows(index, sizes).reshape(-1)
    flat = data.reshape(math.prod(sizes), math.prod(rest))
    updates = updates.reshape(-1, math.prod(rest))
    where = rows.unsqueeze(1).expand(updates.shape)
    return _scatter(op.attribute("reduction", "none"), flat, 0, where, updates).reshape(data.shape)


@torch_rule("TensorScatter")
def _tensor_scatter(op: Operation, cache: Tensor, update: Tensor, start: Tensor | None = None) -> Tensor:
    """Writes into a cache from each example's own position on, round its end in the circular mode."""
    axis = op.attribute("axis", -2) % cache.dim()
    steps = torch.arange(update.shape[axis], device=cache.device).reshape(-1, *[1] * (cache.dim() - axis - 1))
    if start is not None:
        steps = steps + start.long().reshape(-1, *[1] * (cache.dim() - 1))
    if op.attribute("mode", "linear") == "circular":
        steps = steps % cache.shape[axis]
    return cache.scatter(axis, steps.expand(update.shape), update)


@torch_rule("OneHot", host=(1,))
def _one_hot(op: Operation, index: Tensor, depth: int | list[int], values: Tensor) -> Tensor:
    """Positions out of range give a row of off values."""
    depth = int(depth[0] if isinstance(depth, list) else depth)
    axis = op.attribute("axis", -1) % (index.dim() + 1)
    index = index.long()
    index = torch.where(index < 0, index + depth, index).unsqueeze(axis)
    places = torch.arange(depth, device=index.device).reshape(-1, *[1] * (index.dim() - axis - 1))
    return torch.where(index == places, values[1], values[0])


@torch_rule("NonZero")
def _non_zero(op: Operation, x: Tensor) -> Tensor:
    return torch.nonzero(x.detach()).T if x.dim() else torch.nonzero(x.detach().reshape(1)).T[:0]


@torch_rule("Compress")
def _compress(op: Operation, x: Tensor, condition: Tensor) -> Tensor:
    axis = op.attribute("axis")
    x, axis = (x.reshape(-1), 0) if axis is None else (x, axis)
    return x.index_select(axis, torch.nonzero(condition).reshape(-1))


@torch_rule("Unique")
def _unique(op: Operation, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distinct elements, or slices along an axis, sorted or in the order of their first places."""
    axis = op.attribute("axis")
    x, axis = (x.reshape(-1), 0) if axis is None else (x, axis)
    _, inverse, counts = torch.unique(x.detach(), dim=axis, return_inverse=True, return_counts=True)
    places = torch.arange(len(inverse), device=x.device)
    first = torch.full((len(counts),), len(inverse), device=x.device).scatter_reduce(0, inverse, places, "amin")
    if not op.attribute("sorted", 1):
        order = torch.argsort(first)
        first, counts, inverse = first[order], counts[order], torch.argsort(order)[inverse]
    return x.index_select(axis, first), first, inverse, counts


@torch_rule("NonMaxSuppression", host=(2, 3, 4))
def _non_max_suppression(
    op: Operation,
    boxes: Tensor,
    scores: Tensor,
    most: int | list[int] | None = None,
    overlap: float | list[float] | None = None,
    least: float | list[float] | None = None,
) -> Tensor:
    """The boxes that stay, each as (example, class, box), the best scores first."""
    limit, threshold, bound = (n[0] if isinstance(n, list) else n for n in (most, overlap, least))
    chosen = []
    for example, sets in enumerate(scores.detach()):
        corners = _corners(boxes[example].detach(), bool(op.attribute("center_point_box", 0)))
        for kind, values in enumerate(sets):
            order = torch.sort(values, descending=True, stable=True).indices
            if bound is not None:
                order = order[values[order] > bound]
            kept = _suppress(corners[order], threshold or 0.0, int(limit or 0))
            chosen += [[example, kind, box] for box in order[kept].tolist()]
    return torch.tensor(chosen, dtype=torch.int64).reshape(-1, 3)


def _corners(boxes: Tensor, centred: bool) -> Tensor:
    """Boxes as two opposite corners, the lower one first, `[N, 4]`."""
    if centred:
        centre, half = boxes[:, :2], boxes[:, 2:] / 2
        return torch.cat([centre - half, centre + half], 1)
    return torch.cat([torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])], 1)


def _suppress(boxes: Tensor, threshold: float, limit: int) -> list[int]:
    """The places of at most `limit` boxes, in order, that overlap no earlier one by more than the threshold."""
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    free = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    kept: list[int] = []
    while len(kept) < limit and bool(free.any()):
        best = int(free.nonzero()[0])
        kept.append(best)
        low = torch.maximum(boxes[best, :2], boxes[:, :2])
        high = torch.minimum(boxes[best, 2:], boxes[:, 2:])
        common = (high - low).clamp(min=0).prod(1)
        free &= common / (area[best] + area - common) <= threshold
        free[best] = False
    return kept
