"""Which schedule and format each layer gets, by a cost model of the machine.

Costs are in cycles of one core, with one whole-vector multiply-add a cycle as the unit; the constants were fitted to
measurements (see docs/performance.md) and say how much a vector costs from each level of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from backends.formats import BlockCSR
from backends.schedules.conv import conv2d, dense_method
from backends.schedules.kernel import Kernel
from backends.schedules.rows import cover
from backends.schedules.sparse_conv import SparseConvSpec, sparse_conv2d
from backends.schedules.sparse_tiles import Vector
from backends.schedules.specs import ConvSpec
from backends.target import Target

#: A layer with a larger share of nonzeros is not tried as a sparse one.
_DENSEST = 0.65
#: What a sparse schedule must promise to be preferred.
_MARGIN = 0.95
BLOCKS = (1, 2, 4)
_VECTORS = (2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Candidate:
    """One way to compute a layer. cycles: estimated; format: what its weights are stored as."""

    schedule: str
    format: str
    tile: str
    cycles: float
    make: Callable[[Target, bool], Kernel]

    @property
    def label(self) -> str:
        """Schedule, format and tile in a few words."""
        return " ".join(part for part in (self.schedule, self.format, self.tile) if part)


@dataclass(frozen=True)
class Choice:
    """The candidate that a layer gets, and the others, best first. nonzeros, weights: how many there are."""

    chosen: Candidate
    others: tuple[Candidate, ...]
    nonzeros: int
    weights: int

    def describe(self) -> dict[str, object]:
        """What manifests and reports tell about the choice."""
        dense = next((c.cycles for c in (self.chosen, *self.others) if c.format == "dense"), None)
        return {
            "format": self.chosen.format,
            "tile": self.chosen.tile,
            "nonzeros": self.nonzeros,
            "weights": self.weights,
            "cycles": round(self.chosen.cycles),
            "dense_cycles": None if dense is None else round(dense),
        }


def choose_conv(spec: ConvSpec, weights: np.ndarray, target: Target) -> Choice:
    """The schedule of a convolution with these weights [out, in // groups, kh, kw]."""
    nonzeros = int(np.count_nonzero(weights))
    method, cycles = dense_conv_cycles(spec, target)
    dense = Candidate(method, "dense", "", cycles, lambda target, parallel: conv2d(spec, target, parallel))
    found = [dense]
    if method != "depthwise" and nonzeros <= _DENSEST * weights.size:
        found += sparse_conv_candidates(spec, weights, target)
    ranked = sorted(found, key=lambda c: c.cycles)
    chosen = ranked[0] if ranked[0].cycles < _MARGIN * dense.cycles else dense
    return Choice(chosen, tuple(c for c in ranked if c is not chosen), nonzeros, int(weights.size))


def dense_conv_cycles(spec: ConvSpec, target: Target) -> tuple[str, float]:
    """The dense schedule that a convolution gets, and its cycles."""
    method, lanes = dense_method(spec), target.lanes()
    work = spec.macs / lanes
    if method == "winograd":
        narrow = min(spec.in_channels, spec.out_channels)
        return method, work / (2.2 * narrow / (narrow + 25))
    if method == "depthwise":
        return method, work * 1.5
    pixels = spec.out_height * spec.out_width
    padded = sum(1.0 if width == lanes else 0.5 for _, width in cover(pixels, lanes)) * lanes / pixels
    taps = spec.kernel[0] * spec.kernel[1]
    gathered = 0.0
    if taps > 1 or spec.strides != (1, 1):
        gathered = 2.0 * spec.batch * spec.in_channels * taps * pixels / lanes
    return method, work * padded * 1.04 + gathered


def sparse_conv_candidates(spec: ConvSpec, weights: np.ndarray, target: Target) -> Iterator[Candidate]:
    """The best tile for each block height."""
    outputs = spec.out_channels // spec.groups
    grouped = np.asarray(weights).reshape(spec.groups, outputs, -1)
    for block in BLOCKS:
        if block > 1 and outputs < block:
            continue
        entries = [BlockCSR.encode(matrix, block) for matrix in grouped]
        stored = sum(part.entries for part in entries)
        if block > 1 and np.count_nonzero(weights) < 0.5 * stored * block:
            continue  # mostly zeros: plain rows do better
        best: tuple[float, SparseConvSpec] | None = None
        for vectors in _VECTORS:
            for packed in (False, True):
                choice = SparseConvSpec(spec, block, vectors, 1, packed)
                if (packed and not choice.packs) or choice.registers(target) > target.vector_registers:
                    continue
                cycles = sparse_conv_cycles(choice, stored, target)
                if best is None or cycles < best[0] * 0.999:
                    best = (cycles, choice)
        if best is not None:
            cycles, choice = best
            # Zeros that fill blocks cost memory as well as time.
            cycles *= 1.0 if block == 1 else 1.0 + 0.15 * (1 - np.count_nonzero(weights) / max(1, stored * block))
            yield Candidate("sparse", f"{block}x1" if block > 1 else "csr", choice.label, cycles, _maker(choice))


def _maker(spec: SparseConvSpec) -> Callable[[Target, bool], Kernel]:
    return lambda target, parallel: sparse_conv2d(spec, target, parallel)


#: Cycles of loading a whole vector: from the first-level cache, there across a line's end, from the second level.
_NEAR, _ACROSS, _FAR = 1.05, 1.7, 1.8


def sparse_conv_cycles(spec: SparseConvSpec, entries: int, target: Target) -> float:
    """Cycles of a sparse convolution whose blocks store `entries` positions in all."""
    conv, tiles, lanes, size = spec.conv, spec.tiles(target), target.lanes(), spec.block
    vectors = sum(_cost(v, lanes) for v in tiles.vectors)
    count = conv.batch * tiles.bands * tiles.tiles_per_band
    beyond = min(1.0, max(0.0, (tiles.footprint * 4 / target.l1_bytes - 0.8) / 1.2))
    load = _NEAR + beyond * (_FAR - _NEAR) if tiles.aligned else _ACROSS + beyond * 0.4
    if size == 1:
        step = max(vectors * load, 4.0 / spec.unroll) + 0.7
    else:
        step = max(vectors * size * 1.05 + 0.15 * size, vectors * load + 0.5 * size, 4.0)
    blocks = conv.groups * -(-(conv.out_channels // conv.groups) // size)
    pieces = sum(max(1.0, 0.75 * len(v.pieces)) * (1 if v.whole else 1.5) for v in tiles.vectors)
    store = size * (pieces * 1.4 + 2.0) + 8.0
    staged = 2.2 * conv.batch * conv.groups * tiles.bands * tiles.scratch / lanes
    return count * (entries * step + blocks * store) + staged


def _cost(vector: Vector, lanes: int) -> float:
    return 1.0 if vector.width == lanes or lanes <= 8 else max(0.5, vector.width / lanes)
