"""How many floating-point operations a second one core can do: a loop of fused multiply-adds that stay in registers."""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Callable

import numpy as np
from tvm import tirx

from backends.schedules.emit import Emitter
from backends.target import Target
from tests.backends.schedules_harness import Library

Pointer = ctypes.POINTER(ctypes.c_float)
_REPEATS = 20_000
_SECONDS = 0.1


def kernel(target: Target, repeats: int = _REPEATS) -> tirx.PrimFunc:
    """As many independent accumulators as registers allow, each x = a x + b; operands a and b are in memory.

    A vector unit takes a new instruction every cycle although each needs several: 12 accumulators hide the latency of
    every core that we know, and registers are left for a and b.
    """
    lanes, count = target.lanes(), accumulators(target)
    emitter = Emitter("fma_peak")
    operands, results = emitter.param("operands", 2 * lanes), emitter.param("results", count * lanes)
    registers = emitter.registers(count, lanes)
    a, b = (emitter.name(operands.load(i * lanes, lanes)) for i in range(2))
    for i in range(count):
        registers[i] = results.load(i * lanes, lanes)
    with emitter.loop(repeats):
        for i in range(count):
            registers[i] = registers[i] * a + b
    for i in range(count):
        results.store(i * lanes, registers[i], lanes)
    return emitter.finish()


def accumulators(target: Target) -> int:
    """Vectors that are computed at a time."""
    return target.vector_registers - 4


def fma_peak(seconds: float = _SECONDS) -> float:
    """GFLOP/s of one core, a multiply-add counting two: the best of many short runs."""
    function, target = _loaded()
    lanes, count = target.lanes(), accumulators(target)
    memory = np.ones(3 * lanes + count * lanes, np.float32)
    start = -(memory.ctypes.data // 4) % lanes
    operands, results = memory[start : start + 2 * lanes], memory[start + 2 * lanes :]
    operands[:lanes] = 0.5
    pointers = [array.ctypes.data_as(Pointer) for array in (operands, results)]
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        function(*pointers)
        best = min(best, time.perf_counter() - begin)
    return 2 * lanes * count * _REPEATS / best / 1e9


@functools.cache
def _loaded() -> tuple[Callable[..., int], Target]:
    target = Target.native()
    return Library([kernel(target)], target).function("fma_peak"), target
