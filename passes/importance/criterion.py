"""What a criterion is, and the one mechanism that turns scores of parameters into scores of units.

A criterion scores single parameters; `unit_scores` sums the scores over everything that a unit owns in
the constants that take part. So every per-parameter criterion of the literature becomes a grouped one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import ClassVar, TypeVar

import numpy as np

from compiler.ir import Node, SecateurError, Value
from passes.coupling.groups import Groups
from passes.coupling.readers import readers
from passes.importance.stored import row_values

ENTRY_POINT_GROUP = "secateur.criteria"
"""Third parties register a Criterion subclass under this entry point group."""

_BLOCK = 1 << 24
"""Elements that are scored at a time."""


class Criterion(ABC):
    """Importance of parameters: larger means more important."""

    name: ClassVar[str] = ""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    @abstractmethod
    def selects(self, constant: Value, uses: list[tuple[Node, int]]) -> bool:
        """Whether a constant takes part. uses: the (node, input index) pairs that read it or a view of it."""

    @abstractmethod
    def score(self, data: np.ndarray, constant: Value, rows: slice) -> np.ndarray:
        """Scores of `data`, element by element: the values of `rows` (along axis 0) of the constant, in float32."""

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
    uses, direct = readers(groups.graph), groups.graph.consumers()
    owned = groups.owned()
    for constant in groups.graph.all_constants():
        layout = groups.layouts.get(constant) or []
        moves = constant in owned or any(t is not None for t in layout)
        if not moves or not chosen.selects(constant, uses.get(constant, [])):
            continue
        for rows in _row_blocks(constant):
            scores = chosen.score(row_values(constant, direct.get(constant, []), rows), constant, rows)
            if constant in owned:
                totals[owned[constant]] += scores.sum()
                scored[owned[constant]] = True
            for labels in layout:
                if labels is not None:
                    _add(totals, scored, labels[rows] if labels.shape[0] > 1 else labels, scores)
    return np.where(scored, chosen.finish(totals), np.nan)


_WEIGHTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "ConvInteger", "DeformConv", "CausalConvWithState"), (1,)),
    **dict.fromkeys(("Gemm", "MatMul", "MatMulInteger"), (0, 1)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2)),
    **{"QLinearConv": (3,), "QLinearMatMul": (0, 3), "Einsum": tuple(range(8))},
    **dict.fromkeys(("FusedConv", "Attention", "QAttention", "DynamicQuantizeMatMul", "MatMulNBits"), (1,)),
    **dict.fromkeys(("FusedGemm", "FusedMatMul", "TransposeMatMul", "MatMulInteger16", "MatMulIntegerToFloat"), (0, 1)),
    **{"QGemm": (0, 3), "MoE": (2, 4, 6)},
}
"""Which operands are multiplied with the data."""


def _row_blocks(constant: Value) -> Iterator[slice]:
    """Runs of rows of at most _BLOCK elements, so that a large tensor is never copied whole."""
    assert constant.data is not None
    length = constant.data.shape[0]
    step = max(1, _BLOCK * length // max(1, constant.data.size))
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _add(totals: np.ndarray, scored: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> None:
    """Add scores to the units that own them."""
    summed = scores.sum(axis=tuple(a for a, d in enumerate(labels.shape) if d == 1), keepdims=True)
    owned = labels >= 0
    np.add.at(totals, labels[owned], np.broadcast_to(summed, labels.shape)[owned])
    scored[labels[owned]] = True


def is_weight(constant: Value, uses: list[tuple[Node, int]]) -> bool:
    """True for the weights of convolutions, recurrences and matrix products, which magnitude criteria compare.

    Weights may be stored as integers.
    """
    assert constant.data is not None
    if constant.data.dtype.kind not in "fViu":
        return False
    return any(i in _WEIGHTS.get(node.op, ()) for node, i in uses)
