"""torchvision without its compiled part: the operators that its models call, written in torch.

Import this module before torchvision. A wheel whose compiled part does not fit the installed torch loads like this,
and torchvision's own ONNX symbolics then export both operators.
"""

from __future__ import annotations

import sys

import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
_SIGNATURES = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",  # declared for torchvision's import only
    "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width,"
    " int sampling_ratio, bool aligned) -> Tensor",
)


def nms(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Indices of the boxes that no better box overlaps by more than the threshold, best first.

    dets: [N, 4] as x1, y1, x2, y2. scores: [N].
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = dets[order]
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
    alive = torch.ones(len(boxes), dtype=torch.bool)
    for i in range(len(boxes)):
        if not alive[i]:
            continue
        corner = torch.maximum(boxes[i, :2], boxes[i + 1 :, :2])
        inside = (torch.minimum(boxes[i, 2:], boxes[i + 1 :, 2:]) - corner).clamp(min=0).prod(dim=1)
        alive[i + 1 :] &= inside <= iou_threshold * (areas[i] + areas[i + 1 :] - inside)
    return order[alive]


def roi_align(
    x: torch.Tensor,
    rois: torch.Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> torch.Tensor:
    """Mean of bilinear samples in each bin of each region; differentiable, so that autograd can be traced through it.

    x: [N, C, H, W]. rois: [K, 5] as batch index, x1, y1, x2, y2. Result: [K, C, pooled_height, pooled_width].
    """
    samples = max(1, sampling_ratio)
    start, end = (rois[:, i : i + 2] * spatial_scale - 0.5 * aligned for i in (1, 3))
    extent = (end - start) if aligned else (end - start).clamp(min=1)
    size = torch.tensor(x.shape[:1:-1])

    def positions(axis: int, bins: int) -> torch.Tensor:
        steps = (torch.arange(bins * samples) + 0.5) / (bins * samples)
        pixels = start[:, axis, None] + extent[:, axis, None] * steps + (0 if aligned else -0.5) + 0.5
        return (2 * pixels + 1) / size[axis] - 1

    across, down = positions(0, pooled_width), positions(1, pooled_height)
    shape = (len(rois), down.shape[1], across.shape[1])
    grid = torch.stack([across[:, None, :].expand(shape), down[:, :, None].expand(shape)], dim=-1)
    sampled = torch.nn.functional.grid_sample(x[rois[:, 0].long()], grid, padding_mode="border", align_corners=False)
    return torch.nn.functional.avg_pool2d(sampled, samples)


def _has_operators() -> bool:
    return True


def _install() -> None:
    """Define the operators and tell torchvision that they are there."""
    if "torchvision" in sys.modules:
        return
    for signature in _SIGNATURES:
        _LIBRARY.define(signature)
    _LIBRARY.impl("nms", nms, "CPU")
    _LIBRARY.impl("roi_align", roi_align, "CompositeImplicitAutograd")
    import torchvision.extension
    import torchvision.ops

    torchvision.extension._has_ops = _has_operators
    sys.modules["torchvision.ops.roi_align"]._has_ops = _has_operators  # type: ignore[attr-defined]


_install()
