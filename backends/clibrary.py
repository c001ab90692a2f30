"""A compiled model as a C library: static and shared, with a header, programs that run and time it, and a CMake file.

It needs libc and libm alone, keeps nothing in global variables, and all its symbols begin with its name, so that one
program may hold several. See docs/arm.md and runtime/c/model.h.
"""

from __future__ import annotations

import dataclasses
import json
import re
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from backends.aot import POOL, RUNTIME, compile_kernels, entry_source
from backends.cbench import embedded, probe_archive
from backends.linking import external, link_shared
from backends.lowering.program import Buffer, Program
from backends.memory import ALIGNMENT, MemoryPlan
from backends.objects import needed, renamed
from backends.packaging import Package, register_packager
from backends.platforms import Platform, platforms
from backends.target import Target
from backends.zig import finish, require_zig, start, zig
from compiler.errors import SecateurError

SOURCES = RUNTIME / "c"
WEIGHTS_VERSION = 1
"""Version of the weights file; runtime/c/model.c reads no other."""
_MAGIC = b"SECATEUR"
_LAUNCH = "__TVMBackendParallelLaunch"
_FLAGS = ("-O2", "-g0", "-fPIC", "-std=c11", "-fvisibility=hidden", "-fno-ident", "-include", "names.h")
#: What the generated and the fixed C sources share; it gets the library's name, so that two libraries do not meet.
_INTERNAL = (
    *("run", "run_steps", "abi_version", "step_count", "arena_bytes", "weights_bytes", "weights"),
    *("pool", "pool_create", "pool_destroy", "pool_enter"),
)
_DTYPES = {
    "float32": "FLOAT32",
    "float64": "FLOAT64",
    "float16": "FLOAT16",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "bool": "BOOL",
}
_LEVELS = {"x86-64-v3": 3, "x86-64-v4": 4}


@dataclass(frozen=True)
class CLibrary:
    """The packager of C libraries.

    name: what files and symbols begin with. embed_weights: put the weights into the libraries instead of weights.bin.
    """

    name: str = "model"
    embed_weights: bool = False

    parallel = True

    def require(self, target: Target) -> None:
        """E_TARGET, E_NO_LINKER, E_OPTION_VALUE for a name that is no C identifier in lower case."""
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", self.name) or self.name in ("main", "secateur"):
            raise SecateurError(
                "E_OPTION_VALUE",
                f"{self.name!r} cannot be the name of a C library",
                hint="use lower-case letters, digits and underscores, a letter first",
            )
        platforms(target)
        if target.triple.startswith("x86_64") and target.cpu not in _LEVELS:
            raise SecateurError(
                "E_TARGET",
                f"a C library for {target.name!r} could not tell whether a processor can run it",
                hint="use --target x86-64-v3 or x86-64-v4",
            )
        require_zig()

    def package(self, program: Program, memory: MemoryPlan, target: Target) -> Package:
        """The libraries of each platform, and what belongs to all."""
        program = prefixed(program, self.name)
        payload = memory.weights()
        files: dict[str, bytes] = {} if self.embed_weights else {"weights.bin": weights_file(payload)}
        for name in ("model.h", "main.c", "bench.c", "bench.h"):
            files[name.replace("model", self.name)] = named((SOURCES / name).read_text(), self.name).encode()
        external: dict[str, set[str]] = {}
        programs, size, places = ("", ""), 0, {}
        for platform in platforms(target):
            built = _Build(
                self, program, memory, payload, dataclasses.replace(target, triple=platform.triple), platform
            )
            files |= {platform.folder + file: data for file, data in built.files.items()}
            places[platform.folder] = platform
            programs = built.programs or programs
            size = max(size, built.code_bytes)
            for library, names in built.external.items():
                external.setdefault(library, set()).update(names)
        files["CMakeLists.txt"] = self._cmake(places).encode()
        manifest = {
            "package": "c",
            "name": self.name,
            "program": programs[0] or None,
            "benchmark": programs[1] or None,
            "libraries": sorted(external),
            "symbols": {library: sorted(names) for library, names in sorted(external.items())},
            "code_bytes": size,
        }
        return Package(files, manifest, frozenset({*programs} - {""}))

    def _cmake(self, places: Iterable[str]) -> str:
        """CMakeLists.txt; Apple's has a library for each system."""

        def choice(folder: str) -> str:
            return f'set(@NAME@_library "${{CMAKE_CURRENT_LIST_DIR}}/{folder}lib{self.name}.a")'

        choose = choice("")
        if "ios/" in places:
            choose = (
                'if(CMAKE_OSX_SYSROOT MATCHES "[iI][pP]hone[sS]imulator")\n'
                f"  {choice('ios-simulator/')}\n"
                'elseif(CMAKE_SYSTEM_NAME STREQUAL "iOS")\n'
                f"  {choice('ios/')}\n"
                "else()\n"
                f"  {choose}\n"
                "endif()"
            )
        template = (SOURCES / "CMakeLists.txt").read_text()
        return template.replace("@LIBRARY@", choose).replace("@NAME@", self.name)


