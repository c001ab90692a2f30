"""The tables of weights and their zeros, as cells: what a sparsification did, and what a model holds."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.report.numbers import count
from passes.sparsity import SparsifyReport, WeightSparsity

CHANGES = ("weight", "op", "shape", "weights", "zeros", "spared")
ZEROS = ("weight", "op", "shape", "weights", "zeros", "pattern")


def change_rows(report: SparsifyReport) -> list[list[str]]:
    """Cells under CHANGES, a row for each weight, and the total of those that were not spared."""
    rows = [
        [w.name, w.op, _shape(w.shape), count(w.weights), _change(w.zeros, w.weights), w.spared] for w in report.weights
    ]
    size = sum(w.weights for w in report.eligible)
    before, after = (sum(w.zeros[when] or 0 for w in report.eligible) for when in (0, 1))
    return [*rows, ["eligible", "", "", count(size), _change((before, after), size), ""]]


def zero_rows(found: Sequence[WeightSparsity]) -> list[list[str]]:
    """Cells under ZEROS, a row for each weight, and the total of those that are not quantised."""
    rows = [
        [w.name, w.op, _shape(w.shape), count(w.weights), _share(w.zeros, w.weights), ", ".join(w.structure)]
        for w in found
    ]
    size = sum(w.weights for w in found if w.zeros is not None)
    return [*rows, ["total", "", "", count(size), _share(sum(w.zeros or 0 for w in found), size), ""]]


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _share(zeros: int | None, size: int) -> str:
    return "quantised" if zeros is None else f"{zeros / max(1, size):.2%}"


def _change(zeros: tuple[int | None, int | None], size: int) -> str:
    before, after = zeros
    return _share(before, size) if before == after else f"{_share(before, size)} → {_share(after, size)}"
