"""From scores of weights to the ones that stay: pure functions of arrays.

Weights are [..., outputs, inputs, taps]; leading axes are groups of a convolution, or matrices of a batch, which blocks
and runs do not cross. Larger scores are more important; a score of minus infinity marks what is zero already. What
comes first in C order stays where scores are equal, so results do not depend on the machine.
"""

from __future__ import annotations

import math

import numpy as np

from compiler.ir import SecateurError
from passes.sparsity.patterns import NM, Blocks, Pattern, parse_pattern

_CHUNK = 1 << 22
"""Elements that are sorted at a time."""


def mask(scores: np.ndarray, pattern: str | Pattern, sparsity: float | None = None) -> np.ndarray:
    """True where a weight stays: bool, in the shape of scores, [..., outputs, inputs, taps].

    sparsity: the share of weights to take in blocks, in [0, 1); the number of weights taken is as near to it as whole
    blocks in the order of their mean scores allow. N:M has its own. One block always stays. E_SPARSITY where sparsity
    is out of range, or there is none; E_SCORES where a score is not a number.
    """
    pattern = parse_pattern(pattern)
    check_scores(scores)
    if isinstance(pattern, NM):
        return run_mask(scores, pattern)
    if sparsity is None or not 0 <= sparsity < 1:
        raise SecateurError("E_SPARSITY", f"the sparsity must be at least 0 and less than 1, not {sparsity}")
    return block_mask(scores, pattern, round(sparsity * scores.size))


def block_mask(scores: np.ndarray, pattern: Blocks, zeros: int) -> np.ndarray:
    """The mask that takes whole blocks, as near to `zeros` weights as can be, and not all of them."""
    ranks, sizes = block_scores(scores, pattern)
    stays = ~taken(ranks, sizes, zeros)
    if pattern.unstructured:
        return stays.reshape(scores.shape)
    stays = stays.reshape(_block_shape(scores.shape, pattern))
    stays = stays.repeat(pattern.outputs, axis=-3)[..., : scores.shape[-3], :, :]
    return stays.repeat(pattern.inputs, axis=-2)[..., : scores.shape[-2], :]


def run_mask(scores: np.ndarray, pattern: NM) -> np.ndarray:
    """The mask that leaves the n best of each run of m."""
    axis = -2 if pattern.along == "in" else -3
    rows = np.moveaxis(scores, axis, -1)
    stays = np.ones(rows.shape, bool)
    whole = rows.shape[-1] // pattern.m * pattern.m
    runs = (*rows.shape[:-1], whole // pattern.m, pattern.m)
    stays[..., :whole] = _best(rows[..., :whole].reshape(runs), pattern.n).reshape(*rows.shape[:-1], whole)
    stays[..., whole:] = _best(rows[..., whole:], pattern.n)
    return np.ascontiguousarray(np.moveaxis(stays, -1, axis))


def block_scores(scores: np.ndarray, pattern: Blocks) -> tuple[np.ndarray, np.ndarray | int]:
    """(mean score of each block, flat in C order of blocks; how many weights each holds, or one number for all).

    Weights that are zero already count 0 in the mean, and a block of nothing else minus infinity.
    """
    if pattern.unstructured:
        return scores.reshape(-1), 1
    zero = np.isneginf(scores)
    sums, dead = np.where(zero, 0, scores), zero
    for axis, step in ((-3, pattern.outputs), (-2, pattern.inputs)):
        if step > 1 and scores.size:
            starts = np.arange(0, scores.shape[axis], step)
            sums = np.add.reduceat(sums, starts, axis, dtype=np.float64)
            dead = np.logical_and.reduceat(dead, starts, axis)
    sizes = np.multiply.outer(_extents(scores.shape[-3], pattern.outputs), _extents(scores.shape[-2], pattern.inputs))[
        ..., None
    ]
    ranks = np.where(dead, -np.inf, sums / sizes).astype(scores.dtype).reshape(-1)
    if sizes.size and (sizes == sizes.flat[0]).all():
        return ranks, int(sizes.flat[0])
    return ranks, np.broadcast_to(sizes, _block_shape(scores.shape, pattern)).reshape(-1)


def taken(ranks: np.ndarray, sizes: np.ndarray | int, zeros: int) -> np.ndarray:
    """True for the blocks that go: the lowest ranks, of equal ones the last first, as near to `zeros` as can be.

    Never all: what is best stays.
    """
    goes = np.zeros(len(ranks), bool)
    if isinstance(sizes, int):
        count = min(math.ceil(zeros / sizes - 0.5), len(ranks) - 1)
        if count > 0:
            bound = np.partition(ranks, count - 1)[count - 1]
            goes = ranks < bound
            equal = np.flatnonzero(ranks == bound)
            goes[equal[len(equal) - (count - int(goes.sum())) :]] = True
        return goes
    order = len(ranks) - 1 - np.argsort(ranks[::-1], kind="stable")
    goes[order[: min(nearest(np.cumsum(sizes[order]), zeros), len(ranks) - 1)]] = True
    return goes


def nearest(sums: np.ndarray, wanted: int) -> int:
    """How many terms to take so that their sum (of cumulative `sums`) is nearest to `wanted`; the fewer of two."""
    count = int(np.searchsorted(sums, wanted, side="right"))
    before = int(sums[count - 1]) if count else 0
    return count + int(count < len(sums) and sums[count] - wanted < wanted - before)


def _best(rows: np.ndarray, n: int) -> np.ndarray:
    """True for the n largest of the last axis, of equal ones the first."""
    flat = rows.reshape(-1, rows.shape[-1]) if rows.size else rows.reshape(0, 1)
    stays = np.zeros(flat.shape, bool)
    step = max(1, _CHUNK // max(1, flat.shape[1]))
    for start in range(0, len(flat), step):
        order = np.argsort(-flat[start : start + step], axis=1, kind="stable")[:, :n]
        np.put_along_axis(stays[start : start + step], order, True, axis=1)
    return stays.reshape(rows.shape)


def _block_shape(shape: tuple[int, ...], pattern: Blocks) -> tuple[int, ...]:
    return (*shape[:-3], -(-shape[-3] // pattern.outputs), -(-shape[-2] // pattern.inputs), shape[-1])


def _extents(extent: int, step: int) -> np.ndarray:
    """The lengths of the pieces of an axis."""
    return np.minimum(step, extent - np.arange(0, extent, step))


def check_scores(scores: np.ndarray, where: str = "") -> None:
    """E_SCORES where a score is not a number."""
    if np.isnan(scores).any():
        raise SecateurError(
            "E_SCORES",
            "some scores are not numbers",
            where=where,
            hint="look for NaN among the weights or in the calibration data",
        )