register_packager("c", CLibrary)


class _Build:
    """What is made for one platform: files, the program's name, bytes of code, symbols by library."""

    def __init__(
        self,
        options: CLibrary,
        program: Program,
        memory: MemoryPlan,
        payload: bytes,
        target: Target,
        platform: Platform,
    ) -> None:
        self._name, self._platform = options.name, platform
        self.programs: tuple[str, str] | None = None
        self.files: dict[str, bytes] = {}
        with tempfile.TemporaryDirectory(prefix="secateur-") as temporary:
            self._folder = Path(temporary)
            sources = self._sources(options, program, memory, payload, target)
            support = {f"{Path(source).stem}.o": self._start(source) for source in sources}
            try:
                kernels = compile_kernels(program.kernels, target)
            except BaseException:
                for process in support.values():
                    process.kill()
                    process.communicate()
                raise
            for process in support.values():
                finish(process)
            objects = {file: (self._folder / file).read_bytes() for file in support}
            launch = launcher(self._name)
            objects |= {f"kernels{i}.o": renamed(code, _LAUNCH, launch) for i, code in enumerate(kernels)}
            self.code_bytes = sum(len(code) for file, code in objects.items() if file != "embedded.o")
            self.external = external(needed(objects.values()), platform)
            self._link(objects, target)

    @property
    def _compiler(self) -> tuple[str, ...]:
        return ("cc", "-target", self._platform.zig)

    def _start(self, source: str) -> subprocess.Popen[bytes]:
        """Begin to compile a file, while LLVM is busy with the kernels."""
        file = f"{Path(source).stem}.o"
        return start(self._folder, *self._compiler, *_FLAGS, *self._platform.flags, "-c", source, "-o", file)

    def _sources(
        self, options: CLibrary, program: Program, memory: MemoryPlan, payload: bytes, target: Target
    ) -> list[str]:
        """Write what has to be compiled; the names of the files that are."""
        name, folder = self._name, self._folder
        texts = {
            "names.h": names_header(name),
            "tables.h": tables(program, memory, payload, name, options.embed_weights, target),
            "entry.c": entry_source(program, memory),
            f"{name}.h": named((SOURCES / "model.h").read_text(), name),
            "api.c": named((SOURCES / "model.c").read_text(), name),
            **{file: named((SOURCES / file).read_text(), name) for file in ("main.c", "bench.c", "bench.h")},
        }
        for source in (*(RUNTIME / name for name in POOL), SOURCES / "cpu.h"):
            texts[source.name] = source.read_text()
        if options.embed_weights:
            (folder / "weights.data").write_bytes(payload)
            texts["embedded.S"] = embedded(f"{name}_internal_weights", "weights.data", self._platform.darwin)
        for file, text in texts.items():
            (folder / file).write_text(text)
        return ["entry.c", "api.c", "parallel.c", *(["embedded.S"] if options.embed_weights else [])]

    def _link(self, objects: Mapping[str, bytes], target: Target) -> None:
        """The archives, the shared library, and the programs, as far as the platform has them."""
        name, folder, platform = self._name, self._folder, self._platform
        for file, code in objects.items():
            (folder / file).write_bytes(code)
        archive = f"lib{name}.a"
        zig(folder, "ar", f"--format={'darwin' if platform.darwin else 'gnu'}", "rcsD", archive, *objects)
        self._keep(archive)
        if platform.shared is not None:
            file = f"lib{name}.{'dylib' if platform.darwin else 'so'}"
            link_shared(folder, platform, file, list(objects), self.external, self._interface())
            self._keep(file)
        if platform.folder:
            return
        probes = f"lib{name}-probes.a"
        (folder / probes).write_bytes(
            probe_archive(dataclasses.replace(target.computing("float32"), costs=None), platform)
        )
        self._keep(probes)
        if platform.program is not None:
            self.programs = f"{name}-run", f"{name}-bench"
            static = ("cc", "-target", platform.program, "-static", "-O2", "-g0", "-s", "-std=c11")
            for source, file in zip((("main.c", archive), ("bench.c", archive, probes)), self.programs, strict=True):
                zig(folder, *static, *source, "-o", file)
                self._keep(file)

    def _keep(self, file: str) -> None:
        self.files[file] = (self._folder / file).read_bytes()

    def _interface(self) -> set[str]:
        """The functions that the header declares."""
        header = (self._folder / f"{self._name}.h").read_text()
        return set(re.findall(rf"\b({self._name}_\w+)\(", header))


