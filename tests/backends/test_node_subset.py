"""A sample of the ONNX node tests; `make conformance` runs them all."""

from __future__ import annotations

from tests.conformance.test_native_nodes import node_tests, run_batch

EVERY = 9


def test_a_sample_of_the_node_tests() -> None:
    run_batch(list(node_tests())[::EVERY])
