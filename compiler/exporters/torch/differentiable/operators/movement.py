"""Shapes and moving of data: reshaping, slicing, padding, tiling; and the tensors that are made of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from compiler.exporters.torch.differentiable.dtypes import as_tensor, carried
from compiler.exporters.torch.differentiable.rules import Operation, torch_rule
from compiler.ir import Node


@torch_rule("Shape")
def _shape(op: Operation, x: Tensor) -> Tensor:
    sizes = list(x.shape)[op.attribute("start", 0) : op.attribute("end")]
    return torch.tensor(sizes, dtype=torch.int64)


@torch_rule("Size")
def _size(op: Operation, x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


@torch_rule("Constant")
def _constant(op: Operation) -> Tensor:
    (value,) = op.node.attributes.values()
    return carried(as_tensor(np.asarray(value)))


@torch_rule("ConstantOfShape", host=(0,))
def _constant_of_shape(op: Operation, shape: list[int]) -> Tensor:
    value = op.attribute("value")
    value = np.zeros(1, np.float32) if value is None else np.asarray(value)
    dtype = op.dtype(value.dtype)
    device = op.device if dtype.is_floating_point else torch.device("cpu")
    return as_tensor(value.reshape(())).to(device, dtype).expand(shape).clone()


@torch_rule("Range", host=(0, 1, 2))
def _range(op: Operation, start: float, limit: float, delta: float) -> Tensor:
    dtype = op.dtype(op.node.outputs[0].dtype)
    start, limit, delta = (n[0] if isinstance(n, list) else n for n in (start, limit, delta))
    count = max(0, math.ceil((limit - start) / delta))
    device = op.device if dtype.is_floating_point else torch.device("cpu")
    return (torch.arange(count, device=device) * delta + start).to(dtype)


@torch_rule("EyeLike")
def _eye_like(op: Operation, x: Tensor) -> Tensor:
    kind = op.attribute("dtype")
    y = torch.zeros(x.shape, dtype=x.dtype if kind is None else op.dtype(int(kind)), device=x.device)
    k, (rows, columns) = op.attribute("k", 0), x.shape
    if -rows < k < columns:
        y.diagonal(k).fill_(1)
    return y


@torch_rule("Reshape", host=(1,))
def _reshape(op: Operation, x: Tensor, shape: list[int]) -> Tensor:
    if not op.attribute("allowzero", 0):
        shape = [x.shape[a] if n == 0 else n for a, n in enumerate(shape)]
    if -1 in shape and x.numel() == 0:
        known = math.prod(n for n in shape if n != -1)
        shape = [(0 if known == 0 else x.numel() // known) if n == -1 else n for n in shape]
    return x.reshape(shape)


@torch_rule("Transpose")
def _transpose(op: Operation, x: Tensor) -> Tensor:
    order = op.attribute("perm")
    return x.permute(order if order is not None else list(reversed(range(x.dim()))))


@torch_rule("Squeeze", host=(1,))
def _squeeze(op: Operation, x: Tensor, axes: list[int] | None = None) -> Tensor:
    axes = op.attribute("axes") if axes is None else axes
    gone = {a for a, n in enumerate(x.shape) if n == 1} if axes is None else {a % x.dim() for a in _listed(axes)}
    return x.reshape([n for a, n in enumerate(x.shape) if a not in gone])


@torch_rule("Unsqueeze", host=(1,))
def _unsqueeze(op: Operation, x: Tensor, axes: list[int] | None = None) -> Tensor:
    axes = _listed(op.attribute("axes") if axes is None else axes)
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def _listed(axes: int | list[int] | None) -> list[int]:
    return [axes] if isinstance(axes, int) else list(axes or [])


@torch_rule("Flatten")
def _flatten(op: Operation, x: Tensor) -> Tensor:
    axis = op.attribute("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@torch_rule("Concat")
def _concat(op: Operation, *operands: Tensor) -> Tensor:
    return torch.cat(operands, op.attribute("axis"))


def split_sizes(op: Operation, total: int, sizes: list[int] | None, parts: int) -> list[int]:
    """The extents of a Split's results; of equal ones the last may be smaller."""
    sizes = op.attribute("split") if sizes is None else sizes
    if sizes is not None:
        return list(sizes)
    each = math.ceil(total / parts)
    return [max(0, min(each, total - i * each)) for i in range(parts)]


@torch_rule("Split", host=(1,))
def _split(op: Operation, x: Tensor, sizes: list[int] | None = None) -> tuple[Tensor, ...]:
    axis = op.attribute("axis", 0)
    parts = op.attribute("num_outputs") or len(op.node.outputs)
    return tuple(torch.split(x, split_sizes(op, x.shape[axis], sizes, parts), axis))


