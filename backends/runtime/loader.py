"""Load a compiled artifact and run it, with numpy alone: neither TVM nor onnx is imported.

The artifact is a directory (see `backends.artifact`): its manifest is checked against the files, its weights are
memory-mapped, its library is called through ctypes.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import platform
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.errors import SecateurError

if TYPE_CHECKING:
    from backends.runtime.node import NodeExecutable
    from backends.runtime.program import ProgramExecutable

FORMAT_VERSION = 1
"""Version of the artifact's layout that this loader reads."""
ABI_VERSION = 1
"""Version of the library's C interface that this loader calls."""
_ALIGNMENT = 64


@dataclass(frozen=True)
class TensorInfo:
    """Name, element type and shape of one input or output."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]


def load(
    path: str | Path, threads: int = 1, variant: str | None = None
) -> Executable | NodeExecutable | ProgramExecutable:
    """Open the artifact directory `path` for running on `threads` threads; WebAssembly runs in Node.

    A C library for another kind of machine runs through its own program under qemu-user.

    variant: which of an artifact's codes, where it has several (its manifest's "variants"); the best if not given.

    Raises SecateurError: E_ARTIFACT for a directory that is not an artifact or was changed, E_FORMAT for one of
    another version, E_TARGET for one that was built for another kind of machine, E_NO_NODE for WebAssembly without
    Node 20 or newer.
    """
    manifest = read_manifest(Path(path))
    if str(manifest["target"]["triple"]).startswith("wasm32"):
        from backends.runtime.node import NodeExecutable

        return NodeExecutable(Path(path), threads, manifest, variant)
    if manifest.get("package") == "c":
        from backends.runtime.program import ProgramExecutable

        return ProgramExecutable(Path(path), threads, manifest)
    return Executable(Path(path), threads, manifest)


class Executable:
    """A loaded model. `run` may be called from several threads at once: with one thread per run the calls
    proceed side by side, with a thread pool they take turns. Use `close`, or `with`, to release the memory."""

    def __init__(self, path: Path, threads: int = 1, manifest: dict[str, Any] | None = None) -> None:
        if threads < 1:
            raise SecateurError("E_INPUT", f"threads must be at least 1, not {threads}")
        self.path = path
        self.threads = threads
        self.manifest = read_manifest(path) if manifest is None else manifest
        _require_machine(self.manifest["target"], path)
        self.inputs = tuple(tensor_info(i) for i in self.manifest["inputs"])
        self.outputs = tuple(tensor_info(o) for o in self.manifest["outputs"])
        self._weights: np.ndarray | None = np.memmap(path / "weights.bin", dtype=np.uint8, mode="r")
        self._library = _library(path / "model.so", self.manifest["files"]["model.so"]["sha256"])
        self._arenas: list[np.ndarray] = []
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._running = 0
        self._pool = self._library.secateur_pool_create(threads) if threads > 1 else None
        if threads > 1 and not self._pool:
            raise SecateurError("E_THREADS", f"the system refused to start {threads} threads", hint="use fewer threads")

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name for inputs by name. Names, element types and shapes must match `self.inputs`.

        Raises SecateurError E_INPUT otherwise; nothing is cast silently.
        """
        arrays = check_inputs(inputs, self.inputs)
        results = [np.empty(o.shape, o.dtype) for o in self.outputs]
        with self._arena() as arena:
            self._call(arrays, results, arena, 0, len(self.manifest["layers"]))
        return {o.name: r for o, r in zip(self.outputs, results, strict=True)}

    def time(self, inputs: Mapping[str, np.ndarray], times: int) -> list[float]:
        """Seconds of each of so many runs, one after the other."""
        seconds = []
        for _ in range(times):
            start = perf_counter()
            self.run(inputs)
            seconds.append(perf_counter() - start)
        return seconds

    def profile(self, inputs: Mapping[str, np.ndarray], repeats: int = 10) -> list[float]:
        """Median seconds of each layer of `manifest["layers"]`, in order, over `repeats` runs.

        What a call costs is left out, so a layer that takes less than the clock's noise may count as 0.
        """
        arrays = check_inputs(inputs, self.inputs)
        results = [np.empty(o.shape, o.dtype) for o in self.outputs]
        layers = len(self.manifest["layers"])
        times = np.zeros((repeats, layers + 1))
        with self._arena() as arena:
            for row in times:
                for index in range(layers + 1):
                    start = perf_counter()
                    self._call(arrays, results, arena, index, min(index + 1, layers))
                    row[index] = perf_counter() - start
        *found, nothing = np.median(times, axis=0)
        return [max(0.0, float(t - nothing)) for t in found]

    def close(self) -> None:
        """Stop the threads and release the memory. Closing twice does nothing; E_CLOSED while a run is in progress."""
        with self._lock:
            if self._running:
                raise SecateurError("E_CLOSED", "close() was called while another thread is inside run()")
            if self._pool:
                self._library.secateur_pool_destroy(self._pool)
                self._pool = None
            self._weights = None
            self._arenas.clear()

    def __enter__(self) -> Executable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_pool", None):
            self._library.secateur_pool_destroy(self._pool)
            self._pool = None

    def __repr__(self) -> str:
        return f"Executable({str(self.path)!r}, threads={self.threads})"

    def _call(
        self, inputs: list[np.ndarray], results: list[np.ndarray], arena: np.ndarray, first: int, last: int
    ) -> None:
        assert self._weights is not None
        weights, memory = self._weights.ctypes.data, arena.ctypes.data
        arguments = (first, last, _pointers(inputs), _pointers(results), weights, memory, self._pool)
        with self._turn if self._pool else nullcontext():
            status = self._library.secateur_run_steps(*arguments)
        if status:
            raise SecateurError("E_RUN", f"the model failed with status {status}", where=str(self.path))

    @contextmanager
    def _arena(self) -> Iterator[np.ndarray]:
        """Scratch memory for one run; each run in progress has its own."""
        with self._lock:
            if self._weights is None:
                raise SecateurError("E_CLOSED", "the executable is closed", hint="load the artifact again")
            self._running += 1
            arena = self._arenas.pop() if self._arenas else None
        try:
            arena = _aligned(int(self.manifest["arena_bytes"])) if arena is None else arena
            yield arena
        finally:
            with self._lock:
                self._running -= 1
                if arena is not None:
                    self._arenas.append(arena)


