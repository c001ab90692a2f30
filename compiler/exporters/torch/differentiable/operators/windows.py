"""Windows that slide over the spatial axes: what pads, strides and auto_pad mean for convolutions and poolings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from compiler.exporters.torch.differentiable.rules import Operation


@dataclass(frozen=True)
class Windows:
    """One entry per spatial axis. begins, ends: elements added on either side, negative where some are dropped."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def padded(self) -> bool:
        """True when anything is added or dropped."""
        return any((*self.begins, *self.ends))

    def pad(self, x: Tensor, value: float = 0.0) -> Tensor:
        """`x` with its spatial axes as long as the windows need them."""
        return pad_axes(x, self.begins, self.ends, value) if self.padded else x


def pad_axes(x: Tensor, begins: Sequence[int], ends: Sequence[int], value: float = 0.0) -> Tensor:
    """Add elements before and behind the last axes, or drop them where the numbers are negative."""
    amounts = [n for pair in zip(reversed(begins), reversed(ends), strict=True) for n in pair]
    return functional.pad(x, amounts, value=value)


def windows(op: Operation, sizes: Sequence[int], kernel: Sequence[int], ceil_mode: bool = False) -> Windows:
    """The windows of a node over axes of these sizes.

    With ceil_mode a last window that is not whole counts, unless it begins in the padding behind the data.
    """
    rank = len(kernel)
    strides = op.attribute("strides") or [1] * rank
    dilations = op.attribute("dilations") or [1] * rank
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    begins, ends = _declared(op, sizes, spans, strides)
    if ceil_mode and op.attribute("auto_pad", "NOTSET") in ("NOTSET", ""):
        for axis, (size, span, stride) in enumerate(zip(sizes, spans, strides, strict=True)):
            count = math.ceil((size + begins[axis] + ends[axis] - span) / stride) + 1
            if (count - 1) * stride >= size + begins[axis]:
                count -= 1
            ends[axis] = (count - 1) * stride + span - size - begins[axis]
    return Windows(tuple(kernel), tuple(strides), tuple(dilations), tuple(begins), tuple(ends))


def _declared(
    op: Operation, sizes: Sequence[int], spans: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[int]]:
    rank = len(spans)
    mode = op.attribute("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        pads = op.attribute("pads") or [0] * (2 * rank)
        return list(pads[:rank]), list(pads[rank:])
    if mode == "VALID":
        return [0] * rank, [0] * rank
    begins, ends = [], []
    for size, span, stride in zip(sizes, spans, strides, strict=True):
        total = max(0, (math.ceil(size / stride) - 1) * stride + span - size)
        small, large = total // 2, total - total // 2
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    return begins, ends


def ones(x: Tensor) -> Tensor:
    """One element of ones with the spatial axes of `x`, `[1, 1, ...]`."""
    return torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
