"""Artifacts on disk: directories with code, weights, a manifest, and the model itself.

They are written to a temporary sibling and renamed when whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.aot import ABI_VERSION
from backends.lowering import Program
from backends.memory import MemoryPlan
from backends.runtime.loader import FORMAT_VERSION, read_manifest
from backends.target import Target
from compiler.errors import SecateurError
from compiler.exporters.onnx import save_onnx
from compiler.ir.graph import Graph
from compiler.version import __version__


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


def describe(program: Program, memory: MemoryPlan, target: Target) -> dict[str, Any]:
    """The manifest but for the files."""

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
            "dtype": target.dtype,
            "vector_bytes": target.vector_bytes,
        },
        "inputs": tensors(program.inputs),
        "outputs": tensors(program.outputs),
        "arena_bytes": memory.arena_bytes,
        "weights_bytes": memory.weights_bytes,
        "macs": sum(s.macs for s in program.steps),
        "layers": layers,
    }


def require_free(path: Path, overwrite: bool) -> None:
    """Raise SecateurError E_OUTPUT_EXISTS unless an artifact may be written to `path`."""
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


def write_artifact(
    path: Path,
    files: dict[str, bytes],
    executables: frozenset[str],
    header: dict[str, Any],
    graph: Graph | None,
    overwrite: bool,
) -> dict[str, Any]:
    """Write files, and the graph if it is given; the whole manifest. E_OUTPUT where that cannot be done."""
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
        require_free(path, overwrite)
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
