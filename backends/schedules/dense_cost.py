"""What the dense schedules of a convolution cost: estimated cycles of one core, the unit a whole-vector multiply-add.

The constants (in costs.py and winograd.py) were fitted to measurements with weights from memory: docs/performance.md.
"""

from __future__ import annotations

from backends.costs import dense_costs
from backends.schedules.rows import cover
from backends.schedules.specs import ConvSpec
from backends.schedules.winograd import Tiling, tile_sizes
from backends.target import Target

#: Winograd's method is less accurate, the more so the larger its tiles: what each step up must promise to save.
_GAIN = 0.95


def dense_methods(spec: ConvSpec, target: Target) -> dict[str, float]:
    """Cycles of every method of conv2d that can compute the convolution, the one to take first."""
    found = {"direct": _direct_cycles(spec, target)}
    found |= {f"winograd{m}": Tiling.of(spec, target, m).cycles for m in tile_sizes(spec, target)}
    best = "direct"
    for method, cycles in found.items():
        best = method if cycles < _GAIN * found[best] else best
    return {best: found[best], **dict(sorted(found.items(), key=lambda item: item[1]))}


def direct_schedule(spec: ConvSpec) -> str:
    """What computes the sum as written: depthwise, pointwise (1x1, the image as it is) or panels."""
    if spec.groups == spec.in_channels and spec.groups > 1:
        return "depthwise"
    return "pointwise" if spec.kernel == (1, 1) and spec.strides == (1, 1) and spec.pads == (0, 0, 0, 0) else "panels"


def _direct_cycles(spec: ConvSpec, target: Target) -> float:
    lanes, schedule, costs = target.lanes(), direct_schedule(spec), dense_costs(target)
    work = spec.macs / lanes
    if schedule == "depthwise":
        return work * costs.depthwise
    pixels = spec.out_height * spec.out_width
    padded = sum(1.0 if width == lanes else 0.5 for _, width in cover(pixels, lanes)) * lanes / pixels
    gathered = 0.0
    if schedule == "panels":
        each = costs.gather if spec.strides[1] == 1 else costs.gather_strided
        gathered = each * spec.batch * spec.in_channels * spec.kernel[0] * spec.kernel[1] * pixels / lanes
    return work * padded * costs.product + gathered
