"""How many weights each layer loses: the same share of each, by its shape (ERK), or by one ranking of all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from passes.sparsity.masks import nearest

DISTRIBUTIONS = ("uniform", "erk", "global")

Ranked = Callable[[], Iterator[tuple[np.ndarray, np.ndarray | int]]]
"""Yields each layer's `masks.block_scores`; called several times, so that no two layers need be held at once."""

_DIGIT = 16
"""Bits of a rank that are looked at at a time."""
_CHUNK = 1 << 22


def uniform_zeros(sizes: Sequence[int], sparsity: float) -> list[int]:
    """The same share of each layer."""
    return [round(sparsity * size) for size in sizes]


def erk_zeros(shapes: Sequence[tuple[int, ...]], sparsity: float) -> list[int]:
    """Erdős–Rényi-kernel: a layer's density is proportional to the sum of its extents over their product.

    Evci et al., "Rigging the Lottery: Making All Tickets Winners" (ICML 2020, arXiv:1911.11134), section 3; layers
    whose density would exceed 1 stay dense, and the others make up for them. shapes: of the weights as they are
    stored; a convolution's [outputs, inputs / groups, kernel…].
    """
    sizes = np.array([math.prod(shape) for shape in shapes], np.float64)
    raw = np.array([sum(shape) for shape in shapes]) / sizes
    dense = np.zeros(len(shapes), bool)
    wanted = (1 - sparsity) * sizes.sum()
    while True:
        left = wanted - sizes[dense].sum()
        density = np.where(dense, 1.0, raw * left / max(1.0, float((raw * sizes)[~dense].sum())))
        if not (density > 1).any():
            break
        dense |= density >= density.max()
    return [round(float(size * (1 - share))) for size, share in zip(sizes, density, strict=True)]


def global_zeros(ranked: Ranked, zeros: int) -> list[int]:
    """How many weights each layer loses when all blocks are ranked together and the lowest, of `zeros` weights, go.

    Of equal ranks those of the last layers go first. The best block of each layer stays. Exact: the bound is found
    digit by digit (radix selection), from histograms over one layer after another.
    """
    width = next(ranks.dtype.itemsize * 8 for ranks, _ in ranked())
    bound, left = 0, zeros
    for shift in range(width - _DIGIT, -1, -_DIGIT):
        counts, best = np.zeros(1 << _DIGIT, np.int64), 0
        for ranks, sizes in ranked():
            _count(counts, _keys(ranks, width), sizes, bound, shift)
            best += _size(sizes, int(np.argmax(ranks)))
        sums = np.cumsum(counts)
        if shift + _DIGIT == width:
            left = min(left, int(sums[-1]) - best)
        digit = int(np.searchsorted(sums, left))
        left -= int(sums[digit - 1]) if digit else 0
        bound = bound << _DIGIT | digit
    below, equal = [], []
    for ranks, sizes in ranked():
        keys = _keys(ranks, width)
        lower = keys < bound
        below.append(int(np.count_nonzero(lower)) * sizes if isinstance(sizes, int) else int(sizes[lower].sum()))
        places = np.flatnonzero(keys == bound)
        equal.append(np.full(len(places), sizes) if isinstance(sizes, int) else sizes[places])
    return [b + extra for b, extra in zip(below, _last_first(equal, left), strict=True)]


def _last_first(sizes: list[np.ndarray], zeros: int) -> list[int]:
    """How much goes of each layer when blocks go from the last one on, as near to `zeros` as can be."""
    found = []
    for own in reversed(sizes):
        sums = np.cumsum(own[::-1])
        count = nearest(sums, zeros)
        found.append(int(sums[count - 1]) if count else 0)
        zeros = max(0, zeros - found[-1]) if count == len(sums) else 0
    return found[::-1]


def _keys(ranks: np.ndarray, width: int) -> np.ndarray:
    """Unsigned integers in the order of the ranks, [blocks]; that of the best is larger than that of any number."""
    kind = np.dtype(f"u{width // 8}").type
    bits = (ranks.astype(f"f{width // 8}") + 0).view(kind)  # no negative zeros
    sign = kind(1 << (width - 1))
    keys = np.where(bits & sign, ~bits, bits | sign)
    keys[np.argmax(ranks)] = ~kind(0)
    return keys


def _count(counts: np.ndarray, keys: np.ndarray, sizes: np.ndarray | int, bound: int, shift: int) -> None:
    """Add the sizes of the blocks whose keys begin with `bound`, by the digit that follows, to `counts`."""
    for start in range(0, len(keys), _CHUNK):
        part = keys[start : start + _CHUNK] >> keys.dtype.type(shift)
        same = part >> keys.dtype.type(_DIGIT) == bound
        digits = (part[same] & keys.dtype.type((1 << _DIGIT) - 1)).astype(np.int64)
        if isinstance(sizes, int):
            counts += np.bincount(digits, minlength=len(counts)) * sizes
        else:
            counts += np.bincount(digits, sizes[start : start + _CHUNK][same], len(counts)).astype(np.int64)


def _size(sizes: np.ndarray | int, place: int) -> int:
    return sizes if isinstance(sizes, int) else int(sizes[place])
