"""Seconds of each step of the road (load, simplify, group, prune, build), for `make bench`."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnx

from backends import build
from compiler.frontends import load
from passes import Pipeline, Prune, dependency_groups
from tests.benchmarks.models import mobilenet_v2, resnet18
from tests.models import light_model

MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "MobileNetV2": mobilenet_v2,
    "ResNet-18": resnet18,
    "ResNet-50": lambda: light_model("resnet50"),
    "DenseNet-121": lambda: light_model("densenet121"),
}


def main() -> None:
    """Print one line a model."""
    for name, make in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            onnx.save(make(), path)
            marks = [time.perf_counter()]
            graph = load(path)
            marks.append(time.perf_counter())
            graph = Pipeline("simplify")(graph)
            marks.append(time.perf_counter())
            groups = dependency_groups(graph)
            marks.append(time.perf_counter())
            pruned = Prune(ratio=0.5)(graph)
            marks.append(time.perf_counter())
            build(pruned, Path(folder) / "artifact")
            marks.append(time.perf_counter())
        steps = ("load", "simplify", "group", "prune", "build")
        seconds = [b - a for a, b in itertools.pairwise(marks)]
        shown = "  ".join(f"{step} {s:.2f}" for step, s in zip(steps, seconds, strict=True))
        print(f"{name}: {len(graph.nodes)} nodes, {len(groups)} groups; {shown}; in all {marks[-1] - marks[0]:.1f} s")


if __name__ == "__main__":
    main()
