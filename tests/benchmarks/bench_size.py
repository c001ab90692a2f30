"""How grouping and pruning scale: an 8B-class decoder, and networks of 100 to 10,000 layers, for `make bench-size`."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from compiler.exporters import export
from compiler.frontends import load
from compiler.ir import Graph, Node, Value, infer_shapes
from passes import Context, Pipeline, Prune, dependency_groups
from tests.benchmarks.decoder import Decoder


def residual_chain(layers: int, width: int = 16) -> Graph:
    """`layers` residual blocks of one hidden layer each."""
    rng = np.random.default_rng(0)
    x = Value("x", np.float32, (1, width))
    nodes: list[Node] = []

    def op(kind: str, *inputs: Value) -> Value:
        nodes.append(Node(kind, list(inputs), [Value(f"{kind.lower()}{len(nodes)}")]))
        return nodes[-1].outputs[0]

    def weight(rows: int, columns: int) -> Value:
        return Value(f"w{len(nodes)}", data=rng.standard_normal((rows, columns)).astype(np.float32))

    y = op("MatMul", x, weight(width, width))
    for _ in range(layers):
        hidden = op("Relu", op("MatMul", y, weight(width, width)))
        y = op("Add", y, op("MatMul", hidden, weight(width, width)))
    result = op("MatMul", y, weight(width, 4))
    graph = Graph("chain", [x], [result], nodes)
    infer_shapes(graph)
    return graph


def peak_gib() -> float:
    """Peak resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def decoder(sizes: Decoder, ratio: float = 0.25) -> None:
    """Print the seconds and the memory of each step on a decoder of these sizes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "decoder.onnx"
        params = sizes.write(path)
        print(f"decoder of {params / 1e9:.2f} G parameters; before loading, {peak_gib():.2f} GiB at the peak")
        start = time.perf_counter()

        def mark(step: str) -> None:
            nonlocal start
            now = time.perf_counter()
            print(f"  {step}: {now - start:.1f} s, {peak_gib():.2f} GiB at the peak")
            start = now

        graph = Pipeline("simplify")(load(path))
        mark("load and simplify")
        groups = dependency_groups(graph)
        mark(f"find {len(groups)} groups")
        context = Context()
        pruned = Prune(ratio=ratio, metric="params")(graph, context)
        mark(f"prune {context.reports['prune'][0].reached:.2%} of the parameters")
        files = export(pruned, Path(folder) / "pruned.onnx")
        mark(f"write {sum(f.stat().st_size for f in files) / 2**30:.1f} GiB")


def main() -> None:
    """Print all."""
    for layers in (100, 300, 1000, 3000, 10_000):
        graph = residual_chain(layers)
        start = time.perf_counter()
        groups = dependency_groups(graph)
        seconds = time.perf_counter() - start
        print(
            f"{layers:>6} layers, {len(graph.nodes):>6} nodes: {len(groups):>6} groups in {seconds:6.2f} s, "
            f"{1e6 * seconds / len(graph.nodes):.0f} us a node"
        )
    decoder(Decoder())
    wide = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.wide_layer", "16384"],
        check=True,
        capture_output=True,
        text=True,
    )
    peak, seconds, before, after = wide.stdout.split()
    print(f"a layer of 16,384 inputs, scored and solved by OBSPA: {seconds} s, {peak} GiB at the peak (at most 4)")
    print(f"  relative error of its results {before}, then {after}")


if __name__ == "__main__":
    main()