@torch_rule("Slice", host=(1, 2, 3, 4))
def _slice(
    op: Operation,
    x: Tensor,
    starts: list[int],
    ends: list[int],
    axes: list[int] | None = None,
    steps: list[int] | None = None,
) -> Tensor:
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        if step > 0:
            first, last, _ = slice(start, end, step).indices(size)
            x = x[(*[slice(None)] * (axis % x.dim()), slice(first, max(first, last), step))]
            continue
        # Behind the front lies no index: an end of -size - 1 or less takes the first element too.
        places = range(size)[slice(start, None if end < -size else end, step)]
        x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64, device=x.device))
    return x


@torch_rule("Expand", host=(1,))
def _expand(op: Operation, x: Tensor, shape: list[int]) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, shape))


@torch_rule("Tile", host=(1,))
def _tile(op: Operation, x: Tensor, repeats: list[int]) -> Tensor:
    return x.repeat(repeats)


@torch_rule("Trilu", host=(1,))
def _trilu(op: Operation, x: Tensor, k: int | list[int] | None = None) -> Tensor:
    diagonal = 0 if k is None else _listed(k)[0]
    return torch.triu(x, diagonal) if op.attribute("upper", 1) else torch.tril(x, diagonal)


@torch_rule("Pad", host=(1, 3))
def _pad(
    op: Operation, x: Tensor, pads: list[int], value: Tensor | None = None, axes: list[int] | None = None
) -> Tensor:
    """Any mode on any axes; negative pads drop elements."""
    axes = list(range(x.dim())) if axes is None else [a % x.dim() for a in axes]
    begins, ends = [0] * x.dim(), [0] * x.dim()
    for index, axis in enumerate(axes):
        begins[axis], ends[axis] = pads[index], pads[len(axes) + index]
    mode = op.attribute("mode", "constant")
    if mode == "constant":
        return _pad_constant(x, begins, ends, value)
    for axis, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        if begin or end:
            x = x.index_select(axis, _pad_index(mode, x.shape[axis], begin, end).to(x.device))
    return x


def _pad_constant(x: Tensor, begins: Sequence[int], ends: Sequence[int], value: Tensor | None) -> Tensor:
    amounts = [n for pair in zip(reversed(begins), reversed(ends), strict=True) for n in pair]
    if value is not None and value.requires_grad:
        inside = functional.pad(torch.ones_like(x), amounts).bool()
        return torch.where(inside, functional.pad(x, amounts), value)
    fill: Any = 0 if value is None else value.reshape(()).tolist()
    if x.dtype == torch.bool:
        return functional.pad(x.to(torch.uint8), amounts, value=int(fill)).bool()
    return functional.pad(x, amounts, value=fill)


def _pad_index(mode: str, size: int, begin: int, end: int) -> Tensor:
    """The element that each position of the padded axis shows."""
    places = torch.arange(-begin, size + end)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    period = max(1, 2 * (size - 1))
    places = places % period
    return torch.where(places >= size, period - places, places)


@torch_rule("CenterCropPad", host=(1,))
def _center_crop_pad(op: Operation, x: Tensor, shape: list[int]) -> Tensor:
    axes = op.attribute("axes") or list(range(x.dim()))
    for axis, size in zip(axes, shape, strict=True):
        extra = size - x.shape[axis]
        amounts = [0, 0] * (x.dim() - axis % x.dim() - 1)
        before = extra // 2 if extra > 0 else -(-extra // 2)
        x = functional.pad(x, [*amounts, before, extra - before])
    return x


@torch_rule("DepthToSpace")
def _depth_to_space(op: Operation, x: Tensor) -> Tensor:
    block = op.attribute("blocksize")
    n, c, h, w = x.shape
    if op.attribute("mode", "DCR") == "DCR":
        y = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // block**2, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // block**2, h * block, w * block)


@torch_rule("SpaceToDepth")
def _space_to_depth(op: Operation, x: Tensor) -> Tensor:
    block = op.attribute("blocksize")
    n, c, h, w = x.shape
    y = x.reshape(n, c, h // block, block, w // block, block)
    y = y.permute((0, 3, 5, 1, 2, 4) if op.attribute("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4))
    return y.reshape(n, c * block**2, h // block, w // block)


def _no_strings(node: Node) -> str | None:
    value = node.input(0)
    return "of strings" if value is not None and value.dtype is not None and value.dtype.kind in "OUS" else None


@torch_rule("ReverseSequence", host=(1,), check=_no_strings)
def _reverse_sequence(op: Operation, x: Tensor, lengths: list[int]) -> Tensor:
    """The first `lengths[b]` steps of each example backwards, the rest as they are."""
    time, batch = op.attribute("time_axis", 0), op.attribute("batch_axis", 1)
    steps = x.shape[time]
    order = torch.tensor([[*reversed(range(n)), *range(n, steps)] for n in lengths], device=x.device)
    order = order if batch < time else order.T
    shape = [n if a in (time, batch) else 1 for a, n in enumerate(x.shape)]
    return torch.gather(x, time, order.reshape(shape).expand(x.shape))