def check_inputs(inputs: Mapping[str, np.ndarray], infos: Sequence[TensorInfo]) -> list[np.ndarray]:
    """The inputs in order, in row-major memory; SecateurError E_INPUT where names, types or shapes are others."""
    wanted = {i.name for i in infos}
    unknown, missing = sorted(set(inputs) - wanted), sorted(wanted - set(inputs))
    if unknown or missing:
        problem = f"unknown input {unknown[0]!r}" if unknown else f"input {missing[0]!r} is missing"
        raise SecateurError("E_INPUT", problem, hint=f"the inputs are: {', '.join(map(_describe, infos))}")
    arrays = []
    for info in infos:
        array = inputs[info.name]
        if not isinstance(array, np.ndarray):
            raise SecateurError(
                "E_INPUT", f"input {info.name!r} is a {type(array).__name__}, not a numpy array", hint="np.asarray"
            )
        if array.dtype != info.dtype:
            raise SecateurError(
                "E_INPUT",
                f"input {info.name!r} has element type {array.dtype}, not {info.dtype}",
                hint=f"convert it: {info.name}.astype(np.{info.dtype})",
            )
        if array.shape != info.shape:
            raise SecateurError(
                "E_INPUT",
                f"input {info.name!r} has shape {list(array.shape)}, not {list(info.shape)}",
                hint="shapes are fixed when the model is compiled; compile again with --shape for another one",
            )
        arrays.append(np.ascontiguousarray(array).reshape(info.shape))
    return arrays


