"""What half precision costs a trained network: the bundled one, on its labelled pictures, under qemu-user.

qemu computes float16 in software, some 30 million products a second: a picture takes the dense network half a second.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backends import load
from compiler import load as load_model
from compiler.ir import Graph
from compiler.ir.execute import execute
from examples.fashion_mnist.data import load_test_images, preprocess
from passes import Context, Pipeline
from passes.sparsity import Sparsify

FOLDER = Path(__file__).parents[2] / "examples" / "fashion_mnist"
PICTURES = 1000
"""Labelled ones that the repository bundles."""
_CALIBRATION, _BATCH = 320, 20
"""Of the pictures so many calibrate, without their labels, as in `secateur demo`; and how many a run classifies."""


@dataclass(frozen=True)
class Answers:
    """Logits of float32 (ONNX Runtime) and of half precision for the same pictures, and their labels."""

    single: np.ndarray
    half: np.ndarray
    labels: np.ndarray

    @property
    def accuracies(self) -> tuple[float, float]:
        """Shares of the pictures that are classified rightly, in float32 and in half precision."""
        single, half = (float(np.mean(logits.argmax(1) == self.labels)) for logits in (self.single, self.half))
        return single, half

    @property
    def changed(self) -> int:
        """Pictures that half precision gives another class."""
        return int(np.sum(self.single.argmax(1) != self.half.argmax(1)))

    @property
    def probability(self) -> float:
        """The largest difference of a probability (softmax of the logits)."""
        return float(np.abs(_softmax(self.single) - _softmax(self.half)).max())

    @property
    def difference(self) -> float:
        """The relative difference of all logits in the Euclidean norm."""
        return float(np.linalg.norm(self.single - self.half) / np.linalg.norm(self.single))


def trained() -> Iterator[tuple[str, Graph]]:
    """Name and graph: the bundled network, half of it trained on, and nine tenths of it zero, mended in closed form."""
    shapes = {"input": (_BATCH, 1, 28, 28)}
    simplify = Pipeline("simplify")
    dense = simplify.run(load_model(FOLDER / "fashion_cnn.onnx", shapes=shapes), Context())
    yield "dense", dense
    pruned = load_model(FOLDER / "fashion_cnn_pruned50_finetuned.onnx", shapes=shapes)
    yield "50 % pruned, fine-tuned", simplify.run(pruned, Context())
    samples = {"input": preprocess(load_test_images()[0][:_CALIBRATION])}
    sparsify = Sparsify(sparsity=0.9, mend="layers", calibration=samples)
    yield "90 % sparse, mended", Pipeline((sparsify,)).run(dense, Context())


def answers(graph: Graph, artifact: Path, count: int) -> Answers:
    """What ONNX Runtime and an artifact of the graph answer for the first `count` pictures, whole batches of them."""
    images, labels = load_test_images()
    pictures, output, batch = preprocess(images[:count]), graph.outputs[0].name, int(graph.inputs[0].shape[0])
    batches = [{"input": pictures[i : i + batch]} for i in range(0, len(pictures), batch)]
    single = [execute(graph, data)[output] for data in batches]
    with load(artifact) as executable, ThreadPoolExecutor(os.cpu_count()) as pool:
        half = [found[output] for found in pool.map(executable.run, batches)]
    return Answers(np.concatenate(single), np.concatenate(half), labels[:count])


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True))
