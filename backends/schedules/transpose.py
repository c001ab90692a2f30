"""Turning a square of vectors round in registers: lane j of vector i becomes lane i of vector j."""

from __future__ import annotations

from collections.abc import Callable

from backends.schedules.emit import Array, Emitter, Expr, Index, shuffle


def square(e: Emitter, vectors: list[Expr]) -> list[Expr]:
    """The transposed square of as many vectors as they have lanes (a power of two)."""
    lanes, half = len(vectors), len(vectors) // 2
    while half:
        swapped = list(vectors)
        for i in range(lanes):
            if i & half:
                continue
            low, high = vectors[i], vectors[i + half]
            first = [lane if not lane & half else lanes + lane - half for lane in range(lanes)]
            second = [lane + half if not lane & half else lanes + lane for lane in range(lanes)]
            swapped[i] = e.name(shuffle([low, high], first))
            swapped[i + half] = e.name(shuffle([low, high], second))
        vectors, half = swapped, half // 2
    return vectors


def transpose_block(
    e: Emitter,
    source: Array,
    row_at: Callable[[int], Index],
    lanes: int,
    put: Callable[[int, Expr], None],
) -> None:
    """Load `lanes` rows of `lanes` elements, row i from row_at(i) on, and put(j, column j)."""
    rows = [e.name(source.load(row_at(i), lanes)) for i in range(lanes)]
    for j, column in enumerate(square(e, rows)):
        put(j, column)
