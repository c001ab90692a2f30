"""Scoring and solving one wide layer in a process of its own: the memory that it takes at the peak.

    python -m tests.benchmarks.wide_layer 16384

Prints the gibibytes at the peak, the seconds, and the relative error of the layer before and after it was solved for.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import numpy as np

from compiler.ir import Graph, Node, Value, infer_shapes
from passes import Context, Prune


def wide_layer(width: int) -> Graph:
    """A perceptron of 64 inputs, `width` hidden units and 16 outputs."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> Value:
        return Value(name, data=rng.standard_normal(shape, np.float32) / np.float32(shape[0] ** 0.5))

    x, a, r, y = Value("x", np.float32, ("N", 64)), Value("a"), Value("r"), Value("y")
    nodes = [
        Node("Gemm", [x, weight("w", 64, width), weight("b", width)], [a]),
        Node("Relu", [a], [r]),
        Node("Gemm", [r, weight("h", width, 16), weight("c", 16)], [y]),
    ]
    graph = Graph("wide", [x], [y], nodes)
    infer_shapes(graph)
    return graph


def peak_gib() -> float:
    """The most memory that this process has held; ru_maxrss would start from what the process that made it held."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) / 2**20


def main(width: int) -> None:
    """Prune a quarter of the hidden units by OBSPA, and print."""
    graph, context, start = wide_layer(width), Context(), time.perf_counter()
    data = np.random.default_rng(1).standard_normal((512, 64), np.float32)
    Prune(ratio=0.25, criterion="obspa", calibration=data)(graph, context)
    mended = context.reports["prune"][0].mended
    assert mended.layers == ["a", "y"] and not mended.left
    seconds = time.perf_counter() - start
    print(f"{peak_gib():.3f} {seconds:.1f} {mended.errors['y'][0]:.4f} {mended.errors['y'][1]:.4f}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
