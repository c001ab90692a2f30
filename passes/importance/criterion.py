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


def is_weight(constant: Value, uses: list[tuple[Node, int]]) -> bool:
    """True for the multiplied weights of convolutions and matrix products, which magnitude criteria compare."""
    assert constant.data is not None
    return constant.data.dtype.kind in "fV" and any(
        (n.op in ("Conv", "ConvTranspose") and i == 1) or (n.op in ("Gemm", "MatMul") and i in (0, 1)) for n, i in uses
    )
