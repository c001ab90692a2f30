"""What the steps of sparse and dense products cost on a kind of processor, in multiply-adds of whole vectors.

Selection estimates by these numbers alone, so that no measurement on the build host is needed; a profile that was
measured on a device (see profile.py) brings numbers of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from backends.target import Target


@dataclass(frozen=True)
class SparseCosts:
    """Cycles, the unit being one whole-vector multiply-add; the defaults were fitted to measurements on AMD Zen 4.

    near, across, far, far_across: a multiply-add with a vector from the first-level cache, with one there across a
    line's end, with one from the second level, and with one there across a line's end. all_far: how many first-level
    caches large a tile is when all of it is far. distant: added when a tile fills the second-level cache one and a half
    times; half of it is free. entry, channel: per entry, and per channel of an entry's block. least_single, least: what
    the vectors of an entry take at least, in blocks of one row and of more. store: per stored piece of a vector.
    block, row: per block and per channel of it. list: starting and ending the loop over a pattern's columns. copy,
    turn: copying a vector into staged memory, turning an element round. scattered: cache lines that a row of a tile
    takes beyond its own where rows lie apart. torn: added per channel of a block whose rows of y are no whole lines.
    line_near, line_far, line_distant: writing and reading a line between two kernels, within the second-level cache,
    beyond it, and beyond eight times its size. pair: a kernel of two layers, over what its steps are estimated to take.
    """

    near: float = 0.95
    across: float = 1.65
    far: float = 2.2
    far_across: float = 2.55
    all_far: float = 2.5
    distant: float = 2.0
    entry: float = 1.1
    channel: float = 0.27
    least_single: float = 4.0
    least: float = 4.0
    store: float = 3.0
    block: float = 9.0
    row: float = 1.1
    list: float = 5.0
    copy: float = 2.9
    turn: float = 0.15
    scattered: float = 0.0
    torn: float = 0.0
    line_near: float = 3.5
    line_far: float = 7.0
    line_distant: float = 7.0
    pair: float = 1.0


@dataclass(frozen=True)
class DenseCosts:
    """Cycles in the same unit; the defaults were fitted to measurements on AMD Zen 4.

    product: a multiply-add of a register tile. depthwise: one of depthwise windows. gather, gather_strided: gathering a
    vector into a panel, without strides and with. byte: a byte of weights that are used only once. transformed: a
    vector of one point of Winograd's method on its way in or out; spilled: added to it for each register that its
    transformation lacks.
    """

    product: float = 1.04
    depthwise: float = 1.5
    gather: float = 4.0
    gather_strided: float = 13.0
    byte: float = 0.12
    transformed: float = 4.9
    spilled: float = 0.0


@dataclass(frozen=True)
class Costs:
    """All that selection knows of a processor."""

    sparse: SparseCosts
    dense: DenseCosts


FITTED = SparseCosts()
#: Modelled, not measured. Two multiply-adds a cycle, so that whatever takes cycles counts double: near, entry, channel
#: and the least ones from llvm-mca's model of Neoverse N1 (`make bench-arm`), which starts four cycles later with a sum
#: that it has just added to; memory from Arm's Neoverse N1 software optimisation guide (two 16-byte loads a cycle; one
#: vector of four lies across a line of 64 bytes where rows are not aligned; half the width from the second level).
#: Of today's loops, arranged for Cortex-A55, they tell what its model does to 7 %, and Neoverse N1's to 17 %.
NEON = SparseCosts(
    near=1.1,
    across=1.4,
    far=2.1,
    far_across=2.4,
    entry=3.8,
    channel=0.25,
    least_single=4.4,
    least=7.7,
    store=3.0,
    block=18.0,
    row=2.2,
    list=10.0,
    copy=3.0,
    turn=0.3,
)
#: For V8 11.3 on x86-64 (AMD Zen 4): fitted to the kernels of probes.py and to every tile for each layer of MobileNetV1
#: and ResNet-18 with 90 % zeros, then set by hand where the tile chosen was not the fastest measured (entry, channel,
#: scattered, torn, line_distant, pair). Estimates miss single times by a sixth; what they are for is the order.
WASM = SparseCosts(
    near=1.6,
    across=1.6,
    far=2.5,
    far_across=2.5,
    all_far=3.7,
    distant=1.5,
    entry=1.4,
    channel=1.5,
    least_single=5.5,
    least=6.5,
    store=11.0,
    block=10.5,
    copy=1.0,
    scattered=4.0,
    torn=20.0,
    line_distant=32.0,
    pair=1.5,
)
#: As WASM. Transformations of seven points along an axis do not fit 15 registers.
WASM_DENSE = DenseCosts(depthwise=1.6, gather=3.2, gather_strided=4.6, byte=0.26, transformed=9.0, spilled=15.0)


def sparse_costs(target: Target) -> SparseCosts:
    """The numbers of a target: those that were measured on a device, or its kind of processor's."""
    if target.costs is not None:
        return target.costs.sparse
    kind = target.triple.partition("-")[0]
    return NEON if kind in ("aarch64", "arm64") else WASM if kind == "wasm32" else FITTED


def dense_costs(target: Target) -> DenseCosts:
    """As `sparse_costs`, of dense schedules."""
    if target.costs is not None:
        return target.costs.dense
    return WASM_DENSE if target.triple.startswith("wasm32") else DenseCosts()
