"""Time a compiled artifact, alone or against others: ONNX Runtime in the same process, or whatever can time itself.

Rounds alternate between them, so that a noisy machine disturbs all alike; what is compared is the median.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from backends.rpc import Device
from backends.runtime.loader import Executable, load
from backends.runtime.node import NodeExecutable
from backends.runtime.program import ProgramExecutable
from compiler.errors import SecateurError

if TYPE_CHECKING:
    from backends.remote import RemoteExecutable

Timed: TypeAlias = Callable[[int], list[float]]
"""Runs so many times, one after the other, and returns the seconds of each."""

_CALLS_PER_ROUND = 5
_WARM_UP = 3
_PAUSE = 0.02
"""Seconds before each round: another's threads may go on spinning for a while after their work is done."""
_LONG = 0.1
"""Seconds of a call from which on it stands for itself: no call before it to warm the caches, one a round."""


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
        sides: list[Timed] = [lambda times: executable.time(feeds, times)]
        difference = None
        if against_onnx is not None:
            session = onnxruntime_session(against_onnx, threads)
            difference = largest_difference(onnxruntime_outputs(session, feeds), executable.run(feeds))
            sides.append(timed(lambda: session.run(None, feeds)))
        timings = alternate(sides, seconds)
        macs = int(executable.manifest["macs"])
    return BenchmarkResult(threads, timings[0], timings[1] if len(timings) > 1 else None, macs, difference)


def benchmark_on(
    device: Device,
    artifact_path: str | Path,
    model: str | Path | None = None,
    threads: int = 1,
    seconds: float = 3.0,
) -> BenchmarkResult:
    """Run the artifact on a device for about `seconds` on random inputs.

    model: an ONNX file that its outputs are compared with, as ONNX Runtime computes them here. Raises SecateurError as
    `Device.connect` and `Session` do.
    """
    from backends.remote import RemoteExecutable  # it needs TVM, and nothing else here does

    with RemoteExecutable(artifact_path, device, threads, 2 * seconds + 2 * device.timeout) as executable:
        feeds = random_inputs(executable)
        actual = executable.run(feeds)
        difference = None
        if model is not None:
            difference = largest_difference(onnxruntime_outputs(onnxruntime_session(model, 1), feeds), actual)
        timing = alternate([lambda times: executable.time(feeds, times)], seconds)[0]
        macs = int(executable.manifest["macs"])
    return BenchmarkResult(threads, timing, None, macs, difference)


def timed(call: Callable[[], object]) -> Timed:
    """Time a call of this process."""

    def run(times: int) -> list[float]:
        seconds = []
        for _ in range(times):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return seconds

    return run


def alternate(sides: Sequence[Timed], seconds: float, rounds: int = 1) -> list[Timing]:
    """Time all in turns, for at least so many seconds and so many rounds; each has its turn once a round.

    A turn begins after a short pause with a call that does not count.
    """
    times: list[list[float]] = [[] for _ in sides]
    turns = [_turn(min(side(_WARM_UP))) for side in sides]
    end = time.perf_counter() + seconds
    done = 0
    while done < rounds or time.perf_counter() < end:
        for side, (ignored, counted), record in zip(sides, turns, times, strict=True):
            time.sleep(_PAUSE)
            record += side(ignored + counted)[ignored:]
        done += 1
    return [Timing.of(t) for t in times]


def _turn(seconds: float) -> tuple[int, int]:
    """How many calls of so many seconds a turn begins with, and how many of it count."""
    return (0, 1) if seconds >= _LONG else (1, max(1, min(_CALLS_PER_ROUND, int(_LONG / seconds))))


def random_inputs(
    executable: Executable | NodeExecutable | ProgramExecutable | RemoteExecutable, seed: int = 0
) -> dict[str, np.ndarray]:
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


def largest_difference(expected: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray]) -> float:
    """Largest relative difference of an output."""
    return max(relative_difference(expected[name], actual[name]) for name in actual)


def onnxruntime_outputs(session: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A session's outputs by name."""
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def onnxruntime_session(model: str | Path | bytes, threads: int) -> Any:
    """ONNX Runtime on so many threads with a model's file, or its serialized bytes; E_NO_PEER without it."""
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
