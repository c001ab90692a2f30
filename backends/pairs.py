"""Whether a 1x1 convolution and the depthwise one after it become one kernel, by the cost model of `selection`.

What is won is the traffic of the image between the two; what is lost is that a tile of pixels no longer stays in the
first-level cache while all output channels use it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from backends.costs import sparse_costs
from backends.schedules.kernel import Kernel
from backends.schedules.sparse_conv import SparseConvSpec
from backends.schedules.sparse_depthwise import SparseDepthwiseSpec, sparse_depthwise
from backends.schedules.specs import ConvSpec
from backends.selection import (
    Candidate,
    Choice,
    Stored,
    choose_conv,
    encodings,
    load_cycles,
    work_cycles,
)
from backends.target import Target

#: What a pair must promise to be preferred.
_MARGIN = 0.94
#: Vectors of pixels in a tile; the pixels of a band are near the core however large the tiles are.
_VECTORS = (4, 6, 8, 10, 12, 14)
#: Cycles of storing a vector to the buffer.
_STORE = 2.0
#: Cycles of depthwise windows over their multiply-adds, of stride 1 along a row and of stride 2.
_WINDOWS, _WINDOWS_STRIDED = 1.3, 2.5
#: Second-level caches that an image may take before its lines are distant.
_DISTANT = 8


@dataclass(frozen=True)
class PairChoice:
    """What the choice is between. apart: the candidate that stands for two kernels."""

    choice: Choice
    apart: Candidate


def choose_pair(first: ConvSpec, weights: np.ndarray, second: ConvSpec, target: Target) -> PairChoice | None:
    """Together or apart; None where one kernel cannot compute both."""
    pairs = sorted(pair_candidates(first, weights, second, target), key=lambda c: c.cycles)
    if not pairs:
        return None
    alone = choose_conv(first, weights, target)
    cycles = alone.chosen.cycles + _windows_cycles(second, target) + _traffic_cycles(first, target)
    apart = Candidate("apart", "dense", "", cycles, alone.chosen.make)
    ranked = [*pairs, apart] if pairs[0].cycles <= _MARGIN * cycles else [apart, *pairs]
    return PairChoice(Choice(ranked[0], tuple(ranked[1:]), int(np.count_nonzero(weights)), int(weights.size)), apart)


def pair_candidates(first: ConvSpec, weights: np.ndarray, second: ConvSpec, target: Target) -> Iterator[Candidate]:
    """The pair in each format and tile that fits."""
    plain = SparseDepthwiseSpec(SparseConvSpec(first), second)
    if not plain.supported(target):
        return
    for stored in encodings([np.asarray(weights).reshape(first.out_channels, -1)], compact=target.compact):
        form = functools.partial(
            SparseConvSpec, first, stored.block, patterns=stored.patterns, nm=stored.nm, deltas=stored.deltas
        )
        for vectors in _VECTORS:
            sparse = form(vectors=vectors)
            pair = SparseDepthwiseSpec(sparse, second)
            if pair.supported(target) and pair.first.registers(target) <= target.vector_registers:
                make = functools.partial(_make, pair)
                cycles = pair_cycles(pair, stored, target) * stored.penalty * sparse_costs(target).pair
                yield Candidate("sparse_depthwise", stored.name, pair.label, cycles, make, stored.nbytes(target))


@functools.lru_cache(32)
def _make(pair: SparseDepthwiseSpec, target: Target, parallel: bool) -> Kernel:
    return sparse_depthwise(pair, target, parallel)


def pair_cycles(pair: SparseDepthwiseSpec, stored: Stored, target: Target) -> float:
    """Cycles of a pair whose weights are stored so."""
    costs = sparse_costs(target)
    first, tiles, size = pair.first.conv, pair.tiles(target), pair.first.block
    band = target.itemsize * first.in_channels * tiles.pixels
    vectors = sum(max(0.5, v.width / target.lanes()) for v in tiles.vectors)
    load = load_cycles(band, first.height * first.width % target.lanes() == 0, target)
    work = work_cycles(stored, vectors, pair.first.unroll, load, costs)
    blocks = -(-first.out_channels // size)
    store = blocks * (size * (len(tiles.vectors) * _STORE + costs.row) + costs.block)
    return first.batch * pair.bands(target) * tiles.bands * (work + store) + _windows_cycles(pair.second, target)


def _windows_cycles(spec: ConvSpec, target: Target) -> float:
    each = _WINDOWS if spec.strides[1] == 1 else _WINDOWS_STRIDED
    return each * spec.macs / target.lanes()


def _traffic_cycles(first: ConvSpec, target: Target) -> float:
    """Cycles to write and read again what `first` makes."""
    costs = sparse_costs(target)
    size = target.itemsize * first.batch * first.out_channels * first.height * first.width
    far = min(1.0, max(0.0, size / target.l2_bytes - 0.5))
    beyond = costs.line_distant if size > _DISTANT * target.l2_bytes else costs.line_far
    return size / 64 * (costs.line_near + far * (beyond - costs.line_near))
