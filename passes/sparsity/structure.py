"""Which patterns zeros follow: N of M along inputs or outputs, and blocks, found from where the nonzeros are."""

from __future__ import annotations

import numpy as np

from passes.sparsity.patterns import NM, Blocks

_LARGEST = 16
"""Blocks and runs of powers of two, up to this, are looked for."""

_FULL = 0.99
"""N:M is what it is when so large a share of the places that it allows is taken: not what happens to fit it."""


def structures(nonzero: np.ndarray) -> tuple[str, ...]:
    """The patterns that bool [groups, outputs, inputs, taps] follows, as they are written; "unstructured" if none.

    N:M with the smallest M along inputs, else along outputs; and the largest blocks that are each zero or not as one.
    """
    found = [str(p) for p in (_runs(nonzero, "in") or _runs(nonzero, "out"), _blocks(nonzero)) if p is not None]
    return tuple(found) or ("unstructured",)


def _runs(nonzero: np.ndarray, along: str) -> NM | None:
    rows = np.moveaxis(nonzero, -2 if along == "in" else -3, -1)
    m = 2
    while m <= min(_LARGEST, rows.shape[-1]):
        counts = np.add.reduceat(rows, np.arange(0, rows.shape[-1], m), axis=-1, dtype=np.int32)
        n = int(counts.max(initial=0))
        lengths = np.minimum(m, rows.shape[-1] - np.arange(0, rows.shape[-1], m))
        if 0 < n < m and counts.sum() >= _FULL * np.minimum(n, lengths).sum() * (counts.size // len(lengths)):
            return NM(n, m, along)
        m *= 2
    return None


def _blocks(nonzero: np.ndarray) -> Blocks | None:
    """Every block of RxC is uniform exactly when every one of Rx1 and every one of 1xC is."""
    outputs, inputs = (_uniform(nonzero, axis) for axis in (-3, -2))
    return Blocks(outputs, inputs) if outputs * inputs > 1 else None


def _uniform(nonzero: np.ndarray, axis: int) -> int:
    """The largest block length along an axis at which no block mixes zeros and nonzeros."""
    length, extent = 1, nonzero.shape[axis]
    while length * 2 <= min(_LARGEST, extent):
        starts = np.arange(0, extent, length * 2)
        mixed = np.logical_or.reduceat(nonzero, starts, axis) != np.logical_and.reduceat(nonzero, starts, axis)
        if mixed.any():
            break
        length *= 2
    return length
