"""Models and kernels on a device behind an RPC tracker: what is sent there, and how it is run and timed.

The code is linked here with a few functions that an RPC server of TVM can call (runtime/c/remote.c, remote_kernels.c);
the device needs a server and nothing of Secateur. Seconds are measured by the device's own clock.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from backends.aot import POOL, RUNTIME, compile_kernels
from backends.linking import external, link_shared
from backends.objects import needed
from backends.platforms import Platform, platforms
from backends.rpc import Device, Session
from backends.runtime.loader import check_inputs, read_manifest, tensor_info
from backends.schedules.kernel import Kernel
from backends.target import Target
from backends.trials import Trial, calls_source
from backends.zig import require_zig, zig
from compiler.errors import SecateurError

_SOURCES = RUNTIME / "c"
_FLAGS = ("-O2", "-g0", "-fPIC", "-std=c11", "-fvisibility=hidden")
_MODEL = ("__tvm_ffi_secateur_prepare", "__tvm_ffi_secateur_time", "__tvm_ffi_secateur_message")
_MESSAGE_BYTES = 256
_SESSION_SECONDS = 600.0
"""A session's end, whatever became of us; longer where more time is asked for."""
_LEVELS = {64: 4, 32: 3}
"""Of x86-64, by bytes of its vectors."""


class RemoteExecutable:
    """An artifact on a device. `run` and `time` are as those of `Executable`."""

    def __init__(self, path: str | Path, device: Device, threads: int = 1, seconds: float = _SESSION_SECONDS) -> None:
        self.path, self.threads = Path(path), threads
        self.manifest = read_manifest(self.path)
        self.inputs = tuple(tensor_info(i) for i in self.manifest["inputs"])
        self.outputs = tuple(tensor_info(o) for o in self.manifest["outputs"])
        files = model_libraries(self.path, self.manifest)
        self._session = device.connect(max(seconds, _SESSION_SECONDS))
        try:
            self._prepare(files)
        except BaseException:
            self.close()
            raise

    def _prepare(self, files: dict[str, bytes]) -> None:
        """Send the code, the weights, and room for results."""
        self._function = self._session.load(files, self.manifest["target"]["name"])
        held = [np.fromfile(self.path / "weights.bin", np.uint8)] if "weights.bin" in self.manifest["files"] else []
        self._weights = [self._session.tensor(array) for array in held]
        self._expect(self._function("secateur_prepare")(self.threads, *self._weights))
        self._time = self._function("secateur_time")
        self._results = [self._session.tensor(np.zeros(i.shape, i.dtype)) for i in self.outputs]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name for inputs by name, as `Executable.run`."""
        self.time(inputs, 1)
        pairs = zip(self.outputs, self._results, strict=True)
        return {info.name: self._session.fetch(held, info.dtype, info.shape) for info, held in pairs}

    def time(self, inputs: Mapping[str, np.ndarray], times: int) -> list[float]:
        """Seconds of each of so many runs, one after the other, by the device's clock."""
        arrays = [self._session.tensor(array) for array in check_inputs(inputs, self.inputs)]
        seconds = self._session.tensor(np.zeros(times))
        self._expect(self._time(seconds, *arrays, *self._results))
        return [float(s) for s in self._session.fetch(seconds, np.dtype(np.float64), (times,))]

    def _expect(self, status: int) -> None:
        """E_RUN with what the device says, unless it is 1."""
        if status == 1:
            return
        text = self._session.tensor(np.zeros(_MESSAGE_BYTES, np.uint8))
        self._function("secateur_message")(text)
        raw = self._session.fetch(text, np.dtype(np.uint8), (_MESSAGE_BYTES,)).tobytes()
        message = raw.partition(b"\0")[0].decode(errors="replace") or "it does not understand what it was sent"
        raise SecateurError("E_RUN", f"the device cannot run the model: {message}", where=str(self.path))

    def close(self) -> None:
        """Give the device back."""
        self._session.close()

    def __enter__(self) -> RemoteExecutable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RemoteKernels:
    """Kernels on a device, timed one call at a time. number: tells its library from others of the session."""

    def __init__(self, session: Session, kernels: Sequence[Kernel], target: Target, number: int = 0) -> None:
        self._session = session
        unique = {kernel.symbol: kernel for kernel in kernels}
        self._index = {symbol: index for index, symbol in enumerate(unique)}
        file = f"kernels{number}.so"
        function = session.load({file: kernel_library(list(unique.values()), target, file)}, target.name)
        self._time = function("secateur_time_kernel")

    def timer(self, trials: Sequence[Trial], arrays: Mapping[str, np.ndarray]) -> list[Callable[[], float]]:
        """For each kernel a call that runs it once and tells its seconds; all read and write the same activations."""
        shared = {role: self._session.tensor(array) for role, array in arrays.items()}
        return [self._timed(trial, shared) for trial in trials]

    def _timed(self, trial: Trial, shared: Mapping[str, Any]) -> Callable[[], float]:
        kernel = trial.kernel
        own = {**trial.packed, "workspace": np.zeros(max(1, kernel.workspace_bytes), np.uint8)}
        made = {role: self._session.tensor(own[role]) for role in kernel.params if role in own}
        tensors = [made[role] if role in made else shared[role] for role in kernel.params]

        def call() -> float:
            seconds = float(self._time(self._index[kernel.symbol], *tensors))
            if seconds < 0:
                raise SecateurError("E_RUN", f"kernel {kernel.symbol} failed while it was measured")
            return seconds

        return call


