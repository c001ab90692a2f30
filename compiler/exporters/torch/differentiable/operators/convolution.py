"""Convolutions over one to three spatial axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from compiler.exporters.torch.differentiable.operators.windows import pad_axes, windows
from compiler.exporters.torch.differentiable.rules import Operation, torch_rule
from compiler.ir import Node

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def spatial_rank(node: Node, index: int = 0) -> int | None:
    """How many spatial axes an operand has; None when its rank is unknown."""
    value = node.input(index)
    return None if value is None or value.rank is None else value.rank - 2


def _up_to_three(node: Node) -> str | None:
    rank = spatial_rank(node)
    return None if rank is None or rank in _CONV else f"over {rank} spatial axes"


@torch_rule("Conv", check=_up_to_three)
def conv(op: Operation, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Conv, and what is built on it."""
    slide = windows(op, x.shape[2:], weight.shape[2:])
    symmetric = slide.begins == slide.ends and min(slide.begins) >= 0
    padding: Sequence[int] = slide.begins if symmetric else [0] * len(slide.kernel)
    x = x if symmetric else slide.pad(x)
    return _CONV[weight.dim() - 2](x, weight, bias, slide.strides, padding, slide.dilations, op.attribute("group", 1))


@torch_rule("ConvTranspose", check=_up_to_three)
def _conv_transpose(op: Operation, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """All that the kernel reaches, then what pads drop of it and output padding adds to it, then the bias."""
    rank = weight.dim() - 2
    strides = op.attribute("strides") or [1] * rank
    dilations = op.attribute("dilations") or [1] * rank
    extra = op.attribute("output_padding") or [0] * rank
    whole = _TRANSPOSED[rank](x, weight, None, strides, 0, 0, op.attribute("group", 1), dilations)
    begins, ends = _dropped(op, x.shape[2:], whole.shape[2:], strides, extra)
    y = pad_axes(whole, [-n for n in begins], [e - n for e, n in zip(extra, ends, strict=True)])
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)


def _dropped(
    op: Operation, sizes: Sequence[int], whole: Sequence[int], strides: Sequence[int], extra: Sequence[int]
) -> tuple[list[int], list[int]]:
    rank, mode = len(sizes), op.attribute("auto_pad", "NOTSET")
    wanted = op.attribute("output_shape")
    if not wanted and mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(sizes, strides, strict=True)]
    if not wanted:
        pads = op.attribute("pads") if mode in ("NOTSET", "") else None
        pads = pads or [0] * (2 * rank)
        return list(pads[:rank]), list(pads[rank:])
    totals = [n + e - w for n, e, w in zip(whole, extra, wanted[-rank:], strict=True)]
    halves = [n // 2 for n in totals]
    rest = [n - h for n, h in zip(totals, halves, strict=True)]
    return (halves, rest) if mode == "SAME_UPPER" else (rest, halves)


def _two_axes(node: Node) -> str | None:
    rank = spatial_rank(node)
    return None if rank in (None, 2) else f"over {rank} spatial axes"


@torch_rule("DeformConv", check=_two_axes)
def _deform_conv(
    op: Operation, x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Deformable convolution (Zhu et al. 2019, https://arxiv.org/abs/1811.11168): taps at bilinear positions."""
    groups, parts = op.attribute("group", 1), op.attribute("offset_group", 1)
    batch, channels, height, width = x.shape
    slide = windows(op, (height, width), weight.shape[2:])
    rows, columns = offset.shape[2:]
    taps = math.prod(slide.kernel)
    offset = offset.reshape(batch * parts, taps, 2, rows, columns)
    places = []
    for axis, count in enumerate((rows, columns)):
        tap = torch.arange(slide.kernel[axis], device=x.device, dtype=x.dtype) * slide.dilations[axis]
        tap = tap.repeat_interleave(slide.kernel[1]) if axis == 0 else tap.repeat(slide.kernel[0])
        base = torch.arange(count, device=x.device, dtype=x.dtype) * slide.strides[axis] - slide.begins[axis]
        places.append(offset[:, :, axis] + tap.reshape(-1, 1, 1) + base.reshape((-1, 1) if axis == 0 else (1, -1)))
    # grid_sample counts from -1 at the left edge of the first element to 1 at the right edge of the last.
    grid = torch.stack([(2 * places[1] + 1) / width - 1, (2 * places[0] + 1) / height - 1], -1)
    image = x.reshape(batch * parts, channels // parts, height, width)
    grid = grid.reshape(batch * parts, taps * rows, columns, 2)
    sampled = functional.grid_sample(image, grid, padding_mode="zeros", align_corners=False)
    sampled = sampled.reshape(batch, parts, channels // parts, taps, rows, columns)
    if mask is not None:
        sampled = sampled * mask.reshape(batch, parts, 1, taps, rows, columns)
    sampled = sampled.reshape(batch, groups, channels // groups, taps, rows * columns)
    filters = weight.reshape(groups, weight.shape[0] // groups, channels // groups, taps)
    y = torch.einsum("bgctp,gmct->bgmp", sampled, filters).reshape(batch, weight.shape[0], rows, columns)
    return y if bias is None else y + bias.reshape(-1, 1, 1)


@torch_rule("CausalConvWithState")
def _causal_conv(
    op: Operation, x: Tensor, weight: Tensor, bias: Tensor | None = None, past: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A depthwise convolution over what came before; the state is the last kernel - 1 elements."""
    before = weight.shape[-1] - 1
    past = x.new_zeros((*x.shape[:2], before)) if past is None else past
    whole = torch.cat([past, x], -1)
    y = functional.conv1d(whole, weight, bias, groups=x.shape[1])
    y = functional.silu(y) if op.attribute("activation", "none") in ("silu", "swish") else y
    return y, whole.narrow(-1, whole.shape[-1] - before, before)


@torch_rule("Col2Im", host=(1, 2))
def _col2im(op: Operation, x: Tensor, image: list[int], block: list[int]) -> Tensor:
    """The sum of all blocks at their places, over any number of axes."""
    rank = len(block)
    strides, dilations = op.attribute("strides") or [1] * rank, op.attribute("dilations") or [1] * rank
    pads = op.attribute("pads") or [0] * (2 * rank)
    padded = [n + pads[a] + pads[rank + a] for a, n in enumerate(image)]
    flat = torch.zeros((), dtype=torch.int64, device=x.device)
    for axis in range(rank):
        count = (padded[axis] - dilations[axis] * (block[axis] - 1) - 1) // strides[axis] + 1
        tap = torch.arange(block[axis], device=x.device) * dilations[axis]
        start = torch.arange(count, device=x.device) * strides[axis]
        place = tap.reshape(-1, *[1] * (rank - 1 - axis), *[1] * rank) + start.reshape(-1, *[1] * (rank - 1 - axis))
        flat = flat * padded[axis] + place
    batch, channels = x.shape[0], x.shape[1] // math.prod(block)
    values = x.reshape(batch, channels, -1)
    y = values.new_zeros((batch, channels, math.prod(padded))).index_add(2, flat.reshape(-1), values)
    y = y.reshape(batch, channels, *padded)
    return pad_axes(y, [-n for n in pads[:rank]], [-n for n in pads[rank:]])
