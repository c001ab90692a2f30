"""WebAssembly: a compiled model as an npm package that browsers, workers and Node run.

The code is linked twice from one program, with SIMD and with relaxed SIMD (which rounds a product and a sum once); the
loader takes what the engine has. See docs/web.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.aot import ABI_VERSION, RUNTIME, cache_folder, compile_kernels, entry_source, has_zig
from backends.lowering import lower
from backends.lowering.program import Program
from backends.memory import MemoryPlan, plan
from backends.packaging import Package, register_packager
from backends.selector import Selector
from backends.target import Target
from backends.webpage import Page, Side, pack_samples, page_files
from compiler.errors import SecateurError
from compiler.ir.graph import Graph
from compiler.version import __version__

WEB = RUNTIME / "web"
SECTION = "secateur.weights"
"""The custom section that holds the weights of code that carries them."""
MOST_BYTES = 1 << 32
"""What a 32-bit address reaches."""
_STACK = 256 << 10
_EXPORTS = ("secateur_run_steps", "secateur_abi_version", "__heap_base")

_ARRAYS = {
    "float32": "Float32Array",
    "float64": "Float64Array",
    "float16": "Uint16Array",
    "int64": "BigInt64Array",
    "uint64": "BigUint64Array",
    "int32": "Int32Array",
    "uint32": "Uint32Array",
    "int16": "Int16Array",
    "uint16": "Uint16Array",
    "int8": "Int8Array",
    "uint8": "Uint8Array",
    "bool": "Uint8Array",
}
"""The typed array of each element type; float16 as its bits."""


@dataclass(frozen=True)
class WebPackage:
    """The packager of WebAssembly: an npm package of code, weights, loader, types and description.

    embed_weights: put the weights into each .wasm file instead of weights.bin. name: of the npm package; made from the
    model's if it is not given. page: a page that runs the model, to be put beside it.
    """

    embed_weights: bool = False
    name: str | None = None
    page: Page | None = None

    parallel = False

    def require(self, target: Target) -> None:
        """E_NO_LINKER without zig, E_TARGET for anything but WebAssembly."""
        if not target.triple.startswith("wasm32"):
            raise SecateurError("E_TARGET", f"{target.name!r} is not WebAssembly", hint="use --target wasm")
        if not has_zig():
            raise SecateurError("E_NO_LINKER", "the package ziglang is missing", hint="pip install ziglang")

    def package(self, program: Program, memory: MemoryPlan, target: Target) -> Package:
        """An npm package. Raises SecateurError E_TOO_LARGE for a model that 32-bit addresses cannot reach."""
        if self.page is not None and self.page.samples:
            pack_samples(self.page, program.inputs)  # before the time is spent
        files, size = self._files(program, memory, target)
        if self.page is not None:
            name, title = ("smaller", "Smaller") if self.page.dense is not None else ("model", "Model")
            sides = [_side(name, title, "../", program, memory, size)]
            if self.page.dense is not None:
                side, beside = self._dense(self.page.dense, target)
                sides.append(side)
                files |= {f"dense/{file}": data for file, data in beside.items()}
            files |= page_files(self.page, program, sides)
        return Package(files, {"libraries": [], "code_bytes": size, "variants": ["relaxed", "simd"]})

    def _files(self, program: Program, memory: MemoryPlan, target: Target) -> tuple[dict[str, bytes], int]:
        """The package's files, and the bytes of the larger code without weights."""
        _require_reachable(program, memory)
        weights = memory.weights()
        code = {file: module(program, memory, variant) for file, variant in variants(target).items()}
        size = max(map(len, code.values()))
        if self.embed_weights:
            code = {file: data + custom_section(SECTION, weights) for file, data in code.items()}
        name = self.name or package_name(program.name)
        description = describe(program, memory, code, weights, self.embed_weights)
        files = {
            **code,
            **({} if self.embed_weights else {"weights.bin": weights}),
            "index.js": (WEB / "index.js").read_bytes(),
            "index.d.ts": types(program).encode(),
            "model.js": f"/* Written by Secateur. */\nexport const description = {_json(description)};\n".encode(),
            "package.json": (_json(npm_manifest(name, self.embed_weights)) + "\n").encode(),
            "README.md": readme(name, program, self.embed_weights).encode(),
        }
        return files, size

    def _dense(self, graph: Graph, target: Target) -> tuple[Side, dict[str, bytes]]:
        """The package of the model as it was."""
        program = lower(graph, target, parallel=self.parallel, selector=Selector(target))
        memory = plan(program)
        files, size = self._files(program, memory, target)
        return _side("dense", "Dense", "../dense/", program, memory, size), files


def _side(name: str, title: str, base: str, program: Program, memory: MemoryPlan, code: int) -> Side:
    macs = sum(step.macs for step in program.steps)
    return Side(name, title, base, macs, memory.weights_bytes, code)


register_packager("web", WebPackage)


def variants(target: Target) -> dict[str, Target]:
    """File name of each code, and the target that it is compiled for."""
    relaxed = dataclasses.replace(target, features=(*target.features, "+relaxed-simd"), contract=True)
    return {"model.wasm": target, "model-relaxed.wasm": relaxed}


