"""What remains of each axis when units go, and the table of rules by which operands that spell extents follow.

A Reshape's target, a Split's sizes, a depthwise convolution's `group` name numbers of channels; each
has one `@extent_rule` that writes the new number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from compiler.ir import Node, SecateurError, Value

UnitLayout = list["np.ndarray | None"]
"""Per axis, unit ids (-1 where fixed) broadcast over the tensor's rank, or None where nothing moves."""


class Kept:
    """The effect of keeping some units on every tensor.

    layouts: unit ids of each value's axes. keep: one flag a unit.
    """

    def __init__(self, layouts: Mapping[Value, UnitLayout], keep: np.ndarray) -> None:
        self._layouts = layouts
        self._keep = np.append(keep, True)  # unit -1, what is fixed, stays
        self._masks: dict[int, np.ndarray] = {}

    def touches(self, value: Value) -> bool:
        """True when some axis of the value has units at all."""
        return any(labels is not None for labels in self._layouts.get(value, ()))

    def labels(self, value: Value, axis: int) -> np.ndarray | None:
        """The unit ids along an axis, or None where nothing moves."""
        layout = self._layouts.get(value)
        return None if layout is None else layout[axis]

    def mask(self, value: Value, axis: int) -> np.ndarray | None:
        """Which positions of an axis stay, 1-D; None where nothing moves.

        Raises E_CONDITIONAL when that differs along another axis; what merely goes there with its unit does not count.
        """
        labels = self.labels(value, axis)
        if labels is None:
            return None
        rows = np.moveaxis(self._keep[labels], axis, -1).reshape(-1, labels.shape[axis])
        counts = rows.sum(axis=1)
        whole = rows[counts == counts.max()]
        if (whole != whole[0]).any():
            raise SecateurError(
                "E_CONDITIONAL",
                f"what stays of axis {axis} of {value.name!r} differs from row to row",
                where=value.name,
                hint="exclude these channels with ignore=[...]; `secateur groups` names their group",
            )
        return whole[0]

    def count(self, value: Value, axis: int) -> int:
        """How many positions of an axis stay."""
        labels = self.labels(value, axis)
        if labels is None:
            extent = value.shape[axis] if value.shape is not None else None
            assert isinstance(extent, int)
            return extent
        key = id(labels)
        if key not in self._masks:
            self._masks[key] = self._keep[labels]
        per_row = self._masks[key].sum(axis=axis)
        return int(per_row.max())  # rows that are whole; rows that go with their unit hold fewer or as many

    def shape(self, value: Value, symbol: int = 1) -> tuple[int, ...]:
        """The new shape; symbolic extents count as `symbol`."""
        assert value.shape is not None
        layout = self._layouts.get(value)
        return tuple(
            self.count(value, a)
            if layout is not None and layout[a] is not None
            else d
            if isinstance(d, int)
            else symbol
            for a, d in enumerate(value.shape)
        )


ExtentRule = Callable[[Node, Node, Kept], None]
"""(node of the new graph to change, the same node of the old graph, what stays)."""

EXTENT_RULES: dict[tuple[str, str], ExtentRule] = {}


def extent_rule(*ops: str, domain: str = "") -> Callable[[ExtentRule], ExtentRule]:
    """Register how operands and attributes that spell extents follow a removal."""

    def register(rule: ExtentRule) -> ExtentRule:
        for op in ops:
            EXTENT_RULES[domain, op] = rule
        return rule

    return register


def constant_operand(like: Value, numbers: Sequence[int] | np.ndarray) -> Value:
    """A new constant that takes the place of `like`."""
    return Value(like.name, data=np.asarray(numbers, like.dtype))
