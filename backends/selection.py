"""Which schedule and format each layer gets, by a cost model of the machine.

Costs are in cycles of one core, with one whole-vector multiply-add a cycle as the unit; the constants (see costs.py)
say how much a vector costs from each level of memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from backends.costs import SparseCosts, dense_costs, sparse_costs
from backends.formats import RowGroups, find_nm
from backends.schedules.conv import conv2d
from backends.schedules.dense_cost import dense_methods, direct_schedule
from backends.schedules.emit import LINE
from backends.schedules.kernel import Kernel
from backends.schedules.matmul import matmul
from backends.schedules.sparse_conv import SparseConvSpec, sparse_conv2d
from backends.schedules.sparse_matmul import SparseMatMulSpec, outputs_first, sparse_matmul, supported
from backends.schedules.sparse_tiles import Vector
from backends.schedules.specs import ConvSpec, MatMulSpec
from backends.schedules.winograd import Tiling
from backends.target import Target

#: A layer with a larger share of nonzeros is not tried as a sparse one.
_DENSEST = 0.65
#: What a sparse schedule must promise to be preferred, and what it may cost where the dense one stores weights several
#: times as large as they are.
_MARGIN, _MARGIN_EXPANDED = 0.95, 1.25
#: Cycles that smaller weights may cost over the fastest where they are to be small.
_MARGIN_COMPACT = 1.25
BLOCKS = (1, 2, 4)
#: Kernels that are kept for the next layer of the same shape.
_KEPT = 32
#: Bytes of a layer's weights from which on positions of one byte gain at least what adding them up takes.
_MUCH = 1 << 17
#: Cost of N:M over CSR with as many entries: positions are shorter, but windows of many taps take more arithmetic.
_NM, _NM_TAPS = 0.97, 1.06
#: Blocks are stored as blocks where at least this share of their values is no zero.
_FULLEST = 0.5
#: Rows of a block share too few columns for patterns below this density.
_SPARSEST_PATTERNS = 0.15
#: Tiles per block height that measurement may choose from.
_TILES = 3
VECTORS = (2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Candidate:
    """One way to compute a layer. cycles: estimated; format: what its weights are stored as; nbytes: how large."""

    schedule: str
    format: str
    tile: str
    cycles: float
    make: Callable[[Target, bool], Kernel]
    nbytes: int = 0

    @property
    def label(self) -> str:
        """Schedule, format and tile in a few words."""
        return " ".join(part for part in (self.schedule, self.format, self.tile) if part)


@dataclass(frozen=True)
class Choice:
    """The candidate that a layer gets, and the others, best first. nonzeros, weights: how many there are.

    measured: the choice was made by measurement, not by cost.
    """

    chosen: Candidate
    others: tuple[Candidate, ...]
    nonzeros: int
    weights: int
    measured: bool = False

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
            "chosen_by": "measurement" if self.measured else "cost",
        }


def choose_conv(spec: ConvSpec, weights: np.ndarray, target: Target) -> Choice:
    """The schedule of a convolution with these weights [out, in // groups, kh, kw]."""
    dense, *others = dense_conv_candidates(spec, target)
    if direct_schedule(spec) == "depthwise":
        return _best(dense, weights, (), target)
    # What has to be gathered into panels may as well be read through positions, even where hardly a weight is zero.
    densest = 1.0 if dense.schedule == "panels_conv2d" else _DENSEST
    margin = _MARGIN_EXPANDED if dense.schedule == "winograd_conv2d" else _MARGIN
    return _best(dense, weights, sparse_conv_candidates(spec, weights, target), target, densest, margin, others)


def choose_matmul(spec: MatMulSpec, weights: np.ndarray | None, target: Target) -> Choice:
    """The schedule of a matrix product whose constant operand, if it has one, is `weights` as it is stored."""
    cycles = dense_matmul_cycles(spec, 0 if weights is None else weights.size, target)
    dense = Candidate(
        "matmul", "dense", "", cycles, functools.partial(_make, matmul, spec), target.itemsize * spec.k * spec.n
    )
    if weights is None or not supported(spec):
        return Choice(dense, (), 0 if weights is None else int(np.count_nonzero(weights)), spec.k * spec.n)
    return _best(dense, weights, sparse_matmul_candidates(spec, weights, target), target)


def dense_matmul_cycles(spec: MatMulSpec, weights: int, target: Target) -> float:
    """Cycles of the dense schedule with so many constant weights."""
    costs = dense_costs(target)
    cycles = spec.macs / target.lanes() * costs.product
    # So few rows that the weights come from memory faster than they are used.
    return max(cycles, weights * costs.byte * target.itemsize) if spec.m * spec.batch < 8 else cycles


def _best(
    dense: Candidate,
    weights: np.ndarray,
    sparse: Iterable[Candidate],
    target: Target,
    densest: float = _DENSEST,
    margin: float = _MARGIN,
    others: Iterable[Candidate] = (),
) -> Choice:
    """The cheapest sparse candidate if it costs at most `margin` of the dense one. others: dense ones, too.

    For a compact target: the smallest of those that are no larger than the weights are and not much slower than others.
    """
    nonzeros = int(np.count_nonzero(weights))
    found = [dense, *(sparse if nonzeros <= densest * weights.size else ())]
    chosen = min(found[1:], key=lambda c: c.cycles, default=dense)
    chosen = chosen if chosen.cycles < margin * dense.cycles else dense
    ranked = sorted((*found, *others), key=lambda c: c.cycles)
    if target.compact:
        small = [c for c in ranked if c.nbytes <= target.itemsize * weights.size]
        near = [c for c in small if c.cycles <= _MARGIN_COMPACT * small[0].cycles]
        chosen = min(near, key=lambda c: c.nbytes, default=chosen)
        ranked = small or ranked
    return Choice(chosen, tuple(c for c in ranked if c is not chosen), nonzeros, int(weights.size))


def dense_conv_candidates(spec: ConvSpec, target: Target) -> list[Candidate]:
    """The dense schedules of a convolution, the one to take first."""
    found = []
    for method, cycles in dense_methods(spec, target).items():
        m = method.removeprefix("winograd") if method != "direct" else ""
        family = f"{'winograd' if m else direct_schedule(spec)}_conv2d"
        make = functools.partial(_make_dense, spec, method)
        weights = Tiling.of(spec, target, int(m)).weights if m else spec.weights
        found.append(Candidate(family, "dense", f"{m}x{m}" if m else "", cycles, make, target.itemsize * weights))
    return found


@functools.lru_cache(_KEPT)
def _make_dense(spec: ConvSpec, method: str, target: Target, parallel: bool) -> Kernel:
    return conv2d(spec, target, parallel, method)


@dataclass(frozen=True)
class Stored:
    """Sparse weights in one format: so many entries (positions), values, and lists of entries.

    penalty: what a format's cost is multiplied by, because zeros that fill blocks take memory as well as time.
    """

    block: int
    patterns: bool
    entries: int
    values: int
    lists: int
    penalty: float = 1.0
    nm: tuple[int, int] | None = None
    deltas: bool = False

    def nbytes(self, target: Target) -> int:
        """Bytes of values, positions (of two bytes, unless there are very many) and lists."""
        return target.itemsize * self.values + (1 if self.deltas or self.nm else 2) * self.entries + 4 * self.lists

    @property
    def name(self) -> str:
        """The format in a word or two."""
        if self.nm is not None:
            return f"{self.nm[0]}:{self.nm[1]}"
        if self.patterns:
            return f"{self.block}-row patterns"
        return "csr" if self.block == 1 else f"{self.block}x1"


def sparse_conv_candidates(spec: ConvSpec, weights: np.ndarray, target: Target) -> Iterator[Candidate]:
    """The best tiles for each format."""
    grouped = np.asarray(weights).reshape(spec.groups, spec.out_channels // spec.groups, -1)
    for stored in encodings(list(grouped), spec.kernel[0] * spec.kernel[1], target.compact):
        deltas = stored.deltas and SparseConvSpec(spec).packs
        size = replace(stored, deltas=deltas).nbytes(target)
        tiles = [
            SparseConvSpec(spec, stored.block, vectors, 1, packed, stored.patterns, stored.nm, deltas)
            for vectors in VECTORS
            for packed in (False, True)
        ]
        fitting = [t for t in tiles if (t.packs or not t.packed) and t.registers(target) <= target.vector_registers]
        costs = sorted(((sparse_conv_cycles(t, stored, target), t) for t in fitting), key=lambda found: found[0])
        for cycles, tile in costs[:_TILES]:
            make = functools.partial(_make, sparse_conv2d, tile)
            yield Candidate("sparse_conv2d", stored.name, tile.label, cycles * stored.penalty, make, size)


def sparse_matmul_candidates(spec: MatMulSpec, weights: np.ndarray, target: Target) -> Iterator[Candidate]:
    """The best tiles for each format."""
    for stored in encodings([outputs_first(spec, weights)], compact=target.compact):
        format_of = functools.partial(SparseMatMulSpec, patterns=stored.patterns, nm=stored.nm, deltas=stored.deltas)
        tiles = [format_of(spec, stored.block, vectors) for vectors in VECTORS]
        fitting = [t for t in tiles if t.registers(target) <= target.vector_registers]
        costs = sorted(((sparse_matmul_cycles(t, stored, target), t) for t in fitting), key=lambda found: found[0])
        for cycles, tile in costs[:_TILES]:
            make = functools.partial(_make, sparse_matmul, tile)
            yield Candidate(
                "sparse_matmul", stored.name, tile.label, cycles * stored.penalty, make, stored.nbytes(target)
            )


def encodings(matrices: list[np.ndarray], taps: int = 1, compact: bool = False) -> Iterator[Stored]:
    """The formats that are worth a try for matrices [outputs, inputs * taps] of equal shape."""
    nonzeros = sum(int(np.count_nonzero(matrix)) for matrix in matrices)
    density = nonzeros / max(1, sum(matrix.size for matrix in matrices))
    rows, depth = matrices[0].shape
    nm = find_nm([matrix.reshape(rows, -1, taps).transpose(0, 2, 1).reshape(rows * taps, -1) for matrix in matrices])
    if nm is not None and nm[0] / nm[1] <= _DENSEST:
        entries = len(matrices) * rows * depth // nm[1] * nm[0]
        yield Stored(1, False, entries, entries, len(matrices) * rows, _NM if taps == 1 else _NM_TAPS, nm)
    groups = [RowGroups(matrix) for matrix in matrices]
    for block in BLOCKS:
        patterned = block > 1 and _SPARSEST_PATTERNS <= density <= _DENSEST
        if rows < block or not (patterned or any(part.can_fill(block, _FULLEST) for part in groups)):
            continue
        blocks = len(matrices) * -(-rows // block)
        used = [part.columns(block) for part in groups]
        entries = sum(int(np.count_nonzero(part)) for part in used)
        # Adding up distances takes a hundredth of the time of single weights, unless they come from afar.
        worth = block > 1 or entries * 6 > _MUCH or compact
        near = worth and all(_near(part) for part in used)
        fill = nonzeros / max(1, entries * block)
        if fill >= _FULLEST or block == 1:
            yield Stored(block, False, entries, entries * block, blocks, 1.0 + 0.15 * (1 - fill), deltas=near)
        if patterned and fill < 0.95:
            # The columns that some row of a block uses are the same for both formats.
            yield Stored(block, True, entries, nonzeros, blocks * ((1 << block) - 1))


def _near(used: np.ndarray) -> bool:
    """Whether no used column [blocks, columns] is 256 or more from the one before it, or from the start."""
    if used.shape[1] <= 256:
        return True
    block, column = np.nonzero(used)
    steps = np.where(np.diff(block, prepend=-1) == 0, np.diff(column, prepend=0), column)
    return not steps.size or int(steps.max()) < 256


@functools.lru_cache(_KEPT)
def _make(schedule: Callable[..., Kernel], spec: object, target: Target, parallel: bool) -> Kernel:
    return schedule(spec, target, parallel)


def sparse_conv_cycles(spec: SparseConvSpec, stored: Stored, target: Target) -> float:
    """Cycles of a sparse convolution whose weights are stored so."""
    costs = sparse_costs(target)
    conv, tiles, lanes, size = spec.conv, spec.tiles(target), target.lanes(), spec.block
    vectors = sum(_cost(v, lanes) for v in tiles.vectors)
    count = conv.batch * tiles.bands * tiles.tiles_per_band
    footprint = target.itemsize * (tiles.footprint + costs.scattered * LINE * tiles.scattered)
    work = work_cycles(stored, vectors, spec.unroll, load_cycles(footprint, tiles.aligned, target), costs)
    blocks = conv.groups * -(-(conv.out_channels // conv.groups) // size)
    row = costs.row if tiles.whole_lines else costs.row + costs.torn
    store = size * (sum(len(v.pieces) for v in tiles.vectors) * costs.store + row) + costs.block
    staged = costs.copy * conv.batch * conv.groups * tiles.bands * tiles.scratch / lanes
    return count * (work + blocks * store) + staged


def sparse_matmul_cycles(spec: SparseMatMulSpec, stored: Stored, target: Target) -> float:
    """Cycles of a sparse product whose weights are stored so."""
    conv = spec.as_convolution()
    if conv is not None:
        return sparse_conv_cycles(conv, stored, target)
    costs = sparse_costs(target)
    product, lanes, size = spec.matmul, target.lanes(), spec.block
    length, vectors, count = spec.tile(target)
    footprint = product.k * vectors * lanes * target.itemsize
    work = work_cycles(stored, vectors, spec.unroll, load_cycles(footprint, True, target), costs)
    blocks = -(-product.n // size)
    turned = costs.turn * length * (product.k + product.n)
    return count * (work + blocks * (size * (vectors * costs.store + costs.row) + costs.block) + turned)


def load_cycles(footprint: float, aligned: bool, target: Target) -> float:
    """Cycles of loading a vector of a tile that reads `footprint` bytes."""
    costs = sparse_costs(target)
    far = min(1.0, max(0.0, (footprint / target.l1_bytes - 0.4) / (costs.all_far - 0.4)))
    near, beyond = (costs.near, costs.far) if aligned else (costs.across, costs.far_across)
    distant = min(1.0, max(0.0, footprint / target.l2_bytes - 0.5))
    return near + far * (beyond - near) + distant * costs.distant


def work_cycles(stored: Stored, vectors: float, unroll: int, load: float, costs: SparseCosts) -> float:
    """Cycles of all entries against one tile of `vectors` vectors."""
    size = stored.block
    if stored.patterns:
        per_entry = vectors * (load - costs.near) * 0.8 + costs.entry
        return stored.values * vectors + stored.entries * per_entry + stored.lists * costs.list
    if size == 1:
        return stored.entries * (max(vectors * load, costs.least_single / unroll) + costs.entry)
    return stored.entries * (max(vectors * (size + (load - costs.near) / size), costs.least) + costs.channel * size)


def _cost(vector: Vector, lanes: int) -> float:
    return 1.0 if vector.width == lanes or lanes <= 8 else max(0.5, vector.width / lanes)
