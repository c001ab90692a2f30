"""What a stored constant stands for: its values in float32, dequantised where it is stored as integers."""

from __future__ import annotations

import numpy as np

from compiler.ir import Node, Value

_SCALES = {"DequantizeLinear": {0: (1, 2)}, "QLinearConv": {3: (4, 5)}, "QLinearMatMul": {0: (1, 2), 3: (4, 5)}}
"""Where a quantised operand's scale and zero point are."""


def row_values(constant: Value, uses: list[tuple[Node, int]], rows: slice) -> np.ndarray:
    """The values of some rows (along axis 0), in float32. uses: the (node, input index) pairs that read it."""
    values = np.asarray(constant.numpy()[rows], np.float32)
    for node, index in uses:
        places = _SCALES.get(node.op, {}).get(index)
        if places is None:
            continue
        scale, zero = (node.input(i) for i in places)
        if scale is None or not scale.is_constant or (zero is not None and not zero.is_constant):
            continue
        axis = {"QLinearConv": 0, "QLinearMatMul": -2 if index == 0 else -1}.get(node.op, node.attribute("axis", 1))
        block = int(node.attribute("block_size", 0))
        if zero is not None:
            values = values - _spread(zero, constant, axis, block, rows)
        return values * _spread(scale, constant, axis, block, rows)
    return values


def _spread(parameter: Value, constant: Value, axis: int, block: int, rows: slice) -> np.ndarray:
    """A scale or zero point against rows of its tensor: one in all, one a position of `axis`, or one a block."""
    numbers = np.asarray(parameter.numpy(), np.float32)
    shape = constant.static_shape or ()
    if numbers.size == 1:
        return numbers.reshape(())
    if numbers.ndim == 1:
        wide = numbers.reshape([-1 if a == axis % len(shape) else 1 for a in range(len(shape))])
    else:
        wide = numbers.repeat(block, axis).take(range(shape[axis]), axis) if block else numbers
    return wide[rows] if wide.shape[0] > 1 else wide
