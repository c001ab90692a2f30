"""Build a graph into an artifact: a directory with code, weights, manifest, and the model itself.

It is written to a temporary sibling and renamed when whole, and the same graph gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm

from backends.aot import ABI_VERSION, shared_library
from backends.lowering import Program, lower
from backends.memory import MemoryPlan, plan
from backends.packaging import Package, Packager, packager_for, register_packager
from backends.profile import Profile
from backends.rpc import Device
from backends.runtime.loader import FORMAT_VERSION, read_manifest
from backends.selection import Selector
from backends.target import Target
from backends.target import target as named_target
from backends.tuning import tune as measure
from compiler.errors import SecateurError
from compiler.exporters.onnx import save_onnx
from compiler.ir.graph import Graph
from compiler.version import __version__

Progress = Callable[[str, int, int], None]
_STAGES = ("lower", "plan", "compile", "write")


@dataclass(frozen=True)
class Artifact:
    """A compiled model on disk. `manifest` is what its manifest.json says."""

    path: Path
    manifest: dict[str, Any]

    @property
    def arena_bytes(self) -> int:
        """Peak bytes of activations and scratch memory."""
        return int(self.manifest["arena_bytes"])

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(f["bytes"] for f in self.manifest["files"].values())


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
) -> Artifact:
    """Compile `graph` for `target` into the directory `output`.

    `progress(stage, done, total)` is called as the stages lower, plan, compile and write begin. tune: seconds to spend
    on measuring which schedules are fastest on this machine (measurements are kept; an artifact's bytes then depend on
    them), or on `device`. keep_model: put the model that was compiled and the kernels' TVMScript beside the code, as
    model.onnx and module.py; nothing needs them to run.
    packager: what the artifact holds; the target's own if it is not given. profile: a file that a benchmark program
    wrote on a device, whose costs decide which schedules are taken (see profile.py).

    Raises SecateurError: E_OUTPUT_EXISTS when `output` exists and overwrite is false, E_OUTPUT when it cannot be
    written, E_SYMBOLIC_DIM, E_NO_LOWERING, E_NO_LINKER, E_PROFILE. On any failure nothing is left behind.
    """
    report = progress or (lambda stage, done, total: None)
    chosen = named_target(target) if isinstance(target, str) else target
    packager = packager or packager_for(chosen)
    packager.require(chosen)
    path = Path(output)
    _require_free(path, overwrite)
    measured = None if profile is None else Profile.read(profile)
    chosen = chosen if measured is None else measured.apply(chosen)
    report(_STAGES[0], 0, len(_STAGES))
    selector = Selector(chosen)
    program = lower(graph, chosen, parallel=packager.parallel, selector=selector)
    if tune > 0:
        preferred = measure(selector.requests, chosen, tune, progress=progress, device=device)
        program = lower(graph, chosen, parallel=packager.parallel, selector=Selector(chosen, preferred))
    report(_STAGES[1], 1, len(_STAGES))
    memory = plan(program)
    report(_STAGES[2], 2, len(_STAGES))
    package = packager.package(program, memory, chosen)
    report(_STAGES[3], 3, len(_STAGES))
    files = package.files | ({"module.py": module_script(program).encode()} if keep_model else {})
    header = _manifest(program, memory, chosen) | package.manifest
    if measured is not None and chosen.costs is not None:
        header["profile"] = measured.describe(chosen.costs)
    manifest = _write(path, files, package.executables, header, graph if keep_model else None, overwrite)
    report("done", len(_STAGES), len(_STAGES))
    return Artifact(path, manifest)


def module_script(program: Program) -> str:
    """The TVMScript of every kernel, as it was compiled."""
    return tvm.IRModule(dict(sorted(program.kernels.items()))).script()


def _manifest(program: Program, memory: MemoryPlan, target: Target) -> dict[str, Any]:
    def tensors(buffers: list[Any]) -> list[dict[str, Any]]:
        return [{"name": b.name, "dtype": str(b.dtype), "shape": list(b.shape)} for b in buffers]

    layers = [
        {"nodes": list(s.nodes), "op": s.op, "kernel": s.symbol, "schedule": s.schedule, "macs": s.macs, **s.details}
        for s in program.steps
    ]
    return {
        "format_version": FORMAT_VERSION,
        "abi_version": ABI_VERSION,
        "secateur_version": __version__,
        "model": program.name,
        "target": {
            "name": target.name,
            "triple": target.triple,
            "cpu": target.cpu,
            "features": list(target.features),
            "vector_bytes": target.vector_bytes,
        },
        "inputs": tensors(program.inputs),
        "outputs": tensors(program.outputs),
        "arena_bytes": memory.arena_bytes,
        "weights_bytes": memory.weights_bytes,
        "macs": sum(s.macs for s in program.steps),
        "layers": layers,
    }


def _require_buildable(target: Target) -> None:
    """Refuse targets of another kind of machine: what Python loads is built for this one alone."""
    here, there = Target.native().triple.split("-")[0], target.triple.split("-")[0]
    if there != here:
        raise SecateurError(
            "E_TARGET",
            f"Python here ({here}) cannot load a library for target {target.name!r} ({there})",
            hint="use --target native, or --package c for a C library",
        )


def _require_free(path: Path, overwrite: bool) -> None:
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise SecateurError(
            "E_OUTPUT_EXISTS",
            f"{str(path)!r} exists already",
            where=str(path),
            hint="choose another output, or allow overwriting (overwrite=True, --force)",
        )
    if path.exists() and not _is_ours(path):
        raise SecateurError(
            "E_OUTPUT_EXISTS",
            f"{str(path)!r} exists and is not a compiled artifact, so it is not overwritten",
            where=str(path),
            hint="choose another output, or remove it yourself",
        )


def _is_ours(path: Path) -> bool:
    """True for an empty directory or one that holds an artifact: what overwriting may replace."""
    return path.is_dir() and (not any(path.iterdir()) or (path / "manifest.json").is_file())


def _write(
    path: Path,
    files: dict[str, bytes],
    executables: frozenset[str],
    header: dict[str, Any],
    graph: Graph | None,
    overwrite: bool,
) -> dict[str, Any]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
            if name in executables:
                (folder / name).chmod(0o755)
        if graph is not None:
            save_onnx(graph, folder / "model.onnx", overwrite=True)
        entries = {f.relative_to(folder).as_posix(): _entry(f) for f in sorted(folder.rglob("*")) if f.is_file()}
        manifest = header | {"files": entries}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        read_manifest(folder)
        folder.chmod(0o755)
        _move(folder, path, overwrite)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return manifest


def _move(folder: Path, path: Path, overwrite: bool) -> None:
    """Rename the whole directory into place; an artifact that was there goes only when the new one is."""
    if not path.exists():
        os.rename(folder, path)
        return
    if not overwrite:
        _require_free(path, overwrite)
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
    try:
        os.rename(path, old / "artifact")
        try:
            os.rename(folder, path)
        except OSError:
            os.rename(old / "artifact", path)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _entry(file: Path) -> dict[str, Any]:
    data = file.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _unwritable(path: Path, error: OSError) -> SecateurError:
    return SecateurError(
        "E_OUTPUT",
        f"the artifact cannot be written: {error.strerror or error}",
        where=str(path),
        hint="choose a directory that you may write to, on a disk with room",
    )
