"""Sampling at positions that are data."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from compiler.exporters.torch.differentiable.operators.convolution import spatial_rank
from compiler.exporters.torch.differentiable.rules import Operation, torch_rule
from compiler.ir import Node

_MODES = {"linear": "bilinear", "cubic": "bicubic"}


def _sampled(node: Node) -> str | None:
    rank = spatial_rank(node)
    if rank is not None and rank not in (2, 3):
        return f"over {rank} spatial axes"
    return "with cubic interpolation of volumes" if rank == 3 and "cubic" in node.attribute("mode", "linear") else None


@torch_rule("GridSample", check=_sampled)
def _grid_sample(op: Operation, x: Tensor, grid: Tensor) -> Tensor:
    mode = op.attribute("mode", "linear")
    return functional.grid_sample(
        x,
        grid.to(x.dtype),
        _MODES.get(mode, mode),
        op.attribute("padding_mode", "zeros"),
        bool(op.attribute("align_corners", 0)),
    )


@torch_rule("AffineGrid", host=(1,))
def _affine_grid(op: Operation, theta: Tensor, size: list[int]) -> Tensor:
    return functional.affine_grid(theta, size, align_corners=bool(op.attribute("align_corners", 0)))
