"""Every ONNX operator test as a network without inputs: what the operator reads is constant, and what it gives is
weighed by a constant of its shape and summed. So all axes that its coupling rule leaves free belong to groups, which
the certificate proves and from which positions are then removed. Run by `make conformance`.

A skipped case is one that ONNX Runtime cannot run, or whose operator leaves nothing free.
"""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler.frontends import load
from compiler.ir import CheckFailed, Graph, SecateurError, verify
from compiler.ir.execute import execute
from passes import certify, dependency_groups
from passes.coupling.transform import restrict
from tests.conformance.test_roundtrip import _RANDOM, Case, _generated


def _cases() -> list[Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [c for c in _generated() if c.only_tensors and len(c.model.graph.node) == 1 and len(c.inputs)]
    return [c for c in found if c.model.graph.node[0].op_type not in _RANDOM]


CASES = {case.name: case for case in _cases()}


def closed(case: Case) -> Graph:
    """The operator between constants."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    graph, rng = model.graph, np.random.default_rng(0)
    arrays = [numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else np.asarray(x) for x in case.inputs]
    feeds = dict(zip(case.names, arrays, strict=False))
    results = execute(model, feeds)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in feeds.items())
    del graph.input[:]
    del graph.output[:]
    for name, array in results.items():
        weight = rng.uniform(0.5, 2.0, np.shape(array)).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(weight, f"{name}.weight"))
        graph.node.append(helper.make_node("Cast", [name], [f"{name}.float"], to=TensorProto.FLOAT))
        graph.node.append(helper.make_node("Mul", [f"{name}.float", f"{name}.weight"], [f"{name}.weighed"]))
        graph.node.append(helper.make_node("ReduceSumSquare", [f"{name}.weighed"], [f"{name}.sum"], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(f"{name}.sum", TensorProto.FLOAT, []))
    return load(model)


@pytest.mark.parametrize("name", CASES)
def test_rule_is_certified(name: str) -> None:
    try:
        graph = closed(CASES[name])
        execute(graph, {}, optimize=False)
    except Exception as error:  # the runtime lacks the operator, this type, or runs it in inference mode only
        pytest.skip(str(error)[:200])
    groups = dependency_groups(graph)
    if not groups:
        pytest.skip("nothing is free")
    for seed in range(3):  # of two positions, one order in two is the one they have
        try:
            assert certify(graph, groups, seed=seed) <= 1e-4
        except CheckFailed as failure:
            if failure.code != "E_CERTIFICATE_VACUOUS":
                raise
    keep = np.ones(groups.unit_count, bool)
    for group in groups:
        if group.size > 1:
            for block, step in zip(group.blocks, group.step, strict=True):
                keep[block[-step:]] = False
    try:
        pruned = restrict(groups, keep)
    except SecateurError as error:
        if error.code != "E_STRIDED_SLICE":
            raise
        pytest.skip(str(error))
    verify(pruned)
    execute(pruned, {}, optimize=False)