def prefixed(program: Program, name: str) -> Program:
    """The program with its kernels under symbols that begin with `name`."""
    kernels = {f"{name}_{s}": f.with_attr("global_symbol", f"{name}_{s}") for s, f in program.kernels.items()}
    steps = [dataclasses.replace(step, symbol=f"{name}_{step.symbol}") for step in program.steps]
    return dataclasses.replace(program, steps=steps, kernels=kernels)


def launcher(name: str) -> str:
    """What the pointer to the launcher of parallel loops is called: of TVM's length, and the library's own."""
    return f"{name[:10]}_launch_{zlib.crc32(name.encode()):08x}".ljust(len(_LAUNCH), "_")


def names_header(name: str) -> str:
    """C macros that give internal symbols the library's name."""
    pairs = [(f"secateur_{inner}", f"{name}_internal_{inner}") for inner in _INTERNAL]
    return "".join(f"#define {old} {new}\n" for old, new in [*pairs, (_LAUNCH, launcher(name))])


def named(text: str, name: str) -> str:
    """A C source whose interface begins with `name` instead of `model`."""
    text = re.sub(r"\bmodel_(?=\w)", f"{name}_", text)
    return re.sub(r"\bMODEL_(?=\w)", f"{name.upper()}_", text).replace('"model.h"', f'"{name}.h"')


def weights_file(payload: bytes) -> bytes:
    """weights.bin: a header of one line (magic, version, CRC-32, bytes), then the weights."""
    header = _MAGIC + struct.pack("<IIQ", WEIGHTS_VERSION, zlib.crc32(payload), len(payload))
    return header.ljust(ALIGNMENT, b"\0") + payload


def tables(program: Program, memory: MemoryPlan, payload: bytes, name: str, embedded: bool, target: Target) -> str:
    """tables.h: what the C interface knows of this model."""
    numbers = {
        "INPUTS": len(program.inputs),
        "OUTPUTS": len(program.outputs),
        "ARENA_BYTES": f"{memory.arena_bytes}ull",
        "WEIGHTS_BYTES": f"{len(payload)}ull",
        "WEIGHTS_CRC": f"{zlib.crc32(payload)}u",
        "EMBEDDED": int(embedded),
        "CPU_LEVEL": _LEVELS.get(target.cpu, 0),
        "HALF_PRECISION": int(target.dtype == "float16"),
    }
    defines = "".join(f"#define {key} {value}\n" for key, value in numbers.items())
    return f"/* Generated by Secateur. */\n{defines}{_tensors('inputs', program.inputs, name)}" + _tensors(
        "outputs", program.outputs, name
    )


def _tensors(kind: str, buffers: list[Buffer], name: str) -> str:
    shapes, rows = [], []
    for index, buffer in enumerate(buffers):
        shape = f"{kind}_shape{index}"
        shapes.append(f"static const int64_t {shape}[] = {{{', '.join(map(str, buffer.shape)) or '0'}}};\n")
        dtype = f"{name.upper()}_{_DTYPES[str(buffer.dtype)]}"
        rows.append(f"  {{{_c_string(buffer.name)}, {dtype}, {len(buffer.shape)}, {shape}, {buffer.nbytes}}},\n")
    table = "".join(rows) or "  {0, 0, 0, 0, 0},\n"
    return f"{''.join(shapes)}static const {name}_tensor {kind}[] = {{\n{table}}};\n"


def _c_string(text: str) -> str:
    """A C string literal of the UTF-8 bytes; three octal digits cannot run into what follows."""
    plain = re.sub(r"[^ !#-\[\]-~]", "", text)
    if plain == text and "??" not in text:
        return json.dumps(text)
    return '"' + "".join(f"\\{byte:03o}" for byte in text.encode()) + '"'
