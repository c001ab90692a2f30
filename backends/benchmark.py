"""Time a compiled artifact, alone or against ONNX Runtime in the same process.

Rounds alternate between the two, so that a noisy machine disturbs both alike; what is compared is the median.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backends.runtime.loader import Executable, load
from compiler.errors import SecateurError

_CALLS_PER_ROUND = 5
_WARM_UP = 3
_PAUSE = 0.02
"""Seconds before each round: the other's threads may go on spinning for a while after their work is done."""


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median, the least, and the quartiles' distance over the median."""

    median: float
    least: float
    spread: float
    calls: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """Summarise single calls."""
        low, median, high = np.percentile(seconds, (25, 50, 75))
        return cls(float(median), min(seconds), float((high - low) / median), len(seconds))


@dataclass(frozen=True)
class BenchmarkResult:
    """Timings of an artifact and, where asked for, of its peer.

    ratio: our median over the peer's (below 1 is faster than the peer). difference: largest relative
    difference of an output (norm of the difference over the norm). gflops: multiply-accumulates count two.
    """

    threads: int
    ours: Timing
    peer: Timing | None
    macs: int
    difference: float | None

    @property
    def ratio(self) -> float | None:
        """Our time over the peer's."""
        return None if self.peer is None else self.ours.median / self.peer.median

    @property
    def gflops(self) -> float:
        """Billions of floating-point operations a second."""
        return 2 * self.macs / self.ours.median / 1e9


def benchmark(
    artifact_path: str | Path,
    against_onnx: str | Path | bytes | None = None,
    threads: int = 1,
    seconds: float = 3.0,
) -> BenchmarkResult:
    """Run the artifact for about `seconds` on random inputs, alternating with ONNX Runtime on `against_onnx`.

    against_onnx is a model's file, or its serialized bytes; ONNX Runtime gets the same number of threads. Raises
    SecateurError E_NO_PEER when ONNX Runtime is not installed.
    """
    with load(artifact_path, threads) as executable:
        feeds = random_inputs(executable)
        ours = executable.run(feeds)
        calls: list[Callable[[], object]] = [lambda: executable.run(feeds)]
        difference = None
        if against_onnx is not None:
            session = _session(against_onnx, threads)
            theirs = dict(zip([o.name for o in executable.outputs], session.run(list(ours), feeds), strict=True))
            difference = max(relative_difference(theirs[name], ours[name]) for name in ours)
            calls.append(lambda: session.run(None, feeds))
        times = _alternate(calls, seconds)
        macs = int(executable.manifest["macs"])
    timings = [Timing.of(t) for t in times]
    return BenchmarkResult(threads, timings[0], timings[1] if len(timings) > 1 else None, macs, difference)


def random_inputs(executable: Executable, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs of the right type and shape: normal numbers, and zeros for integers and booleans (they may index)."""
    generator = np.random.default_rng(seed)
    return {
        i.name: generator.standard_normal(i.shape).astype(i.dtype)
        if i.dtype.kind == "f"
        else np.zeros(i.shape, i.dtype)
        for i in executable.inputs
    }


def relative_difference(expected: np.ndarray, actual: np.ndarray) -> float:
    """Norm of the difference over the norm."""
    a, b = expected.astype(np.float64), actual.astype(np.float64)
    return float(np.linalg.norm(a - b) / max(float(np.linalg.norm(a)), 1e-30))


def _alternate(calls: list[Callable[[], object]], seconds: float) -> list[list[float]]:
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        for _ in range(_WARM_UP):
            call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not times[0]:
        for call, record in zip(calls, times, strict=True):
            time.sleep(_PAUSE)
            call()
            for _ in range(_CALLS_PER_ROUND):
                start = time.perf_counter()
                call()
                record.append(time.perf_counter() - start)
    return times


def _session(model: str | Path | bytes, threads: int):  # type: ignore[no-untyped-def]
    try:
        import onnxruntime
    except ImportError:
        raise SecateurError(
            "E_NO_PEER", "ONNX Runtime is not installed", hint="pip install 'secateur[verify]', or time without a peer"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
