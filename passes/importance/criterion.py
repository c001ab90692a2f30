"""What a criterion is, and the one mechanism that turns scores of parameters into scores of units.

A criterion yields shares: scores of the positions of one axis, each of which belongs to a unit. `unit_scores` adds
those of positions of one unit, and aggregates over the axes (members) that the unit lives on. So every per-parameter
criterion of the literature becomes a grouped one.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import ClassVar, TypeVar

import numpy as np

from compiler.ir import Node, SecateurError, Value
from passes.calibration.evidence import Evidence
from passes.coupling.groups import Groups
from passes.importance.stored import row_values

ENTRY_POINT_GROUP = "secateur.criteria"
"""Third parties register a Criterion subclass under this entry point group."""

AGGREGATES = ("sum", "mean", "max", "prod")
"""How the scores of a unit's members become one: their sum, mean, maximum or geometric mean."""

_BLOCK = 1 << 24
"""Elements that are scored at a time."""

Share = tuple[np.ndarray, np.ndarray]
"""(unit ids, scores) of the positions of one member, of equal shape; -1 is no unit."""


class Criterion(ABC):
    """Importance of units: larger means more important.

    needs: what it asks of calibration: "" (nothing), "samples" or "labels". scores_weights: whether it scores single
    weights too, for sparsity.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[str] = ""
    scores_weights: ClassVar[bool] = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    @abstractmethod
    def shares(self, evidence: Evidence) -> Iterator[Share]:
        """The scores of every member that takes part."""

    def finish(self, totals: np.ndarray) -> np.ndarray:
        """The score of each unit from the aggregate over all that it owns."""
        return totals

    def prepare(self, evidence: Evidence) -> None:  # noqa: B027  (nothing to gather is common)
        """Gather what scores need beyond the weights; called once, before any is scored."""

    def scores_weights_of(self, evidence: Evidence, constant: Value) -> bool:
        """Whether it scores the weights of a constant one by one. `prepare` comes before."""
        return False

    def weight_scores(self, evidence: Evidence, constant: Value) -> np.ndarray:
        """Scores of single weights, in the shape of the constant, which add up over weights that go together.

        For constants that `scores_weights_of` says yes to.
        """
        raise NotImplementedError


class ParameterCriterion(Criterion):
    """A criterion that scores parameters one by one."""

    scores_weights = True

    def selects(self, constant: Value, uses: list[tuple[Node, int]]) -> bool:
        """Whether a constant takes part. uses: the (node, input index) pairs that read it. By default weights do."""
        return is_weight(constant, uses)

    @abstractmethod
    def score(self, data: np.ndarray, constant: Value, rows: slice) -> np.ndarray:
        """Scores of `data`, element by element: the values of `rows` (along axis 0) of the constant, in float32."""

    def shares(self, evidence: Evidence) -> Iterator[Share]:
        self.prepare(evidence)
        for constant in evidence.constants():
            if self.selects(constant, evidence.uses.get(constant, [])):
                yield from self._shares_of(evidence, constant)

    def scores_weights_of(self, evidence: Evidence, constant: Value) -> bool:
        return self.selects(constant, evidence.uses.get(constant, []))

    def weight_scores(self, evidence: Evidence, constant: Value) -> np.ndarray:
        uses = evidence.direct.get(constant, [])
        found: np.ndarray | None = None
        for rows in _row_blocks(constant):
            scores = self.score(row_values(constant, uses, rows), constant, rows)
            if found is None:
                found = np.empty(constant.static_shape or (), scores.dtype)
            found[rows] = scores
        assert found is not None
        return found

    def _shares_of(self, evidence: Evidence, constant: Value) -> Iterator[Share]:
        layout = evidence.groups.layouts.get(constant) or []
        found = [None if labels is None else np.zeros(labels.shape) for labels in layout]
        whole = 0.0
        for rows in _row_blocks(constant):
            data = row_values(constant, evidence.direct.get(constant, []), rows)
            scores = self.score(data, constant, rows)
            whole += float(scores.sum())
            for labels, sums in zip(layout, found, strict=True):
                if labels is not None and sums is not None:
                    place = rows if labels.shape[0] > 1 else slice(None)
                    sums[place] += scores.sum(
                        axis=tuple(a for a, d in enumerate(labels.shape) if d == 1), keepdims=True
                    )
        if constant in evidence.owned:
            yield np.array([evidence.owned[constant]]), np.array([whole])
        for labels, sums in zip(layout, found, strict=True):
            if labels is not None and sums is not None:
                yield labels, sums


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
    if name not in _REGISTRY:
        entries = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
        if name not in entries:
            known = sorted({*_REGISTRY, *entries})
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise SecateurError(
                "E_CRITERION", f"there is no criterion {name!r}", hint=f"{hint}known criteria: {', '.join(known)}"
            )
        register_criterion(name)(_loaded(entries[name]))
    return _REGISTRY[name](seed)


def available_criteria() -> dict[str, type[Criterion] | SecateurError]:
    """Every criterion by name, entry points included; the error for one that cannot be loaded."""
    found: dict[str, type[Criterion] | SecateurError] = dict(_REGISTRY)
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            found.setdefault(entry.name, _loaded(entry))
        except SecateurError as error:
            found[entry.name] = error
    return dict(sorted(found.items()))


def _loaded(entry: EntryPoint) -> type[Criterion]:
    """The class behind an entry point; E_CRITERION when its package fails or it is no Criterion."""
    hint = f"repair or remove {entry.dist.name if entry.dist else 'its package'}"
    try:
        found = entry.load()
    except Exception as error:  # whatever another's package raises
        why = f"{type(error).__name__}: {error}"
        raise SecateurError(
            "E_CRITERION", f"criterion {entry.name!r} cannot be loaded: {why}", where=entry.value, hint=hint
        ) from error
    if not (isinstance(found, type) and issubclass(found, Criterion)):
        raise SecateurError("E_CRITERION", f"criterion {entry.name!r} is no Criterion", where=entry.value, hint=hint)
    return found


def unit_scores(
    groups: Groups, chosen: Criterion, evidence: Evidence | None = None, *, aggregate: str = "sum"
) -> np.ndarray:
    """The score of every unit, [groups.unit_count]; NaN for units that own nothing the criterion scores."""
    totals = np.zeros(groups.unit_count)
    members = np.zeros(groups.unit_count, np.int64)
    for labels, scores in chosen.shares(evidence or Evidence(groups)):
        units, inverse = np.unique(labels[labels >= 0], return_inverse=True)
        own = np.bincount(inverse, scores[labels >= 0], len(units))
        if aggregate == "max":
            totals[units] = np.where(members[units] > 0, np.maximum(totals[units], own), own)
        elif aggregate == "prod":
            totals[units] += np.log(np.maximum(own, np.finfo(np.float64).tiny))
        else:
            totals[units] += own
        members[units] += 1
    if aggregate in ("mean", "prod"):
        totals = totals / np.maximum(members, 1)
    if aggregate == "prod":
        totals = np.exp(totals)
    return np.where(members > 0, chosen.finish(totals), np.nan)


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


def is_weight(constant: Value, uses: list[tuple[Node, int]]) -> bool:
    """True for the weights of convolutions, recurrences and matrix products, which magnitude criteria compare.

    Weights may be stored as integers.
    """
    assert constant.data is not None
    if constant.data.dtype.kind not in "fViu":
        return False
    return any(i in _WEIGHTS.get(node.op, ()) for node, i in uses)
