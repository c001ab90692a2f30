"""The lowered form of a graph: buffers, and the kernels called on them in order.

A `Buffer` is a storage or a window into one; views (Reshape, contiguous Slice, Concat in place) are windows and
cost nothing. `backends.memory` places the storages, `backends.aot` prints the calls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import tvm

from compiler.ir.graph import Graph

Role = Literal["input", "output", "constant", "temporary"]


@dataclass(eq=False)
class Buffer:
    """Memory of `shape` and `dtype`; with `base` set, the part of it that starts `offset` bytes in."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    role: Role = "temporary"
    index: int = -1
    data: np.ndarray | None = None
    base: Buffer | None = None
    offset: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.size * self.dtype.itemsize

    def root(self) -> tuple[Buffer, int]:
        """The storage that this buffer lies in, and the offset in bytes there."""
        buffer, offset = self, 0
        while buffer.base is not None:
            offset += buffer.offset
            buffer = buffer.base
        return buffer, offset


@dataclass(eq=False)
class Step:
    """One kernel call.

    args: a buffer per pointer parameter; `writes` are the positions that are written. in_place: positions
    that the kernel reads at exactly the index that it writes next, so that they may share memory with the
    output. nodes, op, schedule, macs, details: what reports tell about it.
    """

    symbol: str
    args: list[Buffer]
    writes: tuple[int, ...]
    in_place: tuple[int, ...] = ()
    nodes: tuple[str, ...] = ()
    op: str = ""
    schedule: str = ""
    macs: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def reads(self) -> tuple[int, ...]:
        """Positions that are read."""
        return tuple(i for i in range(len(self.args)) if i not in self.writes)


@dataclass(eq=False)
class Program:
    """A lowered graph. kernels: the function of each symbol; steps call them in order. graph: what was lowered."""

    name: str
    inputs: list[Buffer]
    outputs: list[Buffer]
    steps: list[Step]
    kernels: dict[str, tvm.tirx.PrimFunc] = field(default_factory=dict)
    graph: Graph | None = None

    def roots(self) -> list[Buffer]:
        """Every storage once, in the order of first use."""
        found: dict[Buffer, None] = {}
        for buffer in (*self.inputs, *(b for s in self.steps for b in s.args), *self.outputs):
            found.setdefault(buffer.root()[0])
        return list(found)
