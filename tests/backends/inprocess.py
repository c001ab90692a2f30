"""Compile many small graphs into one library and call their kernels from Python: tests without artifacts.

The entry point in C and the artifact on disk are tested elsewhere; here every case costs only its kernels.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tvm

from backends import aot
from backends.lowering import Program, lower
from backends.lowering.program import Buffer
from backends.memory import plan
from backends.schedules.codegen import object_code
from backends.target import target
from compiler.frontends.onnx import load_onnx
from compiler.ir.graph import Graph


@dataclass
class Case:
    """One lowered graph and the object file of its kernels."""

    program: Program
    code: bytes


def compile_case(graph: Graph, seen: set[str], *, parallel: bool = False) -> Case:
    """Lower a graph and compile those of its kernels that no case linked with it (`seen`) has compiled."""
    native = target("native")
    program = lower(graph, native, parallel=parallel)
    fresh = {symbol: func for symbol, func in program.kernels.items() if symbol not in seen}
    code = object_code(tvm.IRModule(fresh), native) if fresh else b""
    seen.update(fresh)
    return Case(program, code)


def link(cases: list[Case]) -> list[ctypes.CDLL]:
    """The library of each case: one for all, since each link takes a while."""
    linker = aot.Linker(target("native"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = []
        for index, case in enumerate(cases):
            if case.code:
                names.append(f"k{index}.o")
                (folder / names[-1]).write_bytes(case.code)
        (folder / "all.rsp").write_text("\n".join(names))
        (folder / "entry.c").write_text("int tests_present(void) { return 1; }\n")
        for file in aot.POOL:
            (folder / file).write_text((aot.RUNTIME / file).read_text())
        arguments = ["-shared", "-o", "all.so", "entry.c", "parallel.c", "@all.rsp"]
        aot._wait(linker._start(folder, [*arguments, "-lm", "-lpthread"]))
        return [ctypes.CDLL(str(folder / "all.so"))] * len(cases)


def execute(case: Case, library: ctypes.CDLL, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a case: every kernel in order, over a real memory plan."""
    memory = plan(case.program)
    arena = _aligned(memory.arena_bytes)
    arena[:] = 0xA5
    weights = _aligned(memory.weights_bytes)
    weights[:] = np.frombuffer(memory.weights(), np.uint8)
    feeds = {b: np.ascontiguousarray(inputs[b.name]).reshape(np.shape(inputs[b.name])) for b in case.program.inputs}
    for buffer, array in feeds.items():
        assert array.dtype == buffer.dtype and array.shape == buffer.shape, (buffer.name, array.shape, buffer.shape)
    results = {b: np.empty(b.shape, b.dtype) for b in case.program.outputs}

    def address(buffer: Buffer) -> int:
        root, offset = buffer.root()
        if root.role in ("input", "output"):
            return (feeds if root.role == "input" else results)[root].ctypes.data + offset
        area = weights if root.role == "constant" else arena
        return area.ctypes.data + memory.offsets[root] + offset

    for step in case.program.steps:
        status = library[step.symbol](*(ctypes.c_void_p(address(b)) for b in step.args))
        assert status == 0, step.symbol
    return {b.name: results[b] for b in case.program.outputs}


def _aligned(nbytes: int) -> np.ndarray:
    raw = np.empty(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]


def run_models(models: list[tuple[object, Mapping[str, np.ndarray]]]) -> list[dict[str, np.ndarray]]:
    """Outputs of several onnx.ModelProto, compiled together."""
    seen: set[str] = set()
    cases = [compile_case(load_onnx(model), seen) for model, _ in models]
    return [execute(c, lib, feeds) for c, lib, (_, feeds) in zip(cases, link(cases), models, strict=True)]


__all__ = ["Case", "compile_case", "execute", "link", "run_models"]
