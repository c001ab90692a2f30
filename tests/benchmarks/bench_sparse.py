"""Sparse schedules layer by layer: `python -m tests.benchmarks.bench_sparse [density] [block]`.

For typical layers, the dense schedule and the candidates that selection would measure, in turns on one thread: the
speed-up over dense, the share of the multiply-add peak on nonzeros, and how far selection's choice is from the best.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np

from backends.schedules import ConvSpec, Epilogue, MatMulSpec
from backends.selection import Candidate, choose_conv, choose_matmul
from backends.target import Target
from tests.backends.schedules_harness import Library

RELU = Epilogue(True, False, "relu")
_SECONDS = 0.5


def conv(channels: int, size: int, out: int, kernel: int, stride: int = 1) -> ConvSpec:
    """A square convolution with half padding."""
    pads = (kernel // 2,) * 4
    return ConvSpec(1, channels, size, size, out, (kernel, kernel), (stride, stride), pads, (1, 1), 1, RELU)


def product(rows: int, inputs: int, outputs: int) -> MatMulSpec:
    """Tokens by a constant matrix."""
    return MatMulSpec(1, rows, inputs, outputs, weight_side="b", a_batched=False, b_batched=False, epilogue=RELU)


LAYERS = [
    conv(64, 56, 128, 1),
    conv(256, 28, 256, 1),
    conv(512, 14, 512, 1),
    conv(1024, 7, 1024, 1),
    conv(32, 28, 192, 1),
    conv(64, 56, 64, 3),
    conv(256, 14, 256, 3),
    conv(512, 7, 512, 3),
    conv(256, 14, 512, 3, 2),
    product(128, 768, 768),
    product(128, 3072, 768),
]


def main(density: float = 0.1, block: int = 1) -> None:
    """Time each layer."""
    target, generator = Target.native(), np.random.default_rng(0)
    print(f"density {density}, blocks of {block} output channels, one thread")
    for spec in LAYERS:
        is_conv = isinstance(spec, ConvSpec)
        shape = (spec.out_channels, spec.in_channels, *spec.kernel) if is_conv else (spec.n, spec.k)
        keep = np.repeat(generator.random((shape[0] // block, *shape[1:])) < density, block, axis=0)
        weights = np.where(keep, generator.standard_normal(shape), 0).astype(np.float32)
        stored = weights if is_conv else np.ascontiguousarray(weights.T)
        choice = choose_conv(spec, stored, target) if is_conv else choose_matmul(spec, stored, target)
        candidates = sorted((choice.chosen, *choice.others), key=lambda c: c.cycles)[:6]
        dense = next(c for c in (choice.chosen, *choice.others) if c.format == "dense")
        times = _times([*candidates, *([] if dense in candidates else [dense])], spec, stored, target)
        best = min(times, key=lambda label: times[label])
        rate = 2 * spec.macs * np.count_nonzero(weights) / weights.size / times[choice.chosen.label] / 1e9
        print(
            f"{_label(spec):24s} dense {times[dense.label] * 1e6:7.0f} us  {choice.chosen.label:34s} "
            f"{times[dense.label] / times[choice.chosen.label]:5.2f}x  {rate:5.0f} GFLOP/s  "
            f"over the best {times[choice.chosen.label] / times[best]:4.2f} ({best})"
        )


def _times(
    candidates: list[Candidate], spec: ConvSpec | MatMulSpec, weights: np.ndarray, target: Target
) -> dict[str, float]:
    """Seconds of each candidate by label: the lower quartile of rounds in turns."""
    kernels = [candidate.make(target, True) for candidate in candidates]
    library = Library([kernel.func for kernel in kernels], target)
    library.set_tasks(1)
    is_conv = isinstance(spec, ConvSpec)
    size = (spec.in_channels, spec.height, spec.width) if is_conv else (spec.m, spec.k)
    feeds = {"x" if is_conv else "a": np.random.default_rng(1).standard_normal(size).astype(np.float32)}
    outputs = spec.out_channels if is_conv else spec.n
    calls: list[Callable[[], None]] = [
        library.bound(kernel, feeds, kernel.pack(weights, np.zeros(outputs, np.float32))) for kernel in kernels
    ]
    records: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        for call, record in zip(calls, records, strict=True):
            start = time.perf_counter()
            call()
            record.append(time.perf_counter() - start)
    return {c.label: float(np.percentile(r, 25)) for c, r in zip(candidates, records, strict=True)}


def _label(spec: ConvSpec | MatMulSpec) -> str:
    if isinstance(spec, ConvSpec):
        return (
            f"{spec.kernel[0]}x{spec.kernel[1]}/{spec.strides[0]} {spec.in_channels}->{spec.out_channels} {spec.height}"
        )
    return f"product {spec.m}x{spec.k}->{spec.n}"


if __name__ == "__main__":
    main(*(kind(a) for kind, a in zip((float, int), sys.argv[1:], strict=False)))
