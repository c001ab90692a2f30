"""From an IRModule of typed-handle PrimFuncs to the bytes of an object file, without TVM's packed calls.

Functions built by this package are already flat and vectorised (attribute `secateur.flat`) and go straight to
LLVM; all others pass TVM's s_tir lowering first (`tvm.s_tir.pipeline`, less the steps for devices and packed calls).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import tvm
from tvm import s_tir, tirx

from backends.target import Target

#: Attribute of functions that need no lowering.
FLAT = "secateur.flat"


def lower(mod: tvm.IRModule, target: Target) -> tvm.IRModule:
    """`mod` with every function in the form that LLVM code generation takes."""
    return _lower(mod, target.to_tvm())


def object_code(mod: tvm.IRModule, target: Target) -> bytes:
    """The object file of `mod` for `target`: each function is a plain C function under its global symbol.

    The same module gives the same bytes. Functions with parallel loops reference the weak pointer variable
    `__TVMBackendParallelLaunch`, which the linked program must define.
    """
    tvm_target = target.to_tvm()
    module = tvm.get_global_func("target.build.llvm")(_lower(mod, tvm_target), tvm_target)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.o"
        module.write_to_file(str(path), "o")
        return path.read_bytes()


def _lower(mod: tvm.IRModule, target: tvm.target.Target) -> tvm.IRModule:
    flat: dict[tvm.ir.GlobalVar, tvm.tirx.PrimFunc] = {}
    other: dict[tvm.ir.GlobalVar, tvm.tirx.PrimFunc] = {}
    for var in sorted(mod.functions, key=lambda var: var.name_hint):
        func = mod[var]
        (flat if func.attrs and FLAT in func.attrs else other)[var] = func
    bound = tirx.transform.BindTarget(target.with_host(target))
    result = bound(tvm.IRModule(flat))
    if other:
        passes = tvm.transform.Sequential([bound, *_generic_passes(), tirx.transform.LowerIntrin()])
        result.update(passes(tvm.IRModule(other)))
    return result


def _generic_passes() -> list[tvm.transform.Pass]:
    return [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        s_tir.transform.LoopPartition(),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.StorageRewrite(),
        tirx.transform.UnrollLoop(),
        s_tir.transform.RenormalizeSplitPattern(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
    ]
