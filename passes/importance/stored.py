"""What a stored constant stands for: its values in float32, dequantised where it is stored as integers."""

from __future__ import annotations

import numpy as np

from compiler.ir import Node, Value

_SCALES = {
    **{"DequantizeLinear": {0: (1, 2)}, "QLinearConv": {3: (4, 5)}, "QLinearMatMul": {0: (1, 2), 3: (4, 5)}},
    **{"DynamicQuantizeMatMul": {1: (2, 3)}, "MatMulIntegerToFloat": {0: (2, 4), 1: (3, 5)}},
    **{"QGemm": {0: (1, 2), 3: (4, 5)}, "QAttention": {1: (4, 7)}},
}
"""Where a quantised operand's scale and zero point are."""

_AXES = {"QLinearConv": 0, "QAttention": 1}
"""The axis of a weight of which scales have one element a position, where it is always the same."""


def row_values(constant: Value, uses: list[tuple[Node, int]], rows: slice) -> np.ndarray:
    """The values of some rows (along axis 0), in float32. uses: the (node, input index) pairs that read it."""
    values = np.asarray(constant.numpy()[rows], np.float32)
    for node, index in uses:
        if node.op == "MatMulNBits" and index == 1:
            return _unpacked(constant, node, rows)
        places = _SCALES.get(node.op, {}).get(index)
        if places is None:
            continue
        scale, zero = (node.input(i) for i in places)
        if scale is None or not scale.is_constant or (zero is not None and not zero.is_constant):
            continue
        axis = _axis(node, index)
        block = int(node.attribute("block_size", 0))
        if zero is not None:
            values = values - _spread(zero, constant, axis, block, rows)
        return values * _spread(scale, constant, axis, block, rows)
    return values


def _axis(node: Node, index: int) -> int:
    """The axis of an operand along which it may have a scale a position."""
    if node.op in _AXES:
        return _AXES[node.op]
    if node.op == "QGemm":
        return 0 if node.attribute("transB", 0) else 1
    if node.op in ("QLinearMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"):
        return -2 if index == 0 else -1
    return int(node.attribute("axis", 1))


def _unpacked(constant: Value, node: Node, rows: slice) -> np.ndarray:
    """The numbers that the bytes of a block-quantised weight [N, blocks, bytes] hold, [N, blocks, numbers].

    Packed zero points are taken for the middle of the range, from which they differ little.
    """
    bits, stored = int(node.attribute("bits", 4)), constant.numpy()[rows]
    binary = np.unpackbits(stored, axis=-1, bitorder="little").reshape(*stored.shape[:-1], -1, bits)
    values = binary @ (1 << np.arange(bits)).astype(np.float32)
    scales, zeros = node.input(2), node.input(3)
    middle: np.ndarray | float = float(1 << (bits - 1))
    if zeros is not None and zeros.is_constant and zeros.shape == constant.static_shape[:2]:  # type: ignore[index]
        middle = np.asarray(zeros.numpy()[rows], np.float32)[..., None]
    values = values - middle
    if scales is None or not scales.is_constant:
        return values
    wide = np.asarray(scales.numpy(), np.float32).reshape((constant.static_shape or ())[:2])
    return values * wide[rows][..., None]


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
