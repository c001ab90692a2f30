"""Random small networks compute the same when compiled, pruned or not, as in ONNX Runtime."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings

from backends import build, load
from compiler.ir import Graph, SecateurError
from compiler.ir.execute import execute, random_inputs, relative_difference
from passes import Pipeline, Prune
from tests.strategies import networks


def native_difference(graph: Graph) -> float:
    data = random_inputs(graph, seed=7)
    with tempfile.TemporaryDirectory() as folder, load(build(graph, Path(folder) / "artifact").path) as executable:
        return relative_difference(executable.run(data), execute(graph, data))


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks())
def test_compiled_network_agrees(graph: Graph) -> None:
    assert native_difference(Pipeline("simplify")(graph)) <= 1e-4


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks(max_blocks=6))
def test_pruned_and_compiled_network_agrees(graph: Graph) -> None:
    try:
        pruned = Prune(ratio=0.3, criterion="random", metric="params")(graph)
    except SecateurError as error:
        if error.code not in ("E_RATIO_UNREACHABLE", "E_NOTHING_TO_PRUNE"):
            raise
        return
    assert native_difference(pruned) <= 1e-4
