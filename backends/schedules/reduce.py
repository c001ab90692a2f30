"""Folding a contiguous row into one number with vectors: sums and extremes, in a fixed order."""

from __future__ import annotations

from collections.abc import Callable

from backends.schedules.emit import Emitter, Expr, Index, const, lanes_of, shuffle
from backends.schedules.rows import power_of_two_below

#: Independent chains that hide the latency of an addition.
_CHAINS = 4

Combine = Callable[[Expr, Expr], Expr]


def fold(
    e: Emitter, length: int, lanes: int, term: Callable[[Index, int], Expr], combine: Combine, start: float
) -> Expr:
    """Combine term(offset, width) over disjoint vectors that cover [0, length); `start` changes no result."""
    whole, rest = divmod(length, lanes)
    rounds, single = divmod(whole, _CHAINS)
    sums = e.registers(_CHAINS if rounds else 1, lanes)
    for chain in range(_CHAINS if rounds else 1):
        sums[chain] = const(start, lanes)
    if rounds:
        with e.loop(rounds) as i:
            for chain in range(_CHAINS):
                sums[chain] = combine(sums[chain], term(e.let(i * (_CHAINS * lanes) + chain * lanes), lanes))
    for index in range(single):
        sums[0] = combine(sums[0], term((rounds * _CHAINS + index) * lanes, lanes))
    total = sums[0]
    for chain in range(1, _CHAINS if rounds else 1):
        total = e.name(combine(total, sums[chain]))
    result = horizontal(e, total, combine)
    offset = whole * lanes
    while rest:
        width = power_of_two_below(rest)
        result = e.name(combine(result, horizontal(e, term(offset, width), combine)))
        offset, rest = offset + width, rest - width
    return result


def horizontal(e: Emitter, value: Expr, combine: Combine) -> Expr:
    """All lanes of a vector combined, by halves."""
    while lanes_of(value) > 1:
        half = lanes_of(value) // 2
        value = e.name(value)
        value = combine(shuffle([value], range(half)), shuffle([value], range(half, 2 * half)))
    return e.name(value)


def pieces(e: Emitter, length: int, lanes: int, body: Callable[[Index, int], None]) -> None:
    """Call body(offset, width) for disjoint vectors that cover [0, length)."""
    whole, rest = divmod(length, lanes)
    if whole:
        with e.loop(whole) as i:
            body(e.let(i * lanes), lanes)
    offset = whole * lanes
    while rest:
        width = power_of_two_below(rest)
        body(offset, width)
        offset, rest = offset + width, rest - width
