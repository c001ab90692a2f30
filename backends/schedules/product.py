"""The loops around the microkernel: weights [outputs, depth] times a matrix of pixels, blocked for the caches.

A block of pixels that stays in a near cache meets all weights before the next block is touched; weights are packed
[tile of channels][depth][channel].
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from tvm import tirx

from backends.schedules.emit import Array, Emitter, Expr, Index
from backends.schedules.epilogue import Epilogue
from backends.schedules.microkernel import Operands, Plan, microkernel, plan
from backends.target import Target

#: Independent pieces of work that a parallel kernel offers at least, where the layer has so many.
GRAINS = 16


@dataclass(frozen=True)
class Product:
    """y[outputs, pixels] = w[outputs, depth] @ x[depth, pixels], on `target`.

    matrices: products of this shape whose weights lie one after the other and are used in turn.
    """

    outputs: int
    depth: int
    pixels: int
    target: Target
    epilogue: Epilogue
    matrices: int = 1

    @functools.cached_property
    def plan(self) -> Plan:
        """The register tiling."""
        return plan(self.pixels, self.outputs, self.target)

    @property
    def sweeps(self) -> int:
        """Tiles of output channels."""
        return -(-self.outputs // self.plan.channels)

    @property
    def packed_weights(self) -> int:
        """Elements of the packed weights."""
        return self.sweeps * self.plan.channels * self.depth

    @property
    def packed_bias(self) -> int:
        """Elements of the packed bias."""
        return self.sweeps * self.plan.channels

    @property
    def weights_stream(self) -> bool:
        """True if weights come from beyond the second-level cache, and so are asked for one tile of channels ahead."""
        return self.matrices * self.packed_weights * self.target.itemsize > self.target.l2_bytes // 4

    def pack_weights(self, weights: np.ndarray) -> np.ndarray:
        """[outputs, depth] -> [tile of channels][depth][channel], flat, padded with zeros."""
        channels = self.plan.channels
        padded = np.zeros((self.sweeps * channels, self.depth), np.float32)
        padded[: self.outputs] = weights
        return np.ascontiguousarray(padded.reshape(self.sweeps, channels, self.depth).transpose(0, 2, 1)).reshape(-1)

    def pack_bias(self, bias: np.ndarray) -> np.ndarray:
        """[outputs] padded with zeros to whole tiles."""
        padded = np.zeros(self.packed_bias, np.float32)
        padded[: self.outputs] = np.reshape(bias, -1)
        return padded

    def tiles_per_block(self, depth: int) -> int:
        """Main tiles of pixels that meet all weights, `depth` steps deep, before the next ones are read."""
        tiling = self.plan
        per_tile = depth * tiling.main.pixels * self.target.itemsize
        if self.packed_bias * depth * self.target.itemsize <= self.target.l1_bytes // 2 or self.sweeps == 1:
            return 1
        near = self.target.l1_bytes * 5 // 8
        budget = near if per_tile <= near else self.target.l2_bytes // 2
        return max(1, min(tiling.count, budget // per_tile))

    def emit(
        self,
        e: Emitter,
        first: Index,
        tiles: Index,
        sweep_from: Index,
        sweeps: Index,
        last: Expr | bool,
        o: Operands,
        depth: Index,
    ) -> None:
        """Main tiles [first, first + tiles) of pixels by `sweeps` channel tiles, and the tail if `last`.

        `o` describes pixel 0 and channel tile 0; `depth` steps of the reduction are taken.
        """
        tiling, channels = self.plan, self.plan.channels
        ragged = self.outputs % channels != 0

        with e.loop(sweeps) as s:
            sweep = e.let(sweep_from + s)
            here = replace(
                o,
                w_at=e.let(o.w_at + sweep * (channels * self.depth)),
                y_at=e.let(o.y_at + sweep * (channels * o.y_channel)),
                bias_at=o.bias_at if o.bias_per_pixel else e.let(o.bias_at + sweep * channels),
                left=e.let(self.outputs - sweep * channels) if ragged else None,
                w_by_lane=self.target.by_lane,
            )
            if self.weights_stream:
                ahead = e.let(here.w_at + channels * self.depth)
                here = replace(here, w_next=ahead, w_next_step=channels)

            def at(pixel: Index, here: Operands = here) -> Operands:
                return replace(
                    here,
                    x_at=o.x_at + pixel * o.x_pixel,
                    y_at=here.y_at + pixel * o.y_pixel,
                    bias_at=o.bias_at + pixel if o.bias_per_pixel else here.bias_at,
                )

            lanes = self.target.lanes()
            if tiling.count:
                with e.loop(tiles) as t:
                    pixel = e.let((first + t) * tiling.main.pixels)
                    microkernel(e, tiling.main, channels, depth, at(pixel), self.epilogue, lanes)
            if tiling.tail is not None:
                with e.when(last):
                    pixel = tiling.count * tiling.main.pixels
                    microkernel(e, tiling.tail, channels, depth, at(pixel), self.epilogue, lanes)

    def emit_blocks(self, e: Emitter, outer: int, operands: Callable[[Expr], Operands]) -> None:
        """The whole product for each of `outer` independent problems (images and groups), as grains."""
        count = self.plan.count
        per_block = self.tiles_per_block(self.depth)
        if e.parallel:
            per_block = max(1, min(per_block, count * outer // GRAINS))
        blocks = max(1, -(-count // per_block))
        splits = min(self.sweeps, -(-GRAINS // (outer * blocks))) if e.parallel else 1
        each = -(-self.sweeps // splits)
        splits = -(-self.sweeps // each)
        with e.loop(outer * blocks * splits, parallel=True) as grain:
            problem, rest = divide(e, grain, blocks * splits)
            block, split = divide(e, rest, splits)
            first = e.let(block * per_block)
            tiles: Index = per_block if count % per_block == 0 else e.let(tirx.min(per_block, count - first))
            start = e.let(split * each)
            sweeps: Index = each if self.sweeps % each == 0 else e.let(tirx.min(each, self.sweeps - start))
            last = block >= blocks - 1 if blocks > 1 else True
            self.emit(e, first, tiles, start, sweeps, last, operands(problem), self.depth)


def divide(e: Emitter, value: Index, by: int) -> tuple[Expr, Expr]:
    """Quotient and remainder of a value that is not negative."""
    if by == 1:
        return value, tirx.IntImm("int32", 0)
    if isinstance(value, tirx.IntImm):
        return tirx.IntImm("int32", int(value) // by), tirx.IntImm("int32", int(value) % by)
    quotient = e.let(tirx.truncdiv(value, by))
    return quotient, e.let(value - quotient * by)


def waves(items: int, nbytes: int, target: Target) -> int:
    """How many of so many equal pieces of scratch, each `nbytes` large, are filled and used at a time.

    All threads work on each wave, so that scratch stays near one second-level cache however many threads there are.
    """
    most = max(1, min(items, target.l2_bytes * 3 // 4 // nbytes))
    return -(-items // -(-items // most))


def array_or_none(e: Emitter, wanted: bool, role: str, elements: int, dtype: str | None = None) -> Array | None:
    """A parameter that exists only if `wanted`."""
    return e.param(role, elements, dtype) if wanted else None
