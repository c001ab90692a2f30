"""Choosing schedules by measurement: candidates of a layer take turns, here or on a device, and the fastest is taken.

What was measured is kept per layer, under a hash of its shape, its zeros, the machine and the candidates, so that
nothing is measured twice and an interrupted tuning goes on where it stopped.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backends.aot import cache_folder, kernel_library
from backends.kept import read_kept, write_kept
from backends.remote import RemoteKernels
from backends.rpc import Device
from backends.schedules.kernel import ALIGNMENT, Kernel
from backends.selection import Candidate
from backends.selector import Request
from backends.target import Target
from backends.trials import Trial, activations, trial
from compiler.errors import SecateurError
from compiler.version import __version__

Progress = Callable[[str, int, int], None]
Timed = Callable[[], float]
"""Runs a kernel once; its seconds."""
Timer = Callable[[Sequence[Trial], Mapping[str, np.ndarray]], list[Timed]]
"""How kernels are called, each with its constants, all with the same activations by role."""
Machine = Callable[[Sequence[Kernel], Target], AbstractContextManager[Timer]]
"""Where kernels are timed: what makes a timer of some, which holds as long as the context does."""

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
    """A layer and the candidates that are measured for it. place: what tells a device from this machine."""

    key: str
    request: Request
    candidates: tuple[Candidate, ...]
    place: tuple[str, ...] = ()

    @classmethod
    def of(cls, key: str, request: Request, place: tuple[str, ...]) -> _Job:
        ranked = sorted((request.choice.chosen, *request.choice.others), key=lambda c: c.cycles)
        near = [c for c in ranked if c.cycles <= _HOPELESS * ranked[0].cycles][:_MOST_CANDIDATES]
        if request.choice.chosen not in near:
            near.append(request.choice.chosen)
        return cls(key, request, tuple(near), place)

    @property
    def file(self) -> str:
        """The name of its record."""
        labels = json.dumps([self.key, __version__, *(c.label for c in self.candidates), *self.place])
        return hashlib.sha256(labels.encode()).hexdigest() + ".json"


def tune(
    requests: Mapping[str, Request],
    target: Target,
    seconds: float,
    *,
    folder: str | Path | None = None,
    progress: Progress | None = None,
    device: Device | None = None,
) -> dict[str, str]:
    """The label of the fastest candidate for each layer that could be measured within about `seconds`.

    The most expensive layers come first. folder: where measurements are kept (default: the user's cache); those of
    devices under one key are taken for each other's. device: where to measure instead of here. Raises SecateurError
    E_TARGET when the target is not this machine and no device is given, and what `Device.connect` and `Session` do.
    """
    if target.name != "native" and device is None:
        raise SecateurError(
            "E_TARGET",
            f"target {target.name!r} cannot be measured on this machine",
            hint="tune with --target native, or on a device with --rpc HOST:PORT --key KEY, or leave out --tune",
        )
    place = () if device is None else ("rpc", device.key)
    kept = Path(folder or cache_folder("tuning"))
    jobs = [_Job.of(key, request, place) for key, request in requests.items()]
    jobs = sorted((j for j in jobs if len(j.candidates) > 1), key=lambda j: -j.request.choice.chosen.cycles)
    found = {job.key: times for job in jobs if (times := read_kept(kept / job.file, float)) is not None}
    missing = [job for job in jobs if job.key not in found]
    end = time.perf_counter() + seconds
    with ExitStack() as stack:
        machine: Machine = _here
        if device is not None and missing and seconds > 0:
            machine = _there(device, seconds, stack)
        for done in range(0, len(missing), _BATCH):
            if time.perf_counter() >= end:
                break
            if progress is not None:
                progress("tuning", done, len(missing))
            for job, times in _measure(missing[done : done + _BATCH], target, end, machine):
                found[job.key] = times
                write_kept(kept / job.file, times)
    return {job.key: _fastest(job, found[job.key]) for job in jobs if job.key in found}


def _fastest(job: _Job, times: Mapping[str, float]) -> str:
    best, usual = min(times, key=lambda label: times[label]), job.candidates[0].label
    return best if times[best] < _GAIN * times.get(usual, np.inf) else usual


def _measure(jobs: list[_Job], target: Target, end: float, machine: Machine) -> Iterator[tuple[_Job, dict[str, float]]]:
    """Median seconds of each candidate by label, on one thread, job by job until time is up."""
    kernels = {job.key: [candidate.make(target, True) for candidate in job.candidates] for job in jobs}
    with machine([kernel for made in kernels.values() for kernel in made], target) as timer:
        for job in jobs:
            if time.perf_counter() >= end:
                return
            spec, weights = job.request.spec, job.request.weights
            generator = np.random.default_rng(0)
            arrays = {
                role: generator.standard_normal(size).astype(np.float32) for role, size in activations(spec).items()
            }
            medians = _take_turns(timer([trial(kernel, spec, weights) for kernel in kernels[job.key]], arrays))
            yield job, {c.label: t for c, t in zip(job.candidates, medians, strict=True)}


def _take_turns(calls: list[Timed]) -> list[float]:
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    end = time.perf_counter() + _ROUND_SECONDS * len(calls)
    while len(times[0]) < 3 or (len(times[0]) < _ROUNDS and time.perf_counter() < end):
        for call, record in zip(calls, times, strict=True):
            record.append(call())
    return [float(np.median(record)) for record in times]


@contextmanager
def _here(kernels: Sequence[Kernel], target: Target) -> Iterator[Timer]:
    """Kernels in a library of this process."""
    functions = {kernel.symbol: kernel.func for kernel in kernels}
    with tempfile.TemporaryDirectory(prefix="secateur-tune-") as name:
        path = Path(name) / "kernels.so"
        path.write_bytes(kernel_library(functions, target))
        library = ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL)

        def timer(trials: Sequence[Trial], arrays: Mapping[str, np.ndarray]) -> list[Timed]:
            shared = {role: _aligned(array) for role, array in arrays.items()}
            return [_bind(library, made, shared) for made in trials]

        yield timer


def _there(device: Device, seconds: float, stack: ExitStack) -> Machine:
    """Kernels on a device, in one session for all."""
    session, numbers = stack.enter_context(device.connect(2 * seconds + device.timeout)), itertools.count()

    def machine(kernels: Sequence[Kernel], target: Target) -> AbstractContextManager[Timer]:
        return nullcontext(RemoteKernels(session, kernels, target, next(numbers)).timer)

    return machine


def _bind(library: ctypes.CDLL, made: Trial, arrays: Mapping[str, np.ndarray]) -> Timed:
    kernel = made.kernel
    packed = {role: _aligned(array) for role, array in made.packed.items()}
    held = {**arrays, **packed, "workspace": _aligned(np.zeros(max(1, kernel.workspace_bytes), np.uint8))}
    pointers = [ctypes.c_void_p(held[role].ctypes.data) for role in kernel.params]
    function = library[kernel.symbol]

    def call() -> float:
        start = time.perf_counter()
        status = function(*pointers)
        seconds = time.perf_counter() - start
        if status:
            raise SecateurError("E_RUN", f"kernel {kernel.symbol} failed while it was measured")
        return seconds

    call.held = held  # type: ignore[attr-defined]
    return call


def _aligned(array: np.ndarray) -> np.ndarray:
    raw = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
