"""Build a graph into an artifact. The same graph gives the same bytes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import tvm

from backends.aot import cache_folder, shared_library
from backends.artifact import Artifact, describe, require_free, write_artifact
from backends.lowering import Program, lower
from backends.memory import MemoryPlan, plan
from backends.packaging import Package, Packager, packager_for, register_packager
from backends.profile import Profile
from backends.rehearsal import rehearse
from backends.rpc import Device
from backends.selector import Selector
from backends.target import Target
from backends.target import target as named_target
from backends.tuning import tune as measure
from compiler.errors import SecateurError
from compiler.ir.graph import Graph

Progress = Callable[[str, int, int], None]
OPTIMIZE = ("speed", "size")
_STAGES = ("lower", "plan", "compile", "write")


@dataclass(frozen=True)
class SharedLibrary:
    """The packager of this machine: one shared library with a thread pool, and the weights."""

    parallel = True

    def require(self, target: Target) -> None:
        """Only shared libraries for this kind of machine can be built."""
        _require_buildable(target)

    def package(self, program: Program, memory: MemoryPlan, target: Target) -> Package:
        """model.so and weights.bin."""
        files = {"model.so": shared_library(program, memory, target), "weights.bin": memory.weights()}
        return Package(files, {"libraries": ["libc", "libm", "libpthread"]})


register_packager("library", SharedLibrary)


def build(
    graph: Graph,
    output: str | Path,
    *,
    target: str | Target = "native",
    overwrite: bool = False,
    progress: Progress | None = None,
    tune: float = 0.0,
    keep_model: bool = True,
    packager: Packager | None = None,
    profile: str | Path | None = None,
    device: Device | None = None,
    optimize: str = "speed",
) -> Artifact:
    """Compile `graph` for `target` into the directory `output`.

    `progress(stage, done, total)` is called as the stages lower, plan, compile and write begin. tune: seconds to spend
    on measuring which schedules are fastest on this machine (measurements are kept; an artifact's bytes then depend on
    them), or on `device`. keep_model: put the model that was compiled and the kernels' TVMScript beside the code, as
    model.onnx and module.py; nothing needs them to run.
    packager: what the artifact holds; the target's own if it is not given. profile: a file that a benchmark program
    wrote on a device, whose costs decide which schedules are taken (see profile.py). optimize: "speed", or "size":
    weights are stored no larger than they are, and smaller where that costs little time.

    Raises SecateurError: E_OPTION_VALUE for another `optimize`, E_OUTPUT_EXISTS when `output` exists and overwrite is
    false, E_OUTPUT when it cannot be written, E_SYMBOLIC_DIM, E_NO_LOWERING, E_NO_LINKER, E_PROFILE. On any failure
    nothing is left behind.
    """
    if optimize not in OPTIMIZE:
        raise SecateurError("E_OPTION_VALUE", f"nothing is optimized for {optimize!r}", hint="use one of: speed, size")
    report = progress or (lambda stage, done, total: None)
    chosen = named_target(target) if isinstance(target, str) else target
    packager = packager or packager_for(chosen)
    packager.require(chosen)
    path = Path(output)
    require_free(path, overwrite)
    if tune > 0 and chosen.dtype != "float32":
        raise SecateurError("E_PRECISION", "schedules in half precision cannot be tuned", hint="leave out --tune")
    measured = None if profile is None else Profile.read(profile)
    chosen = chosen if measured is None else measured.apply(chosen)
    chosen = replace(chosen, compact=optimize == "size")
    report(_STAGES[0], 0, len(_STAGES))
    selector = Selector(chosen)
    program = lower(graph, chosen, parallel=packager.parallel, selector=selector)
    if tune > 0:
        preferred = _tuned(graph, chosen, selector, tune, progress, device)
        program = lower(graph, chosen, parallel=packager.parallel, selector=Selector(chosen, preferred))
    report(_STAGES[1], 1, len(_STAGES))
    memory = plan(program)
    report(_STAGES[2], 2, len(_STAGES))
    package = packager.package(program, memory, chosen)
    report(_STAGES[3], 3, len(_STAGES))
    files = package.files | ({"module.py": module_script(program).encode()} if keep_model else {})
    header = describe(program, memory, chosen) | {"optimize": optimize} | package.manifest
    if measured is not None and chosen.costs is not None:
        header["profile"] = measured.describe(chosen.costs)
    manifest = write_artifact(path, files, package.executables, header, graph if keep_model else None, overwrite)
    report("done", len(_STAGES), len(_STAGES))
    return Artifact(path, manifest)


def _tuned(
    graph: Graph, target: Target, selector: Selector, seconds: float, progress: Progress | None, device: Device | None
) -> dict[str, str]:
    """The labels of what is fastest by layers' keys: each layer alone, then, on this machine, all in the network."""
    end, folder = time.perf_counter() + seconds, cache_folder("tuning")
    preferred = measure(selector.requests, target, seconds, folder=folder, progress=progress, device=device)
    left = end - time.perf_counter()
    if device is not None or left <= 0:
        return preferred
    if progress is not None:
        progress("rehearsal", 0, 1)
    return rehearse(graph, target, preferred, left, folder)


def module_script(program: Program) -> str:
    """The TVMScript of every kernel, as it was compiled."""
    return tvm.IRModule(dict(sorted(program.kernels.items()))).script()


def _require_buildable(target: Target) -> None:
    """Refuse targets of another kind of machine: what Python loads is built for this one alone."""
    here, there = Target.native().triple.split("-")[0], target.triple.split("-")[0]
    if there != here:
        raise SecateurError(
            "E_TARGET",
            f"Python here ({here}) cannot load a library for target {target.name!r} ({there})",
            hint="use --target native, or --package c for a C library",
        )