def _aligned(nbytes: int) -> np.ndarray:
    raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + nbytes]


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an artifact whose files are whole and unchanged."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        version = manifest["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SecateurError(
            "E_ARTIFACT",
            f"{str(path)!r} is not a compiled artifact: {type(error).__name__} while reading its manifest.json",
            where=str(path),
            hint="give the directory that `secateur compile … -o DIR` wrote",
        ) from None
    if version != FORMAT_VERSION:
        raise SecateurError(
            "E_FORMAT",
            f"the artifact has format version {version}; this loader reads {FORMAT_VERSION}",
            where=str(path),
            hint="compile the model again with this version of secateur",
        )
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != expected["bytes"] or _sha256(file) != expected["sha256"]:
            raise SecateurError(
                "E_ARTIFACT",
                f"{name} is {'not the file' if file.is_file() else 'missing'} that the manifest names",
                where=str(file),
                hint="the artifact was changed or cut short; copy or compile it again",
            )
    return dict(manifest)


_NEEDED_FLAGS = {64: "avx512f", 32: "avx2"}


def architecture(machine: str) -> str:
    """LLVM's name of a kind of machine that has several."""
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine.lower(), machine.lower())


def _require_machine(target: Mapping[str, Any], path: Path) -> None:
    """Refuse code for another kind of processor with words, before the processor does with a signal."""
    arch, here = architecture(str(target["triple"]).split("-")[0]), architecture(platform.machine())
    problem = f"for {arch}, and this is {here}" if arch != here else ""
    flag = _NEEDED_FLAGS.get(int(target["vector_bytes"])) if arch == "x86_64" else None
    if not problem and flag is not None:
        try:
            flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split()
        except (OSError, IndexError):
            flags = [flag]
        if flag not in flags:
            problem = f"for processors with {flag}, which this one lacks"
    if problem:
        raise SecateurError(
            "E_TARGET",
            f"the artifact was compiled {problem}",
            where=str(path),
            hint="compile on this machine, or for a target that names it",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_loaded: dict[str, list[str]] = {}
"""Contents (sha256) of the libraries that this process has loaded from each path."""


def _distinct_name(path: Path, content: str) -> str:
    """A spelling of `path` that no other content was loaded by: the system's loader takes a name that it has seen
    for the library that it has, although the artifact was built anew in between."""
    contents = _loaded.setdefault(str(path.resolve()), [])
    if content not in contents:
        contents.append(content)
    return f"{path.resolve().parent}/{'./' * contents.index(content)}{path.name}"


def _library(path: Path, content: str) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_distinct_name(path, content), mode=ctypes.RTLD_LOCAL)
        version = library.secateur_abi_version()
    except (OSError, AttributeError) as error:
        raise SecateurError(
            "E_TARGET",
            f"the compiled code cannot be loaded here: {error}",
            where=str(path),
            hint="compile for this machine with --target native",
        ) from None
    if version != ABI_VERSION:
        raise SecateurError(
            "E_FORMAT", f"the library has interface version {version}; this loader calls {ABI_VERSION}", where=str(path)
        )
    pointer = ctypes.c_void_p
    library.secateur_run_steps.argtypes = [ctypes.c_int32, ctypes.c_int32, *[pointer] * 5]
    library.secateur_run_steps.restype = ctypes.c_int32
    library.secateur_pool_create.argtypes = [ctypes.c_int32]
    library.secateur_pool_create.restype = pointer
    library.secateur_pool_destroy.argtypes = [pointer]
    library.secateur_pool_destroy.restype = None
    return library


def _pointers(arrays: list[np.ndarray]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * max(1, len(arrays)))(*(a.ctypes.data for a in arrays))


def tensor_info(entry: Mapping[str, Any]) -> TensorInfo:
    """An entry of a manifest's inputs or outputs."""
    return TensorInfo(entry["name"], np.dtype(entry["dtype"]), tuple(entry["shape"]))


def _describe(info: TensorInfo) -> str:
    return f"{info.name} {info.dtype}{list(info.shape)}"
