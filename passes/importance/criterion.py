"""What a criterion is, and the one mechanism that turns scores of parameters into scores of units.

A criterion scores single parameters; `unit_scores` sums the scores over everything that a unit owns in
the constants that take part. So every per-parameter criterion of the literature becomes a grouped one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import ClassVar, TypeVar

import numpy as np

from compiler.ir import Node, SecateurError, Value
from passes.coupling.groups import Groups

ENTRY_POINT_GROUP = "secateur.criteria"
"""Third parties register a Criterion subclass under this entry point group."""


class Criterion(ABC):
    """Importance of parameters: larger means more important."""

    name: ClassVar[str] = ""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    @abstractmethod
    def score(self, constant: Value, uses: list[tuple[Node, int]]) -> np.ndarray | None:
        """Scores of the elements of a constant, of its shape; None when it takes no part.

        uses: the (node, input index) pairs that read the constant.
        """

    def finish(self, totals: np.ndarray) -> np.ndarray:
        """The score of each unit from the sum over all that it owns."""
        return totals


_REGISTRY: dict[str, type[Criterion]] = {}
C = TypeVar("C", bound=type[Criterion])


def register_criterion(name: str) -> Callable[[C], C]:
    """Class decorator: the criterion is called `name` in options."""

    def register(cls: C) -> C:
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return register


def criterion(name: str, seed: int = 0) -> Criterion:
    """The criterion called `name`; E_CRITERION lists the known ones."""
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        _REGISTRY.setdefault(entry.name, entry.load())
    if name not in _REGISTRY:
        raise SecateurError(
            "E_CRITERION", f"there is no criterion {name!r}", hint=f"known criteria: {', '.join(sorted(_REGISTRY))}"
        )
    return _REGISTRY[name](seed)


def unit_scores(groups: Groups, chosen: Criterion) -> np.ndarray:
    """The score of every unit, [groups.unit_count]; NaN for units that own nothing the criterion scores."""
    totals = np.zeros(groups.unit_count)
    scored = np.zeros(groups.unit_count, bool)
    uses = groups.graph.consumers()
    for constant in groups.graph.constants():
        layout = groups.layouts.get(constant)
        if layout is None or all(labels is None for labels in layout):
            continue
        scores = chosen.score(constant, uses.get(constant, []))
        if scores is None:
            continue
        for labels in layout:
            if labels is None:
                continue
            summed = scores.sum(axis=tuple(a for a, d in enumerate(labels.shape) if d == 1), keepdims=True)
            owned = labels >= 0
            np.add.at(totals, labels[owned], np.broadcast_to(summed, labels.shape)[owned])
            scored[labels[owned]] = True
    return np.where(scored, chosen.finish(totals), np.nan)


_WEIGHTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "ConvInteger", "DeformConv", "CausalConvWithState"), (1,)),
    **dict.fromkeys(("Gemm", "MatMul", "MatMulInteger"), (0, 1)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2)),
    **{"QLinearConv": (3,), "QLinearMatMul": (0, 3), "DequantizeLinear": (0,), "Einsum": tuple(range(8))},
}
"""Which operands are multiplied with the data. A constant of several axes that is dequantised is taken for a weight."""

_SCALES = {"DequantizeLinear": {0: (1, 2)}, "QLinearConv": {3: (4, 5)}, "QLinearMatMul": {0: (1, 2), 3: (4, 5)}}
"""Where a quantised operand's scale and zero point are."""


def is_weight(constant: Value, uses: list[tuple[Node, int]]) -> bool:
    """True for the weights of convolutions, recurrences and matrix products, which magnitude criteria compare.

    Weights may be stored as integers.
    """
    assert constant.data is not None
    if constant.data.dtype.kind not in "fViu":
        return False
    return any(
        i in _WEIGHTS.get(n.op, ()) and (n.op != "DequantizeLinear" or (constant.rank or 0) > 1) for n, i in uses
    )


def weight_values(constant: Value, uses: list[tuple[Node, int]]) -> np.ndarray | None:
    """A weight in float32, dequantised where it is stored as integers; None for what is no weight."""
    if not is_weight(constant, uses):
        return None
    values = np.asarray(constant.numpy(), np.float32)
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
            values = values - _spread(np.asarray(zero.numpy(), np.float32), values.shape, axis, block)
        return values * _spread(np.asarray(scale.numpy(), np.float32), values.shape, axis, block)
    return values


def _spread(parameter: np.ndarray, shape: tuple[int, ...], axis: int, block: int) -> np.ndarray:
    """A scale or zero point against its tensor: one in all, one a position of `axis`, or one a block of them."""
    if parameter.size == 1:
        return parameter.reshape(())
    if parameter.ndim == 1:
        return parameter.reshape([-1 if a == axis % len(shape) else 1 for a in range(len(shape))])
    return parameter.repeat(block, axis).take(range(shape[axis]), axis) if block else parameter