def kernel_library(kernels: Sequence[Kernel], target: Target, file: str) -> bytes:
    """A shared library of kernels that an RPC server can call, one by one and on one thread."""
    platform = platform_of(target.triple, target.name)
    with tempfile.TemporaryDirectory(prefix="secateur-rpc-") as name:
        folder = Path(name)
        (folder / "calls.c").write_text(calls_source(kernels, "remote_call"))
        sources = [*_copied(folder, "remote_kernels.c", "remote.h"), *_copied(folder, *POOL)]
        objects = [_compiled(folder, platform, source) for source in ("calls.c", *sources)]
        for index, code in enumerate(compile_kernels({k.symbol: k.func for k in kernels}, target)):
            objects.append(f"kernels{index}.o")
            (folder / objects[-1]).write_bytes(code)
        needs = external(needed((folder / file).read_bytes() for file in objects), platform)
        link_shared(folder, platform, file, objects, needs, ("__tvm_ffi_secateur_time_kernel",))
        return (folder / file).read_bytes()


def model_libraries(path: Path, manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """The libraries of an artifact as an RPC server can call it, in the order in which they are sent."""
    target = manifest["target"]
    package = manifest.get("package", "library")
    if package not in ("c", "library"):
        raise _no_device(target["name"])
    platform = platform_of(target["triple"], target["name"])
    with tempfile.TemporaryDirectory(prefix="secateur-rpc-") as name:
        folder = Path(name)
        defines = [
            f"-DPACKAGE_C={int(package == 'c')}",
            f"-DINPUTS={len(manifest['inputs'])}",
            f"-DOUTPUTS={len(manifest['outputs'])}",
            f"-DWEIGHTS={int('weights.bin' in manifest['files'])}",
        ]
        _copied(folder, "remote.c", "remote.h", "cpu.h")
        if package == "c":
            return {"remote.so": _c_library(path, manifest, platform, folder, defines)}
        defines.append(f"-DCPU_LEVEL={_LEVELS.get(target['vector_bytes'], 0)}")
        model = (path / "model.so").read_bytes()
        (folder / "model.so").write_bytes(model)
        objects = [_compiled(folder, platform, "remote.c", *defines), "model.so"]
        link_shared(folder, platform, "remote.so", objects, {}, _MODEL, ("-Wl,-rpath,$ORIGIN",))
        return {"model.so": model, "remote.so": (folder / "remote.so").read_bytes()}


def _c_library(
    path: Path, manifest: Mapping[str, Any], platform: Platform, folder: Path, defines: Sequence[str]
) -> bytes:
    """A C library's static library, and the functions that call it."""
    from backends.clibrary import named

    name = manifest["name"]
    (folder / "remote.c").write_text(named((folder / "remote.c").read_text(), name))
    (folder / f"{name}.h").write_bytes((path / f"{name}.h").read_bytes())
    archive = f"lib{name}.a"
    (folder / archive).write_bytes((path / archive).read_bytes())
    code = _compiled(folder, platform, "remote.c", *defines)
    undefined = {s for s in needed([(folder / code).read_bytes()]) if not s.startswith(f"{name}_")}
    undefined |= {symbol for symbols in manifest["symbols"].values() for symbol in symbols}
    link_shared(folder, platform, "remote.so", [code, archive], external(undefined, platform), _MODEL)
    return (folder / "remote.so").read_bytes()


def platform_of(triple: str, name: str) -> Platform:
    """What code for a triple is linked for; E_TARGET for what no RPC server of TVM runs on."""
    require_zig()
    probe = Target(name, triple, "", (), 16, 16, 1, 1)
    try:
        return platforms(probe)[0]
    except SecateurError:
        raise _no_device(name) from None


def _no_device(name: str) -> SecateurError:
    return SecateurError(
        "E_TARGET",
        f"artifacts for target {name!r} are not run through RPC",
        hint="use one for this kind of machine, x86-64 or ARM",
    )


def _copied(folder: Path, source: str, *headers: str) -> list[str]:
    for file in (source, *headers):
        home = _SOURCES if (_SOURCES / file).is_file() else RUNTIME
        (folder / file).write_text((home / file).read_text())
    return [source]


def _compiled(folder: Path, platform: Platform, source: str, *flags: str) -> str:
    file = f"{Path(source).stem}.o"
    zig(folder, "cc", "-target", platform.zig, *_FLAGS, *platform.flags, *flags, "-c", source, "-o", file)
    return file
