"""Whole networks against ONNX Runtime: `python -m tests.benchmarks.bench_models [seconds]` (make bench).

Prints, for MobileNetV2 and ResNet-18 at 1x3x224x224: build time, our time and ONNX Runtime's for one and two
threads (alternating rounds in one process), and where the time goes by kind of operator.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from backends import build, load
from backends.benchmark import BenchmarkResult, benchmark, random_inputs
from compiler.frontends.onnx import load_onnx
from tests.benchmarks.models import mobilenet_v2, resnet18


def main(seconds: float = 5.0) -> None:
    """Build and time each network."""
    for name, model in (("MobileNetV2", mobilenet_v2()), ("ResNet-18", resnet18())):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "artifact"
            start = time.perf_counter()
            artifact = build(load_onnx(model), path)
            print(
                f"{name}: built in {time.perf_counter() - start:.1f} s, {artifact.nbytes / 2**20:.1f} MiB, "
                f"activations {artifact.arena_bytes / 2**20:.1f} MiB, {artifact.manifest['macs'] / 1e9:.2f} GMAC"
            )
            for threads in (1, 2):
                print(f"  {_line(benchmark(path, model.SerializeToString(), threads, seconds))}")
            _print_shares(path)


def _line(result: BenchmarkResult) -> str:
    assert result.peer is not None and result.ratio is not None and result.difference is not None
    return (
        f"{result.threads} thread{'s' if result.threads > 1 else ' '}  ours {result.ours.median * 1e3:6.2f} ms "
        f"(spread {result.ours.spread:.0%})  onnxruntime {result.peer.median * 1e3:6.2f} ms (spread "
        f"{result.peer.spread:.0%})  ratio {result.ratio:.2f}  {result.gflops:.0f} GFLOP/s  "
        f"difference {result.difference:.1e}"
    )


def _print_shares(path: Path) -> None:
    with load(path) as executable:
        times = executable.profile(random_inputs(executable), repeats=20)
        layers = executable.manifest["layers"]
    shares: dict[str, float] = defaultdict(float)
    macs: dict[str, int] = defaultdict(int)
    for layer, seconds in zip(layers, times, strict=True):
        shares[layer["schedule"]] += seconds
        macs[layer["schedule"]] += layer["macs"]
    total = sum(shares.values())
    for schedule, seconds in sorted(shares.items(), key=lambda item: -item[1]):
        print(f"    {schedule:16s} {seconds / total:6.1%}  {2 * macs[schedule] / seconds / 1e9:6.1f} GFLOP/s")


if __name__ == "__main__":
    main(*(float(a) for a in sys.argv[1:]))
