"""The static memory plan: where every buffer lies, decided at compile time.

Temporaries share one arena: buffers whose lifetimes overlap do not overlap in space. Offsets are chosen
largest first, each in the tightest gap that fits (greedy by size; Pisarchyk and Lee, "Efficient memory
management for deep neural net inference", 2020). Constants are laid out once in a read-only blob.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from backends.lowering.program import Buffer, Program

ALIGNMENT = 64
"""Bytes that every storage is aligned to: a cache line, and the widest vector register."""


@dataclass(frozen=True)
class Interval:
    """One block of memory to place: needed from step `first` through step `last`."""

    nbytes: int
    first: int
    last: int


@dataclass(frozen=True, eq=False)
class MemoryPlan:
    """offsets: of each temporary storage in the arena and of each constant in the weight blob."""

    offsets: dict[Buffer, int]
    arena_bytes: int
    constants: list[Buffer]
    weights_bytes: int

    def weights(self) -> bytes:
        """The weight blob, zeros between constants."""
        blob = bytearray(self.weights_bytes)
        for buffer in self.constants:
            assert buffer.data is not None
            start = self.offsets[buffer]
            blob[start : start + buffer.nbytes] = np.ascontiguousarray(buffer.data).tobytes()
        return bytes(blob)


def plan(program: Program, beside: MemoryPlan | None = None) -> MemoryPlan:
    """Place all storages of a program; its inputs and outputs are the caller's.

    beside: the plan of another program of the same model. Its weight blob becomes the beginning of this one's:
    constants of equal bytes lie where it has them, so that both programs run on this plan's blob.
    """
    lifetimes = _lifetimes(program)
    owner = _share_in_place(program, lifetimes)
    blocks: dict[Buffer, Interval] = {}
    for buffer, (first, last) in lifetimes.items():
        block = blocks.get(owner[buffer], Interval(0, first, last))
        blocks[owner[buffer]] = Interval(
            max(block.nbytes, buffer.nbytes), min(block.first, first), max(block.last, last)
        )
    places, arena_bytes = place(list(blocks.values()))
    starts = dict(zip(blocks, places, strict=True))
    offsets = {buffer: starts[owner[buffer]] for buffer in lifetimes}
    constants: list[Buffer] = []
    known: dict[bytes, int] = {}
    position = 0
    if beside is not None:
        constants, position = list(beside.constants), beside.weights_bytes
        offsets |= {b: beside.offsets[b] for b in constants}
        known = {_content(b): beside.offsets[b] for b in constants}
    for buffer in (b for b in program.roots() if b.role == "constant"):
        if known and (found := known.get(_content(buffer))) is not None:
            offsets[buffer] = found
            continue
        offsets[buffer] = position
        constants.append(buffer)
        position += aligned(buffer.nbytes)
    return MemoryPlan(offsets, arena_bytes, constants, max(position, ALIGNMENT))


def _content(constant: Buffer) -> bytes:
    """A digest of a constant's bytes."""
    assert constant.data is not None
    return hashlib.sha256(np.ascontiguousarray(constant.data).data).digest()


def aligned(nbytes: int) -> int:
    """Rounded up to the alignment."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def place(blocks: list[Interval]) -> tuple[list[int], int]:
    """Offsets at which no two blocks overlap both in time and in space, and the bytes that takes."""
    offsets = [0] * len(blocks)
    placed: list[int] = []
    for index in sorted(range(len(blocks)), key=lambda i: (-blocks[i].nbytes, blocks[i].first, i)):
        block = blocks[index]
        size = aligned(block.nbytes)
        rivals = sorted(
            (offsets[i], offsets[i] + aligned(blocks[i].nbytes))
            for i in placed
            if blocks[i].first <= block.last and block.first <= blocks[i].last
        )
        best, best_gap, position = None, None, 0
        for start, end in rivals:
            gap = start - position
            if gap >= size and (best_gap is None or gap < best_gap):
                best, best_gap = position, gap
            position = max(position, end)
        offsets[index] = position if best is None else best
        placed.append(index)
    return offsets, max((offsets[i] + aligned(b.nbytes) for i, b in enumerate(blocks)), default=0)


def _lifetimes(program: Program) -> dict[Buffer, tuple[int, int]]:
    """First and last step that touches each temporary storage, through any of its views."""
    lifetimes: dict[Buffer, tuple[int, int]] = {}
    for index, step in enumerate(program.steps):
        for buffer in step.args:
            root, _ = buffer.root()
            if root.role == "temporary":
                first, _ = lifetimes.get(root, (index, index))
                lifetimes[root] = (first, index)
    return lifetimes


def _share_in_place(program: Program, lifetimes: dict[Buffer, tuple[int, int]]) -> dict[Buffer, Buffer]:
    """For each temporary, the one whose memory it uses: an operand that dies where the result is born."""
    owner = {buffer: buffer for buffer in lifetimes}
    for index, step in enumerate(program.steps):
        if len(step.writes) != 1:
            continue
        result = step.args[step.writes[0]]
        if lifetimes.get(result, (-1, -1))[0] != index or owner[result] is not result:
            continue
        for position in step.in_place:
            root, offset = step.args[position].root()
            free = root in lifetimes and lifetimes[root][1] == index and offset == 0
            alone = sum(b.root()[0] is root for b in step.args) == 1
            if free and alone and root.nbytes == result.nbytes:
                owner[result] = owner[root]
                break
    return owner
