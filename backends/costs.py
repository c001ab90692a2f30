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
    turn: copying a vector into staged memory, turning an element round.
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


@dataclass(frozen=True)
class DenseCosts:
    """Cycles in the same unit; the defaults were fitted to measurements on AMD Zen 4.

    product: a multiply-add of a register tile. depthwise: one of depthwise windows. gather, gather_strided: gathering a
    vector into a panel, without strides and with. byte: a byte of weights that are used only once.
    """

    product: float = 1.04
    depthwise: float = 1.5
    gather: float = 4.0
    gather_strided: float = 13.0
    byte: float = 0.12


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


def sparse_costs(target: Target) -> SparseCosts:
    """The numbers of a target: those that were measured on a device, or its kind of processor's."""
    if target.costs is not None:
        return target.costs.sparse
    return NEON if target.triple.partition("-")[0] in ("aarch64", "arm64") else FITTED


def dense_costs(target: Target) -> DenseCosts:
    """As `sparse_costs`, of dense schedules."""
    return DenseCosts() if target.costs is None else target.costs.dense
