"""WebAssembly: a compiled model as an npm package that browsers, workers and Node run.

The code is linked twice from one program, with SIMD and with relaxed SIMD (which rounds a product and a sum once), and
if asked for, twice more for several threads on a shared memory; the loader takes what the engine has. See docs/web.md.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backends.aot import ABI_VERSION, entry_source, has_zig
from backends.lowering import lower
from backends.lowering.program import Program
from backends.memory import MemoryPlan, plan
from backends.packaging import Package, register_packager
from backends.selector import Selector
from backends.target import Target
from backends.webbench import bench_files
from backends.weblink import WEB, linked, variants
from backends.webpage import Page, Side, pack_samples, page_files
from compiler.errors import SecateurError
from compiler.ir.graph import Graph
from compiler.version import __version__

SECTION = "secateur.weights"
"""The custom section that holds the weights of code that carries them."""
MOST_BYTES = 1 << 32
"""What a 32-bit address reaches."""
_EXPORTS = ("secateur_run_steps", "secateur_abi_version", "__heap_base")
_THREADS_EXPORTS = (
    *("secateur_pool_create", "secateur_pool_may_wait", "secateur_pool_lose", "secateur_pool_destroy"),
    *("secateur_worker", "__stack_pointer"),
)
_THREADS_SCRIPTS = ("threads.js", "worker.js")

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
    model's if it is not given. page: a page that runs the model, to be put beside it. threads: add code for several
    threads, which the loader takes where memory can be shared. bench: add a benchmark of the engine, which writes
    profiles.
    """

    embed_weights: bool = False
    name: str | None = None
    page: Page | None = None
    threads: bool = False
    bench: bool = False

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
        files, size, threads = self._files(program, memory, target)
        if self.page is not None:
            name, title = ("smaller", "Smaller") if self.page.dense is not None else ("model", "Model")
            sides = [_side(name, title, "../", program, memory, size)]
            if self.page.dense is not None:
                side, beside = self._dense(self.page.dense, target)
                sides.append(side)
                files |= {f"dense/{file}": data for file, data in beside.items()}
            files |= page_files(self.page, program, sides, self.threads)
        if self.bench:
            files |= bench_files(variants(target))
        facts = {"libraries": [], "code_bytes": size, "variants": ["relaxed", "simd"]}
        return Package(files, facts | ({"threads": threads} if self.threads else {}))

    def _files(
        self, program: Program, memory: MemoryPlan, target: Target
    ) -> tuple[dict[str, bytes], int, dict[str, int]]:
        """The package's files, the bytes of the larger code without weights, and facts of the code for threads."""
        _require_reachable(program, memory)
        kinds = {"": _Code.of(program, memory, target, threads=False)}
        if self.threads:
            kinds["threads"] = _Code.of(*_threaded(program, memory, target), target, threads=True)
        shared = kinds[next(reversed(kinds))].memory
        weights = shared.weights()
        section = custom_section(SECTION, weights) if self.embed_weights else b""
        packed = {kind: {file: data + section for file, data in code.files.items()} for kind, code in kinds.items()}
        files = {file: data for code in packed.values() for file, data in code.items()}
        files |= {} if self.embed_weights else {"weights.bin": weights}
        name = self.name or package_name(program.name)
        known = describe(program, weights, self.embed_weights)
        steps = {kind: _steps(code, packed[kind]) for kind, code in kinds.items()}
        description = known | steps.pop("") | steps
        scripts = ("index.js", *(_THREADS_SCRIPTS if self.threads else ()))
        texts = {file: (WEB / file).read_bytes() for file in scripts}
        texts |= {"index.d.ts": types(program).encode(), "model.js": _model_script(description, files, self.threads)}
        manifest = npm_manifest(name, [*texts, *files])
        about = readme(name, program, list(files), self.threads)
        texts |= {"package.json": f"{_json(manifest)}\n".encode(), "README.md": about.encode()}
        facts = {
            kind: {"code_bytes": code.size, "arena_bytes": code.memory.arena_bytes} for kind, code in kinds.items()
        }
        return files | texts, kinds[""].size, facts.get("threads", {})

    def _dense(self, graph: Graph, target: Target) -> tuple[Side, dict[str, bytes]]:
        """The package of the model as it was."""
        program = lower(graph, target, parallel=self.parallel, selector=Selector(target))
        memory = plan(program)
        files, size, _ = self._files(program, memory, target)
        return _side("dense", "Dense", "../dense/", program, memory, size), files


def _side(name: str, title: str, base: str, program: Program, memory: MemoryPlan, code: int) -> Side:
    macs = sum(step.macs for step in program.steps)
    return Side(name, title, base, macs, memory.weights_bytes, code)


