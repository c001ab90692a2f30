"""Choosing schedules by measurement: candidates of a layer take turns on this machine, and the fastest is taken.

What was measured is kept per layer, under a hash of its shape, its zeros, the machine and the candidates, so that
nothing is measured twice and an interrupted tuning goes on where it stopped.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backends.aot import cache_folder, kernel_library
from backends.schedules.kernel import ALIGNMENT, Kernel
from backends.schedules.specs import ConvSpec, MatMulSpec
from backends.selection import Candidate, Request
from backends.target import Target
from compiler.errors import SecateurError
from compiler.version import __version__

Progress = Callable[[str, int, int], None]

#: Candidates that are estimated to take longer than so many times the cheapest are not measured.
_HOPELESS = 1.6
_MOST_CANDIDATES = 5
#: Layers that are compiled and linked together.
_BATCH = 8
_ROUNDS = 12
_ROUND_SECONDS = 0.04
#: What another candidate must gain to replace the one that the cost model prefers.
_GAIN = 0.97


@dataclass(frozen=True)
class _Job:
    """A layer and the candidates that are measured for it."""

    key: str
    request: Request
    candidates: tuple[Candidate, ...]

    @classmethod
    def of(cls, key: str, request: Request) -> _Job:
        ranked = sorted((request.choice.chosen, *request.choice.others), key=lambda c: c.cycles)
        near = [c for c in ranked if c.cycles <= _HOPELESS * ranked[0].cycles][:_MOST_CANDIDATES]
        if request.choice.chosen not in near:
            near.append(request.choice.chosen)
        return cls(key, request, tuple(near))

    @property
    def file(self) -> str:
        """The name of its record."""
        labels = json.dumps([self.key, __version__, *(c.label for c in self.candidates)])
        return hashlib.sha256(labels.encode()).hexdigest() + ".json"


def tune(
    requests: Mapping[str, Request],
    target: Target,
    seconds: float,
    *,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, str]:
    """The label of the fastest candidate for each layer that could be measured within about `seconds`.

    The most expensive layers come first. folder: where measurements are kept (default: the user's cache). Raises
    SecateurError E_TARGET when the target is not this machine.
    """
    if target.name != "native":
        raise SecateurError(
            "E_TARGET",
            f"target {target.name!r} cannot be measured on this machine",
            hint="tune with --target native, or leave out --tune",
        )
    kept = Path(folder or cache_folder("tuning"))
    jobs = [_Job.of(key, request) for key, request in requests.items()]
    jobs = sorted((j for j in jobs if len(j.candidates) > 1), key=lambda j: -j.request.choice.chosen.cycles)
    found = {job.key: times for job in jobs if (times := _read(kept / job.file)) is not None}
    missing = [job for job in jobs if job.key not in found]
    end = time.perf_counter() + seconds
    for done in range(0, len(missing), _BATCH):
        if time.perf_counter() >= end:
            break
        if progress is not None:
            progress("tuning", done, len(missing))
        for job, times in _measure(missing[done : done + _BATCH], target, end):
            found[job.key] = times
            _write(kept / job.file, times)
    return {job.key: _fastest(job, found[job.key]) for job in jobs if job.key in found}


def _fastest(job: _Job, times: Mapping[str, float]) -> str:
    best, usual = min(times, key=lambda label: times[label]), job.candidates[0].label
    return best if times[best] < _GAIN * times.get(usual, np.inf) else usual


def _measure(jobs: list[_Job], target: Target, end: float) -> Iterator[tuple[_Job, dict[str, float]]]:
    """Median seconds of each candidate by label, on one thread, job by job until time is up."""
    kernels = {job.key: [candidate.make(target, True) for candidate in job.candidates] for job in jobs}
    functions = {kernel.symbol: kernel.func for made in kernels.values() for kernel in made}
    with tempfile.TemporaryDirectory(prefix="secateur-tune-") as name:
        path = Path(name) / "kernels.so"
        path.write_bytes(kernel_library(functions, target))
        library = ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL)
        for job in jobs:
            if time.perf_counter() >= end:
                return
            arrays = _activations(job.request.spec)
            calls = [_bind(library, kernel, job.request, arrays) for kernel in kernels[job.key]]
            medians = _take_turns(calls)
            yield job, {c.label: t for c, t in zip(job.candidates, medians, strict=True)}


def _take_turns(calls: list[Callable[[], None]]) -> list[float]:
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    end = time.perf_counter() + _ROUND_SECONDS * len(calls)
    while len(times[0]) < 3 or (len(times[0]) < _ROUNDS and time.perf_counter() < end):
        for call, record in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            record.append(time.perf_counter() - start)
    return [float(np.median(record)) for record in times]


def _activations(spec: ConvSpec | MatMulSpec) -> dict[str, np.ndarray]:
    """Random activations by role."""
    generator = np.random.default_rng(0)
    if isinstance(spec, ConvSpec):
        out = spec.batch * spec.out_channels * spec.out_height * spec.out_width
        sizes = {"x": spec.batch * spec.in_channels * spec.height * spec.width, "residual": out, "y": out}
    else:
        out = spec.batch * spec.m * spec.n
        sizes = {"a": spec.batch * spec.m * spec.k, "b": spec.batch * spec.k * spec.n, "residual": out, "y": out}
    return {role: _aligned(generator.standard_normal(size).astype(np.float32)) for role, size in sizes.items()}


def _bind(
    library: ctypes.CDLL, kernel: Kernel, request: Request, arrays: Mapping[str, np.ndarray]
) -> Callable[[], None]:
    spec = request.spec
    size = spec.out_channels if isinstance(spec, ConvSpec) else spec.m if spec.bias_axis == "m" else spec.n
    bias = np.zeros(size, np.float32) if spec.epilogue.bias else None
    packed = {role: _aligned(array) for role, array in kernel.pack(request.weights, bias).items()}
    held = {**arrays, **packed, "workspace": _aligned(np.zeros(max(1, kernel.workspace_bytes), np.uint8))}
    pointers = [ctypes.c_void_p(held[role].ctypes.data) for role in kernel.params]
    function = library[kernel.symbol]

    def call() -> None:
        if function(*pointers):
            raise SecateurError("E_RUN", f"kernel {kernel.symbol} failed while it was measured")

    call.held = held  # type: ignore[attr-defined]
    return call


def _aligned(array: np.ndarray) -> np.ndarray:
    raw = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _read(path: Path) -> dict[str, float] | None:
    try:
        times = json.loads(path.read_text())
        return {str(label): float(t) for label, t in times.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def _write(path: Path, times: Mapping[str, float]) -> None:
    """Whole or not at all; a cache that cannot be written is no reason to fail."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(times))
        draft.replace(path)
    except OSError:
        pass
