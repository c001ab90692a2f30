"""`python -m tests.accuracy.sparse --data DIR` prints the table of docs/sparsity.md: sparse in one shot, mended or not.

DIR holds Fashion-MNIST's idx files. The bundled network, accuracy on the bundled 1,000 test images.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from compiler.frontends.onnx import load_onnx
from compiler.ir import Graph
from compiler.ir.execute import execute
from examples.fashion_mnist.data import load_split, load_test_images, preprocess
from passes import Context
from passes.sparsity import Sparsify

MODEL = Path(__file__).parents[2] / "examples" / "fashion_mnist" / "fashion_cnn.onnx"
SAMPLES = 512
SPARSITIES: list[tuple[str, float | None]] = [
    *(("unstructured", share) for share in (0.5, 0.7, 0.8, 0.9)),
    ("2:4", None),
    *(("4x1", share) for share in (0.5, 0.7, 0.8)),
]
MENDS = [("none", False), ("batchnorm", False), ("batchnorm", True), ("layers", False), ("layers", True)]
"""What is mended, and whether on samples rather than on noise."""


def accuracy(graph: Graph) -> float:
    """The share of the bundled test images that are classified right."""
    images, labels = load_test_images()
    scores = next(iter(execute(graph, {graph.inputs[0].name: preprocess(images)}).values()))
    return float((scores.argmax(1) == labels).mean())


def row(graph: Graph, pattern: str, share: float | None, samples: np.ndarray) -> tuple[list[str], float]:
    """The cells of a pattern, and the longest time that mending took."""
    cells, longest = [], 0.0
    for mend, seen in MENDS:
        calibration = None if mend == "none" else {graph.inputs[0].name: samples} if seen else "none"
        start = time.monotonic()
        sparse = Sparsify(sparsity=share, pattern=pattern, mend=mend, calibration=calibration)(graph, Context())
        longest = max(longest, time.monotonic() - start)
        cells.append(f"{accuracy(sparse):.1%}".replace("%", " %"))
    return cells, longest


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.accuracy.sparse", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of Fashion-MNIST's idx files, gzipped or not")
    samples = preprocess(load_split(parser.parse_args(arguments).data, "train")[0][:SAMPLES])
    warnings.simplefilter("ignore")
    graph = load_onnx(MODEL)
    print("| pattern | zeros | as it is | batchnorm, noise | batchnorm, samples | layers, noise | layers, samples |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    longest = 0.0
    for pattern, share in SPARSITIES:
        cells, seconds = row(graph, pattern, share, samples)
        longest = max(longest, seconds)
        print(f"| `{pattern}` | {0.5 if share is None else share:.0%} | {' | '.join(cells)} |".replace("%", " %", 1))
    print(f"\nnot sparse: {accuracy(graph):.1%}; the longest took {longest:.1f} s")


if __name__ == "__main__":
    main()