def module(program: Program, memory: MemoryPlan, target: Target) -> bytes:
    """The linked WebAssembly module: no imports, one exported memory that its user grows."""
    with tempfile.TemporaryDirectory(prefix="secateur-") as name:
        folder = Path(name)
        (folder / "entry.c").write_text(entry_source(program, memory))
        for source in (WEB / "launch.c", RUNTIME / "parallel.h"):
            shutil.copy(source, folder)
        names = ["entry.c", "launch.c"]
        for index, code in enumerate(compile_kernels(program.kernels, target)):
            names.append(f"kernels{index}.o")
            (folder / names[-1]).write_bytes(code)
        try:
            _link(folder, ["-target", "wasm32-freestanding"], names)
        except SecateurError as error:
            if "undefined symbol" not in str(error.where):
                raise
            # Functions of libm: zig builds WASI's C library, which takes half a minute once per machine.
            _link(folder, ["-target", "wasm32-wasi", "-mexec-model=reactor"], names)
        return (folder / "model.wasm").read_bytes()


def _link(folder: Path, flags: list[str], names: list[str]) -> None:
    options = ["--no-entry", f"-z,stack-size={_STACK}", *(f"--export={symbol}" for symbol in _EXPORTS)]
    command = [sys.executable, "-m", "ziglang", "cc", *flags, "-mcpu=generic+simd128", "-O2", "-std=c11", "-s"]
    command += [f"-Wl,{option}" for option in options]
    environment = os.environ | {name: cache_folder("zig") for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")}
    done = subprocess.run(
        [*command, "-o", "model.wasm", *names], cwd=folder, env=environment, capture_output=True, check=False
    )
    if done.returncode:
        raise SecateurError(
            "E_LINK",
            "linking the compiled model failed",
            where=done.stderr.decode(errors="replace").strip()[-2000:],
            hint="check that the disk is not full and that `python -m ziglang version` works",
        )


def custom_section(name: str, data: bytes) -> bytes:
    """A custom section (WebAssembly core specification 5.5.3), to be put behind a module's other sections."""
    label = name.encode()
    body = _leb128(len(label)) + label + data
    return b"\x00" + _leb128(len(body)) + body


def _leb128(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _require_reachable(program: Program, memory: MemoryPlan) -> None:
    tensors = sum(b.nbytes for b in (*program.inputs, *program.outputs))
    total = memory.arena_bytes + memory.weights_bytes + tensors + (1 << 20)
    if total > MOST_BYTES:
        raise SecateurError(
            "E_TOO_LARGE",
            f"the model needs {total / 1e9:.1f} GB of memory, and WebAssembly's 32-bit addresses reach 4.3 GB",
            where=program.name,
            hint="prune it, or compile it for another target",
        )


def describe(
    program: Program, memory: MemoryPlan, code: Mapping[str, bytes], weights: bytes, embedded: bool
) -> dict[str, Any]:
    """What the loader knows of the model."""

    def tensors(buffers: list[Any]) -> list[dict[str, Any]]:
        return [{"name": b.name, "dtype": str(b.dtype), "shape": list(b.shape)} for b in buffers]

    names = {"model.wasm": "simd", "model-relaxed.wasm": "relaxed"}
    return {
        "name": program.name,
        "secateur_version": __version__,
        "abi_version": ABI_VERSION,
        "inputs": tensors(program.inputs),
        "outputs": tensors(program.outputs),
        "steps": len(program.steps),
        "arena_bytes": memory.arena_bytes,
        "code": {names[file]: {"file": file, **_digest(data)} for file, data in code.items()},
        "weights": {"file": None if embedded else "weights.bin", **_digest(weights)},
    }


def _digest(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _json(value: object) -> str:
    return json.dumps(value, indent=2)


def package_name(model: str) -> str:
    """A name that npm takes, made from a model's: lower case, and nothing that a URL would have to escape."""
    name = re.sub(r"[^a-z0-9._-]+", "-", model.lower()).strip("-._")
    return name[:200] or "model"


def npm_manifest(name: str, embedded: bool) -> dict[str, Any]:
    """package.json."""
    files = ["index.js", "index.d.ts", "model.js", "model.wasm", "model-relaxed.wasm"]
    files += [] if embedded else ["weights.bin"]
    return {
        "name": name,
        "version": "1.0.0",
        "description": "A neural network, compiled to WebAssembly by Secateur",
        "type": "module",
        "main": "./index.js",
        "types": "./index.d.ts",
        "exports": {
            ".": {"types": "./index.d.ts", "default": "./index.js"},
            "./package.json": "./package.json",
            **{f"./{file}": f"./{file}" for file in files if file.endswith((".wasm", ".bin"))},
        },
        "files": files,
        "sideEffects": False,
        "engines": {"node": ">=20"},
    }


def types(program: Program) -> str:
    """index.d.ts: the loader's types, with this model's inputs and outputs by name."""

    def fields(buffers: list[Any]) -> str:
        return "\n".join(
            f"  /** {b.dtype}[{', '.join(map(str, b.shape))}] */\n  {json.dumps(b.name)}: {_ARRAYS[str(b.dtype)]};"
            for b in buffers
        )

    template = (WEB / "index.d.ts").read_text()
    return template.replace("  /* inputs */", fields(program.inputs)).replace(
        "  /* outputs */", fields(program.outputs)
    )


def readme(name: str, program: Program, embedded: bool) -> str:
    """README.md of the package: how to use this model."""
    values = ", ".join(f"{json.dumps(b.name)}: new {_ARRAYS[str(b.dtype)]}({b.size})" for b in program.inputs)
    rows = "\n".join(
        f"| {kind} | `{b.name}` | `{_ARRAYS[str(b.dtype)]}` | {' × '.join(map(str, b.shape)) or 'scalar'} |"
        for kind, buffers in (("input", program.inputs), ("output", program.outputs))
        for b in buffers
    )
    beside = "" if embedded else ", `weights.bin`"
    template = (WEB / "README.md").read_text()
    filled = template.replace("{name}", name).replace("{values}", values).replace("{rows}", rows)
    return filled.replace("{beside}", beside)
