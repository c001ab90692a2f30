"""One case, in a process of its own (`tests.runs`): make the files, compile, time beside the peers, profile."""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from backends import Artifact, build, load
from backends.benchmark import Timed, alternate, largest_difference, onnxruntime_outputs, onnxruntime_session, timed
from backends.runtime.loader import Executable
from compiler.exporters.onnx import save_onnx
from compiler.frontends.onnx import load_onnx
from compiler.ir import Graph, Node
from passes import Pipeline
from tests.benchmarks.case import DENSE, OURS, OURS_DENSE, SAME_FILE, Case
from tests.benchmarks.memory import activation_bytes
from tests.benchmarks.models import NETWORKS
from tests.benchmarks.peak import fma_peak
from tests.benchmarks.peers import PEERS, version
from tests.benchmarks.variants import VARIANTS, nonzero_macs

_PROFILES = 20


def main(name: str) -> None:
    """Measure, and print what was found as JSON objects."""
    case = Case.parse(name)
    with tempfile.TemporaryDirectory(prefix="secateur-bench-") as folder:
        files = _Files(Path(folder), case)
        _tell(**{peer: version(peer) for peer in case.peers})
        _tell(**files.facts())
        for threads in case.threads:
            _tell(**{f"threads {threads}": _timings(files, case, threads)})


def _tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


class _Files:
    """What a case runs on: model files, artifacts, inputs."""

    def __init__(self, folder: Path, case: Case) -> None:
        self.dense, self.model, self.inputs = folder / "dense.onnx", folder / "model.onnx", folder / "inputs.npz"
        dense = NETWORKS[case.network].make()
        onnx.save(dense, self.dense)
        self.graph = VARIANTS[case.variant](load_onnx(self.dense))
        write_variant(dense, self.graph, self.model)
        del dense
        gc.collect()
        self.artifact, self.seconds = _built(self.model, folder / "artifact")
        self.dense_artifact = None if case.variant == DENSE else _built(self.dense, folder / "dense")[0]
        with load(self.artifact.path) as executable:
            self.feeds = random_inputs(executable)
        np.savez(self.inputs, **self.feeds)

    def facts(self) -> dict[str, Any]:
        """What does not depend on the number of threads."""
        expected = onnxruntime_outputs(onnxruntime_session(self.model, 1), self.feeds)
        with load(self.artifact.path) as executable:
            difference = largest_difference(expected, executable.run(self.feeds))
            seconds = executable.profile(self.feeds, _PROFILES)
            shares = _shares(self.graph, executable.manifest["layers"], seconds)
        return {
            "compile": self.seconds,
            "difference": difference,
            "nonzero_macs": nonzero_macs(self.graph),
            "artifact_bytes": _artifact_bytes(self.artifact),
            "dense_bytes": self.dense.stat().st_size,
            "arena_bytes": self.artifact.arena_bytes,
            "peer_arena_bytes": activation_bytes(self.dense, self.inputs),
            "shares": shares,
        }


def write_variant(dense: onnx.ModelProto, graph: Graph, path: Path) -> None:
    """The dense model with the graph's weights, so that it keeps its opset, which old peers read; where shapes have
    changed, the graph as we export it."""
    changed = {value.name: value.data for value in graph.all_constants() if value.data is not None}
    weights = [w for w in dense.graph.initializer if w.name in changed]
    if any(tuple(w.dims) != changed[w.name].shape for w in weights):
        save_onnx(graph, path)
        return
    for weight in weights:
        weight.CopyFrom(onnx.numpy_helper.from_array(changed[weight.name].numpy(), weight.name))
    onnx.save(dense, path)


def random_inputs(executable: Executable, seed: int = 0) -> dict[str, np.ndarray]:
    """Normal numbers, or for integers indices into any vocabulary."""
    generator = np.random.default_rng(seed)

    def one(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        numbers = generator.standard_normal(shape) if dtype.kind == "f" else generator.integers(0, 100, shape)
        return numbers.astype(dtype)

    return {i.name: one(i.shape, i.dtype) for i in executable.inputs}


def _built(model: Path, folder: Path) -> tuple[Artifact, float]:
    """The artifact, and the seconds from the file to it."""
    start = time.perf_counter()
    artifact = build(Pipeline("simplify")(load_onnx(model)), folder)
    return artifact, time.perf_counter() - start


def _artifact_bytes(artifact: Artifact) -> int:
    """What it takes to run: what `--no-model` leaves out is not part of it."""
    unneeded = ("model.onnx", "module.py")
    return sum(f["bytes"] for name, f in artifact.manifest["files"].items() if not name.startswith(unneeded))


def _shares(graph: Graph, layers: Sequence[Mapping[str, Any]], seconds: Sequence[float]) -> dict[str, float]:
    """Share of the time by kind of layer."""
    kinds = {node.name: _kind(node, graph) for node in graph.nodes if node.op in ("Conv", "MatMul")}
    shares: dict[str, float] = defaultdict(float)
    for layer, spent in zip(layers, seconds, strict=True):
        kind = next((kinds[name] for name in layer["nodes"] if name in kinds), layer["op"])
        shares[f"{kind}, sparse" if "sparse" in layer["schedule"] else kind] += spent / sum(seconds)
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _kind(node: Node, graph: Graph) -> str:
    """What a convolution or a product is, in a few words."""
    if node.op == "MatMul":
        weight = node.inputs[1]
        return "MatMul" if weight is not None and weight.data is not None else "MatMul of activations"
    if node.inputs[0] in graph.inputs:
        return "first convolution"
    extents = "x".join(map(str, node.attribute("kernel_shape")))
    return f"depthwise {extents}" if node.attribute("group", 1) > 1 else f"Conv {extents}"


def _timings(files: _Files, case: Case, threads: int) -> dict[str, Any]:
    """Everybody's seconds with so many threads, and the peak of one core before and after."""
    with ExitStack() as stack:
        sides: dict[str, Timed] = {}
        for name, artifact in ((OURS, files.artifact), (OURS_DENSE, files.dense_artifact)):
            if artifact is not None:
                sides[name] = timed(_call(stack.enter_context(load(artifact.path, threads)), files.feeds))
        for peer in case.peers:
            model = files.model if peer in SAME_FILE else files.dense
            sides[peer] = stack.enter_context(PEERS[peer].open(model, threads, files.inputs))
        peak = fma_peak()
        times = alternate(list(sides.values()), case.seconds, case.rounds)
        peak = max(peak, fma_peak())
    return {"peak": peak} | {name: asdict(t) for name, t in zip(sides, times, strict=True)}


def _call(executable: Executable, feeds: dict[str, np.ndarray]) -> Callable[[], object]:
    return lambda: executable.run(feeds)
