"""The networks of `make bench` are those of the papers: their published sizes."""

from __future__ import annotations

import pytest

from compiler.frontends.onnx import load_onnx
from compiler.ir.cost import graph_cost, is_parameter
from tests.benchmarks.models import NETWORKS


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_are_the_published_ones(name: str) -> None:
    network = NETWORKS[name]
    graph = load_onnx(network.make())
    statistics = {v for n in graph.nodes if n.op == "BatchNormalization" for v in n.inputs[3:]}
    params = sum(c.data.size for c in graph.all_constants() if c.data and is_parameter(c) and c not in statistics)
    assert params == network.params
    assert graph_cost(graph).macs == pytest.approx(network.macs, rel=0.015)
