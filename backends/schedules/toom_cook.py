"""Transformations of Winograd's minimal filtering F(m, r), derived exactly from interpolation points (Toom and Cook).

m outputs of a filter of r taps are evaluated at m + r - 1 points, the last of which is infinity: y = A^T (G w * B^T x).
Lavin and Gray, arXiv:1509.09308; Barabasz et al., "Error analysis and improving the accuracy of Winograd convolution",
2020, on how much the choice of points matters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from backends.schedules.emit import Emitter, Expr, const, dtype_of, lanes_of

Row = tuple[Fraction, ...]
Matrix = tuple[Row, ...]


def _pairs(*points: Fraction) -> tuple[Fraction, ...]:
    return tuple(signed for point in points for signed in (point, -point))


#: Finite points by their number, in pairs p and -p, so that even and odd parts are shared. Of the points tried that are
#: exact in binary these give the least error: with five, half of what 1 and 2 give, three times that of three points.
_POINTS = {
    3: (Fraction(0), *_pairs(Fraction(1))),
    5: (Fraction(0), *_pairs(Fraction(3, 4), Fraction(3, 2))),
    6: _pairs(Fraction(1, 4), Fraction(7, 8), Fraction(7, 4)),
}
#: Outputs of a tile along one axis, by taps.
SIZES = {3: (2, 4), 4: (3, 4), 5: (2,)}


@dataclass(frozen=True)
class ToomCook:
    """to_points: B^T [points, points]; kernel: G [points, taps]; from_points: A^T [outputs, points]."""

    to_points: Matrix
    kernel: Matrix
    from_points: Matrix

    @classmethod
    @functools.cache
    def of(cls, outputs: int, taps: int) -> ToomCook:
        """F(outputs, taps), outputs among the `SIZES` of so many taps."""
        points = _POINTS[outputs + taps - 2]
        others = [[q for q in points if q != p] for p in points]
        scales = [math.prod((p - q for q in rest), start=Fraction(1)) for p, rest in zip(points, others, strict=True)]
        size = outputs + taps - 1
        return cls(
            to_points=tuple(_expanded(rest, size) for rest in [*others, points]),
            kernel=(*(tuple(p**k / s for k in range(taps)) for p, s in zip(points, scales, strict=True)), _last(taps)),
            from_points=tuple((*(p**k for p in points), Fraction(int(k == outputs - 1))) for k in range(outputs)),
        )

    def pack(self, weights: np.ndarray) -> np.ndarray:
        """Weights [out, in, taps, taps] at all points, [points * points, out, in], rounded once."""
        g = np.array(self.kernel, np.float64)
        both = np.einsum("ua,ocab,vb->uvoc", g, np.asarray(weights, np.float64), g, optimize=True)
        return both.reshape(len(g) ** 2, *both.shape[2:]).astype(np.float32)


def _last(size: int) -> Row:
    return (*[Fraction(0)] * (size - 1), Fraction(1))


def _expanded(roots: Sequence[Fraction], size: int) -> Row:
    """Coefficients of the product of x - root, lowest power first."""
    row = [Fraction(1)]
    for root in roots:
        row = [a - root * b for a, b in zip([Fraction(0), *row], [*row, Fraction(0)], strict=True)]
    return (*row, *[Fraction(0)] * (size - len(row)))


def multiply(e: Emitter, matrix: Matrix, values: Sequence[Expr]) -> list[Expr]:
    """matrix @ values, with what rows or columns for p and -p have in common computed once."""
    matrix, values = _pair_columns(e, matrix, list(values))
    results: dict[int, Expr] = {}
    for i, row in enumerate(matrix):
        if i in results:
            continue
        twin = next((j for j in range(i + 1, len(matrix)) if _mirrored(row, matrix[j])), None)
        if twin is None:
            results[i] = e.name(_combine(row, values, row))
            continue
        even = tuple(a if a == b else Fraction(0) for a, b in zip(row, matrix[twin], strict=True))
        odd = tuple(a - b for a, b in zip(row, even, strict=True))
        scale = next(a for a in reversed(odd) if a)
        common, rest = e.name(_combine(even, values, even)), e.name(_combine(odd, values, [a / scale for a in odd]))
        results[i], results[twin] = e.name(common + _times(rest, scale)), e.name(common - _times(rest, scale))
    return [results[i] for i in range(len(matrix))]


def _pair_columns(e: Emitter, matrix: Matrix, values: list[Expr]) -> tuple[Matrix, list[Expr]]:
    """Two columns that are equal up to signs become one for their values' sum and one for the difference."""
    columns = [list(column) for column in zip(*matrix, strict=True)]
    for i in range(len(columns)):
        for j in range(i + 1, len(columns)):
            if _mirrored(columns[i], columns[j]):
                values[i], values[j] = e.name(values[i] + values[j]), e.name(values[i] - values[j])
                equal = [a == b for a, b in zip(columns[i], columns[j], strict=True)]
                columns[j] = [Fraction(0) if same else a for a, same in zip(columns[i], equal, strict=True)]
                columns[i] = [a if same else Fraction(0) for a, same in zip(columns[i], equal, strict=True)]
    return tuple(zip(*columns, strict=True)), values


def _mirrored(a: Sequence[Fraction], b: Sequence[Fraction]) -> bool:
    """Equal up to signs, and some of them both ways."""
    pairs = [(p, q) for p, q in zip(a, b, strict=True) if p or q]
    signs = {p == q for p, q in pairs}
    return all(abs(p) == abs(q) for p, q in pairs) and signs == {True, False}


def _combine(row: Sequence[Fraction], values: Sequence[Expr], coefficients: Sequence[Fraction]) -> Expr:
    """The sum of coefficient times value where `row` is not zero, those without a multiplication first."""
    used = [(c, v) for a, c, v in zip(row, coefficients, values, strict=True) if a]
    (first, start), *rest = sorted(used, key=lambda term: (term[0] != 1, abs(term[0]) != 1))
    total = _times(start, first)
    for coefficient, value in rest:
        total = total - value if coefficient == -1 else total + _times(value, coefficient)
    return total


def _times(value: Expr, factor: Fraction) -> Expr:
    return value if factor == 1 else value * const(float(factor), lanes_of(value), dtype_of(value))