register_packager("web", WebPackage)


@dataclass(frozen=True)
class _Code:
    """A program, compiled. files: each variant's; size: bytes of the largest."""

    program: Program
    memory: MemoryPlan
    files: dict[str, bytes]
    size: int

    @classmethod
    def of(cls, program: Program, memory: MemoryPlan, target: Target, threads: bool) -> _Code:
        """Compile each variant."""
        made = {file: module(program, memory, variant, threads) for file, variant in variants(target, threads).items()}
        return cls(program, memory, made, max(map(len, made.values())))


def _threaded(program: Program, memory: MemoryPlan, target: Target) -> tuple[Program, MemoryPlan]:
    """The same model with parallel loops, on weights that begin with `memory`'s."""
    assert program.graph is not None
    threaded = lower(program.graph, target, parallel=True, selector=Selector(target))
    shared = plan(threaded, beside=memory)
    _require_reachable(threaded, shared)
    return threaded, shared


def module(program: Program, memory: MemoryPlan, target: Target, threads: bool = False) -> bytes:
    """The linked WebAssembly module: no imports, one exported memory that its user grows.

    threads: it imports a shared memory, env.memory, instead, and has the pool of web/threads.c.
    """
    sources = {"entry.c": entry_source(program, memory)}
    return linked(sources, program.kernels, target, _EXPORTS + (_THREADS_EXPORTS if threads else ()), threads)


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


def describe(program: Program, weights: bytes, embedded: bool) -> dict[str, Any]:
    """What the loader knows of the model, beside its code."""

    def tensors(buffers: list[Any]) -> list[dict[str, Any]]:
        return [{"name": b.name, "dtype": str(b.dtype), "shape": list(b.shape)} for b in buffers]

    return {
        "name": program.name,
        "secateur_version": __version__,
        "abi_version": ABI_VERSION,
        "inputs": tensors(program.inputs),
        "outputs": tensors(program.outputs),
        "weights": {"file": None if embedded else "weights.bin", **_digest(weights)},
    }


def _steps(code: _Code, files: Mapping[str, bytes]) -> dict[str, Any]:
    """What the loader knows of a code. files: as they are shipped."""
    return {
        "steps": len(code.program.steps),
        "arena_bytes": code.memory.arena_bytes,
        "code": {
            "relaxed" if "relaxed" in file else "simd": {"file": file, **_digest(data)} for file, data in files.items()
        },
    }


def _model_script(description: Mapping[str, Any], files: Mapping[str, bytes], threads: bool) -> bytes:
    """model.js: the description, and each file's place, written out so that bundlers see it and copy the file."""
    places = "".join(f'  "{file}": () => new URL("./{file}", import.meta.url),\n' for file in files)
    return (
        "/* Written by Secateur. */\n"
        f"export const description = {_json(description)};\n"
        f"export const files = {{\n{places}}};\n"
        + ('export * as threads from "./threads.js";\n' if threads else "export const threads = null;\n")
    ).encode()


def _digest(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _json(value: object) -> str:
    return json.dumps(value, indent=2)


def package_name(model: str) -> str:
    """A name that npm takes, made from a model's: lower case, and nothing that a URL would have to escape."""
    name = re.sub(r"[^a-z0-9._-]+", "-", model.lower()).strip("-._")
    return name[:200] or "model"


def npm_manifest(name: str, files: list[str]) -> dict[str, Any]:
    """package.json of a package of these files."""
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


def readme(name: str, program: Program, files: list[str], threads: bool) -> str:
    """README.md of the package: how to use this model."""
    values = ", ".join(f"{json.dumps(b.name)}: new {_ARRAYS[str(b.dtype)]}({b.size})" for b in program.inputs)
    rows = "\n".join(
        f"| {kind} | `{b.name}` | `{_ARRAYS[str(b.dtype)]}` | {' × '.join(map(str, b.shape)) or 'scalar'} |"
        for kind, buffers in (("input", program.inputs), ("output", program.outputs))
        for b in buffers
    )
    template = (WEB / "README.md").read_text()
    filled = template.replace("{name}", name).replace("{values}", values).replace("{rows}", rows)
    listed = ", ".join(f"`{file}`" for file in files)
    return filled.replace("{files}", listed).replace("{threads}", _README_THREADS if threads else _README_ONE)


_README_ONE = "on one thread"
_README_THREADS = (
    "on several threads where a page is isolated (`Cross-Origin-Opener-Policy: same-origin` and\n"
    "`Cross-Origin-Embedder-Policy: require-corp`) and in Node, on one elsewhere; `load({ threads: 2 })` limits them"
)
